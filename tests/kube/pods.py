"""Pods of the service as the API server knows them, and the Secrets that are mounted into them, without containers."""

from __future__ import annotations

import base64
import itertools
import shutil
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kube.apiserver import ApiServer

NODE = "node-of-the-tests"
IMAGE = "registry.invalid/amo-webhooks:1"
MERGE_PATCH = "application/merge-patch+json"
SECURITY = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


def now() -> str:
    """Return this second as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod_status(phase: str, ip: str, container: str, state: Mapping[str, Any], *, ready: bool = False) -> dict[str, Any]:
    """Build what a kubelet says about a pod with one container."""
    flags = {"Ready": ready, "ContainersReady": ready, "Initialized": True, "PodScheduled": True}
    status = {
        "name": container,
        "state": dict(state),
        "ready": ready,
        "started": "running" in state,
        "restartCount": 0,
        "image": IMAGE,
        "imageID": "",
    }
    return {
        "phase": phase,
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "hostIP": "127.0.0.1",
        "startTime": now(),
        "conditions": [{"type": name, "status": str(value), "lastTransitionTime": now()} for name, value in flags.items()],
        "containerStatuses": [status],
    }


class Pods:
    """The pods of a namespace."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server = server
        self.path = f"/api/v1/namespaces/{namespace}/pods"

    def add(
        self,
        name: str,
        labels: Mapping[str, str],
        *,
        ip: str = "127.0.0.1",
        annotations: Mapping[str, str] | None = None,
        owner: Mapping[str, Any] | None = None,
        ready: bool = True,
    ) -> dict[str, Any]:
        """Create a pod of the service, running and ready; its address may be one that a process of the test listens on."""
        container = {"name": "service", "image": IMAGE, "securityContext": CONTAINER_SECURITY}
        metadata = {
            "name": name,
            "labels": dict(labels),
            "annotations": dict(annotations or {}),
            "ownerReferences": [dict(owner)] if owner else [],
        }
        self.create({"metadata": metadata, "spec": {"containers": [container], "securityContext": SECURITY}})
        return self.report(name, "Running", ip=ip, ready=ready)

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Create any pod, as one that a scheduler has given to a node; without an API for itself."""
        spec = {"nodeName": NODE, "automountServiceAccountToken": False, **manifest["spec"]}
        return self._server.ask("POST", self.path, {"apiVersion": "v1", "kind": "Pod", **manifest, "spec": spec})

    def report(self, name: str, phase: str, *, ip: str = "127.0.0.1", ready: bool = False, container: str = "service") -> dict[str, Any]:
        """Say how a pod is: Pending, Running, Succeeded or Failed."""
        states: dict[str, dict[str, Any]] = {
            "Pending": {"waiting": {"reason": "ContainerCreating"}},
            "Running": {"running": {"startedAt": now()}},
            "Succeeded": {"terminated": {"exitCode": 0, "startedAt": now(), "finishedAt": now()}},
            "Failed": {"terminated": {"exitCode": 1, "startedAt": now(), "finishedAt": now()}},
        }
        return self.write_status(name, pod_status(phase, ip, container, states[phase], ready=ready))

    def write_status(self, name: str, status: Mapping[str, Any]) -> dict[str, Any]:
        """Write the status of a pod; nothing if it is gone."""
        return self._server.ask("PATCH", f"{self.path}/{name}/status", {"status": dict(status)}, content_type=MERGE_PATCH)

    def get(self, name: str) -> dict[str, Any]:
        """Return a pod, or nothing."""
        return self._server.ask("GET", f"{self.path}/{name}")

    def terminate(self, name: str, *, grace_s: int = 30) -> None:
        """Ask a pod to end: it has a ``deletionTimestamp`` and stays until it is removed."""
        self._server.ask("DELETE", f"{self.path}/{name}", {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": grace_s})

    def remove(self, name: str) -> None:
        """Remove a pod at once, as a kubelet does when its containers have ended."""
        self.terminate(name, grace_s=0)


class Mount:
    """A Secret as a folder of a pod: its files change together, by one swap of a symbolic link."""

    _numbers = itertools.count(1)

    def __init__(self, server: ApiServer, namespace: str, secret: str, pod: str, folder: Path, *, delay_s: float) -> None:
        self._server = server
        self._pod_path = f"/api/v1/namespaces/{namespace}/pods/{pod}"
        self._secret_path = f"/api/v1/namespaces/{namespace}/secrets/{secret}"
        self._folder = folder
        self._delay_s = delay_s
        self._written: dict[str, str] | None = None
        self._changed_at: float | None = None
        self._annotations: dict[str, str] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def sync(self) -> None:
        """Write what the Secret holds: at first, when an annotation of the pod has changed, or when it is known for long enough."""
        pod = self._server.ask("GET", self._pod_path)
        if not pod:
            return
        data: dict[str, str] = self._server.ask("GET", self._secret_path).get("data") or {}
        annotations = pod["metadata"].get("annotations", {})
        nudged = annotations != self._annotations
        self._annotations = annotations
        if data == self._written:
            self._changed_at = None
            return
        self._changed_at = self._changed_at or time.monotonic()
        if nudged or time.monotonic() - self._changed_at >= self._delay_s:
            self._write(data)

    def _write(self, data: dict[str, str]) -> None:
        """Do what the kubelet's atomic writer does: a new folder, ``..data`` swapped to it, links to what is in there."""
        link = self._folder / "..data"
        before = self._folder / link.readlink() if link.is_symlink() else None
        version = self._folder / f"..{next(self._numbers)}"
        version.mkdir()
        for name, content in data.items():
            (version / name).write_bytes(base64.b64decode(content))
        (self._folder / "..data_tmp").symlink_to(version.name)
        (self._folder / "..data_tmp").replace(link)
        shown = {path.name for path in self._folder.iterdir() if not path.name.startswith("..")}
        for name in set(data) - shown:
            (self._folder / name).symlink_to(f"..data/{name}")
        for name in shown - set(data):
            (self._folder / name).unlink()
        if before:
            shutil.rmtree(before)
        self._written = data
        self._changed_at = None
