"""Whatever breaks between the operator and the API server, and whenever the operator dies, the end is the same."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from amo_operator.keyring import fingerprint
from kube.operators import KEYRING, documented_rules, integration, looking_after
from kube.proxy import ALWAYS, Fault, anything, is_write
from kube.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kube.access import Access
    from kube.apiserver import ApiServer
    from kube.conftest import KubeconfigFor
    from kube.kubelet import Kubelet
    from kube.proxy import Proxy

pytestmark = pytest.mark.timeout(400)

NAME, INPUT, CREDENTIALS = "crm-main", "crm-input", "crm-main-credentials"
CLIENT, URL = "client_secret", "url_key"
PATIENCE_S = 100.0
STEPS = 4


def is_watch(access: Access) -> bool:
    """Tell whether a call is a watch."""
    return access.verb == "watch"


@pytest.fixture
def scene(apiserver: ApiServer, crds: list[str], namespace: str, kubelet: Kubelet, tmp_path: Path) -> Iterator[Scene]:
    """Return a namespace with two pods of the service, and no operator yet."""
    with Scene(apiserver, namespace, tmp_path, kubelet) as scene:
        scene.pod("pod-a")
        scene.pod("pod-b")
        yield scene


@pytest.fixture
def access(kubeconfig_for: KubeconfigFor, proxy: Proxy) -> Path:
    """Return the operator's access, through the proxy, with the documented rights."""
    return kubeconfig_for("amo-operator", documented_rules([KEYRING, CREDENTIALS], [INPUT]), url=proxy.url)


def settled(scene: Scene) -> bool:
    """Tell whether each kind has one key, every pod has exactly these, and senders were told of them."""
    keys, document = scene.keys(NAME), scene.document(NAME)
    roles = {role: len(names) for role, names in keys.items() if role[1] not in ("retired", "revoked")}
    accepted = {fingerprint(key["secret"]) for key in document["keys"]}
    told = scene.secret(CREDENTIALS)
    return (
        scene.reason(NAME) == "True InStep"
        and roles == {(CLIENT, "current"): 1, (URL, "current"): 1}
        and all(pod.accepts(NAME) == accepted for pod in scene.pods)
        and scene.status(NAME).get("generation") == document["generation"] == int(told.get("generation", "0"))
        and told.get("url_key") in {key["secret"] for key in document["keys"]}
    )


