"""What the pods' answers are worth."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from amo_operator.evidence import OTHERS
from amo_operator.fleet import MATCHES_AGE, Fleet
from amo_operator.kube import PodSeen

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MATCHED = "2026-11-22T11:59:00Z"
KEY = {
    "kind": "url_key",
    "fingerprint": "0a1b2c3d4e5f",
    "state": "current",
    "last_matched_at": MATCHED,
    "accounts": {"77": MATCHED},
    "accounts_complete": True,
}


class Cluster:
    """Pods with their answers, and whether a rollout runs."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.rolling_out = False

    async def pods(self) -> list[PodSeen]:
        return [PodSeen(name, name, "127.0.0.1", None) for name in self.answers]

    async def ask(self, pod: PodSeen) -> Any:
        return self.answers[pod.name]

    async def is_rolling_out(self) -> bool:
        return self.rolling_out


def answer(read_at: datetime | None = NOW, **source: Any) -> dict[str, Any]:
    return {"sources": [{"source": "main", "generation": 3, "keys": [KEY], **source}], "matches_read_at": read_at and read_at.isoformat()}


async def looked(cluster: Cluster, times: int = 1) -> Fleet:
    fleet = Fleet(cluster)  # type: ignore[arg-type]
    for _ in range(times):
        await fleet.look(NOW)
    return fleet


async def test_a_report_is_what_the_pod_answered() -> None:
    """Generation, fingerprints and last matches of the source that is asked for."""
    (report,) = (await looked(Cluster(a=answer()))).reports("main")
    assert (report.pod, report.problem, report.generation, report.fingerprints) == ("a", None, 3, {KEY["fingerprint"]})
    assert report.last_matched == {KEY["fingerprint"]: NOW - timedelta(minutes=1)}
    assert report.accounts == {KEY["fingerprint"]: {"77": NOW - timedelta(minutes=1)}}
    assert report.knows_matches


@pytest.mark.parametrize("fields", [{"accounts_complete": False}, {"accounts_complete": None, "accounts": {}}])
async def test_accounts_that_are_not_listed_are_others(fields: dict[str, Any]) -> None:
    """Also those of a pod of an older release, which lists none."""
    (report,) = (await looked(Cluster(a=answer(keys=[{**KEY, **fields}])))).reports("main")
    assert report.accounts[KEY["fingerprint"]][OTHERS] == NOW - timedelta(minutes=1)


async def test_a_pods_clock_is_reported() -> None:
    """If the pod tells it."""
    (silent, told) = (await looked(Cluster(a=answer(), b=answer() | {"reported_at": MATCHED}))).reports("main")
    assert (silent.reported_at, told.reported_at) == (None, NOW - timedelta(minutes=1))


async def test_a_keyring_file_is_told_from_the_environments_credentials() -> None:
    """An integration may have the name that these have, whichever of them a pod lists first."""
    mine, others = answer(source="default")["sources"], [{"source": "default", "generation": 0, "keys": []}]
    for sources in (mine + others, others + mine):
        (report,) = (await looked(Cluster(a=answer() | {"sources": sources}))).reports("default")
        assert (report.generation, report.fingerprints) == (3, {KEY["fingerprint"]})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("it did not answer (ConnectError)", "it did not answer (ConnectError)"),
        (answer(source="other"), "it has not read this keyring yet"),
        ({"sources": 7}, "its answer is no keyring report"),
        ({}, "its answer is no keyring report"),
        (answer(keys=[{}]), "its answer is no keyring report"),
        (answer(generation="x"), "its answer is no keyring report"),
        (answer(keys=[KEY | {"last_matched_at": "yesterday"}]), "its answer is no keyring report"),
        (answer(keys=[KEY | {"accounts": ["77"]}]), "its answer is no keyring report"),
        (answer(keys=[KEY | {"accounts": {"77": "yesterday"}}]), "its answer is no keyring report"),
    ],
)
async def test_what_proves_nothing_is_a_problem(given: Any, problem: str) -> None:
    """Whatever a pod answers, the others' reports are read."""
    broken, good = (await looked(Cluster(a=given, b=answer()))).reports("main")
    assert (broken.problem, broken.generation) == (problem, None)
    assert good.problem is None


@pytest.mark.parametrize(
    ("read_at", "knows"), [(None, False), (NOW - MATCHES_AGE, True), (NOW - MATCHES_AGE - timedelta(seconds=1), False)]
)
async def test_a_pod_that_has_not_read_the_matches_does_not_know_of_quiet(read_at: datetime | None, knows: bool) -> None:
    """One that has only just started, or whose database is away, reports no match of any other pod."""
    (report,) = (await looked(Cluster(a=answer(read_at)))).reports("main")
    assert report.knows_matches is knows


async def test_steady_are_the_same_pods_twice_without_a_rollout() -> None:
    """Once is not enough, and neither is a rollout that has only paused."""
    cluster = Cluster(a=answer())
    assert not (await looked(cluster)).is_steady
    fleet = await looked(cluster, 2)
    assert fleet.is_steady
    cluster.answers["b"] = answer()
    await fleet.look(NOW)
    assert not fleet.is_steady
    cluster.rolling_out = True
    await fleet.look(NOW)
    assert not fleet.is_steady
