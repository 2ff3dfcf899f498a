"""What the tests of the operator rest on does what the cluster's own parts do."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
from lightkube import ApiError, Client, KubeConfig
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.batch_v1 import JobSpec
from lightkube.models.core_v1 import (
    Capabilities,
    Container,
    EnvVar,
    EnvVarSource,
    PodSecurityContext,
    PodSpec,
    PodTemplateSpec,
    SeccompProfile,
    SecretKeySelector,
    SecurityContext,
)
from lightkube.models.meta_v1 import ObjectMeta, OwnerReference
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition
from lightkube.resources.batch_v1 import Job
from lightkube.resources.core_v1 import ConfigMap, Namespace, Pod, Secret
from lightkube.types import CascadeType, PatchType

from amo_receiver.embedded.processes import wait_until
from kube.access import Access, access_of, is_allowed, unused
from kube.controllers import collect_garbage, end_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kube.apiserver import ApiServer
    from kube.conftest import KubeconfigFor
    from kube.kubelet import Kubelet
    from kube.proxy import Proxy

PATIENCE_S = 20.0
RULES = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"]}]


@pytest.fixture
def through(proxy: Proxy, kubeconfig_for: KubeconfigFor) -> Iterator[Client]:
    """Return the client of a ServiceAccount that goes through the proxy."""
    config = KubeConfig.from_file(kubeconfig_for("operator", RULES, url=proxy.url))
    with Client(config=config, field_manager="operator", trust_env=False) as client:
        yield client


def settings(name: str, **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name), data=data)


def job(name: str, script: str, *, backoff_limit: int = 0, env: list[EnvVar] | None = None, deadline_s: int | None = None) -> Job:
    container = Container(
        name="migrate",
        image="registry.invalid/x:1",
        command=["sh", "-c", script],
        env=env or [],
        securityContext=SecurityContext(allowPrivilegeEscalation=False, capabilities=Capabilities(drop=["ALL"])),
    )
    pod = PodSpec(
        containers=[container],
        restartPolicy="Never",
        automountServiceAccountToken=False,
        securityContext=PodSecurityContext(runAsNonRoot=True, seccompProfile=SeccompProfile(type="RuntimeDefault")),
    )
    template = PodTemplateSpec(metadata=ObjectMeta(labels={"app": "migration"}), spec=pod)
    return Job(
        metadata=ObjectMeta(name=name), spec=JobSpec(template=template, backoffLimit=backoff_limit, activeDeadlineSeconds=deadline_s)
    )


def conditions(api: Client, namespace: str, name: str) -> dict[str, str]:
    status = api.get(Job, name, namespace=namespace).status
    return {each.type: each.reason for each in (status and status.conditions) or [] if each.status == "True"}


def await_condition(api: Client, namespace: str, name: str, wanted: str) -> dict[str, str]:
    assert wait_until(lambda: wanted in conditions(api, namespace, name), PATIENCE_S), api.get(Job, name, namespace=namespace).to_dict()
    return conditions(api, namespace, name)


# The API server


def test_a_service_account_may_do_what_its_rules_say(kubeconfig_for: KubeconfigFor, namespace: str) -> None:
    """Its token is known, RBAC allows what the Role names, and nothing else."""
    with Client(config=KubeConfig.from_file(kubeconfig_for("operator", RULES)), trust_env=False) as client:
        assert client.namespace == namespace
        client.create(settings("one", a="1"))
        assert [each.metadata.name for each in client.list(ConfigMap)] == ["one"]
        for forbidden in (lambda: list(client.list(Secret)), lambda: list(client.list(ConfigMap, namespace="default"))):
            with pytest.raises(ApiError) as refused:
                forbidden()
            assert refused.value.status.code == 403


def test_a_namespace_ends_with_its_content(apiserver: ApiServer, api: Client, namespace: str) -> None:
    """What a finalizer holds is named and keeps the namespace; without one it is gone."""
    held = settings("held")
    held.metadata.finalizers = ["example.org/held"]
    api.create(held, namespace=namespace)
    api.create(settings("free"), namespace=namespace)
    left = end_namespace(apiserver, namespace)
    assert [each for each in left if "configmaps/held" in each] == left
    assert len(left) == 1
    assert end_namespace(apiserver, namespace, force=True) == []
    with pytest.raises(ApiError, match="not found"):
        api.get(Namespace, namespace)


@pytest.mark.parametrize("cascade", [CascadeType.BACKGROUND, CascadeType.FOREGROUND])
def test_what_lost_its_owner_is_collected(apiserver: ApiServer, api: Client, namespace: str, cascade: CascadeType) -> None:
    """Dependents go with their owner, also theirs, and nothing else goes."""
    owner = api.create(settings("owner"), namespace=namespace)
    api.create(settings("other"), namespace=namespace)
    for name in ("child", "grandchild"):
        child = settings(name)
        child.metadata.ownerReferences = [OwnerReference("v1", "ConfigMap", owner.metadata.name, owner.metadata.uid)]
        owner = api.create(child, namespace=namespace)
    assert collect_garbage(apiserver, namespace) == []
    api.delete(ConfigMap, "owner", namespace=namespace, cascade=cascade)
    collect_garbage(apiserver, namespace)
    assert [each.metadata.name for each in api.list(ConfigMap, namespace=namespace)] == ["other"]


def test_the_crds_are_served(crds: list[str], api: Client, namespace: str) -> None:
    """When the fixture returns, objects of both kinds can be listed."""
    for crd in crds:
        spec = api.get(CustomResourceDefinition, crd).spec
        resource = create_namespaced_resource(spec.group, spec.versions[0].name, spec.names.kind, spec.names.plural)
        assert list(api.list(resource, namespace=namespace)) == []


# The proxy


@pytest.mark.parametrize(
    ("method", "url", "access"),
    [
        ("GET", "/api/v1/namespaces/n/pods", Access("list", "", "pods", "", "", "n")),
        ("GET", "/api/v1/namespaces/n/pods?watch=1", Access("watch", "", "pods", "", "", "n")),
        ("GET", "/api/v1/namespaces/n/secrets/s", Access("get", "", "secrets", "", "s", "n")),
        ("GET", "/api/v1/namespaces/n/secrets?fieldSelector=metadata.name%3Ds", Access("list", "", "secrets", "", "s", "n")),
        ("GET", "/api/v1/namespaces/n", Access("get", "", "namespaces", "", "n", "n")),
        ("PUT", "/api/v1/namespaces/n/finalize", Access("update", "", "namespaces", "finalize", "n", "n")),
        ("PATCH", "/apis/batch/v1/namespaces/n/jobs/j/status", Access("patch", "batch", "jobs", "status", "j", "n")),
        ("POST", "/apis/g.io/v1alpha1/namespaces/n/things", Access("create", "g.io", "things", "", "", "n")),
        ("DELETE", "/apis/g.io/v1/namespaces/n/things/t", Access("delete", "g.io", "things", "", "t", "n")),
        ("DELETE", "/apis/g.io/v1/namespaces/n/things", Access("deletecollection", "g.io", "things", "", "", "n")),
        ("GET", "/apis/g.io/v1/things", Access("list", "g.io", "things", "", "", "")),
        ("GET", "/apis/g.io/v1", None),
        ("GET", "/api", None),
        ("GET", "/version", None),
    ],
)
def test_a_call_is_what_rbac_calls_it(method: str, url: str, access: Access | None) -> None:
    """Verb, group, resource, subresource, name and namespace follow from the request line."""
    parsed = httpx2.URL(f"https://k{url}")
    assert access_of(method, parsed.path, dict(parsed.params)) == access


def test_rules_are_compared_with_what_was_used(proxy: Proxy, through: Client, namespace: str) -> None:
    """A verb that was never used is named, a call that no rule allows too; a patch that made its object has also created it."""
    for _ in range(2):
        through.apply(ConfigMap(apiVersion="v1", kind="ConfigMap", metadata=ObjectMeta(name="one", namespace=namespace)), force=True)
    accesses = proxy.accesses()
    assert accesses == {Access(verb, "", "configmaps", "", "one", namespace) for verb in ("create", "patch")}
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "patch", "get"], "resourceNames": ["one", "two"]}
    assert all(is_allowed(access, [rule]) for access in accesses)
    assert unused(accesses, [rule]) == [
        "create /configmaps two", "patch /configmaps two", "get /configmaps one", "get /configmaps two",
    ]  # fmt: skip
    assert not any(is_allowed(access, [{**rule, "resourceNames": ["two"]}]) for access in accesses)


@pytest.mark.parametrize(("cut", "there"), [("before", []), ("after", ["second"])])
def test_a_write_is_cut_before_or_after_it_is_done(proxy: Proxy, through: Client, cut: str, there: list[str]) -> None:
    """The client cannot tell the two apart, the API server can; the write before and the one after go through."""
    fault = proxy.cut_before(2) if cut == "before" else proxy.cut_after(2)
    through.create(settings("first"))
    list(through.list(ConfigMap))
    with pytest.raises(httpx2.TransportError):
        through.create(settings("second"))
    assert [access.verb for access in fault.hit] == ["create"]
    through.create(settings("third"))
    assert sorted(each.metadata.name for each in through.list(ConfigMap)) == sorted(["first", "third", *there])
    assert [call.status for call in proxy.writes] == [201, None, 201]


@pytest.mark.parametrize(
    ("code", "reason"), [(409, "Conflict"), (410, "Expired"), (429, "TooManyRequests"), (500, "InternalError"), (503, "ServiceUnavailable")]
)
def test_chosen_calls_are_answered_in_the_servers_place(proxy: Proxy, through: Client, code: int, reason: str) -> None:
    """The answer is a Status; the same call goes through when the fault is used up."""
    fault = proxy.answer(code, lambda access: access.verb == "patch", times=1)
    through.create(settings("one", a="1"))
    with pytest.raises(ApiError) as refused:
        through.patch(ConfigMap, "one", {"data": {"a": "2"}})
    assert (refused.value.status.code, refused.value.status.reason) == (code, reason)
    assert through.get(ConfigMap, "one").data == {"a": "1"}
    through.patch(ConfigMap, "one", {"data": {"a": "2"}}, patch_type=PatchType.MERGE)
    assert through.get(ConfigMap, "one").data == {"a": "2"}
    assert len(fault.hit) == 1


class Watcher:
    """One watch of the ConfigMaps, read in a thread until it ends."""

    def __init__(self, client: Client) -> None:
        self.seen: list[str] = []
        self.end: BaseException | str | None = None
        self._client = client
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event, found in self._client.watch(ConfigMap):
                self.seen.append(f"{event} {found.metadata.name}")
            self.end = "closed"
        except Exception as error:  # noqa: BLE001 - the tests look at it
            self.end = error

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert self.end is not None


def test_watches_run_through_and_are_cut(proxy: Proxy, through: Client, api: Client, namespace: str) -> None:
    """Events arrive at once, not while they are held; a cut and a 410 end the watch each in its own way."""
    watcher = Watcher(through)
    assert wait_until(lambda: proxy.watches() == 1, PATIENCE_S)
    api.create(settings("one"), namespace=namespace)
    assert wait_until(lambda: watcher.seen == ["ADDED one"], PATIENCE_S)
    proxy.hold_watches()
    api.create(settings("two"), namespace=namespace)
    assert sorted(each.metadata.name for each in through.list(ConfigMap)) == ["one", "two"]
    assert watcher.seen == ["ADDED one"]
    proxy.release_watches()
    assert wait_until(lambda: watcher.seen == ["ADDED one", "ADDED two"], PATIENCE_S)
    assert proxy.cut_watches() == 1
    watcher.join()
    assert isinstance(watcher.end, httpx2.TransportError)
    assert wait_until(lambda: proxy.watches() == 0, PATIENCE_S)
    expired = Watcher(through)
    assert wait_until(lambda: proxy.watches() == 1, PATIENCE_S)
    proxy.expire_watches()
    expired.join()
    assert isinstance(expired.end, ApiError), expired.end
    assert expired.end.status.code == 410


# The kubelet


@pytest.mark.usefixtures("kubelet")
def test_a_job_runs_and_is_complete(api: Client, namespace: str) -> None:
    """Its command runs with its Secret's value; what it writes is the pod's termination message; the API server takes the status."""
    api.create(Secret(metadata=ObjectMeta(name="database"), stringData={"url": "postgres://somewhere"}), namespace=namespace)
    reference = EnvVarSource(secretKeyRef=SecretKeySelector("url", name="database"))
    env = [EnvVar("DB_DIRECT_URL", valueFrom=reference), EnvVar("TRACEPARENT", "00-1-2-01")]
    api.create(job("good", 'printf "%s %s" "$DB_DIRECT_URL" "$TRACEPARENT" > /dev/termination-log', env=env), namespace=namespace)
    assert await_condition(api, namespace, "good", "Complete") == {
        "SuccessCriteriaMet": "CompletionsReached",
        "Complete": "CompletionsReached",
    }
    status = api.get(Job, "good", namespace=namespace).status
    assert (status.succeeded, status.failed or 0, status.active or 0) == (1, 0, 0)
    assert status.completionTime >= status.startTime
    [pod] = api.list(Pod, namespace=namespace, labels={"batch.kubernetes.io/job-name": "good", "app": "migration"})
    assert pod.metadata.ownerReferences[0].name == "good"
    assert pod.status.phase == "Succeeded"
    ended = pod.status.containerStatuses[0].state.terminated
    assert (ended.exitCode, ended.message) == (0, "postgres://somewhere 00-1-2-01")


@pytest.mark.usefixtures("kubelet")
def test_a_job_fails_after_its_last_try(api: Client, namespace: str) -> None:
    """Each failure is a pod of its own with its exit code; after backoffLimit of them the Job is Failed."""
    api.create(job("bad", "echo no > /dev/termination-log; exit 3", backoff_limit=1), namespace=namespace)
    found = await_condition(api, namespace, "bad", "Failed")
    assert found == dict.fromkeys(("FailureTarget", "Failed"), "BackoffLimitExceeded")
    assert api.get(Job, "bad", namespace=namespace).status.failed == 2
    pods = list(api.list(Pod, namespace=namespace, labels={"batch.kubernetes.io/job-name": "bad"}))
    assert [pod.status.containerStatuses[0].state.terminated.to_dict()["exitCode"] for pod in pods] == [3, 3]
    assert {pod.status.containerStatuses[0].state.terminated.message for pod in pods} == {"no\n"}


def test_a_job_that_takes_too_long_or_is_deleted_is_ended(
    kubelet: Kubelet, apiserver: ApiServer, api: Client, namespace: str, tmp_path: Path
) -> None:
    """Nothing of it runs on: with its deadline it is Failed, deleted it is gone, both without the running pod."""
    api.create(job("late", "exec sleep 600", deadline_s=1), namespace=namespace)
    assert await_condition(api, namespace, "late", "Failed")["Failed"] == "DeadlineExceeded"
    assert list(api.list(Pod, namespace=namespace, labels={"job-name": "late"})) == []
    pid = tmp_path / "pid"
    api.create(job("gone", f"echo $$ > {pid}; exec sleep 600"), namespace=namespace)
    assert wait_until(lambda: pid.exists() and bool(pid.read_text()), PATIENCE_S)
    api.delete(Job, "gone", namespace=namespace, cascade=CascadeType.BACKGROUND)
    assert wait_until(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists(), PATIENCE_S)
    collect_garbage(apiserver, namespace)
    assert wait_until(lambda: not list(api.list(Pod, namespace=namespace, labels={"job-name": "gone"})), PATIENCE_S)
    assert [each.metadata.name for each in api.list(Job, namespace=namespace)] == ["late"]


def test_a_process_that_is_killed_fails_its_pod(kubelet: Kubelet, api: Client, namespace: str, tmp_path: Path) -> None:
    """The exit code is the kernel's, the next try is another pod."""
    once = f"test -e {tmp_path}/tried || {{ touch {tmp_path}/tried; exec sleep 600; }}"
    api.create(job("killed", once, backoff_limit=1), namespace=namespace)
    assert wait_until((tmp_path / "tried").exists, PATIENCE_S)
    kubelet.kill("killed")
    assert "Complete" in await_condition(api, namespace, "killed", "Complete")
    pods = sorted(api.list(Pod, namespace=namespace), key=lambda pod: pod.metadata.creationTimestamp)
    assert [pod.status.containerStatuses[0].state.terminated.exitCode for pod in pods] == [137, 0]