class Story:
    """A life of an integration, step by step: created, a new secret by hand, a rotation asked for, a key revoked."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._first = self._revoked = self._asked_from = ""

    def begin(self, step: int) -> None:
        """Do what the person does in this step."""
        scene = self._scene
        if step == 0:
            scene.write_secret(INPUT, client_secret="the-first-secret")
            scene.apply(integration(NAME, accounts=["77"], clientSecretRef={"name": INPUT}, urlKey={}, overlap="1s", quietPeriod="1s"))
        elif step == 1:
            scene.write_secret(INPUT, client_secret="the-second-secret")
        elif step == 2:
            (self._asked_from,) = scene.keys(NAME)[URL, "current"]
            scene.ask_to_rotate(NAME, "please")
        else:
            (self._revoked,) = scene.keys(NAME)[URL, "current"]
            scene.change(NAME, revoke=[self._revoked])

    def is_done(self, step: int) -> bool:
        """Tell whether this step has led where it should."""
        keys = self._scene.keys(NAME)
        gone = set(keys.get((CLIENT, "retired"), []) + keys.get((URL, "retired"), []) + keys.get((URL, "revoked"), []))
        wanted = [set(), {fingerprint("the-first-secret")}, {self._asked_from}, {self._revoked}][step]
        return wanted <= gone and settled(self._scene)

    def tell(self, before_step: Callable[[int], object] = lambda _: None) -> None:
        """Live through all of it, and see that nothing came back."""
        for step in range(STEPS):
            before_step(step)
            self.begin(step)
            self._scene.until(lambda step=step: self.is_done(step), PATIENCE_S)
        keys = self._scene.keys(NAME)
        assert keys[CLIENT, "current"] == [fingerprint("the-second-secret")]
        assert keys[CLIENT, "retired"] == [fingerprint("the-first-secret")]
        assert keys[URL, "retired"] == [self._asked_from]
        assert keys[URL, "revoked"] == [self._revoked]
        assert self._asked_from != self._revoked


def test_each_write_is_cut_before_and_after(scene: Scene, proxy: Proxy, access: Path) -> None:
    """Each kind of write is lost on its way, then its answer is lost, then it goes through, all the time."""
    lost = proxy.cut_in_turn()
    scene.operator(access)
    Story(scene).tell()
    for fault in lost:
        assert {(each.verb, each.ruled) for each in fault.hit} >= {
            ("create", "secrets"),
            ("patch", "secrets"),
            ("patch", "pods"),
            ("patch", "amointegrations/status"),
        }


def test_the_operator_dies_after_each_write(scene: Scene, proxy: Proxy, access: Path) -> None:
    """No operator ever makes two writes: the cluster alone is enough to go on."""
    with looking_after(scene.operator(access), proxy.hold_writes()) as deaths:
        Story(scene).tell()
    assert deaths[0] >= 4 * STEPS


@pytest.mark.parametrize(("status", "when"), [(409, is_write), (410, is_watch), (429, anything), (500, anything)])
def test_errors_of_the_api_server_are_waited_out(
    scene: Scene, proxy: Proxy, access: Path, status: int, when: Callable[[Access], bool]
) -> None:
    """Each step begins with a few of them: conflicts of writes, watches that are too old, and what any call may be answered."""
    faults: list[Fault] = []
    with looking_after(
        scene.operator(access, AMO_OPERATOR_WATCH_SECONDS="1")
    ):  # kopf ends when a watch is answered with what it does not know
        Story(scene).tell(lambda _: faults.append(proxy.answer(status, when, times=5)))
    assert sum(len(fault.hit) for fault in faults) >= STEPS


def test_an_api_server_that_is_away_is_waited_for(scene: Scene, proxy: Proxy, access: Path) -> None:
    """What people wrote meanwhile is done when it is back."""
    scene.operator(access)
    story = Story(scene)
    story.begin(0)
    scene.until(lambda: story.is_done(0))
    away = proxy._add(Fault(anything, times=ALWAYS, cut="before"))
    story.begin(1)
    scene.until(lambda: len(away.hit) > 20)
    assert scene.document(NAME)["generation"] == 1
    proxy.forget()
    scene.until(lambda: story.is_done(1), PATIENCE_S)


@pytest.mark.parametrize("end", ["cut", "expire"])
def test_watches_are_begun_anew(scene: Scene, proxy: Proxy, access: Path, end: str) -> None:
    """With a clock that is much too slow only the watches tell of a change, also after they were cut or have expired."""
    scene.operator(access, AMO_OPERATOR_INTERVAL_SECONDS="3600")
    scene.apply(integration(NAME))
    scene.until(lambda: scene.document(NAME)["generation"] == 1 and proxy.watches() == 2)
    before = len([call for call in proxy.calls if call.access and call.access.verb == "watch"])
    assert (proxy.cut_watches if end == "cut" else proxy.expire_watches)() == 2
    scene.until(lambda: len([call for call in proxy.calls if call.access and call.access.verb == "watch"]) >= before + 2)
    scene.change(NAME, accounts=["77"])
    scene.until(lambda: scene.document(NAME)["accounts"] == ["77"])


def test_two_operators_by_accident_agree(scene: Scene, access: Path) -> None:
    """One keyring, the same end, and nothing is written back and forth afterwards."""
    scene.operator(access)
    scene.operator(access)
    Story(scene).tell()
    numbers = count()

    def versions() -> list[Any]:
        secrets = f"/api/v1/namespaces/{scene.namespace}/secrets"
        paths = (f"{secrets}/{KEYRING}", f"{secrets}/{CREDENTIALS}", scene.path("AmoIntegration", NAME))
        return [scene.server.ask("GET", path)["metadata"]["resourceVersion"] for path in paths]

    before = [versions()]

    def still() -> bool:
        now = versions()
        if now != before[0]:
            before[0] = now
            assert next(numbers) < STEPS, "they go on writing"
            return False
        scene.let_rounds_pass(5)
        return versions() == now

    scene.until(still, PATIENCE_S)


@pytest.mark.parametrize("fault", ["hang", "refused"])
def test_events_that_cannot_be_told_hold_up_nothing(scene: Scene, proxy: Proxy, access: Path, fault: str) -> None:
    """Keys reach pods and senders, and the status says so; what was not told is counted."""

    def is_event(access: Access) -> bool:
        return access.ruled == "events"

    if fault == "hang":
        proxy.delay(60, is_event, times=ALWAYS)
    else:
        proxy.answer(403, is_event, times=ALWAYS)
    operator = scene.operator(access)
    story = Story(scene)
    story.begin(0)
    scene.until(lambda: story.is_done(0), PATIENCE_S)
    scene.until(lambda: 'amo_operator_reconciles_total{kind="Event",outcome="error"}' in operator.page("/metrics").text)
    assert scene.reason(NAME) == "True InStep"


def test_a_revocation_that_an_operator_began_is_ended_by_the_next_one(scene: Scene, access: Path) -> None:
    """Of an integration that is gone: its document is empty already, and pods that do not prove to have that are nudged."""
    document = '{"version": 1, "generation": 2, "client_id": "gone", "accounts": null, "keys": []}'
    scene.write_secret(KEYRING, gone=document)
    scene.pods[0].is_answering = False
    scene.operator(access)

    def nudged() -> list[bool]:
        pods = [scene.server.ask("GET", f"/api/v1/namespaces/{scene.namespace}/pods/{pod.name}") for pod in scene.pods]
        return ["amo-webhooks.io/keyring-version" in pod["metadata"].get("annotations", {}) for pod in pods]

    scene.until(lambda: all(nudged()), PATIENCE_S)
    scene.until(lambda: [each["source"] for each in scene.pods[1].report()] == ["gone"])
    assert scene.secret(KEYRING) == {"gone": document}


def test_a_watch_that_hangs_shows_on_the_liveness_page(scene: Scene, proxy: Proxy, access: Path) -> None:
    """Lists are still answered, so the clock alone would not notice; when watches work again, so does the page."""
    operator = scene.operator(access, AMO_OPERATOR_WATCH_SECONDS="1")
    scene.apply(integration(NAME))
    scene.until(lambda: scene.reason(NAME) == "True InStep")
    assert operator.page("/livez").status_code == 200
    proxy.delay(60, is_watch, times=ALWAYS)
    scene.until(lambda: proxy.watches() == 0)
    scene.change(NAME, accounts=["77"])
    scene.until(lambda: operator.page("/livez").status_code == 503)
    assert "watch of AmoIntegration" in operator.page("/livez").json()["obstacles"][0]
    assert scene.document(NAME)["accounts"] == ["77"]
    proxy.forget()
    scene.until(lambda: operator.page("/livez").status_code == 200, PATIENCE_S)  # kopf gives a watch that hangs 11 s
