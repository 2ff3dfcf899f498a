"""Keys change while three real services are under load: nothing that is valid is rejected, what is revoked is refused."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from rich.table import Table

from amo_receiver.amocrm.keyring import fingerprint
from exposition import metrics_on
from factories import ACCOUNT, form_body, lead
from hostile.report import SEED, Report
from integration.load import FORM, Post
from kube.operators import KEYRING, SERVICE_LABELS, documented_rules, integration
from kube.scene import Scene
from kube.traffic import Credentials, Person, ServingPod, Traffic
from servers import run_sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from kube.apiserver import ApiServer
    from kube.conftest import KubeconfigFor
    from kube.kubelet import Kubelet
    from kube.operators import Operator

pytestmark = pytest.mark.timeout(600)

ROTATIONS = 10
LAST_ROUND = "amo_operator_last_round_seconds"
PATIENCE_S = 60.0
BOUND_S = 10.0
"""What operator/README.md promises: a secret that was written is accepted, and a key that was revoked is refused, everywhere within it."""
LATEST_CRASH_S = 7.0
"""After a request, squared by chance: most of what an operator does it does at once."""
QUICK_S, SLOW_S = 0.0, 3.0
"""When senders have new credentials: at once, so every pod must know them; after the overlap, so only being used keeps the old ones."""
BRISK = {"overlap": "1s", "quietPeriod": "1s"}
SECRETS = [KEYRING, "ours-credentials", "crm-credentials", "crm-input"]
ADDRESSES = {"service-1": "127.0.0.11", "service-2": "127.0.0.12", "service-3": "127.0.0.13"}
ANOTHER = "32000002"
FIRST, SECOND = "first-secret-of-the-tests-0123456789", "second-secret-of-the-tests-0123456789"


class Row(NamedTuple):
    """What came of one proof."""

    proof: str
    rotations: int
    requests: int
    rejected: int
    figure: str


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """Return what the figures are put into; they are printed when all proofs are through."""
    found: list[Row] = []
    yield found
    table = Table(title=f"three services under load, HOSTILE_SEED={SEED}")
    for heading in Row._fields:
        table.add_column(heading, overflow="fold")
    for row in found:
        table.add_row(*map(str, row))
    Report(request.config.pluginmanager.getplugin("capturemanager"), "").show(table)


class Stand:
    """Three processes of the service, the operator with the rights of its ServiceAccount, and what they share."""

    def __init__(self, scene: Scene, kubelet: Kubelet, access: Path, folder: Path, db_url: str) -> None:
        self.scene = scene
        self.pods: list[ServingPod] = []
        self.operator: Operator
        self._kubelet = kubelet
        self._access = access
        self._folder = folder
        self._db_url = db_url

    @property
    def urls(self) -> dict[str, str]:
        return {pod.name: pod.url for pod in self.pods}

    def until(self, holds: Callable[[], object]) -> None:
        """Wait for what must come to hold, however busy this machine is."""
        self.scene.until(holds, PATIENCE_S)

    def begin(self, resource: Mapping[str, Any], **environment: str) -> str:
        """Let the operator make the keyring, then start the pods; return the integration's name when all have proved it."""
        name: str = resource["metadata"]["name"]
        self.scene.apply(resource)
        self.operator = self.scene.operator(self._access, **environment)
        self.until(lambda: self.scene.document(name)["keys"])
        self.pods = [self._pod(name, address) for name, address in ADDRESSES.items()]
        with ThreadPoolExecutor() as starters:
            list(starters.map(ServingPod.start, self.pods))
        self.until(lambda: self.scene.reason(name) == "True InStep")
        return name

    def _pod(self, name: str, address: str) -> ServingPod:
        self._kubelet.pods.add(name, SERVICE_LABELS, ip=address)
        mounted = self._kubelet.mount(KEYRING, name)
        return ServingPod(name, address, self.scene.port, mounted, self._folder / name, self._db_url)

    def credentials(self, name: str, delay_s: float) -> Credentials:
        """Return a sender of ours with a pod of its own."""
        pod = f"sender-{int(delay_s)}"
        self._kubelet.pods.add(pod, {"app": "sender"})
        return Credentials(self._kubelet.mount(f"{name}-credentials", pod, delay_s=delay_s), read_s=delay_s / 10)

    def end(self) -> None:
        """End the services, with their logs."""
        for pod in self.pods:
            pod.terminate()
        for pod in self.pods:
            pod.end()
            print(f"--- {pod.name}\n{pod.log}")  # noqa: T201

    def crash_operator(self, after_s: float) -> None:
        """Kill the operator at some moment, and start it again as its Deployment does."""
        time.sleep(after_s)
        self.operator.kill()
        self.operator.start()

    def metric(self, series: str, **labels: str) -> float | None:
        """Return a metric of the operator; None while there is none with these labels."""
        samples = [each for metric in metrics_on(self.operator.page("/metrics").content) for each in metric.samples]
        return next((each.value for each in samples if each.name == series and each.labels == labels), None)

    def late_match(self, name: str, kind: str) -> float | None:
        """Return when a key was last used though its overlap is over, as the operator shows it."""
        return self.metric("amo_operator_late_match_seconds", name=name, key_kind=kind)

    def await_rounds(self, count: int) -> None:
        """Wait until the operator has compared everything so many times more."""
        for _ in range(count):
            before = self.metric(LAST_ROUND)
            self.until(lambda before=before: self.metric(LAST_ROUND) != before)

    def secrets(self, name: str, state: str) -> dict[str, str]:
        """Return the published secrets in a state, by kind."""
        return {key["kind"]: key["secret"] for key in self.scene.document(name)["keys"] if key["state"] == state}

    def fingerprints(self, name: str) -> set[str]:
        return {fingerprint(key["secret"].encode()) for key in self.scene.document(name)["keys"]}

    def rotate(self, name: str, request: str) -> tuple[float, float]:
        """Ask for a rotation; return after how many seconds the new keys, and only the new ones, were in all pods."""
        before, begun = self.fingerprints(name), time.monotonic()
        self.scene.ask_to_rotate(name, request)
        self.until(lambda: all(len(pod.keys(name).keys() - before) == len(before) for pod in self.pods))
        everywhere = time.monotonic() - begun
        self.until(lambda: not any(pod.keys(name).keys() & before for pod in self.pods))
        return everywhere, time.monotonic() - begun


