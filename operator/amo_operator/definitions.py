"""Bring the cluster's CustomResourceDefinitions to this release: ``python -m amo_operator.definitions``, before an upgrade."""

from __future__ import annotations

import sys
from http import HTTPStatus
from typing import Any

from lightkube import Client
from lightkube.core.exceptions import ApiError
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition

from amo_operator.crds import DEFINITIONS, render
from amo_operator.resources import FIELD_MANAGER


# Any: its models say that each field may be absent, also those that the API server always fills.
def apply(client: Any) -> list[str]:
    """Apply each definition that differs from the cluster's, and return their names.

    :raises ApiError: one is not there, or may not be changed.
    """
    applied = []
    for definition in DEFINITIONS:
        manifest = render(definition)
        name = manifest["metadata"]["name"]
        seen = client.get(CustomResourceDefinition, name)
        made = client.apply(CustomResourceDefinition.from_dict(manifest), force=True)
        if seen.metadata.generation != made.metadata.generation:
            applied.append(name)
    return applied


def main() -> None:
    """Do it; trouble is one sentence and an exit code."""
    with Client(field_manager=FIELD_MANAGER) as client:
        try:
            applied = apply(client)
        except ApiError as error:
            if error.status.code == HTTPStatus.NOT_FOUND:  # as some tools run the hook: before the first installation, too
                print("Changed: nothing, they are not there yet")  # noqa: T201
                return
            sys.exit(f"The definitions of the custom resources stay as they are: {error}")
    print("Changed:", ", ".join(applied) or "nothing")  # noqa: T201


if __name__ == "__main__":
    main()
