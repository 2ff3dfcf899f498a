"""The operator rotates keys on a real API server: what it publishes, when it promotes and retires, and how it says so."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from amo_operator.integrations import ORPHAN_SECONDS
from amo_operator.keyring import fingerprint
from amo_receiver.amocrm.keyring import url_token
from amo_receiver.embedded.processes import wait_until
from kube.apiserver import assets
from kube.controllers import begin_namespace, collect_garbage, end_namespace
from kube.kubelet import Kubelet
from kube.operators import KEYRING, integration, schema_migration
from kube.recorder import Recorder
from kube.scene import MERGE_PATCH, Scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kube.apiserver import ApiServer

NAMESPACE = "integrations"
CORE, CUSTOM = f"/api/v1/namespaces/{NAMESPACE}", f"/apis/amo-webhooks.io/v1alpha1/namespaces/{NAMESPACE}"
SECRETS, TELLING = f"{CORE}/secrets", (f"{CORE}/events", f"{CORE}/pods", f"{CUSTOM}/amointegrations")
SHORT = {"overlap": "1s", "quietPeriod": "1s"}
LONG = {"overlap": "1h", "quietPeriod": "1s"}
URL, CLIENT = "url_key", "client_secret"
SERVED_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def scene(apiserver: ApiServer, crds: list[str], server_folder: Path) -> Iterator[Scene]:
    """Return a namespace with an operator and two pods of the service, which all tests share: each has an integration of its own."""
    begin_namespace(apiserver, NAMESPACE)
    folder = server_folder / NAMESPACE
    with Kubelet(apiserver, NAMESPACE, folder / "kubelet") as kubelet, Scene(apiserver, NAMESPACE, folder, kubelet) as scene:
        scene.pod("pod-a")
        scene.pod("pod-b")
        scene.operator()
        yield scene
    end_namespace(apiserver, NAMESPACE, force=True)


@pytest.fixture(scope="module", autouse=True)
def recorder(scene: Scene) -> Iterator[Recorder]:
    """Return what keeps every version of what the tests make."""
    with Recorder(scene.server, [SECRETS, *TELLING]) as recorder:
        yield recorder


@pytest.fixture
def name(scene: Scene, request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the name of this test's integration, which is gone afterwards; a name that was used before remembers its retired keys."""
    name = re.sub("[^a-z]+", "-", request.node.name.removeprefix("test_")).strip("-")
    yield name
    scene.delete(name)
    collect_garbage(scene.server, NAMESPACE)


def begin(scene: Scene, name: str, **spec: Any) -> None:
    """Create an integration and wait until all pods have its keys."""
    scene.apply(integration(name, **spec))
    scene.until(lambda: scene.reason(name) == "True InStep")


def only(scene: Scene, name: str, kind: str, state: str) -> str:
    """Return the one key of a kind in a state; nothing unless there is exactly one."""
    found = scene.keys(name).get((kind, state), [])
    return found[0] if len(found) == 1 else ""


@contextmanager
def another_pod(scene: Scene, name: str, *, is_answering: bool = True, **metadata: Any) -> Iterator[Any]:
    """Have one more pod for a while."""
    pod = scene.pod(name, **metadata)
    pod.is_answering = is_answering
    try:
        yield pod
    finally:
        scene.end_pod(name)


def test_a_new_integration_gets_its_keys(scene: Scene, name: str) -> None:
    """A generated key is published for every pod, its URLs are written for people, and status and Events tell of both."""
    begin(scene, name, accounts=["31337"])
    document, told = scene.document(name), scene.secret(f"{name}-credentials")
    (key,) = document["keys"]
    assert (document["client_id"], document["accounts"], document["generation"]) == (f"client-{name}", ["31337"], 1)
    assert (key["kind"], key["state"], told["url_key"], told["generation"]) == (URL, "current", key["secret"], "1")
    assert told["url.31337"] == "/api/webhooks/amo/" + url_token(key["secret"].encode(), "31337")
    status = scene.status(name)
    assert status["generation"] == 1
    assert scene.keys(name) == {(URL, "current"): [fingerprint(key["secret"])]}
    assert status["credentialsSecret"] == f"{name}-credentials"
    age = datetime.fromisoformat(status["nextRotation"]) - datetime.fromisoformat(key["since"])
    assert abs(age - timedelta(days=90)) < timedelta(seconds=2)
    assert {each["name"]: each["inStep"] for each in status["pods"]} == {"pod-a": True, "pod-b": True}
    assert {"KeyringCreated", "Promoted", "InStep"} <= set(scene.events(name))
    (owner,) = scene.server.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/{name}-credentials")["metadata"]["ownerReferences"]
    assert owner["uid"] == scene.get(name)["metadata"]["uid"]


