"""SchemaMigrations on a real API server and a real Postgres: the operator makes the Job, its command runs here, its result is shown."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from amo_receiver.embedded.processes import wait_until
from amo_receiver.schema import known_revisions
from amo_receiver.settings import MIGRATIONS_OF_CHECKOUT
from chart.rendering import of_kind, rendered
from kube.kubelet import Kubelet
from kube.operators import KEYRING, Operator, documented_rules, schema_migration
from otlp_sink import OtlpSink
from servers import connect, run_sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from kube.apiserver import ApiServer
    from kube.conftest import KubeconfigFor

pytestmark = pytest.mark.timeout(400)

PATIENCE_SECONDS = 120.0
"""A pause of 20 s, and then a Job that has to start."""
MARK = "Ivan-Petrov"
HEAD = known_revisions(MIGRATIONS_OF_CHECKOUT)[0]
LATER = """
from alembic import op
from concurrently import create_index
revision, down_revision, branch_labels, depends_on = "{revision}", "{before}", None, None
def upgrade() -> None:
    {statement}
"""
ADD_COLUMN = 'op.execute("ALTER TABLE leads ADD COLUMN later text")'
FAIL = f"""op.execute("INSERT INTO schema_floor VALUES ('{MARK}'), ('{MARK}')")"""
CREATE_INDEX = 'create_index("leads_name", "CREATE INDEX CONCURRENTLY leads_name ON leads (name)")'


class Node(Kubelet):
    """A kubelet on which each image has its own folder of migrations."""

    images: Mapping[str, str] = {}
    is_tainted = False

    def has_no_node(self, pod: Mapping[str, Any]) -> bool:
        return self.is_tainted and not pod.get("tolerations")

    def environment(self, container: Mapping[str, Any], pod: str) -> tuple[dict[str, str], str]:
        found, problem = super().environment(container, pod)
        folder = self.images.get(container["image"])
        return found | ({"MIGRATIONS_DIR": folder} if folder else {}), problem


class Cluster:
    """The namespace with a running operator, as the tests see it."""

    def __init__(self, server: ApiServer, namespace: str, node: Node, database_url: str) -> None:
        self._server = server
        self._core = f"/api/v1/namespaces/{namespace}"
        self._path = f"/apis/amo-webhooks.io/v1alpha1/namespaces/{namespace}/schemamigrations"
        self._jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.node = node
        server.ask("POST", f"{self._core}/secrets", {"metadata": {"name": "database"}, "stringData": {"url": database_url}})

    def migrate(self, name: str = "main", **spec: Any) -> None:
        """Create a SchemaMigration, or change its spec."""
        manifest, query = schema_migration(name, **spec), "fieldManager=tests&force=true"
        self._server.ask("PATCH", f"{self._path}/{name}?{query}", manifest, content_type="application/apply-patch+yaml")

    def status(self, name: str = "main") -> dict[str, Any]:
        """Return a SchemaMigration's status once it is about its present spec, with its conditions by type."""
        found = self._server.ask("GET", f"{self._path}/{name}")
        status: dict[str, Any] = found["status"]
        if status["observedGeneration"] != found["metadata"]["generation"]:
            return {"conditions": {}}
        return {**status, "conditions": {each["type"]: each for each in status["conditions"]}}

    def wait_for(self, reason: str, name: str = "main") -> dict[str, Any]:
        """Wait until this is the reason of the conditions; return the status."""

        def is_so() -> bool:
            self.node.check()
            return self.status(name)["conditions"].get("Ready", {}).get("reason") == reason

        assert wait_until(is_so, PATIENCE_SECONDS), f"not {reason}: {json.dumps(self.status(name), indent=1)}"
        return self.status(name)

    def jobs(self) -> list[dict[str, Any]]:
        """Return all Jobs."""
        items: list[dict[str, Any]] = self._server.ask("GET", self._jobs)["items"]
        return items

    def delete_job(self, job: Mapping[str, Any]) -> None:
        """Delete a Job as its time to live does."""
        self._server.ask("DELETE", f"{self._jobs}/{job['metadata']['name']}", {"propagationPolicy": "Background"})

    def everything(self) -> str:
        """Return all that this namespace shows to whoever may read it, without Secrets."""
        kinds = (self._path, self._jobs, f"{self._core}/pods", f"{self._core}/events")
        return json.dumps([self._server.ask("GET", kind) for kind in kinds])


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., str]:
    """Return a function that makes the migrations of an image: today's and some more."""

    def make(name: str, *statements: str) -> str:
        folder = shutil.copytree(MIGRATIONS_OF_CHECKOUT, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        before = HEAD
        for number, statement in enumerate(statements, 1):
            revision = f"090{number}"
            text = LATER.format(revision=revision, before=before, statement=statement)
            (folder / "versions" / f"{revision}.py").write_text(text)
            before = revision
        return str(folder)

    return make


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    """Return a running collector."""
    with OtlpSink() as running:
        yield running


@pytest.fixture
def operators(
    crds: list[str], kubeconfig_for: KubeconfigFor, namespace: str, tmp_path: Path, sink: OtlpSink
) -> Iterator[Callable[[str], Operator]]:
    """Return a function that starts an operator with the documented rights, at the API server's or a proxy's address."""
    started: list[Operator] = []

    def start(url: str) -> Operator:
        config = kubeconfig_for("operator", documented_rules([KEYRING]), url=url)
        collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        started.append(Operator(config, namespace, tmp_path / f"operator-{len(started)}", **collector).start())
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def cluster(
    apiserver: ApiServer, namespace: str, operators: Callable[[str], Operator], database_url: str, tmp_path: Path
) -> Iterator[Cluster]:
    """Return a namespace with an operator, a node and the Secret of a migrated database."""
    operators(apiserver.url)
    with Node(apiserver, namespace, tmp_path / "node") as node:
        yield Cluster(apiserver, namespace, node, database_url)


def test_the_schema_is_brought_up_and_a_job_that_is_gone_means_nothing(
    cluster: Cluster, images: Callable[..., str], database_url: str
) -> None:
    """Ready with the revision; the Job's end is remembered, not the Job; the next image begins the next one."""
    cluster.node.images = {"amo:2": images("two", ADD_COLUMN), "amo:3": images("three", ADD_COLUMN, "op.execute('SELECT 1')")}
    cluster.migrate(image="amo:1")
    status = cluster.wait_for("Migrated")
    assert (status["currentRevision"], status["outcome"]) == (HEAD, "Unchanged")
    cluster.migrate(image="amo:2")
    status = cluster.wait_for("Migrated")
    assert (status["currentRevision"], status["outcome"], status["tries"]) == ("0901", "Upgraded", 1)
    assert run_sql(database_url, "SELECT later FROM leads") == []
    for job in cluster.jobs():
        cluster.delete_job(job)
    cluster.migrate(image="amo:2", backoffLimit=1)
    assert cluster.wait_for("Migrated")["currentRevision"] == "0901"
    assert cluster.jobs() == []
    cluster.migrate(image="amo:3", backoffLimit=1)
    assert cluster.wait_for("Migrated")["currentRevision"] == "0902"


def test_a_failing_migration_changes_nothing_and_shows_the_error(cluster: Cluster, images: Callable[..., str], database_url: str) -> None:
    """Stalled with SQLSTATE and message, without the values in it; a corrected image mends it."""
    cluster.node.images = {"amo:2": images("two", FAIL), "amo:3": images("three", ADD_COLUMN)}
    cluster.migrate(image="amo:2", backoffLimit=0)
    status = cluster.wait_for("MigrationFailed")
    assert (status["conditions"]["Stalled"]["status"], status["outcome"]) == ("True", "Failed")
    assert "23505" in status["lastError"]
    assert "schema_floor_pkey" in status["conditions"]["Stalled"]["message"]
    assert run_sql(database_url, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert MARK not in cluster.everything()
    cluster.migrate(image="amo:3")
    assert cluster.wait_for("Migrated")["currentRevision"] == "0901"


async def test_who_is_in_the_way_is_named_until_they_are_gone(cluster: Cluster, images: Callable[..., str], database_url: str) -> None:
    """Blocked with pid, state and age; when the lock is free the migration goes through by itself."""
    cluster.node.images = {"amo:2": images("two", ADD_COLUMN)}
    async with connect(database_url) as holder:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(f"SELECT '{MARK}', count(*) FROM leads")
        cluster.migrate(image="amo:2", lockTimeout="100ms", backoffLimit=0)
        pid = holder.get_server_pid()
        status = await asyncio.to_thread(cluster.wait_for, "Blocked")
        assert (status["blockers"][0]["pid"], status["blockers"][0]["state"]) == (pid, "idle in transaction")
        assert f"pid {pid}" in status["conditions"]["Reconciling"]["message"]
        assert status["conditions"]["Reconciling"]["status"] == "True"
        await transaction.rollback()
        status = await asyncio.to_thread(cluster.wait_for, "Migrated")
    assert (status["currentRevision"], status["blockers"]) == ("0901", [])
    assert MARK not in cluster.everything()


def test_a_later_schema_is_left_alone_unless_it_no_longer_runs_this_image(
    cluster: Cluster, images: Callable[..., str], database_url: str
) -> None:
    """After a rollback of the release the older image is Ready; past a contract migration it is Stalled before anything runs."""
    cluster.node.images = {"amo:2": images("two", ADD_COLUMN)}
    cluster.migrate(image="amo:2")
    cluster.wait_for("Migrated")
    cluster.migrate(image="amo:1")
    status = cluster.wait_for("SchemaIsLater")
    assert (status["conditions"]["Ready"]["status"], status["currentRevision"]) == ("True", "0901")
    run_sql(database_url, "INSERT INTO schema_floor VALUES ('0901')")
    cluster.migrate(image="amo:0", backoffLimit=0)
    status = cluster.wait_for("Incompatible")
    assert status["conditions"]["Stalled"]["status"] == "True"
    cluster.migrate(image="amo:2")
    assert cluster.wait_for("Migrated")["currentRevision"] == "0901"


def test_after_a_rollback_the_older_images_job_of_before_does_not_count(
    cluster: Cluster, images: Callable[..., str], database_url: str
) -> None:
    """Its Job still says how well it went; whether that image still runs is asked of the database anew."""
    cluster.node.images = {"amo:2": images("two", ADD_COLUMN)}
    for image, revision in (("amo:1", HEAD), ("amo:2", "0901")):
        cluster.migrate(image=image, backoffLimit=0)
        assert cluster.wait_for("Migrated")["currentRevision"] == revision
    before = {job["metadata"]["name"]: job["metadata"]["uid"] for job in cluster.jobs()}
    assert len(before) == 2
    cluster.migrate(image="amo:1", backoffLimit=0)
    assert cluster.wait_for("SchemaIsLater")["currentRevision"] == "0901"
    cluster.migrate(image="amo:2", backoffLimit=0)
    assert cluster.wait_for("Migrated")["outcome"] == "Unchanged"
    run_sql(database_url, "INSERT INTO schema_floor VALUES ('0901')")
    cluster.migrate(image="amo:1", backoffLimit=0)
    assert cluster.wait_for("Incompatible")["conditions"]["Stalled"]["status"] == "True"
    after = {job["metadata"]["name"]: job["metadata"]["uid"] for job in cluster.jobs()}
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


def test_a_pod_that_no_node_takes_is_told_and_a_toleration_helps(cluster: Cluster, images: Callable[..., str]) -> None:
    """The scheduler's words are shown long before the deadline; a changed spec makes the Job anew, which never ran."""
    cluster.node.images, cluster.node.is_tainted = {"amo:2": images("two", ADD_COLUMN)}, True
    cluster.migrate(image="amo:2")
    assert "Unschedulable: 0/3 nodes" in cluster.wait_for("JobWaits")["conditions"]["Ready"]["message"]
    (before,) = cluster.jobs()
    cluster.migrate(image="amo:2", tolerations=[{"operator": "Exists"}])
    assert cluster.wait_for("Migrated")["currentRevision"] == "0901"
    (after,) = cluster.jobs()
    assert (before["metadata"]["name"], before["metadata"]["uid"] != after["metadata"]["uid"]) == (after["metadata"]["name"], True)
    cluster.migrate(image="amo:2", tolerations=[{"operator": "Exists", "effect": "NoExecute"}])
    cluster.wait_for("Migrated")
    assert [job["metadata"]["uid"] for job in cluster.jobs()] == [after["metadata"]["uid"]]


def test_a_job_that_is_not_taken_is_told(cluster: Cluster) -> None:
    """What is opaque in the CRD is judged when the Job is made; the API server's sentence is shown, and a better spec helps."""
    for wrong, path in (({"operator": "Perhaps"}, "tolerations[0].operator"), ({"key": 5}, "tolerations.key")):
        cluster.migrate(tolerations=[wrong])
        assert wait_until(lambda path=path: path in json.dumps(cluster.status()), PATIENCE_SECONDS), cluster.status()
        assert cluster.wait_for("JobWaits")["tries"] == 0
    assert cluster.jobs() == []
    cluster.migrate(tolerations=[{"operator": "Exists"}])
    assert cluster.wait_for("Migrated")["tries"] == 1


def test_the_charts_pod_settings_reach_the_job(cluster: Cluster) -> None:
    """The CA of a verify-full DSN, nodes and taints: what the chart gives to all pods the operator's Job has too."""
    settings: dict[str, Any] = {"nodeSelector": {"kubernetes.io/os": "linux"}, "tolerations": [{"operator": "Exists"}]}
    volumes: list[dict[str, Any]] = [{"name": "ca", "configMap": {"name": "ca", "defaultMode": 420}}]
    mounts = [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}]
    (made,) = of_kind(rendered({**settings, "extraVolumes": volumes, "extraVolumeMounts": mounts}), "SchemaMigration")
    cluster.migrate(**{**made["spec"], "databaseSecretRef": {"name": "database"}})
    cluster.wait_for("Migrated")
    (job,) = cluster.jobs()
    pod = job["spec"]["template"]["spec"]
    assert {**settings, "volumes": volumes} == {name: pod[name] for name in (*settings, "volumes")}
    assert pod["containers"][0]["volumeMounts"] == mounts


def test_two_operators_and_two_releases_make_one_job(
    cluster: Cluster, operators: Callable[[str], Operator], apiserver: ApiServer, images: Callable[..., str]
) -> None:
    """Whoever is first makes it; all see its end."""
    cluster.node.images = {"amo:2": images("two", ADD_COLUMN)}
    operators(apiserver.url)
    for name in ("one", "other"):
        cluster.migrate(name, image="amo:2")
    for name in ("one", "other"):
        assert cluster.wait_for("Migrated", name)["currentRevision"] == "0901"
    assert len(cluster.jobs()) == 1


def test_an_index_left_invalid_is_built_again(cluster: Cluster, images: Callable[..., str], database_url: str) -> None:
    """CREATE INDEX CONCURRENTLY that was interrupted does not stand in the way of the next try."""
    row = "INSERT INTO leads (account_id, id, name, custom_fields, snapshot_at, version_at, version_event) VALUES"
    run_sql(database_url, *(f"{row} ('', {number}, 'same', '{{}}', now(), now(), gen_random_uuid())" for number in (1, 2)))
    with pytest.raises(Exception, match="could not create unique index"):
        run_sql(database_url, "CREATE UNIQUE INDEX CONCURRENTLY leads_name ON leads (name)")
    cluster.node.images = {"amo:2": images("two", CREATE_INDEX)}
    cluster.migrate(image="amo:2")
    cluster.wait_for("Migrated")
    assert run_sql(database_url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'leads_name'::regclass") == [(True,)]


def test_a_database_that_is_away_is_waited_for(cluster: Cluster, database_url: str) -> None:
    """No connection is nobody's mistake in the spec: it is tried again until it works, and no password is shown."""
    wrong = database_url.replace("://", "://nobody:Qx7-secret@", 1) if "@" not in database_url else database_url.replace(":", ":x", 2)
    cluster._server.ask("POST", f"{cluster._core}/secrets", {"metadata": {"name": "other"}, "stringData": {"url": wrong}})
    cluster.migrate("other", databaseSecretRef={"name": "other"}, backoffLimit=0)
    status = cluster.wait_for("JobFailed", "other")
    assert status["conditions"]["Reconciling"]["status"] == "True"
    assert status["nextTry"]
    assert "Qx7-secret" not in cluster.everything()


def test_one_trace_from_the_reconcile_to_the_sql(cluster: Cluster, images: Callable[..., str], sink: OtlpSink) -> None:
    """The reconcile that made the Job, the Job's command, the revision and its statements hang together."""
    cluster.node.images = {"amo:2": images("two", ADD_COLUMN)}
    cluster.migrate(image="amo:2")
    cluster.wait_for("Migrated")

    def spans() -> dict[str, Any]:
        resources = [each for received in list(sink.received) for each in received.export.resource_spans]
        found = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
        return {f"{span.name} {span.span_id.hex()}" if span.name == "SELECT" else span.name: span for span in found}

    assert wait_until(lambda: {"migrate 0901", "create jobs"} <= set(spans()), PATIENCE_SECONDS), sorted(spans())
    found = spans()
    create, command, revision = found["create jobs"], found["amo-webhooks migrate"], found["migrate 0901"]
    assert command.trace_id == revision.trace_id == create.trace_id
    assert revision.parent_span_id == command.span_id
    statements = {span.name for span in found.values() if span.parent_span_id == revision.span_id}
    assert any(name.startswith("ALTER") for name in statements), statements
