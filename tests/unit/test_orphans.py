"""What is published of an integration that is gone, so that no pod accepts its keys any more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from amo_operator.announcements import Announcements
from amo_operator.config import Config
from amo_operator.evidence import Report
from amo_operator.fleet import UNREAD, Fleet
from amo_operator.integrations import NOBODY, Integrations, is_settled, without_keys
from amo_operator.keyring import Key, Keyring, read_keyring, write_keyring
from amo_operator.kube import PodSeen, SecretSeen
from amo_operator.metrics import Metrics
from amo_operator.resources import secret_texts
from amo_operator.telemetry import Tracing
from amo_receiver.amocrm.keyring_file import parse_source
from rotations import NOW

KEY = Key("url_key", "u", "current", NOW)
EMPTY = Keyring(7, "client", ("77",))
HELD = Keyring(7, "client", ("77",), (KEY,))


def report(generation: int | None, *names: str) -> Report:
    return Report("a", "a", None if generation else "it did not answer", generation, frozenset(names))


@pytest.mark.parametrize(
    ("held", "reports", "generation"),
    [
        (HELD, (), 8),
        (HELD, (report(7, "k"), report(None)), 8),
        (HELD, (report(12, "k"),), 13),
        (EMPTY, (), 7),
        (EMPTY, (report(6, "k"), report(7)), 7),
        (EMPTY, (report(12, "k"),), 13),
        (EMPTY, (report(7, "k"),), 8),
        (None, (report(3, "k"), report(5)), 6),
    ],
)
def test_a_document_without_keys_is_one_that_every_pod_takes(held: Keyring | None, reports: tuple[Report, ...], generation: int) -> None:
    """Newer than what any pod has, also if an older Secret was restored; a pod that only lags needs no other one."""
    found = without_keys(held, reports)
    assert found is not None
    assert (found.generation, found.keys) == (generation, ())
    assert without_keys(found, reports) == found
    assert parse_source("acme", write_keyring(found)).generation == generation
    assert read_keyring(write_keyring(found)) == found
    assert found.client_id == (held.client_id if held else NOBODY)


def test_what_nobody_accepts_is_left_alone() -> None:
    """Something else may lie in the Secret, that is no document and never was one."""
    assert without_keys(None, (report(None), report(4))) is None


@pytest.mark.parametrize(
    ("held", "reports", "settled"),
    [
        (EMPTY, (report(7), report(7)), True),
        (EMPTY, (report(7), report(6)), False),
        (EMPTY, (report(7), report(7, "k")), False),
        (EMPTY, (report(7), report(None)), False),
        (EMPTY, (replace(report(None), problem=UNREAD),), False),
        (EMPTY, (), False),
        (None, (replace(report(None), problem=UNREAD), report(4)), True),
        (None, (replace(report(None), problem=UNREAD), report(None)), False),
        (None, (), False),
    ],
)
def test_pods_are_asked_until_each_has_proved_it(held: Keyring | None, reports: tuple[Report, ...], settled: bool) -> None:
    """Then nobody has to be asked about it any more; a pod that does not answer may have anything."""
    assert is_settled(held, reports) is settled


class Cluster:
    """A Secret, and a pod that takes whatever stands in it; it counts who asks the pod."""

    def __init__(self, **texts: str) -> None:
        self.texts, self.asked = texts, 0

    async def secret(self, _: str) -> SecretSeen:
        return SecretSeen(dict(self.texts), "1")

    async def apply_secret(self, manifest: dict[str, Any], _: str) -> str:
        self.texts |= secret_texts(manifest["data"])
        return "1"

    async def pods(self) -> list[PodSeen]:
        return [PodSeen("a", "a", "127.0.0.1", "1")]

    async def is_rolling_out(self) -> bool:
        return False

    async def ask(self, _: PodSeen) -> dict[str, Any]:
        self.asked += 1
        held = {name: read_keyring(text) for name, text in self.texts.items()}
        sources: list[dict[str, Any]] = [{"source": name, "generation": ring.generation, "keys": []} for name, ring in held.items()]
        for source in sources:
            for key in held[source["source"]].keys:
                source["keys"].append({"kind": key.kind, "fingerprint": key.fingerprint, "last_matched_at": None})
        return {"sources": sources, "matches_read_at": NOW.isoformat()}


async def test_what_every_pod_has_forgotten_is_asked_for_no_more() -> None:
    """Or one deletion would have all pods asked for ever; keys that come back from a backup are emptied as before."""
    clock, cluster = [0.0], Cluster(acme=write_keyring(HELD))
    metrics, config = Metrics(), Config(unseen_seconds=0)
    announcements = Announcements(cluster, metrics)  # type: ignore[arg-type]
    made = Integrations(cluster, config, metrics, Tracing(), announcements, lambda: clock[0])  # type: ignore[arg-type]
    fleet = Fleet(cluster)  # type: ignore[arg-type]

    async def rounds(number: int) -> None:
        for _ in range(number):
            if made.is_some_gone:
                await fleet.look(NOW)
            await made.revoke_orphans(set(), fleet)
            clock[0] += 3

    for _ in range(2):
        await rounds(10)
        assert read_keyring(cluster.texts["acme"]).keys == ()
        before = cluster.asked
        await rounds(10)
        assert (cluster.asked, made.is_some_gone) == (before, False)
        cluster.texts["acme"] = write_keyring(HELD)