def test_kubectl_waits_for_it(scene: Scene, name: str) -> None:
    """``kubectl wait`` ends when every pod has the keys, kstatus sees progress before; the printer columns say the same."""
    programs = assets()
    kubectl = programs and programs / "kubectl"
    if kubectl is None or not os.access(kubectl, os.X_OK):
        pytest.skip("the folder that KUBEBUILDER_ASSETS names has no kubectl")

    def run(*arguments: str) -> str:
        access = ["--kubeconfig", str(scene.server.kubeconfig), "-n", NAMESPACE, "--cache-dir", str(scene.folder / "cache")]
        ended = subprocess.run([str(kubectl), *access, *arguments], capture_output=True, text=True, check=False, timeout=60)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    with another_pod(scene, "pod-silent", is_answering=False) as silent:
        scene.apply(integration(name))
        run("wait", f"amoint/{name}", "--for=condition=Reconciling", "--timeout=20s")
        assert scene.reason(name) == "False Propagating"
        silent.is_answering = True
        run("wait", f"amoint/{name}", "--for=condition=Ready", "--timeout=20s")
    states = {each["type"]: each["status"] for each in scene.status(name)["conditions"]}
    assert states == {"Ready": "True", "Reconciling": "False", "Stalled": "False"}
    header, row = run("get", "amoint", name).splitlines()
    assert header.split()[:4] == ["NAME", "READY", "REASON", "KEYRING"]
    assert row.split()[:4] == [name, "True", "InStep", "1"]


def test_a_secret_written_by_hand_is_rotated(scene: Scene, recorder: Recorder, name: str) -> None:
    """A new secret is accepted by every pod as the next one before it is promoted; the old one retires after overlap and quiet."""
    first, second = (f"written-by-hand-{number}" for number in (1, 2))
    scene.apply(integration(name, clientSecretRef={"name": f"{name}-input"}, **SHORT))
    scene.until(lambda: scene.reason(name) == "False SecretMissing")
    assert "clientSecretRef" in scene.status(name)["action"]
    scene.write_secret(f"{name}-input", client_secret=f"{first}\n")
    scene.until(lambda: scene.reason(name) == "True InStep")
    assert scene.keys(name) == {(CLIENT, "current"): [fingerprint(first)]}
    assert "action" not in scene.status(name)
    scene.write_secret(f"{name}-input", client_secret=second)
    scene.until(lambda: only(scene, name, CLIENT, "retired") == fingerprint(first) and scene.reason(name) == "True InStep")
    assert scene.keys(name) == {(CLIENT, "current"): [fingerprint(second)], (CLIENT, "retired"): [fingerprint(first)]}
    assert scene.secret(f"{name}-credentials") == {}
    scene.until(lambda: states_of(recorder, name)[-1][0] == scene.document(name)["generation"])
    documents = states_of(recorder, name)
    assert [generation for generation, _ in documents] == sorted({generation for generation, _ in documents})
    one, two = fingerprint(first), fingerprint(second)
    states = [keys for _, keys in documents]
    assert states[:3] == [{one: "current"}, {one: "current", two: "next"}, {one: "previous", two: "current"}]
    assert states[-1] == {two: "current"}
    assert {"NextPublished", "Promoted", "Replaced", "Retired"} <= set(scene.events(name))
    scene.write_secret(f"{name}-input", client_secret=first)
    scene.until(lambda: scene.reason(name, condition="Stalled") == "True InputRetired")
    assert scene.keys(name)[CLIENT, "current"] == [two]


