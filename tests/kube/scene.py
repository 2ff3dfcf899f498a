"""A namespace with custom resources, Secrets and pods of the service, as the people see it who run a release."""

from __future__ import annotations

import base64
import json
import time
from collections import defaultdict
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from kube.operators import KEYRING, Operator
from kube.service_pods import ServicePod, management_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from kube.apiserver import ApiServer
    from kube.kubelet import Kubelet

PATIENCE_S = 20.0
POLL_S = 0.1
CUSTOM = "/apis/amo-webhooks.io/v1alpha1/namespaces"
PLURALS = {"AmoIntegration": "amointegrations", "SchemaMigration": "schemamigrations"}
ROTATE = "amo-webhooks.io/rotate"
MERGE_PATCH = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
BY_HAND = "fieldManager=person&force=true"


class Scene:
    """Everything in one namespace; ends what it began."""

    def __init__(self, server: ApiServer, namespace: str, folder: Path, kubelet: Kubelet) -> None:
        self.server = server
        self.namespace = namespace
        self.folder = folder
        self.port = management_port()
        self.operators: list[Operator] = []
        self._kubelet = kubelet
        self._ends = ExitStack()
        self._pods: dict[str, ServicePod] = {}
        self._secrets = f"/api/v1/namespaces/{namespace}/secrets"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    # What is there

    def path(self, kind: str, name: str) -> str:
        return f"{CUSTOM}/{self.namespace}/{PLURALS[kind]}/{name}"

    def get(self, name: str, kind: str = "AmoIntegration") -> dict[str, Any]:
        return self.server.ask("GET", self.path(kind, name))

    def status(self, name: str, kind: str = "AmoIntegration") -> dict[str, Any]:
        found: dict[str, Any] = self.get(name, kind).get("status", {})
        return found

    def reason(self, name: str, kind: str = "AmoIntegration", condition: str = "Ready") -> str:
        """Return a condition as ``status reason``, once it is about the present spec."""
        resource = self.get(name, kind)
        status = resource.get("status", {})
        held = {each["type"]: f"{each['status']} {each['reason']}" for each in status.get("conditions", [])}
        is_current = status.get("observedGeneration") == resource["metadata"]["generation"]
        return held.get(condition, "") if is_current else ""

    def message(self, name: str, kind: str = "AmoIntegration") -> str:
        return next((each["message"] for each in self.status(name, kind).get("conditions", []) if each["type"] == "Ready"), "")

    def secret(self, name: str) -> dict[str, str]:
        """Return the texts of a Secret; none if it is not there."""
        data = self.server.ask("GET", f"{self._secrets}/{name}").get("data") or {}
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def document(self, name: str) -> dict[str, Any]:
        """Return the published keyring of an integration."""
        found: dict[str, Any] = json.loads(self.secret(KEYRING).get(name) or '{"keys": [], "generation": 0, "retired": []}')
        return found

    def keys(self, name: str) -> dict[tuple[str, str], list[str]]:
        """Return the fingerprints of an integration's keys by kind and state, as the status shows them."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for key in self.status(name).get("keys", []):
            found[key["kind"], key["state"]].append(key["fingerprint"])
        return dict(found)

    def events(self, name: str) -> dict[str, str]:
        """Return what the Events about an object say, by reason."""
        items = self.server.ask("GET", f"/api/v1/namespaces/{self.namespace}/events")["items"]
        return {each["reason"]: each["message"] for each in items if each["involvedObject"]["name"] == name}

    @property
    def pods(self) -> list[ServicePod]:
        """The pods of the service that are there."""
        return list(self._pods.values())

    def let_rounds_pass(self, number: int = 3) -> None:
        """Wait until the last operator has compared everything this often: for what must not happen."""
        for _ in range(number):
            before = self._last_round()
            self.until(lambda before=before: self._last_round() != before)

    def _last_round(self) -> str:
        page = self.operators[-1].page("/metrics").text
        return next(line for line in page.splitlines() if line.startswith("amo_operator_last_round_seconds "))

    # What people do

    def apply(self, manifest: Mapping[str, Any]) -> None:
        """Write a custom resource as a person does."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        self.server.ask("PATCH", f"{self.path(kind, name)}?{BY_HAND}", dict(manifest), content_type=APPLY)

    def change(self, name: str, kind: str = "AmoIntegration", **spec: Any) -> None:
        """Change fields of a spec."""
        self.server.ask("PATCH", self.path(kind, name), {"spec": spec}, content_type=MERGE_PATCH)

    def ask_to_rotate(self, name: str, text: str) -> None:
        body = {"metadata": {"annotations": {ROTATE: text}}}
        self.server.ask("PATCH", self.path("AmoIntegration", name), body, content_type=MERGE_PATCH)

    def delete(self, name: str, kind: str = "AmoIntegration") -> None:
        self.server.ask("DELETE", self.path(kind, name))

    def write_secret(self, name: str, **texts: str) -> None:
        """Write a Secret as a person does: these fields and whatever else it has."""
        manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": texts}
        if not self.server.ask("PATCH", f"{self._secrets}/{name}", {"stringData": texts}, content_type=MERGE_PATCH):
            self.server.ask("POST", self._secrets, manifest)

    def delete_secret(self, name: str) -> None:
        self.server.ask("DELETE", f"{self._secrets}/{name}")

    # Who is there

    def pod(self, name: str, **metadata: Any) -> ServicePod:
        """Begin a pod of the service."""
        pod = ServicePod(self.server, self.namespace, name, self._kubelet.folder / "mounts" / name / KEYRING, self.port, **metadata)
        self._ends.callback(self._close_pod, name)
        self._pods[name] = pod
        mounted = self._kubelet.mount(KEYRING, name)
        assert mounted == pod.folder
        return pod

    def end_pod(self, name: str) -> None:
        """End a pod, and remove it."""
        self._pods.pop(name).end()

    def _close_pod(self, name: str) -> None:
        if name in self._pods:
            self._pods.pop(name).close()

    def deployment(self, **status: int) -> None:
        """Make or change the service's Deployment, as far as it says how a rollout goes."""
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments"
        labels = {"app.kubernetes.io/name": "amo-webhooks", "app.kubernetes.io/component": "service"}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "service", "image": "amo:1"}]}}
        body = {"metadata": {"name": "crm", "labels": labels}, "spec": {"selector": {"matchLabels": labels}, "template": template}}
        if not self.server.ask("GET", f"{path}/crm"):
            self.server.ask("POST", path, body)
        self.server.ask("PATCH", f"{path}/crm/status", {"status": status}, content_type=MERGE_PATCH)

    def operator(self, kubeconfig: Path | None = None, **environment: str) -> Operator:
        """Start an operator; with all rights unless an access is given."""
        folder = self.folder / f"operator-{len(self.operators) + 1}"
        access = kubeconfig or self.server.kubeconfig
        operator = Operator(access, self.namespace, folder, management_port=self.port, **environment)
        self.operators.append(operator.start())
        self._ends.callback(operator.end)
        return operator

    def until(self, holds: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
        """Wait for what must come to hold; else fail with everything that tells why it does not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._kubelet.check()
            if holds():
                return
            time.sleep(POLL_S)
        objects = [each for plural in PLURALS.values() for each in self.server.ask("GET", f"{CUSTOM}/{self.namespace}/{plural}")["items"]]
        stood = "\n".join(json.dumps({"name": each["metadata"]["name"], "status": each.get("status")}, indent=1) for each in objects)
        logs = "\n".join(f"--- {operator.log_path}\n{operator.log}" for operator in self.operators)
        raise AssertionError(f"it did not come to hold within {timeout_s} s\n{stood}\n{logs}")