@pytest.fixture
def stand(
    apiserver: ApiServer, crds: list[str], namespace: str, kubelet: Kubelet, kubeconfig_for: KubeconfigFor, tmp_path: Path, pooled_url: str
) -> Iterator[Stand]:
    """Return what the services are started with."""
    with Scene(apiserver, namespace, tmp_path, kubelet) as scene:
        standing = Stand(scene, kubelet, kubeconfig_for("operator", documented_rules(SECRETS)), tmp_path, pooled_url)
        try:
            yield standing
        finally:
            standing.end()


def lost(traffic: Traffic, database_url: str) -> set[int]:
    """Return what was accepted and is not in the database."""
    stored = {int(row["entity_id"]) for row in run_sql(database_url, "SELECT entity_id FROM events")}
    return {each.lead for each in traffic.tries if each.status == 200} - stored


def summed(times: list[float]) -> str:
    ordered = sorted(times)
    return f"{ordered[len(ordered) // 2]:.1f} s, at most {ordered[-1]:.1f} s"


def test_ten_rotations_with_crashes_reject_nothing(stand: Stand, rows: list[Row], database_url: str) -> None:
    """Client secret and URL key are exchanged ten times, the operator is killed each time; every key is used, no request is lost."""
    name = stand.begin(integration("ours", accounts=[ACCOUNT], clientSecret={"generate": True}, urlKey={}, maxOverlap="5m", **BRISK))
    quick, slow = (stand.credentials(name, delay_s) for delay_s in (QUICK_S, SLOW_S))
    senders = {"quick": quick.signed, "slow": slow.signed, "quick by URL": quick.by_url, "slow by URL": slow.by_url}
    chance, rotations = random.Random(SEED), []  # noqa: S311 - no secret
    with Traffic(stand.urls, senders, pause_s=0.2) as traffic, ThreadPoolExecutor(1) as aside:
        for number in range(ROTATIONS):
            crash = aside.submit(stand.crash_operator, LATEST_CRASH_S * chance.random() ** 2)
            rotations.append(stand.rotate(name, f"rotation {number}"))
            crash.result()
        ended_at = time.time()
        stand.until(lambda: all(traffic.is_accepted_everywhere(sender, since=ended_at) for sender in senders))
    rejected = [each for sender in senders for each in traffic.rejected(sender)]
    everywhere, whole = (list(times) for times in zip(*rotations, strict=True))
    figure = f"new keys in every pod after {summed(everywhere)}; old ones gone after {summed(whole)}"
    rows.append(Row("rotations, operator killed each time", 2 * ROTATIONS, len(traffic.tries), len(rejected), figure))
    assert rejected == []
    assert [traffic.undelivered(sender) for sender in senders] == [set()] * len(senders)
    assert lost(traffic, database_url) == set()
    used = run_sql(database_url, "SELECT key_kind, count(DISTINCT key_fingerprint) AS keys FROM deliveries GROUP BY key_kind")
    assert {row["key_kind"]: row["keys"] for row in used} == {"client_secret": ROTATIONS + 1, "url_key": ROTATIONS + 1}