def states_of(recorder: Recorder, name: str) -> list[tuple[int, dict[str, str]]]:
    """Return all documents that were ever published of an integration, as generation and state of each key."""
    found: list[tuple[int, dict[str, str]]] = []
    for version in recorder.versions(SECRETS):
        if version["metadata"]["name"] == KEYRING and name in version.get("data", {}):
            document = read_document(version["data"][name])
            read = (document["generation"], {fingerprint(key["secret"]): key["state"] for key in document["keys"]})
            if found[-1:] != [read]:
                found.append(read)
    return found


def read_document(encoded: str) -> dict[str, Any]:
    """Read a keyring out of a Secret's data; one that is damaged has no keys."""
    try:
        found: dict[str, Any] = json.loads(base64.b64decode(encoded))
    except ValueError:
        return {"keys": [], "generation": 0}
    return found


def secrets_ever(recorder: Recorder) -> set[str]:
    """Return every secret that any version of any Secret had."""
    found = set()
    for version in recorder.versions(SECRETS):
        for field, value in version.get("data", {}).items():
            if version["metadata"]["name"] == KEYRING:
                found |= {key["secret"] for key in read_document(value)["keys"]}
            elif field not in ("client_id", "generation"):
                found.add(base64.b64decode(value).decode().strip())
    return found


def test_requests_to_rotate_collapse(scene: Scene, name: str) -> None:
    """Each text of the annotation asks for one rotation; those made while one is under way are met by it."""
    begin(scene, name, clientSecret={"generate": True}, **LONG)
    before = only(scene, name, CLIENT, "current")
    told = scene.secret(f"{name}-credentials")
    with another_pod(scene, "pod-silent", is_answering=False) as silent:
        scene.ask_to_rotate(name, "please")
        scene.until(lambda: only(scene, name, CLIENT, "next"))
        for text in ("now", "really"):
            scene.ask_to_rotate(name, text)
            scene.until(lambda text=text: scene.document(name)["rotated_for"] == {CLIENT: text})
        assert scene.secret(f"{name}-credentials") | {"generation": ""} == told | {"generation": ""}
        silent.is_answering = True
        scene.until(lambda: only(scene, name, CLIENT, "previous") == before)
    scene.until(lambda: scene.reason(name) == "True Overlap")
    after = only(scene, name, CLIENT, "current")
    assert scene.keys(name) == {(CLIENT, "current"): [after], (CLIENT, "previous"): [before]}
    scene.until(lambda: fingerprint(scene.secret(f"{name}-credentials")["client_secret"]) == after)
    assert "RequestCollapsed" in scene.events(name)


def test_a_late_sender_is_waited_for(scene: Scene, name: str) -> None:
    """A URL that amoCRM still calls stays until the new one is called; the status says what a person has to do, and for which key."""
    begin(scene, name, accounts=["31337", "31338"], **SHORT)
    old = only(scene, name, URL, "current")
    with another_pod(scene, "pod-called") as called:
        scene.until(lambda: scene.reason(name) == "True InStep")
        called.matches[old] = {"31337": datetime.now(UTC), "31338": datetime.now(UTC)}
        scene.ask_to_rotate(name, "now")
        scene.until(lambda: scene.reason(name) == "True SenderNotSwitched")
        assert old in scene.status(name)["action"]
        assert "accounts 31337, 31338, " in scene.status(name)["action"]
        current = only(scene, name, URL, "current")
        called.matches[current] = {"31337": datetime.now(UTC)}
        scene.until(lambda: "account 31338, " in scene.status(name)["action"])
        scene.let_rounds_pass()
        assert only(scene, name, URL, "previous") == old
        called.matches[current] = dict.fromkeys(["31337", "31338"], datetime.now(UTC))
        scene.until(lambda: only(scene, name, URL, "retired") == old)
        scene.until(lambda: "action" not in scene.status(name))


def test_revoked_keys_leave_at_once(scene: Scene, name: str) -> None:
    """A revoked current key is replaced at once, a revoked previous one leaves at once, in every pod, also while paused."""
    begin(scene, name, clientSecret={"generate": True}, **LONG)
    first = only(scene, name, CLIENT, "current")
    scene.ask_to_rotate(name, "now")
    scene.until(lambda: only(scene, name, CLIENT, "previous") == first)
    second = only(scene, name, CLIENT, "current")
    scene.change(name, revoke=[first])
    scene.until(lambda: scene.reason(name) == "True InStep")
    assert all(pod.accepts(name) == {second} for pod in scene.pods)
    scene.change(name, revoke=[first, second], paused=True)
    scene.until(lambda: scene.reason(name) == "True Paused")
    third = only(scene, name, CLIENT, "current")
    assert scene.keys(name) == {(CLIENT, "current"): [third], (CLIENT, "revoked"): [first, second]}
    assert all(pod.accepts(name) == {third} for pod in scene.pods)
    assert fingerprint(scene.secret(f"{name}-credentials")["client_secret"]) == third


