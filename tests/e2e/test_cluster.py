"""What happens to a release in its life, on a real cluster under load: whatever it is, nothing that was acknowledged is lost."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from e2e import images
from e2e.pages import runbook_lines, runbook_upgrades, typed
from e2e.release import CHART, INTEGRATION, MIGRATION, NAME, NAMESPACE, REPLICAS, ROTATE
from e2e.stranger import Stranger
from e2e.traffic import LATE_S
from factories import form_body, lead

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.release import Stand

pytestmark = pytest.mark.timeout(900)

REFUSED_WITHIN_S = 10.0
BURST_S = 8
RESTARTED_S = 1
"""kubectl refuses a second restart within it."""
CURRENT = [("client_secret", "current"), ("url_key", "current")]
OK, UNAUTHORIZED, UNAVAILABLE = 200, 401, 503
PORTS = (5432, 6432, 8000, 9000, 9100, 9127)
LEAD = 77
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def revision(stand: Stand) -> str:
    ((found,),) = stand.cluster.query("SELECT version_num FROM alembic_version")
    return str(found)


def test_it_installs_from_nothing(stand: Stand) -> None:
    """One `helm install --wait`, and senders that find their credentials in a Secret are served."""
    with stand.traffic.window("helm install --wait, from nothing") as window:
        first = stand.install()
        time.sleep(LATE_S)
    window.note = f"first 200 after {first:.0f} s"
    stand.say(window.note)
    assert (window.lost, window.twice) == (0, 0), window.row()
    assert revision(stand) == images.head()


def test_its_own_tests_pass(stand: Stand) -> None:
    """`helm test`: the contract is kept, and a stranger is refused."""
    said = stand.cluster.helm("test", NAME, "--timeout", "3m")
    for name in ("check", "stranger"):
        (phase,) = re.findall(rf"-test-{name}\n(?:Last .*\n)*Phase: +(\w+)", said)
        assert phase == "Succeeded", said


def test_the_pooler_shows_its_pools(stand: Stand) -> None:
    """To whoever may reach its management port, here the node; no password is asked for."""
    for pod in stand.cluster.pods("pgbouncer"):
        page = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9127/proxy/metrics"
        stand.cluster.until(
            lambda page=page: 'pgbouncer_pools_sv_active{db="amo"' in stand.cluster.run("kubectl", "get", "--raw", page, check=False),
            f"metrics of {pod}",
        )


def test_an_upgrade_with_a_migration_fails_no_request(stand: Stand) -> None:
    """The schema is there before the first new pod, and old pods run on it."""
    with stand.traffic.window("helm upgrade with a migration") as window:
        stand.upgrade(images.SECOND)
    assert revision(stand) == "e2e_2"
    stand.require(window)


def test_a_rollback_fails_no_request(stand: Stand) -> None:
    """The older release runs on the newer schema, which stays."""
    with stand.traffic.window("helm rollback") as window:
        stand.cluster.helm("rollback", "amo", "1", "--wait", "--timeout", "4m")
    assert revision(stand) == "e2e_2"
    stand.require(window)
    stand.cluster.until(lambda: used(stand) == {f"{images.SERVICE}:{images.FIRST}"}, "only the older release runs")


def used(stand: Stand) -> set[str]:
    return {each["spec"]["containers"][0]["image"] for each in stand.cluster.items("pods", "-l", "app.kubernetes.io/component=service")}


def test_a_rotation_rejects_no_request(stand: Stand) -> None:
    """Client secret and URL key change; senders that follow and one that does not are both accepted."""
    before = stand.keys()
    stand.send_with_what_is_known()
    with stand.traffic.window("rotation of client secret and URL key") as window, stand.keep_learning():
        stand.cluster.kubectl("annotate", "--overwrite", "amointegration", INTEGRATION, f"{ROTATE}={time.time()}")
        seconds = stand.cluster.until(lambda: all(stand.keys().get(each, before[each]) != before[each] for each in CURRENT), "promoted")
        stand.learn()
        time.sleep(LATE_S)
    window.note = f"promoted after {seconds:.0f} s"
    stand.require(window)
    assert {each.status for each in stand.stale.answers()} == {OK}
    assert [stand.keys()[kind, "previous"] for kind, _ in CURRENT] == [before[each] for each in CURRENT]


def test_a_revoked_key_is_refused_within_its_bound(stand: Stand) -> None:
    """The sender that still has the keys of before is refused everywhere, the others not once."""
    listed = [stand.keys()[kind, "previous"] for kind, _ in CURRENT]
    with stand.traffic.window("revoke of the keys before") as window:
        began = time.time()
        patch = {"spec": {"revoke": listed}}
        stand.cluster.kubectl("patch", "amointegration", INTEGRATION, "--type=merge", "-p", json.dumps(patch))
        stand.cluster.until(lambda: refused(stand, began), "the keys are refused")
        time.sleep(REFUSED_WITHIN_S)
    stand.stale.end()
    last = max((each.at for each in stand.stale.answers(began) if each.is_good), default=began) - began
    window.note = f"last 2xx with a revoked key {last:.1f} s after"
    assert last < REFUSED_WITHIN_S
    assert {each.status for each in stand.stale.answers(began + last + 0.001)} == {UNAUTHORIZED}
    stand.require(window)


def refused(stand: Stand, since: float) -> bool:
    answers = stand.stale.answers(since)[-10:]
    return len(answers) == 10 and all(each.status == UNAUTHORIZED for each in answers)


@pytest.mark.parametrize("component", ["service", "operator", "pgbouncer"])
def test_pods_may_go_one_at_a_time(stand: Stand, component: str) -> None:
    """What was acknowledged is there, whichever pod it went through."""
    with stand.traffic.window(f"each pod of {component} deleted in turn") as window:
        stand.delete_each(component)
    stand.require(window, only=(UNAVAILABLE,))


def test_a_pod_may_be_killed(stand: Stand) -> None:
    """Without its grace period too: connections break, and nothing acknowledged is lost."""
    with stand.traffic.window("a pod of the service killed (grace period 0)") as window:
        stand.cluster.kubectl("delete", "pod", stand.cluster.pods("service")[0], "--grace-period=0", "--force")
        stand.settle("service")
    assert (window.lost, window.twice) == (0, 0), window.row()


def test_a_node_may_be_drained(stand: Stand) -> None:
    """As far as the budgets allow; when it takes pods again, all is as before; the Postgres for trial is left where it is."""
    nodes = stand.cluster.kubectl("get", "nodes", "-o", "name").split()
    node = stand.cluster.get("pod", stand.cluster.ready_pod("service"))["spec"]["nodeName"]
    chosen = "app.kubernetes.io/instance=amo,app.kubernetes.io/component!=postgres"
    with stand.traffic.window(f"node drained and uncordoned, one of {len(nodes)}") as window:
        options = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=30s", f"--pod-selector={chosen}")
        before = {each["metadata"]["uid"] for each in stand.cluster.items("pods", "-l", chosen)}
        stand.cluster.kubectl("drain", node, *options, check=False)
        left = [each for each in stand.cluster.items("pods", "-l", chosen) if each["status"]["phase"] == "Running"]
        evicted = before - {each["metadata"]["uid"] for each in left}
        stand.cluster.kubectl("uncordon", node)
        for component in ("pgbouncer", "service", "operator"):
            stand.settle(component)
    window.note = f"{len(evicted)} of {len(before)} pods evicted, {len(left)} still running after the drain"
    assert evicted
    stand.require(window, only=(UNAVAILABLE,))


def test_postgres_may_be_restarted(stand: Stand) -> None:
    """While it is away each delivery is answered 503; then all goes on."""
    with stand.traffic.window("Postgres restarted") as window:
        stand.delete_each("postgres")
        recovered = time.time()
        stand.cluster.until(lambda: [each for each in stand.traffic.answers(recovered) if each.is_good], "deliveries are accepted again")
        time.sleep(LATE_S)
    stand.require(window, only=(UNAVAILABLE,))


def test_a_migration_that_fails_changes_nothing(stand: Stand) -> None:
    """No rollout: the old release serves, the condition names the SQL error, the next upgrade mends it."""
    stand.upgrade(images.SECOND)
    pods = stand.cluster.pods("service")
    with stand.traffic.window("helm upgrade whose migration fails") as window:
        with pytest.raises(AssertionError, match="UPGRADE FAILED") as failed:
            stand.upgrade(images.BROKEN, "--timeout", "60s")
        stand.say(f"helm upgrade: {str(failed.value).strip().splitlines()[-1][:200]}")
        stand.cluster.until(lambda: stand.cluster.condition("schemamigration", MIGRATION).get("reason") == "MigrationFailed", "it fails")
    condition = stand.cluster.condition("schemamigration", MIGRATION)
    said_at = datetime.fromisoformat(condition["lastTransitionTime"]).timestamp()
    window.note = f"the condition says so after {said_at - window.began:.0f} s"
    stand.require(window)
    assert "42701" in condition["message"]
    assert set(pods) <= set(stand.cluster.pods("service"))
    assert revision(stand) == "e2e_2"


def test_a_repaired_migration_lets_the_release_through(stand: Stand) -> None:
    """After one that failed, the next upgrade goes as any other."""
    with stand.traffic.window("helm upgrade that mends it") as window:
        stand.upgrade(images.MENDED)
    stand.require(window)
    assert revision(stand) == "e2e_3"


def test_an_upgrade_that_does_not_come_up_is_taken_back(stand: Stand) -> None:
    """Helm rolls back by itself; the pods of before have served all the while."""
    with (
        stand.traffic.window("helm upgrade --rollback-on-failure that fails") as window,
        pytest.raises(AssertionError, match="UPGRADE FAILED"),
    ):
        stand.upgrade(images.MENDED, "--rollback-on-failure", "--timeout", "40s", "--set-json", 'service.command=["false"]')
    stand.require(window)
    last = json.loads(stand.cluster.helm("history", NAME, "-o", "json"))[-1]
    assert (last["status"], "Rollback" in last["description"]) == ("deployed", True), last


def test_it_scales_under_load(stand: Stand) -> None:
    """From 2 to 4 pods and back: not one request fails."""
    with stand.traffic.window("2 → 4 → 2 replicas") as window:
        stand.scale(4)
        time.sleep(LATE_S)
        stand.scale(REPLICAS)
    stand.require(window)


def test_throughput_at_each_size(stand: Stand) -> None:
    """16 senders as fast as they are answered, at 1, 2 and 4 replicas: nothing acknowledged is lost."""
    for replicas in (1, 2, 4):
        stand.scale(replicas)
        with stand.traffic.window(f"{replicas} replicas, as fast as they answer") as window:
            assert stand.traffic.start("--rate", "0", "--seconds", str(BURST_S)).wait(BURST_S * 3) == 0
        good = sum(each.is_good for each in window.answers)
        assert good
        window.note = f"{good / BURST_S:.0f} acknowledged a second"
        assert (window.lost, window.twice) == (0, 0), window.row()
    stand.scale(REPLICAS)


def test_a_stranger_reaches_nothing(stand: Stand) -> None:
    """No port of any pod is open to a pod that has no business there, and the ingress goes on."""
    stranger = Stranger(stand.cluster)
    if not stranger.is_enforced():
        stand.say("not run: nothing enforces NetworkPolicies in this cluster")
        pytest.skip("nothing enforces NetworkPolicies in this cluster")
    pods = stand.cluster.items("pods", "-l", "app.kubernetes.io/instance=amo", "--field-selector=status.phase=Running")
    ports = {(each["metadata"]["name"], each["status"]["podIP"], port) for each in pods for port in PORTS}
    with stand.traffic.window("NetworkPolicies: a stranger at every port") as window:
        open_to = stranger.reaches([(address, port) for _, address, port in sorted(ports)])
    window.note = f"{len(open_to) - sum(open_to)} of {len(open_to)} closed"
    assert [f"{name}:{port}" for (name, _, port), found in zip(sorted(ports), open_to, strict=True) if found] == []
    stand.require(window)


def test_one_event_is_followed_in_one_collector(stand: Stand) -> None:
    """From its sender through the ingress, its acceptance, its batch, a retry in another pod and a replay."""
    stranger, (path, headers) = Stranger(stand.cluster), stand.form()
    assert stranger.post(path, headers, update("1"))[0] == OK
    with stand.cluster.transaction(f"SELECT FROM leads WHERE id = {LEAD} FOR UPDATE"):
        status, document = stranger.post(path, {**headers, "traceparent": f"00-{TRACE}-{SPAN}-01"}, update("2"))
        assert (status, document["status"]) == (OK, "partial")
        accept = stand.span("accept", trace=TRACE)
        stand.cluster.kubectl("delete", "pod", pod_of(accept), "--grace-period=1")
    origin = [accept["trace"], accept["span"]]
    stand.cluster.until(lambda: outcomes(stand, origin)[-1:] == ["applied"], "the retry is applied")
    retry = stand.span("retry", origin=origin)
    event = retry["attributes"]["amo.event_id"]
    command = ("amo-webhooks", "replay", "--force", "--wait", event)
    stand.cluster.kubectl("exec", stand.cluster.ready_pod("service"), "-c", "service", "--", *command)
    stand.span("replay", origin=origin)
    stand.span("batch", origin=origin)
    ingress = [each for each in stand.spans(trace=TRACE) if each["resource"]["service.name"] == "ingress"]
    assert SPAN in {each["parent"] for each in ingress}
    assert accept["parent"] in {each["span"] for each in ingress}
    assert pod_of(retry) != pod_of(accept)
    stand.settle("service")
    stand.say(f"one event: {len(ingress)} spans of the ingress, accept in {pod_of(accept)}, retry in {pod_of(retry)}, replay")


def outcomes(stand: Stand, origin: list[str]) -> list[str]:
    return [each["attributes"]["amo.outcome"] for each in stand.spans("retry", origin=origin)]


def update(price: str) -> bytes:
    return form_body("leads", "update", lead(id=LEAD, at=int(time.time()), price=price))


def pod_of(span: dict[str, Any]) -> str:
    return str(span["resource"]["k8s.pod.name"])


def test_what_the_runbooks_say_works(stand: Stand, tmp_path: Path) -> None:
    """Each line for kubectl, as it stands; also those that restart and scale fail no request."""
    lines = runbook_lines({"amoint": INTEGRATION, "name": INTEGRATION, "schemamig": MIGRATION, "secret": INTEGRATION})
    with stand.traffic.window("every line of the runbooks for kubectl and Helm") as window:
        silent = []
        for line in lines:
            silent += [] if typed(stand.cluster, line, tmp_path).strip() else [line]
            time.sleep(RESTARTED_S if " restart " in line else 0)
        for component in ("service", "operator"):
            stand.settle(component)
        upgrades = runbook_upgrades(NAME, CHART)
        for arguments in upgrades:
            stand.cluster.helm(*arguments, "--wait", "--timeout", "3m")
    window.note = f"{len(lines)} lines for kubectl, {len(upgrades)} for Helm"
    assert upgrades
    assert len(lines) > 30
    assert silent == []
    stand.require(window, only=(UNAVAILABLE,))


def test_everything_that_was_ever_acknowledged_is_there(stand: Stand) -> None:
    """Also what was sent between the windows, what was answered late, and what came twice."""
    stand.traffic.end()
    for sent, name in ((stand.traffic, "all of it"), (stand.stale, "the sender with old keys")):
        window = sent.whole(name)
        numbers = [each.number for each in window.answers]
        window.note = f"{len(numbers) - len(set(numbers))} came twice"
        assert len(set(numbers)) < len(numbers)
        assert (window.lost, window.twice) == (0, 0), window.row()


def test_uninstalling_hangs_on_nothing(stand: Stand) -> None:
    """The data and the CRDs stay; everything else goes."""
    began = time.monotonic()
    said = stand.cluster.helm("uninstall", "amo", "--wait", "--timeout", "120s")
    stand.say(f"helm uninstall --wait returned after {time.monotonic() - began:.0f} s: {said.strip().splitlines()[-1]}")
    assert stand.cluster.kubectl("get", "deployments,statefulsets,amoint,schemamig,networkpolicies", "-o", "name").split() == []
    assert stand.cluster.kubectl("get", "persistentvolumeclaims", "-o", "name").split()
    assert stand.cluster.run("kubectl", "get", "crd", "amointegrations.amo-webhooks.io", "-o", "name").strip()