def test_a_secret_written_by_hand_and_one_revoked(stand: Stand, rows: list[Row], database_url: str) -> None:
    """A pod that has accepted the new secret once never rejects it; what was rejected comes again; a leaked one never comes back."""
    scene = stand.scene
    scene.write_secret("crm-input", client_secret=FIRST)
    resource = integration("crm", accounts=[ACCOUNT], clientSecretRef={"name": "crm-input"})
    name = stand.begin(resource, AMO_OPERATOR_INTERVAL_SECONDS="3")  # as it is installed: the figures are to be those of a release
    amocrm, thief = Person(resource["spec"]["clientId"], FIRST), Person(resource["spec"]["clientId"], FIRST)
    with Traffic(stand.urls, {"amoCRM": amocrm.signed, "thief": thief.signed}) as traffic:
        stand.until(lambda: traffic.is_accepted_everywhere("amoCRM", since=0) and traffic.is_accepted_everywhere("thief", since=0))
        amocrm.secret = SECOND
        clicked_at = time.time()
        stand.until(lambda: traffic.rejected("amoCRM"))
        written_at = time.time()
        scene.write_secret("crm-input", client_secret=SECOND)
        stand.until(lambda: traffic.is_accepted_everywhere("amoCRM", since=clicked_at))
        accepted_at = traffic.first_accepted("amoCRM", since=clicked_at)
        revoked_at = time.time()
        scene.change(name, revoke=[fingerprint(FIRST.encode())])
        stand.until(lambda: traffic.refusing("thief") == set(stand.urls))
        refused_at = max(each.sent_at for each in traffic.accepted("thief"))
        scene.write_secret("crm-input", client_secret=FIRST)
        stand.until(lambda: scene.reason(name, condition="Stalled") == "True InputRetired")
        stand.await_rounds(2)
        again_at = time.time()
        stand.until(lambda: traffic.is_accepted_everywhere("amoCRM", since=again_at))
    between = traffic.rejected("amoCRM")
    figure = f"{max(accepted_at.values()) - written_at:.1f} s after the write accepted by every pod; {len(between)} rejected before that"
    late = [each for each in between if each.sent_at > accepted_at[each.pod]]
    early = [each for each in traffic.rejected("thief") if each.sent_at < revoked_at]
    rows.append(Row("secret written by hand", 1, len(traffic.of("amoCRM")), len(late), figure))
    figure = f"accepted nowhere {refused_at - revoked_at:.1f} s after it was revoked"
    rows.append(Row("revoked", 0, len(traffic.of("thief")), len(early), figure))
    assert [late, early, traffic.undelivered("amoCRM"), lost(traffic, database_url)] == [[], [], set(), set()]
    assert max(accepted_at.values()) - written_at <= BOUND_S
    assert refused_at - revoked_at <= BOUND_S
    assert traffic.accepted("thief", since=again_at) == []
    assert traffic.rejected("thief", since=again_at) != []


def test_a_pod_that_is_stopped_holds_the_rotation_and_one_cut_off_obeys_the_clock(stand: Stand, rows: list[Row], database_url: str) -> None:
    """The condition names both; the stopped one is waited for, the other one stops accepting at the time that it was told before."""
    resource = integration("ours", accounts=[ACCOUNT], clientSecret={"generate": True}, maxOverlap="40s", **BRISK)
    name = stand.begin(resource, AMO_OPERATOR_ANSWER_SECONDS="1")
    scene, ours, (_, stopped, severed) = stand.scene, stand.credentials(name, QUICK_S), stand.pods
    straggler = Person(f"client-{name}", stand.secrets(name, "current")["client_secret"])
    old = fingerprint(straggler.secret.encode())
    with Traffic(stand.urls, {"ours": ours.signed, "straggler": straggler.signed}) as traffic:
        stopped.pause()
        try:
            scene.ask_to_rotate(name, "while one is stopped")
            stand.until(lambda: stopped.name in scene.message(name) and stand.secrets(name, "next"))
            published = stand.secrets(name, "next")
            stand.await_rounds(3)
            assert stand.secrets(name, "next") == published
            assert stand.secrets(name, "current")["client_secret"] == straggler.secret
        finally:
            stopped.resume()
        stand.until(lambda: severed.keys(name)[old]["not_after"])
        severed.cut_off()
        not_after = next(key["not_after"] for key in scene.document(name)["keys"] if key["state"] == "previous")
        stand.until(lambda: stand.late_match(name, "client_secret"))
        stand.until(lambda: traffic.refusing("straggler") == set(stand.urls))
        stand.until(lambda: [pod.name for pod in stand.pods if pod.name in scene.message(name)] == [severed.name])
        assert [old in pod.keys(name) for pod in stand.pods] == [False, False, True]
        assert stand.secrets(name, "current") == published
        again_at = time.time()
        stand.until(lambda: traffic.is_accepted_everywhere("ours", since=again_at))
    ends_at = parsed(not_after)
    last_at = max(each.sent_at for each in traffic.accepted("straggler"))
    figure = f"the pod cut off accepted the old key last {ends_at - last_at:.1f} s before its time was over"
    rows.append(Row("pod stopped, pod cut off", 1, len(traffic.tries), len(traffic.rejected("ours")), figure))
    assert [traffic.rejected("ours"), lost(traffic, database_url)] == [[], set()]
    assert last_at < ends_at
    assert traffic.rejected("straggler", since=ends_at) != []


