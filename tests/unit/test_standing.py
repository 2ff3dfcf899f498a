"""What an integration's status remembers, and how it stands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from amo_operator.evidence import Decision, Note, Observed, Report, Wanted
from amo_operator.keyring import Key, Keyring, Retired
from amo_operator.standing import integration_status, known_retired, standing_of

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
WANTED = Wanted("client", None, "generate", {"client_secret": timedelta(days=90)})
KEY = Key("client_secret", "the-secret-itself", "current", NOW)
GONE = tuple(Retired("client_secret", f"{number:012x}", "revoked" if number < 5 else "retired", NOW) for number in range(50))
RING = Keyring(7, "client", None, (KEY,), GONE)


def report(**fields: object) -> Report:
    values: dict[str, object] = {"pod": "a", "uid": "a", "problem": None, "generation": 7, "fingerprints": RING.fingerprints, **fields}
    return Report(**values)  # type: ignore[arg-type]


def test_every_key_that_is_gone_is_remembered() -> None:
    """If the keyring is lost, the status is all that keeps them from coming back."""
    status = integration_status(WANTED, "main", Decision(RING), Observed(NOW, RING, None, reports=(report(),)), {})
    assert set(known_retired(status)) == set(GONE)
    assert "the-secret-itself" not in str(status)
    lost = Observed(NOW, None, "missing", reports=(report(),), floor=7)
    kept = integration_status(WANTED, "main", Decision(None), lost, status)
    assert set(known_retired(kept)) == set(GONE)
    assert kept["generation"] == 7


@pytest.mark.parametrize(
    ("decision", "reports", "expected"),
    [
        (Decision(RING), (report(),), "True InStep"),
        (Decision(RING, waits=Note("Overlap", "It lasts.")), (report(),), "True Overlap"),
        (Decision(RING), (), "False NoPods"),
        (Decision(RING), (report(), report(pod="b", problem="it did not answer")), "False Propagating"),
        (Decision(RING), (report(generation=6),), "False Propagating"),
        (Decision(None, waits=Note("SecretMissing", "It is missing.")), (report(),), "False SecretMissing"),
        (Decision(RING, stalled=Note("InputRetired", "It was retired.")), (report(),), "False InputRetired"),
    ],
)
def test_one_reason_says_how_it_stands(decision: Decision, reports: tuple[Report, ...], expected: str) -> None:
    """What needs a person comes first, then what is under way; who is behind is named."""
    standing = standing_of(WANTED, decision, Observed(NOW, decision.keyring, None, reports=reports))
    assert f"{standing.is_ready} {standing.reason}" == expected
    assert standing.is_ready + standing.is_reconciling + standing.is_stalled == 1
    assert standing.is_stalled == (decision.stalled is not None)
    if len(reports) > 1:
        assert "b: it did not answer" in standing.message
