"""The next keyring while it is put together: each move of a key is noted, without its secret; pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from amo_operator.evidence import Change
from amo_operator.keyring import KINDS, Key, Retired, bounded

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from amo_operator.keyring import Farewell, KeyKind, Keyring, KeyState

MOVES: dict[KeyState, tuple[str, str]] = {
    "next": ("NextPublished", "is accepted from now on, as the next one"),
    "current": ("Promoted", "is the current one"),
    "previous": ("Replaced", "is a previous one: accepted for a while, no longer to be used"),
}


@dataclass
class Draft:
    """A keyring that is being changed at one moment; its generation is given when it is done."""

    keyring: Keyring
    now: datetime
    changes: list[Change] = field(default_factory=list)

    def note(self, reason: str, message: str) -> None:
        """Note what is done and why."""
        self.changes.append(Change(reason, message))

    def put(self, kind: KeyKind, secret: str, state: KeyState, not_after: datetime | None = None) -> None:
        """Bring a key, new or known, into a state, since now; it comes first in the document."""
        key = Key(kind, secret, state, self.now, not_after)
        others = tuple(each for each in self.keyring.keys if (each.kind, each.secret) != (kind, secret))
        self.keyring = replace(self.keyring, keys=(key, *others))
        reason, message = MOVES[state]
        self.note(reason, f"{kind} {key.fingerprint} {message}.")

    def limit(self, key: Key, not_after: datetime | None, reason: str, message: str) -> None:
        """Start the overlap of a previous key anew, or (None) hold it."""
        changed = replace(key, since=self.now, not_after=not_after)
        self.keyring = replace(self.keyring, keys=tuple(changed if each == key else each for each in self.keyring.keys))
        self.note(reason, f"{key.kind} {key.fingerprint} {message}.")

    def drop(self, key: Key, farewell: Farewell) -> None:
        """Let a key go for good."""
        keys = tuple(each for each in self.keyring.keys if each != key)
        retired = bounded((*self.keyring.retired, Retired(key.kind, key.fingerprint, farewell, self.now)))
        self.keyring = replace(self.keyring, keys=keys, retired=retired)
        self.note(farewell.capitalize(), f"{key.kind} {key.fingerprint} is {farewell}: it is refused from now on.")

    def bar(self, kind: KeyKind, names: Collection[str]) -> None:
        """Note that keys which are not there must never be; those noted before count as noted now, so that none is crowded out."""
        kinds = {each.fingerprint: each.kind for each in self.keyring.retired}
        barred = [Retired(kinds.get(name, kind), name, "revoked", self.now) for name in sorted(names)]
        self.keyring = replace(self.keyring, retired=bounded((*self.keyring.retired, *barred)))
        for name in sorted(set(names) - kinds.keys()):
            self.note("Revoked", f"{name} is revoked: it is not in the keyring and never will be.")

    def begin(self, since: datetime) -> None:
        """Let the time of the keys that are there since then begin now."""
        keys = tuple(replace(key, since=self.now) if key.since == since else key for key in self.keyring.keys)
        if keys != self.keyring.keys:
            self.keyring = replace(self.keyring, keys=keys)
            self.note("TakenOver", "The keyring is by another hand: its keys count as new from now on.")

    def remember(self, kind: KeyKind, request: str) -> None:
        """Remember that a request for a rotation is carried out."""
        met = {**dict(self.keyring.rotated_for), kind: request}
        self.keyring = replace(self.keyring, rotated_for=tuple((each, met[each]) for each in KINDS if each in met))
