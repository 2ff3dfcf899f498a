"""Any Kubernetes cluster, through kubectl and helm: KUBECONFIG says which, E2E_ENTER is put before what has to reach its network."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

POLL_S = 0.5
PATIENCE_S = 120.0
COMMAND_S = 400.0
INGRESS = os.environ.get("E2E_INGRESS", "127.0.0.1:30080")
ENTER = shlex.split(os.environ.get("E2E_ENTER", ""))
QUERY = """
import asyncio, json, sys
from sqlalchemy import text
from amo_receiver.commands.database import ask

async def query(engine):
    async with engine.connect() as connection:
        return [list(row) for row in await connection.execute(text(sys.argv[1]))]

print(json.dumps(ask(query), default=str))
"""


HOLD = """
import asyncio, sys
from sqlalchemy import text
from amo_receiver.commands.database import ask

async def hold(engine):
    async with engine.begin() as connection:
        await connection.execute(text(sys.argv[1]))
        print("held", flush=True)
        await asyncio.to_thread(sys.stdin.read)

ask(hold)
"""


class Cluster:
    """One namespace of it."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def run(self, *command: str, stdin: str | bytes = "", check: bool = True, timeout_s: float = COMMAND_S) -> str:
        """Run a program in the cluster's network and return what it prints; fail with both outputs if it fails."""
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run([*ENTER, *command], input=given, capture_output=True, check=False, timeout=timeout_s)
        printed, complained = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(command)} ended with {done.returncode}:\n{printed[-6000:]}\n{complained[-6000:]}")
        return printed if check else printed + complained

    def kubectl(self, *arguments: str, stdin: str | bytes = "", check: bool = True) -> str:
        """Run kubectl in the namespace."""
        return self.run("kubectl", "--namespace", self.namespace, *arguments, stdin=stdin, check=check)

    def helm(self, *arguments: str, check: bool = True) -> str:
        """Run helm in the namespace."""
        return self.run("helm", "--namespace", self.namespace, *arguments, check=check)

    def get(self, *arguments: str) -> dict[str, Any]:
        """Return an object or a list of them; empty if it is not there."""
        found: dict[str, Any] = json.loads(self.kubectl("get", "--ignore-not-found", "-o", "json", *arguments) or "{}")
        return found

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the objects of a list."""
        found: list[dict[str, Any]] = self.get(*arguments).get("items", [])
        return found

    def pods(self, component: str) -> list[str]:
        """Return the names of a component's pods that are not ending."""
        items = self.items("pods", "-l", f"app.kubernetes.io/component={component}")
        return sorted(each["metadata"]["name"] for each in items if "deletionTimestamp" not in each["metadata"])

    def secret(self, name: str) -> dict[str, str]:
        """Return the texts of a Secret; none if it is not there."""
        data: Mapping[str, str] = self.get("secret", name).get("data") or {}
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def condition(self, kind: str, name: str, condition: str = "Ready") -> dict[str, Any]:
        """Return a condition that is about the present spec; empty if there is none."""
        found = self.get(kind, name)
        status = found.get("status", {})
        if status.get("observedGeneration") != found.get("metadata", {}).get("generation"):
            return {}
        return next((each for each in status.get("conditions", []) if each["type"] == condition), {})

    def condition_of(self, kind: str, name: str, condition: str) -> str:
        """Return the status of a condition of one of Kubernetes' own objects; empty if there is none."""
        found = self.get(kind, name).get("status", {}).get("conditions", [])
        return next((str(each["status"]) for each in found if each["type"] == condition), "")

    def apply(self, path: Path) -> None:
        """Apply the manifests of a file, each in its own namespace."""
        self.run("kubectl", "apply", "-f", "-", stdin=path.read_text(encoding="utf-8"))

    def query(self, statement: str) -> list[list[Any]]:
        """Ask the release's database, from a pod of the service."""
        pod = self.ready_pod("service")
        printed = self.kubectl("exec", pod, "-c", "service", "--", "python3", "-c", QUERY, statement)
        rows: list[list[Any]] = json.loads(printed.splitlines()[-1])
        return rows

    @contextmanager
    def transaction(self, statement: str) -> Iterator[None]:
        """Keep a transaction open in the database while the block runs."""
        pod = self.ready_pod("service")
        command = [*ENTER, "kubectl", "-n", self.namespace, "exec", "-i", pod, "-c", "service", "--", "python3", "-c", HOLD, statement]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdin, "a pipe"
            assert holder.stdout, "a pipe"
            try:
                assert holder.stdout.readline() == "held\n", "the transaction does not begin"
                yield
            finally:
                holder.stdin.close()

    def ready_pod(self, component: str) -> str:
        """Return the name of a pod that is ready."""
        for each in self.items("pods", "-l", f"app.kubernetes.io/component={component}"):
            conditions = {one["type"]: one["status"] for one in each["status"].get("conditions", [])}
            if conditions.get("Ready") == "True" and "deletionTimestamp" not in each["metadata"]:
                name: str = each["metadata"]["name"]
                return name
        raise AssertionError(f"no pod of {component} is ready:\n{self.kubectl('get', 'pods', check=False)}")

    def until(self, holds: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> float:
        """Wait for what must come to hold, and return how long it took; else fail with what tells why it does not."""
        began = time.monotonic()
        while not holds():
            if time.monotonic() > began + timeout_s:
                raise AssertionError(f"{what}: not within {timeout_s:.0f} s\n{self.state()}")
            time.sleep(POLL_S)
        return time.monotonic() - began

    def state(self) -> str:
        """Return what a person would look at."""
        shown = [self.kubectl("get", "pods,jobs,amoint,schemamig", "-o", "wide", check=False)]
        shown += [self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)[-5000:]]
        for component in ("service", "operator", "pgbouncer", "postgres"):
            shown += [self.kubectl("logs", "-l", f"app.kubernetes.io/component={component}", "--tail=25", "--prefix", check=False)]
        return "\n".join(shown)