def test_an_old_url_is_kept_until_every_account_uses_the_new_one(stand: Stand, rows: list[Row], database_url: str) -> None:
    """The status says what to enter where; the overlap being over, it shows as a late match; then the old URL is refused everywhere."""
    name = stand.begin(integration("ours", accounts=[ACCOUNT, ANOTHER], urlKey={}, maxOverlap="5m", **BRISK))
    scene = stand.scene
    entered = scene.secret(f"{name}-credentials")[f"url.{ACCOUNT}"]
    amocrm, forgotten = Person(path=entered), Person(path=entered)
    old = fingerprint(stand.secrets(name, "current")["url_key"].encode())
    call_from_another_account(stand, name)
    with Traffic(stand.urls, {"amoCRM": amocrm.by_url}) as traffic:
        stand.until(lambda: traffic.is_accepted_everywhere("amoCRM", since=0))
        scene.ask_to_rotate(name, "a new URL")
        stand.until(lambda: stand.late_match(name, "url_key"))
        assert scene.reason(name) == "True SenderNotSwitched"
        assert f"url.{ACCOUNT}"[:4] in scene.status(name)["action"]
        stand.await_rounds(4)
        assert [key["not_after"] for key in scene.document(name)["keys"] if key["state"] == "previous"] == [None]
        assert all(old in pod.keys(name) for pod in stand.pods)
        told = scene.secret(f"{name}-credentials")[f"url.{ACCOUNT}"]
        assert [told] == paths(stand.pods[0])
        amocrm.path = told
        stand.until(lambda: f"URL of account {ANOTHER}, " in scene.status(name)["action"])
        stand.await_rounds(6)
        assert all(old in pod.keys(name) for pod in stand.pods), "the other account calls seldom, and nobody has moved it"
        call_from_another_account(stand, name)
        stand.until(lambda: scene.reason(name) == "True InStep" and not any(old in pod.keys(name) for pod in stand.pods))
        assert stand.late_match(name, "url_key") is None
    with Traffic(stand.urls, {"forgotten": forgotten.by_url}) as after:
        stand.until(lambda: after.refusing("forgotten") == set(stand.urls))
    rows.append(Row("URL entered by hand", 1, len(traffic.tries), len(traffic.rejected("amoCRM")), "the old one is refused afterwards"))
    assert [traffic.rejected("amoCRM"), traffic.undelivered("amoCRM"), lost(traffic, database_url)] == [[], set(), set()]
    assert after.accepted("forgotten") == []


def call_from_another_account(stand: Stand, name: str) -> None:
    """Let the account that seldom has news have some, at the URL that is written for it now."""
    path = stand.scene.secret(f"{name}-credentials")[f"url.{ANOTHER}"]

    def news(number: int) -> Post:
        return Post(path, {"Content-Type": FORM}, form_body("leads", "add", lead(id=number), account=ANOTHER), (number,))

    with Traffic(stand.urls, {"seldom": news}) as traffic:
        stand.until(lambda: traffic.is_accepted_everywhere("seldom", since=0))
    assert traffic.rejected("seldom") == []


def paths(pod: ServingPod) -> list[str]:
    """Return what ``amo-webhooks url`` prints for the account, next to a pod."""
    command = [sys.executable, "-m", "amo_receiver", "url", ACCOUNT]
    done = subprocess.run(command, cwd=pod.cwd, env=pod.env, capture_output=True, text=True, check=True)
    return [line.split()[0] for line in done.stdout.splitlines()]


def parsed(moment: str) -> float:
    """Return a time of a document in unix seconds."""
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()
