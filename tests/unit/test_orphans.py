"""What is published of an integration that is gone, so that no pod accepts its keys any more."""

from __future__ import annotations

import pytest

from amo_operator.evidence import Report
from amo_operator.integrations import NOBODY, without_keys
from amo_operator.keyring import Key, Keyring, read_keyring, write_keyring
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
