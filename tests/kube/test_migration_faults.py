"""Whatever breaks around a SchemaMigration, and whenever the operator dies, each Job runs once and the end is the same."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from lightkube import KubeConfig

from amo_operator.config import Config
from amo_operator.kube import Kube
from kube.kubelet import PROGRAMS, Kubelet
from kube.operators import KEYRING, documented_rules, looking_after, schema_migration
from kube.proxy import anything, is_write
from kube.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from kube.access import Access
    from kube.apiserver import ApiServer
    from kube.conftest import KubeconfigFor
    from kube.proxy import Proxy

pytestmark = pytest.mark.timeout(400)

NAME, KIND = "main", "SchemaMigration"
PATIENCE_S = 100.0
MIGRATE = """
import json, os, sys
runs, image, said = os.environ["RUNS"], os.environ["IMAGE"], {"from": "0001", "to": "0001", "blockers": [], "error": None}
before = open(runs).read()
if image == "amo:2":
    said |= {"outcome": "Upgraded", "to": "0002"} if "1s" in sys.argv else {"outcome": "Failed", "to": None, "error": "42P07: it exists"}
else:
    said |= {"outcome": "SchemaIsLater", "to": "0002"} if "amo:2 Upgraded" in before else {"outcome": "Upgraded"}
with open(runs, "a") as file:
    file.write(f"{image} {said['outcome']}\\n")
with open(sys.argv[-1], "w") as file:
    json.dump(said, file)
sys.exit(said["outcome"] == "Failed")
"""
"""What stands in for ``amo-webhooks migrate upgrade``: it notes each run, and remembers by that how the database is."""


class Node(Kubelet):
    """A kubelet that tells a container its image, and where the runs are noted."""

    runs: Path

    def environment(self, container: Mapping[str, Any], pod: str) -> tuple[dict[str, str], str]:
        found, problem = super().environment(container, pod)
        return {**found, "IMAGE": container["image"], "RUNS": str(self.runs)}, problem


class Story:
    """A release, one whose migration fails, its repetition by hand, and the rollback to the first one."""

    steps = (
        ({"image": "amo:1"}, "Migrated"),
        ({"image": "amo:2"}, "MigrationFailed"),
        ({"lockTimeout": "1s"}, "Migrated"),
        ({"image": "amo:1"}, "SchemaIsLater"),
    )
    runs = ("amo:1 Upgraded", "amo:2 Failed", "amo:2 Upgraded", "amo:1 SchemaIsLater")

    def __init__(self, scene: Scene, runs: Path) -> None:
        self._scene = scene
        self._runs = runs

    def tell(self, before_step: Callable[[], object] = lambda: None) -> None:
        """Live through all of it, and see that no Job ran twice and that nothing is left to do."""
        scene = self._scene
        for number, (change, reason) in enumerate(self.steps):
            before_step()
            if number:
                scene.change(NAME, KIND, **change)
            else:
                scene.apply(schema_migration(NAME, backoffLimit=0, **change))
            is_ready = reason != "MigrationFailed"
            scene.until(lambda wanted=f"{is_ready} {reason}": scene.reason(NAME, KIND) == wanted, PATIENCE_S)
        assert self._runs.read_text().splitlines() == list(self.runs)
        status = scene.status(NAME, KIND)
        assert (status["currentRevision"], status["outcome"], status["blockers"]) == ("0002", "SchemaIsLater", [])
        jobs = scene.server.ask("GET", f"/apis/batch/v1/namespaces/{scene.namespace}/jobs")["items"]
        images = [job["spec"]["template"]["spec"]["containers"][0]["image"] for job in jobs]
        assert sorted(images) == ["amo:1", "amo:2"]


@pytest.fixture
def scene(
    apiserver: ApiServer, crds: list[str], namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Scene, Path]]:
    """Return a namespace without an operator, and where the runs of its Jobs are noted."""
    monkeypatch.setitem(PROGRAMS, "amo-webhooks", [sys.executable, "-c", MIGRATE])
    runs = tmp_path / "runs"
    runs.touch()
    with Node(apiserver, namespace, tmp_path / "node") as node, Scene(apiserver, namespace, tmp_path, node) as scene:
        node.runs = runs
        scene.write_secret("database", url="postgresql://nobody@127.0.0.1:1/none")
        yield scene, runs


@pytest.fixture
def access(kubeconfig_for: KubeconfigFor, proxy: Proxy) -> Path:
    """Return the operator's access, through the proxy, with the documented rights."""
    return kubeconfig_for("amo-operator", documented_rules([KEYRING]), url=proxy.url)


WRITES = {("create", "jobs"), ("delete", "jobs"), ("patch", "schemamigrations/status"), ("create", "events")}


def test_each_write_is_cut_before_and_after(scene: tuple[Scene, Path], proxy: Proxy, access: Path) -> None:
    """Each kind of write is lost on its way, then its answer is lost, then it goes through, all the time."""
    lost = proxy.cut_in_turn()
    scene[0].operator(access)
    Story(*scene).tell()
    for fault in lost:
        assert {(each.verb, each.ruled) for each in fault.hit} >= WRITES


def test_the_operator_dies_after_each_write(scene: tuple[Scene, Path], proxy: Proxy, access: Path) -> None:
    """No operator ever makes two writes: the cluster alone is enough to go on."""
    with looking_after(scene[0].operator(access), proxy.hold_writes()) as deaths:
        Story(*scene).tell()
    assert deaths[0] >= len(WRITES) + len(Story.steps)


@pytest.mark.parametrize(("status", "when"), [(409, is_write), (429, anything), (500, anything)])
def test_errors_of_the_api_server_are_waited_out(
    scene: tuple[Scene, Path], proxy: Proxy, access: Path, status: int, when: Callable[[Access], bool]
) -> None:
    """Each step begins with a few of them; a Job that is said to be there already and is not is made all the same."""
    with looking_after(scene[0].operator(access)):
        Story(*scene).tell(lambda: proxy.answer(status, when, times=5))


def test_two_operators_by_accident_run_each_job_once(scene: tuple[Scene, Path], access: Path) -> None:
    """Who is late deletes no Job that the other one has made anew."""
    for _ in range(2):
        scene[0].operator(access)
    Story(*scene).tell()


async def test_only_the_job_that_was_looked_at_is_deleted(apiserver: ApiServer, namespace: str) -> None:
    """Another one of its name has taken its place meanwhile, and runs."""
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    pod = {"restartPolicy": "Never", "containers": [{"name": "migrate", "image": "amo:1"}]}
    manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "amo-migrate-1"}, "spec": {"template": {"spec": pod}}}
    kube = Kube(Config(namespace=namespace), KubeConfig.from_file(apiserver.kubeconfig))
    try:
        await kube.create_job(manifest)
        await kube.create_job(manifest)
        seen = await kube.job("amo-migrate-1")
        assert seen is not None
        assert (seen.outcome, seen.has_pod) == ("running", False)
        await kube.delete_job(seen)
        await kube.delete_job(seen)
        assert await kube.job("amo-migrate-1") is None
        apiserver.ask("POST", path, manifest)
        await kube.delete_job(seen)
        anew = await kube.job("amo-migrate-1")
        assert anew is not None
        assert (anew.outcome, anew.uid != seen.uid) == ("running", True)
    finally:
        await kube.close()