def test_paused_rotates_nothing(scene: Scene, name: str) -> None:
    """While paused a new secret and a request wait; afterwards they are carried out."""
    scene.write_secret(f"{name}-input", client_secret="the-first-of-two")
    begin(scene, name, clientSecretRef={"name": f"{name}-input"}, urlKey={}, **LONG)
    before = scene.document(name)
    scene.change(name, paused=True)
    scene.until(lambda: scene.reason(name) == "True Paused")
    scene.write_secret(f"{name}-input", client_secret="the-second-of-two")
    scene.ask_to_rotate(name, "now")
    scene.let_rounds_pass()
    assert scene.document(name) == before
    scene.change(name, paused=False)
    scene.until(lambda: only(scene, name, CLIENT, "previous") and only(scene, name, URL, "previous"))
    assert only(scene, name, CLIENT, "current") == fingerprint("the-second-of-two")


def test_changed_accounts_are_published(scene: Scene, name: str) -> None:
    """A changed list of accounts reaches every pod, and there is a URL for each of them and for no other."""
    begin(scene, name, accounts=["1", "2"])
    scene.change(name, accounts=["2", "3"])
    scene.until(lambda: scene.reason(name) == "True InStep")
    assert scene.document(name)["accounts"] == ["2", "3"]
    assert {each for each in scene.secret(f"{name}-credentials") if each.startswith("url.")} == {"url.2", "url.3"}
    (source,) = (each for each in scene.pods[0].keyring().sources if each.name == name)
    assert source.accounts == {"2", "3"}


def test_a_deleted_integration_is_revoked(scene: Scene, name: str) -> None:
    """The keys of a deleted integration leave every pod: its document stays, empty and newer, also if an older Secret is restored."""
    begin(scene, name)
    backup = scene.secret(KEYRING)[name]
    scene.delete(name)
    scene.until(lambda: scene.document(name)["keys"] == [])
    assert scene.document(name)["generation"] == 2
    scene.until(lambda: not any(pod.accepts(name) for pod in scene.pods))
    with another_pod(scene, "pod-restored"):
        for damage in (backup, "no document"):
            scene.write_secret(KEYRING, **{name: backup})
            scene.until(lambda: any(pod.accepts(name) for pod in scene.pods) or scene.document(name)["keys"] == [])
            scene.write_secret(KEYRING, **{name: damage})
            scene.until(lambda: not any(pod.accepts(name) for pod in scene.pods))
    scene.apply(integration(name))
    scene.until(lambda: scene.reason(name) == "True InStep")
    assert scene.document(name)["generation"] > 2


def test_what_anybody_may_annotate_is_bounded(scene: Scene, name: str) -> None:
    """It is kept beside the keys of all integrations, which must not be crowded out."""
    begin(scene, name)
    scene.ask_to_rotate(name, "ж" * 20_000)
    scene.until(lambda: scene.document(name)["generation"] > 1)
    assert len(scene.secret(KEYRING)[name]) < 5_000


def test_what_others_put_into_the_credentials_stays(scene: Scene, recorder: Recorder, name: str) -> None:
    """It is not ours to take out, and nothing is written to and fro; what is ours is put right, and goes when it is no longer so."""
    begin(scene, name, accounts=["1", "2"])
    credentials = f"{name}-credentials"
    told = scene.secret(credentials)
    scene.write_secret(credentials, note="theirs", client_id="theirs")
    scene.until(lambda: scene.secret(credentials) == told | {"note": "theirs"})
    before = scene.server.ask("GET", f"{SECRETS}/{credentials}")["metadata"]["resourceVersion"]
    scene.let_rounds_pass()
    assert scene.server.ask("GET", f"{SECRETS}/{credentials}")["metadata"]["resourceVersion"] == before
    scene.change(name, accounts=["2"])
    scene.until(lambda: scene.secret(credentials).keys() == (told.keys() | {"note"}) - {"url.1"})


