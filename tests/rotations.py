"""What the rotation is tried with: keyrings, specs, and what pods report of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from amo_operator.evidence import Observed, Report, Wanted
from amo_operator.keyring import Key, KeyKind, Keyring, credentials, fingerprint
from amo_operator.rotation import decide

if TYPE_CHECKING:
    from amo_operator.evidence import Decision

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
REF = Wanted("client", None, "ref", {})
GENERATED = Wanted("client", None, "generate", {"client_secret": 90 * DAY})
URL = Wanted("client", ("77",), None, {"url_key": 90 * DAY})


def previous(secret: str, kind: KeyKind = "client_secret", age: timedelta = timedelta(), **fields: Any) -> Key:
    return Key(kind, secret, "previous", NOW - age, fields.get("not_after", NOW - age + 7 * DAY))


def current(secret: str, kind: KeyKind = "client_secret", age: timedelta = timedelta()) -> Key:
    return Key(kind, secret, "current", NOW - age)


def following(secret: str, kind: KeyKind = "client_secret") -> Key:
    return Key(kind, secret, "next", NOW)


def ring(*keys: Key, **fields: Any) -> Keyring:
    return Keyring(7, "client", fields.pop("accounts", None), keys, **fields)


def shown(keyring: Keyring | None) -> list[tuple[str, str]]:
    """List state and secret of each key."""
    assert keyring is not None
    return [(key.state, key.secret) for key in keyring.keys]


@dataclass
class Scene:
    """A spec and what is observed: by default all pods have proved the keyring, and senders were told of it."""

    wanted: Wanted
    keyring: Keyring | None
    observed: dict[str, Any] = field(default_factory=dict)
    numbers: count[int] = field(default_factory=lambda: count(1))

    def decide(self, **changes: Any) -> Decision:
        keyring = changes.get("keyring", self.keyring)
        told = credentials(keyring, is_generated=True) if keyring else None
        fields = {"now": NOW, "keyring": keyring, "problem": None, "credentials": told, "reports": reports(keyring), "steady": True}
        observed = Observed(**fields | self.observed | changes)
        decision = decide(self.wanted, observed, lambda: f"new-{next(self.numbers)}")
        again = decide(self.wanted, replace(observed, keyring=decision.keyring), lambda: pytest.fail("a second secret"))
        assert (again.keyring, again.changes) == (decision.keyring, ())
        return decision


def reports(keyring: Keyring | None, *pods: str, matched: dict[str, datetime] | None = None, **fields: Any) -> tuple[Report, ...]:
    """Let pods prove the keyring; whatever matched was of the account 77, unless ``accounts`` says otherwise."""
    if keyring is None:
        return ()
    names = {fingerprint(secret): at for secret, at in (matched or {}).items()}
    accounts = {fingerprint(secret): each for secret, each in fields.pop("accounts", {}).items()}
    accounts = accounts or {name: {"77": at} for name, at in names.items()}
    names |= {name: max(each.values()) for name, each in accounts.items()}
    proof = Report("", "", None, keyring.generation, keyring.fingerprints, names, accounts=accounts)
    return tuple(replace(proof, pod=pod, uid=pod, **fields) for pod in pods or ("a", "b"))


def reasons(decision: Decision) -> list[str]:
    return [change.reason for change in decision.changes]


def url_rings() -> tuple[Keyring, Keyring]:
    """Return a keyring right after a promotion, and one whose overlap has begun."""
    waiting = Key("url_key", "one", "previous", NOW - 30 * DAY)
    accounts = ("77",)
    return (
        ring(current("two", "url_key", 30 * DAY), waiting, accounts=accounts),
        ring(current("two", "url_key", 6 * DAY), previous("one", "url_key", 6 * DAY), accounts=accounts),
    )
