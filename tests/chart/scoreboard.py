"""What charts are measured by, counted over what one renders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chart.rendering import component, containers, of_kind, pods

if TYPE_CHECKING:
    from chart.rendering import Manifest

SCOREBOARD = "scoreboard"
"""Name of the property under which a test leaves its row for the summary."""
COLUMNS = (
    "restricted",
    "without requests",
    "without read-only root",
    "images that take a digest",
    "cluster-wide Secret rules",
    "NetworkPolicy",
    "PodDisruptionBudget",
)
SAFE_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
ENDING = {"Job", "Pod"}


@dataclass(frozen=True)
class Mark:
    """One column: what is shown, and what lacks full marks."""

    shown: str
    missing: tuple[str, ...]


def unrestricted(pod: Manifest) -> list[str]:
    """Return what in a pod the restricted Pod Security Standard refuses."""
    spec = pod["spec"]
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    found += [each["name"] for each in spec.get("volumes", []) if not set(each) - {"name"} <= SAFE_VOLUMES]
    above = spec.get("securityContext", {})
    for container in containers(pod):
        own = container.get("securityContext", {})
        either = above | own
        wanted = {
            "runAsNonRoot": either.get("runAsNonRoot") is True,
            "runAsUser": either.get("runAsUser") != 0,
            "seccompProfile": either.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": "ALL" in own.get("capabilities", {}).get("drop", []) and not own["capabilities"].get("add"),
            "privileged": not own.get("privileged"),
            "hostPort": not any("hostPort" in each for each in container.get("ports", [])),
        }
        found += [f"{container['name']}.{name}" for name, is_met in wanted.items() if not is_met]
    return found


def _secret_rules(role: Manifest) -> bool:
    return any({"secrets", "*"} & set(rule.get("resources", [])) for rule in role["rules"])


def score(objects: list[Manifest]) -> dict[str, Mark]:
    """Return the mark of each column."""
    all_pods = dict(pods(objects))
    every = {f"{name} {each['name']}": each for name, pod in all_pods.items() for each in containers(pod)}
    bad_pods = [f"{name}: {found}" for name, pod in all_pods.items() if (found := unrestricted(pod))]
    needless = [name for name, each in every.items() if {"cpu", "memory"} - set(each.get("resources", {}).get("requests", {}))]
    writable = [name for name, each in every.items() if each.get("securityContext", {}).get("readOnlyRootFilesystem") is not True]
    unpinned = [name for name, each in every.items() if not re.fullmatch(r"[^:@]+(:[0-9]+/[^:@]+)?:[^:@]+(@sha256:\w+)?", each["image"])]
    wide = [each["metadata"]["name"] for each in of_kind(objects, "ClusterRole") if _secret_rules(each)]
    running = {component(pod) for name, pod in all_pods.items() if name.split()[0] not in ENDING}
    both = {component(pod) for pod in all_pods.values()}
    closed = {component(each) for each in of_kind(objects, "NetworkPolicy") if each["spec"]["policyTypes"] == ["Ingress", "Egress"]}
    budgets = {component(each) for each in of_kind(objects, "PodDisruptionBudget")}
    return dict(
        zip(
            COLUMNS,
            (
                Mark(f"{len(all_pods) - len(bad_pods)}/{len(all_pods)}", tuple(bad_pods)),
                Mark(str(len(needless)), tuple(needless)),
                Mark(str(len(writable)), tuple(writable)),
                Mark(f"{len(every) - len(unpinned)}/{len(every)}", tuple(unpinned)),
                Mark(str(len(wide)), tuple(wide)),
                Mark(f"{len(both & closed)}/{len(both)}", tuple(both - closed)),
                Mark(f"{len(running & budgets)}/{len(running)}", tuple(running - budgets)),
            ),
            strict=True,
        )
    )


def broken(pod: Manifest, change: dict[str, Any]) -> Manifest:
    """Return a pod with its first container's security changed, for the test of this measure itself."""
    first, *others = pod["spec"]["containers"]
    changed = {**first, "securityContext": {**first["securityContext"], **change}}
    return {**pod, "spec": {**pod["spec"], "containers": [changed, *others]}}