def test_another_releases_resources_are_left_alone(scene: Scene, name: str) -> None:
    """They bear its label; what bears ours, or none, is worked on."""

    def labelled(manifest: dict[str, Any], release: str) -> dict[str, Any]:
        return {**manifest, "metadata": {**manifest["metadata"], "labels": {"app.kubernetes.io/instance": release}}}

    theirs = schema_migration(f"{name}-migration")
    scene.apply(labelled(integration(name), "another"))
    scene.apply(labelled(theirs, "another"))
    scene.let_rounds_pass()
    assert name not in scene.secret(KEYRING)
    unseen = [scene.status(name), scene.status(theirs["metadata"]["name"], "SchemaMigration")]
    assert unseen == [{"observedGeneration": -1}] * 2
    scene.delete(theirs["metadata"]["name"], "SchemaMigration")
    scene.apply(labelled(integration(name), "crm"))
    scene.until(lambda: scene.reason(name) == "True InStep")


def test_one_that_is_labelled_for_another_release_keeps_its_keys(scene: Scene, name: str) -> None:
    """It is there, so its webhooks are answered as before; it is only not looked after, which the log says once."""
    begin(scene, name)
    document, path = scene.document(name), scene.path("AmoIntegration", name)
    scene.server.ask("PATCH", path, {"metadata": {"labels": {"app.kubernetes.io/instance": "argo"}}}, content_type=MERGE_PATCH)
    told = f"AmoIntegration {name} is not looked after: its label app.kubernetes.io/instance names another release, argo"
    scene.until(lambda: told in scene.operators[-1].log)
    scene.change(name, accounts=["77"])
    begun = time.monotonic()
    scene.until(lambda: time.monotonic() - begun > 1.5 * ORPHAN_SECONDS, timeout_s=60)
    scene.let_rounds_pass()
    assert scene.document(name) == document
    assert [pod.accepts(name) for pod in scene.pods] == [{fingerprint(document["keys"][0]["secret"])}] * 2
    assert scene.operators[-1].log.count(told) == 1
    scene.server.ask("PATCH", path, {"metadata": {"labels": None}}, content_type=MERGE_PATCH)
    scene.until(lambda: scene.document(name)["accounts"] == ["77"])


@pytest.mark.parametrize("damage", ["deleted", "corrupt", "older", "credentials"])
def test_drift_is_repaired(scene: Scene, name: str, damage: str) -> None:
    """Keys survive whatever befalls the Secrets, and one that was retired does not come back with an old backup."""
    scene.write_secret(f"{name}-input", client_secret=f"the-old-one-{damage}")
    begin(scene, name, clientSecretRef={"name": f"{name}-input"}, urlKey={}, **SHORT)
    backup = scene.secret(KEYRING)[name]
    scene.write_secret(f"{name}-input", client_secret=f"the-new-one-{damage}")
    scene.until(lambda: only(scene, name, CLIENT, "retired") and scene.reason(name) == "True InStep")
    before, told = scene.status(name), scene.secret(f"{name}-credentials")
    if damage == "deleted":
        scene.delete_secret(KEYRING)
    elif damage == "credentials":
        scene.write_secret(f"{name}-credentials", url_key="somebody-elses-idea", generation="999")
    else:
        scene.write_secret(KEYRING, **{name: {"corrupt": '{"version": 1', "older": backup}[damage]})
    if damage == "credentials":
        scene.until(lambda: scene.secret(f"{name}-credentials") == told)
        assert scene.status(name)["generation"] == before["generation"]
    else:
        scene.until(lambda: scene.status(name)["generation"] > before["generation"] and scene.reason(name) == "True InStep")
    accepted = {fingerprint(f"the-new-one-{damage}"), fingerprint(told["url_key"])}
    assert {fingerprint(key["secret"]) for key in scene.document(name)["keys"]} == accepted
    assert all(pod.accepts(name) == accepted for pod in scene.pods)
    assert scene.keys(name)[CLIENT, "retired"] == [fingerprint(f"the-old-one-{damage}")]


