"""The chart as Helm renders it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CHART = Path(__file__).parents[2] / "charts" / "amo-webhooks"
WHY_NOT = "HELM names no helm program, and there is none on the PATH: the chart cannot be rendered"
RELEASE, NAMESPACE, FULLNAME = "crm", "sales", "crm-amo-webhooks"
APIS = ("gateway.networking.k8s.io/v1", "monitoring.coreos.com/v1")
WORKLOADS = {"Deployment", "StatefulSet", "Job", "Pod"}

Manifest = dict[str, Any]


def helm() -> str:
    """Return the program's path; without one the test is skipped."""
    found = os.environ.get("HELM") or shutil.which("helm")
    if not found:
        pytest.skip(WHY_NOT)
    return found


def template(
    values: Mapping[str, Any] | None = None, *options: str, apis: Iterable[str] = APIS, release: str = RELEASE, namespace: str = NAMESPACE
) -> subprocess.CompletedProcess[str]:
    """Render with these values over the chart's own, in a cluster that serves ``apis`` besides Kubernetes' own."""
    command = [helm(), "template", release, str(CHART), "--namespace", namespace, "--values", "-", *options]
    command += [f"--api-versions={api}" for api in apis]
    return subprocess.run(command, input=json.dumps(values or {}, ensure_ascii=False), capture_output=True, encoding="utf-8", check=False)


def rendered(values: Mapping[str, Any] | None = None, *options: str, release: str = RELEASE, namespace: str = NAMESPACE) -> list[Manifest]:
    """Return the objects of a rendering that must succeed, hooks included."""
    done = template(values, *options, release=release, namespace=namespace)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def refusal(values: Mapping[str, Any], *, apis: Iterable[str] = APIS) -> str:
    """Return what Helm says of values that it must refuse."""
    done = template(values, apis=apis)
    assert done.returncode != 0, "it was rendered"
    return done.stderr


def of_kind(objects: Iterable[Manifest], *kinds: str) -> list[Manifest]:
    """Return the objects of some kinds."""
    return [each for each in objects if each["kind"] in kinds]


def one(objects: Iterable[Manifest], kind: str, name: str) -> Manifest:
    """Return the one object of a kind and name."""
    (found,) = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def is_hook(manifest: Manifest) -> bool:
    """Tell whether Helm runs it at an event of its own."""
    return "helm.sh/hook" in manifest["metadata"].get("annotations", {})


def pods(objects: Iterable[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Return the name of each workload with its pod: metadata and spec."""
    for each in of_kind(objects, *WORKLOADS):
        yield f"{each['kind']} {each['metadata']['name']}", each if each["kind"] == "Pod" else each["spec"]["template"]


def containers(pod: Manifest) -> list[Manifest]:
    """Return the containers of a pod, those of its beginning too."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def component(manifest: Manifest) -> str:
    """Return which component an object or a pod belongs to."""
    return str(manifest["metadata"]["labels"]["app.kubernetes.io/component"])
