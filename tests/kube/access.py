"""A call to the API server as RBAC sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
WRITES = {*VERBS.values(), "deletecollection"}
NAMESPACE_PARTS = {"status", "finalize"}


class Access(NamedTuple):
    """What a Role must allow; ``name`` and ``namespace`` are empty where the call has none."""

    verb: str
    group: str
    resource: str
    subresource: str
    name: str
    namespace: str

    @property
    def is_write(self) -> bool:
        """Tell whether it changes anything."""
        return self.verb in WRITES

    @property
    def ruled(self) -> str:
        """Its resource as the rules of a Role write it."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


def access_of(method: str, path: str, query: Mapping[str, str]) -> Access | None:
    """Read a request as the API server's authorizer does; None for paths that are no resource, such as /version and discovery."""
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"]:
        group, rest = "", parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 1:
        group, rest = parts[1], parts[3:]
    else:
        return None
    if not rest:
        return None
    namespace = rest[1] if rest[0] == "namespaces" and len(rest) > 1 else ""
    if namespace and len(rest) > 2 and rest[2] not in NAMESPACE_PARTS:
        rest = rest[2:]
    resource, name, subresource = [*rest, "", ""][:3]
    return Access(_verb(method, name, query), group, resource, subresource, name or _selected_name(query), namespace)


def _verb(method: str, name: str, query: Mapping[str, str]) -> str:
    if method == "DELETE" and not name:
        return "deletecollection"
    if method in VERBS:
        return VERBS[method]
    if name:
        return "get"
    return "watch" if query.get("watch", "") in ("1", "true", "True") else "list"


def _selected_name(query: Mapping[str, str]) -> str:
    """Return the one name that a list or watch asks for: rules with ``resourceNames`` allow that."""
    selectors = [part.split("=", 1) for part in query.get("fieldSelector", "").replace("==", "=").split(",")]
    return next((selector[1] for selector in selectors if selector[0] == "metadata.name"), "")


def is_allowed(access: Access, rules: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the rules of a Role allow a call."""
    return any(_covers(rule, access) for rule in rules)


def _covers(rule: Mapping[str, Any], access: Access) -> bool:
    names: Iterable[str] = rule.get("resourceNames") or ()
    return (
        access.verb in rule["verbs"]
        and access.group in rule["apiGroups"]
        and access.ruled in rule["resources"]
        and (not names or access.name in names)
    )


def unused(accesses: Iterable[Access], rules: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what rules grant that no call has used: ``verb group/resource`` and the name where there is one."""
    accesses = list(accesses)
    granted = [
        {"verbs": [verb], "apiGroups": [group], "resources": [resource], "resourceNames": [name] if name else []}
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
    ]
    return [
        " ".join([each["verbs"][0], f"{each['apiGroups'][0]}/{each['resources'][0]}", *each["resourceNames"]])
        for each in granted
        if not any(_covers(each, access) for access in accesses)
    ]