def test_a_pod_that_cannot_prove_its_keyring_is_named(scene: Scene, name: str) -> None:
    """As long as one pod cannot be asked nothing is promoted, and the condition names it; pods that are ending count as any other."""
    begin(scene, name, clientSecret={"generate": True}, **LONG)
    current = only(scene, name, CLIENT, "current")
    with another_pod(scene, "pod-mute", is_answering=False) as mute:
        scene.ask_to_rotate(name, "now")
        scene.until(lambda: scene.reason(name) == "False Propagating" and "pod-mute: it answered 503" in scene.message(name))
        mute.terminate()
        scene.let_rounds_pass()
        (shown,) = (each for each in scene.status(name)["pods"] if each["name"] == "pod-mute")
        assert shown == {"name": "pod-mute", "inStep": False, "problem": "it answered 503"}
        assert only(scene, name, CLIENT, "current") == current
    scene.until(lambda: only(scene, name, CLIENT, "previous") == current)


def test_a_rollout_holds_back_promotion(scene: Scene, name: str) -> None:
    """While a Deployment is between two versions of its pods the next key waits: pods with the old keyring may still come."""
    replicas = {"observedGeneration": 1, "replicas": 2}
    scene.deployment(**replicas, updatedReplicas=1)
    begin(scene, name, clientSecret={"generate": True}, **LONG)
    current = only(scene, name, CLIENT, "current")
    scene.ask_to_rotate(name, "now")
    scene.until(lambda: scene.reason(name) == "False Promoting")
    scene.let_rounds_pass()
    assert only(scene, name, CLIENT, "current") == current
    scene.deployment(**replicas, updatedReplicas=2)
    scene.until(lambda: only(scene, name, CLIENT, "previous") == current)


@pytest.fixture
def older_crd(apiserver: ApiServer, crds: list[str]) -> Iterator[None]:
    """Have the CRD of an older release, which lets anything pass, for a while."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/amointegrations.amo-webhooks.io"
    loose = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    before = apiserver.ask("GET", path)["spec"]["versions"]
    older = json.loads(json.dumps(before))
    schema = older[0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"] = loose
    schema.pop("x-kubernetes-validations", None)

    def have(versions: list[dict[str, Any]]) -> None:  # a patch names no version of the object, so nobody is in its way
        apiserver.ask("PATCH", path, {"spec": {"versions": versions}}, content_type=MERGE_PATCH)
        assert wait_until(lambda: apiserver.serves(f"{CUSTOM}/amointegrations"), SERVED_WITHIN_S)

    have(older)
    yield
    have(before)


def test_an_invalid_object_does_not_hold_up_others(scene: Scene, name: str, older_crd: None) -> None:
    """An object that the operator cannot understand is Stalled with the path at fault; the others go on."""
    invalid = f"a-{name}"

    def is_taken() -> bool:
        try:
            scene.apply(integration(invalid, overlap="soon"))
        except AssertionError:  # the API server knows the old schema for a while
            return False
        return True

    scene.until(is_taken)
    scene.until(lambda: scene.reason(invalid, condition="Stalled") == "True Invalid")
    assert "spec.overlap" in scene.message(invalid)
    assert "soon" not in scene.message(invalid)
    scene.apply(integration(name))
    scene.until(lambda: scene.reason(name) == "True InStep")
    scene.delete(invalid)


def test_no_secret_is_told(scene: Scene, recorder: Recorder, name: str) -> None:
    """Of all secrets that ever were none stands in a version of a status, an Event, an annotation, in the log or the metrics."""
    begin(scene, name, clientSecret={"generate": True}, urlKey={}, accounts=["31337"], **SHORT)
    mine = {scene.secret(f"{name}-credentials")[key] for key in (CLIENT, URL, "url.31337")}
    scene.until(lambda: mine <= secrets_ever(recorder))

    def told() -> str:
        versions = [version for path in TELLING for version in recorder.versions(path)]
        return json.dumps(versions)

    scene.until(lambda: told().count(only(scene, name, CLIENT, "current")) >= 2)
    said = told() + "".join(operator.log_path.read_text(errors="replace") + operator.page("/metrics").text for operator in scene.operators)
    assert [secret[:3] for secret in secrets_ever(recorder) if secret in said] == []
