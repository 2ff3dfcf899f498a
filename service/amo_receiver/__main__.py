"""The command `amo-webhooks`."""

from __future__ import annotations

import sys

from amo_receiver.commands import app
from amo_receiver.errors import AmoWebhooksError, ConfigurationError
from amo_receiver.telemetry.command import traced


def main() -> None:
    """Run a command; an error is one sentence on standard error and an exit code, never a traceback."""
    try:
        with traced(sys.argv[1] if len(sys.argv) > 1 else ""):
            app()
    except AmoWebhooksError as error:
        print(f"amo-webhooks: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)


if __name__ == "__main__":
    main()
