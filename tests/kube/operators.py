"""The operator under test, as a process with a ServiceAccount's rights, and the custom resources that it works on."""

from __future__ import annotations

import os
import re
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from amo_receiver.embedded.folder import free_port
from children import Child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

README = Path(__file__).parents[2] / "operator" / "README.md"
KEYRING = "crm-keyring"
SERVICE_LABELS = {"app.kubernetes.io/name": "amo-webhooks", "app.kubernetes.io/component": "service"}
ROW = re.compile(r"\|(?P<group>[^|]*)\|(?P<resources>[^|]*)\|(?P<verbs>[^|]*)\|(?P<names>[^|]*)\|(?P<why>[^|]+)\|")


def documented_rules(secrets: Sequence[str], inputs: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read the Role out of the README's table, for these names of Secrets that it writes and of those that it only reads."""
    table = README.read_text(encoding="utf-8").split("<!-- rbac -->")[1].split("<!-- /rbac -->")[0]
    rules = []
    for line in table.strip().splitlines()[2:]:
        row = ROW.fullmatch(line)
        assert row, f"not understood: {line}"
        rule: dict[str, Any] = {
            "apiGroups": [row["group"].strip().strip("`")],
            "resources": re.findall(r"`([^`]+)`", row["resources"]),
            "verbs": row["verbs"].strip().split(", "),
        }
        if row["names"].strip():
            rule["resourceNames"] = [*secrets, *(inputs if "inputs" in row["names"] else ())]
        rules.append(rule)
    assert rules, "no rules"
    return rules


class Operator(Child):
    """``python -m amo_operator``; ready when its liveness page answers."""

    def __init__(self, kubeconfig: Path, namespace: str, folder: Path, *, management_port: int = 9000, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        env = {
            "PATH": os.defpath,
            "HOME": str(folder),
            "KUBECONFIG": str(kubeconfig),
            "PYTHONUNBUFFERED": "1",
            "AMO_OPERATOR_NAMESPACE": namespace,
            "AMO_OPERATOR_INSTANCE": "crm",
            "AMO_OPERATOR_KEYRING_SECRET": KEYRING,
            "AMO_OPERATOR_MANAGEMENT_PORT": str(management_port),
            "AMO_OPERATOR_INTERVAL_SECONDS": "0.5",
            "AMO_OPERATOR_PAGES_HOST": "127.0.0.1",
            **environment,
        }
        super().__init__([sys.executable, "-m", "amo_operator"], cwd=folder, env=env, log_path=folder / "operator.log")
        self._take_a_port()

    def _take_a_port(self) -> None:
        port = free_port()
        self._pages = f"http://127.0.0.1:{port}"
        self.env["AMO_OPERATOR_PAGES_PORT"] = str(port)

    def start(self) -> Self:
        """Start it; at another port if somebody was quicker."""
        try:
            return super().start()
        except AssertionError:
            if "address already in use" not in self.log:
                raise
        self._take_a_port()
        return super().start()

    def page(self, path: str) -> httpx.Response:
        """Ask for /livez or /metrics."""
        return httpx.get(f"{self._pages}{path}", timeout=5)

    def is_ready(self) -> bool:
        """Tell whether it serves its pages."""
        try:
            return self.page("/livez").is_success
        except httpx.TransportError:
            return False


@contextmanager
def looking_after(operator: Operator, is_to_be_killed: Callable[[], bool] = lambda: False) -> Iterator[list[int]]:
    """Start the operator anew whenever it has ended, as the cluster does, and kill it when it is time; yield how often it ended."""
    over, ends, problems = threading.Event(), [0], list[BaseException]()

    def look() -> None:
        try:
            while not over.wait(0.02):
                if is_to_be_killed():
                    operator.kill()
                if operator.process.poll() is not None:
                    ends[0] += 1
                    operator.start()
        except BaseException as error:  # noqa: BLE001 - raised where the test waits for the end
            problems.append(error)

    looker = threading.Thread(target=look, name="looking-after")
    looker.start()
    try:
        yield ends
    finally:
        over.set()
        looker.join()
        if problems:
            raise problems[0]


def integration(name: str, **spec: Any) -> dict[str, Any]:
    """Build an AmoIntegration; without anything else of generated keys."""
    keys = {} if {"clientSecretRef", "clientSecret", "urlKey"} & set(spec) else {"urlKey": {}}
    return _resource("AmoIntegration", name, {"clientId": f"client-{name}", **keys, **spec})


def schema_migration(name: str, **spec: Any) -> dict[str, Any]:
    """Build a SchemaMigration of the image ``amo:1``."""
    return _resource("SchemaMigration", name, {"image": "amo:1", "databaseSecretRef": {"name": "database"}, **spec})


def _resource(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "amo-webhooks.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}