@pytest.mark.usefixtures("kubelet")
def test_a_job_waits_for_its_secret(api: Client, namespace: str) -> None:
    """The pod says what is missing and starts when it is there; our own program is the one of the tests."""
    env = [EnvVar("DB_DIRECT_URL", valueFrom=EnvVarSource(secretKeyRef=SecretKeySelector("url", name="later")))]
    manifest = job("waits", "", env=env)
    manifest.spec.template.spec.containers[0].command = ["amo-webhooks", "--help"]
    api.create(manifest, namespace=namespace)

    def waiting() -> list[str]:
        pods = api.list(Pod, namespace=namespace, labels={"job-name": "waits"})
        states = [status.state.waiting for pod in pods for status in (pod.status.containerStatuses or [])]
        return [state.reason for state in states if state]

    assert wait_until(lambda: waiting() == ["CreateContainerConfigError"], PATIENCE_S)
    api.create(Secret(metadata=ObjectMeta(name="later"), stringData={"url": "x"}), namespace=namespace)
    assert "Complete" in await_condition(api, namespace, "waits", "Complete")


def test_pods_come_and_go(kubelet: Kubelet, api: Client, namespace: str) -> None:
    """A pod has the address it was given; asked to end it stays, with the time of its end, until it is removed."""
    kubelet.pods.add("service-1", {"app": "service"}, ip="127.0.0.2")
    kubelet.pods.add("service-2", {"app": "service"}, ip="127.0.0.3", ready=False)
    pods = {pod.metadata.name: pod for pod in api.list(Pod, namespace=namespace, labels={"app": "service"})}
    assert {name: pod.status.podIP for name, pod in pods.items()} == {"service-1": "127.0.0.2", "service-2": "127.0.0.3"}
    assert [pods[name].status.containerStatuses[0].ready for name in sorted(pods)] == [True, False]
    kubelet.pods.terminate("service-1")
    assert api.get(Pod, "service-1", namespace=namespace).metadata.deletionTimestamp
    kubelet.pods.remove("service-1")
    assert kubelet.pods.get("service-1") == {}
    kubelet.pods.report("service-2", "Failed")
    assert api.get(Pod, "service-2", namespace=namespace).status.phase == "Failed"


