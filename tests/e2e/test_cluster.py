"""What happens to a release in its life, on a real cluster under load: whatever it is, nothing that was acknowledged is lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from e2e import images
from e2e.cluster import INGRESS
from e2e.release import INTEGRATION, MIGRATION, REPLICAS, ROTATE
from e2e.traffic import LATE_S

if TYPE_CHECKING:
    from e2e.release import Stand

pytestmark = pytest.mark.timeout(900)

REFUSED_WITHIN_S = 10.0
BURST_S = 8
UNAVAILABLE, UNAUTHORIZED = 503, 401


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
    used = {each["spec"]["containers"][0]["image"] for each in stand.cluster.items("pods", "-l", "app.kubernetes.io/component=service")}
    assert used == {f"{images.SERVICE}:{images.FIRST}"}


def test_a_rotation_rejects_no_request(stand: Stand) -> None:
    """Client secret and URL key change, and senders follow when they look; both are accepted meanwhile."""
    before = stand.keys()
    kinds = [(kind, "current") for kind in ("client_secret", "url_key")]
    with stand.traffic.window("rotation of client secret and URL key") as window, stand.keep_learning():
        stand.cluster.kubectl("annotate", "--overwrite", "amointegration", INTEGRATION, f"{ROTATE}={time.time()}")
        seconds = stand.cluster.until(
            lambda: all(stand.keys().get(each) not in (None, before[each]) for each in kinds), "both are promoted"
        )
        stand.learn()
        time.sleep(LATE_S)
    window.note = f"promoted after {seconds:.0f} s"
    stand.require(window)
    assert {stand.keys()["client_secret", "previous"], stand.keys()["url_key", "previous"]} == {before[each] for each in kinds}


def test_a_revoked_key_is_refused_within_its_bound(stand: Stand) -> None:
    """Senders with the revoked keys are refused everywhere, the others not once."""
    stale = stand.send_with_what_is_known()
    kept = stand.keys()
    with stand.keep_learning():
        stand.cluster.kubectl("annotate", "--overwrite", "amointegration", INTEGRATION, f"{ROTATE}={time.time()}")
        stand.cluster.until(lambda: stand.keys().get(("url_key", "current")) not in (None, kept["url_key", "current"]), "promoted")
        stand.learn()
    with stand.traffic.window("revoke of the keys before") as window:
        began = time.time()
        listed = [kept["client_secret", "current"], kept["url_key", "current"]]
        patch = f'{{"spec": {{"revoke": ["{listed[0]}", "{listed[1]}"]}}}}'
        stand.cluster.kubectl("patch", "amointegration", INTEGRATION, "--type=merge", "-p", patch)
        stand.cluster.until(lambda: refused(stand, began), "the keys are refused")
        time.sleep(REFUSED_WITHIN_S)
    stale.end()
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
    """As far as the budgets allow; when it takes pods again, all is as before."""
    nodes = stand.cluster.kubectl("get", "nodes", "-o", "name").split()
    node = stand.cluster.get("pod", stand.cluster.ready_pod("service"))["spec"]["nodeName"]
    with stand.traffic.window(f"node drained, uncordoned ({len(nodes)} node)") as window:
        options = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=30s", f"--pod-selector=app.kubernetes.io/instance={'amo'}")
        stand.cluster.kubectl("drain", node, *options, check=False)
        left = len(stand.cluster.pods("service"))
        stand.cluster.kubectl("uncordon", node)
        for component in ("postgres", "pgbouncer", "service", "operator"):
            stand.settle(component)
    window.note = f"{left} pods of the service there at the end of the drain"
    assert (window.lost, window.twice) == (0, 0), window.row()


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
        said = stand.upgrade(images.BROKEN, "--timeout", "60s", check=False)
        status = stand.cluster.get("schemamigration", MIGRATION)["status"]
        stand.say(f"helm upgrade: {said.strip().splitlines()[-1][:200]}")
    stand.require(window)
    assert stand.cluster.condition("schemamigration", MIGRATION)["reason"] == "MigrationFailed"
    assert "42701" in status["lastError"]
    assert set(pods) <= set(stand.cluster.pods("service"))
    assert revision(stand) == "e2e_2"
    with stand.traffic.window("helm upgrade that mends it") as window:
        stand.upgrade(images.MENDED)
    stand.require(window)
    assert revision(stand) == "e2e_3"


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
            stand.traffic.start("--rate", "0", "--seconds", str(BURST_S)).wait(BURST_S * 3)
        good = sum(each.is_good for each in window.answers)
        window.note = f"{good / BURST_S:.0f} acknowledged a second"
        assert (window.lost, window.twice) == (0, 0), window.row()
    stand.scale(REPLICAS)


def named(spans: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [each for each in spans if each["name"] == name]


def test_uninstalling_hangs_on_nothing(stand: Stand) -> None:
    """The data and the CRDs stay; everything else goes."""
    began = time.monotonic()
    said = stand.cluster.helm("uninstall", "amo", "--wait", "--timeout", "120s")
    stand.say(f"helm uninstall --wait returned after {time.monotonic() - began:.0f} s: {said.strip().splitlines()[-1]}")
    assert stand.cluster.kubectl("get", "deployments,statefulsets,amoint,schemamig,networkpolicies,jobs", "-o", "name").split() == []
    assert stand.cluster.kubectl("get", "persistentvolumeclaims", "-o", "name").split()
    assert stand.cluster.run("kubectl", "get", "crd", "amointegrations.amo-webhooks.io", "-o", "name").strip()
    assert INGRESS
