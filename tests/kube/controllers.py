"""What the controllers of a cluster do and nobody does here: begin and end namespaces, collect garbage."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from amo_receiver.embedded.processes import wait_until
from kube.apiserver import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kube.apiserver import ApiServer

DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
MERGE_PATCH = "application/merge-patch+json"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
BACKGROUND = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background", "gracePeriodSeconds": 0}
END_TIMEOUT_S = 10.0


class Stored(NamedTuple):
    """An object and its own path."""

    path: str
    manifest: dict[str, Any]

    @property
    def metadata(self) -> dict[str, Any]:
        """Its name, owners, finalizers."""
        found: dict[str, Any] = self.manifest["metadata"]
        return found

    def __str__(self) -> str:
        return f"{self.path} (finalizers: {self.metadata.get('finalizers', [])})"


def resource_paths(server: ApiServer, namespace: str) -> list[str]:
    """Return the paths of all kinds of objects that a namespace can hold, once each."""
    paths: dict[tuple[str, str], str] = {}
    for root in ("/api", "/apis"):
        for group in server.ask("GET", root, Accept=DISCOVERY)["items"]:
            name = group["metadata"].get("name", "")
            for version in group["versions"]:  # the preferred one comes first
                for resource in version.get("resources", []):
                    if resource["scope"] == "Namespaced" and {"list", "delete"} <= set(resource["verbs"]):
                        prefix = "/".join(part for part in (root, name, version["version"]) if part)
                        paths.setdefault((name, resource["resource"]), f"{prefix}/namespaces/{namespace}/{resource['resource']}")
    return [path for (group, _), path in paths.items() if group != "events.k8s.io"]  # the same events as those without a group


def stored(server: ApiServer, namespace: str) -> Iterator[Stored]:
    """Return all objects of a namespace."""
    for path in resource_paths(server, namespace):
        for item in server.ask("GET", path).get("items", []):
            yield Stored(f"{path}/{item['metadata']['name']}", item)


def begin_namespace(server: ApiServer, name: str) -> None:
    """Create a namespace in which only restricted pods may run, with the ServiceAccount that pods have unless they name one."""
    server.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": RESTRICTED}})
    server.ask("POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})


def end_namespace(server: ApiServer, name: str, *, force: bool = False) -> list[str]:
    """Delete a namespace with its content; what a finalizer holds is returned and the namespace stays, unless it is forced."""
    server.ask("DELETE", f"/api/v1/namespaces/{name}")
    for each in stored(server, name):
        server.ask("DELETE", each.path, BACKGROUND)
    held = list(stored(server, name))
    if held and not force:
        return [str(each) for each in held]
    for each in held:
        server.ask("PATCH", each.path, {"metadata": {"finalizers": None}}, content_type=MERGE_PATCH)
    namespace = server.ask("GET", f"/api/v1/namespaces/{name}")
    if namespace:
        namespace["spec"]["finalizers"] = []
        del namespace["metadata"]["resourceVersion"]  # whatever became of it meanwhile
        server.ask("PUT", f"/api/v1/namespaces/{name}/finalize", namespace)
    assert wait_until(lambda: not server.ask("GET", f"/api/v1/namespaces/{name}"), END_TIMEOUT_S)
    return []


def collect_garbage(server: ApiServer, namespace: str) -> list[str]:
    """Delete what has lost all its owners, until nothing has; return the paths of what went."""
    gone: list[str] = []
    while True:
        objects = {each.metadata["uid"]: each for each in stored(server, namespace)}
        released = [_let_go(server, each, [other for other in objects.values() if _is_owned_by(other, each)]) for each in objects.values()]
        lost = [each for each in objects.values() if _has_lost_its_owners(each, set(objects)) and "deletionTimestamp" not in each.metadata]
        for each in lost:
            _delete_this_one(server, each)
        gone += [each.path for each in lost]
        if not lost and not any(released):
            return gone


def _delete_this_one(server: ApiServer, each: Stored) -> None:
    try:
        server.ask("DELETE", each.path, {**BACKGROUND, "preconditions": {"uid": each.metadata["uid"]}})
    except Refused as refusal:
        if refusal.status != HTTPStatus.CONFLICT:  # there is another one of its name by now
            raise


def _is_owned_by(each: Stored, owner: Stored) -> bool:
    return any(reference["uid"] == owner.metadata["uid"] for reference in each.metadata.get("ownerReferences", []))


def _has_lost_its_owners(each: Stored, uids: set[str]) -> bool:
    owners = [reference["uid"] for reference in each.metadata.get("ownerReferences", [])]
    return bool(owners) and not uids & set(owners)


def _let_go(server: ApiServer, each: Stored, dependents: list[Stored]) -> bool:
    """Do what the garbage collector's own finalizers on a deleted object ask for; return whether there was one."""
    finalizers = each.metadata.get("finalizers", [])
    if "deletionTimestamp" not in each.metadata or not {"orphan", "foregroundDeletion"} & set(finalizers):
        return False
    for dependent in dependents:
        if "orphan" in finalizers:
            kept = [reference for reference in dependent.metadata["ownerReferences"] if reference["uid"] != each.metadata["uid"]]
            server.ask("PATCH", dependent.path, {"metadata": {"ownerReferences": kept}}, content_type=MERGE_PATCH)
        else:
            server.ask("DELETE", dependent.path, BACKGROUND)
    left = [name for name in finalizers if name not in ("orphan", "foregroundDeletion")]
    server.ask("PATCH", each.path, {"metadata": {"finalizers": left}}, content_type=MERGE_PATCH)
    return True