def test_a_mounted_secret_changes_at_once_when_the_pod_is_annotated(kubelet: Kubelet, api: Client, namespace: str) -> None:
    """Otherwise after the delay only; the files stay where they are and change by one swap; a Secret that is gone leaves none."""
    for pod in ("service-1", "service-2"):
        kubelet.pods.add(pod, {"app": "service"})
    slow, quick = kubelet.mount("keyring", "service-1", delay_s=3600), kubelet.mount("keyring", "service-2", delay_s=0)
    assert [path for path in slow.iterdir() if not path.name.startswith("..")] == []
    api.create(Secret(metadata=ObjectMeta(name="keyring"), stringData={"a": json.dumps({"generation": 1})}), namespace=namespace)
    assert wait_until((quick / "a").exists, PATIENCE_S)
    assert not (slow / "a").exists()
    api.patch(Pod, "service-1", {"metadata": {"annotations": {"nudged": "1"}}}, namespace=namespace, patch_type=PatchType.MERGE)
    assert wait_until((slow / "a").exists, PATIENCE_S)
    before = (slow / "..data").readlink()
    api.patch(Secret, "keyring", {"stringData": {"a": "2", "b": "3"}}, namespace=namespace, patch_type=PatchType.MERGE)
    assert wait_until(lambda: (quick / "b").exists() and (quick / "a").read_text() == "2", PATIENCE_S)
    assert (slow / "..data").readlink() == before
    api.delete(Secret, "keyring", namespace=namespace)
    assert wait_until(lambda: [path for path in quick.iterdir() if not path.name.startswith("..")] == [], PATIENCE_S)
    assert (slow / "a").read_text() == json.dumps({"generation": 1})
