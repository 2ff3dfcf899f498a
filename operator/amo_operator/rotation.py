"""From the spec, the keyring, the person's secret and the pods' reports to the next keyring, and what it waits for; pure.

A key is published as *next* and accepted at once by every pod that has it. It becomes *current* when every pod has proved that it has it.
The one before it stays as *previous* until its users had the time of the overlap and are quiet, then it is retired and never comes back.
The document is written by compare-and-set, then pods are nudged, then the credentials, then the status: every decision is made from what
is there, so that it does not matter after which of these steps somebody died. What is decided is decided once: with the same
observations, the decision on the new document is to leave it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from amo_operator.draft import Draft
from amo_operator.evidence import (
    Change,
    Decision,
    Input,
    Mode,
    NewSecret,
    Note,
    Observed,
    Report,
    Wanted,
    barred,
    highest_generation,
    is_clock_doubtful,
    is_confirmed,
    is_crowded,
    is_proven,
    is_quiet_known,
    judge_input,
    lag,
    last_matched,
    not_switched,
)
from amo_operator.keyring import KINDS, LONG_AGO, Keyring, bounded, fingerprint, is_usable
from amo_operator.outlook import outlook

if TYPE_CHECKING:
    from amo_operator.keyring import Key, KeyKind

__all__ = ["Change", "Decision", "Mode", "NewSecret", "Note", "Observed", "Report", "Wanted", "decide", "lag"]


def decide(wanted: Wanted, observed: Observed, new_secret: NewSecret) -> Decision:
    """Decide the next document: repair, revoke, and unless paused supply, promote, retire and rotate each kind of key."""
    given = judge_input(wanted, observed) if wanted.mode("client_secret") == "ref" else Input()
    draft = _begin(wanted, observed, given)
    if draft is None:
        return outlook(wanted, observed, given, None, ())
    turn = _Turn(wanted, observed, given, new_secret, draft)
    turn.revoke()
    if not wanted.paused:
        draft.begin(LONG_AGO)
        turn.apply_spec()
        for kind in KINDS:
            turn.supply(kind)
            turn.promote(kind)
            turn.run_overlap(kind)
            turn.retire(kind)
            turn.rotate(kind)
    keyring = draft.keyring
    if draft.changes:
        keyring = replace(keyring, generation=max(keyring.generation, highest_generation(observed)) + 1)
    return outlook(wanted, observed, given, keyring, tuple(draft.changes))


def _accounts(wanted: Wanted) -> tuple[str, ...] | None:
    return None if wanted.accounts is None else tuple(sorted(set(wanted.accounts)))


def _begin(wanted: Wanted, observed: Observed, given: Input) -> Draft | None:
    """Start from the document, from what is left if it was lost or an older one came back, or (None) not at all.

    Without the person's secret it is neither rebuilt nor raised: the pods keep the last good one, which has it.
    """
    known, before = highest_generation(observed), observed.keyring
    is_missing = given.problem is not None and not given.is_revoked
    if (before is None and (wanted.paused or is_missing)) or (before is not None and before.generation < known and is_missing):
        return None
    if before is None:
        request = observed.rotate_request
        rotated_for = tuple((kind, request) for kind in KINDS if request is not None and wanted.mode(kind) == "generate")
        empty = Keyring(known, wanted.client_id, _accounts(wanted), (), bounded(observed.known_retired), rotated_for)
        draft = Draft(empty, observed.now)
        reason = "KeyringRebuilt" if known or observed.credentials else "KeyringCreated"
        draft.note(reason, f"The keyring is written anew, from the credentials and the input: {observed.problem}.")
    elif before.generation < known:
        gone = barred(wanted, observed) - wanted.revoke
        keys = tuple(key for key in before.keys if key.fingerprint not in gone)
        draft = Draft(replace(before, keys=keys, retired=bounded((*before.retired, *observed.known_retired))), observed.now)
        draft.note("KeyringRaised", f"Generation {before.generation} came back after {known}: raised, without the keys that had left.")
    else:
        return Draft(before, observed.now)
    _take_back_credentials(draft, wanted, observed)
    return draft


def _take_back_credentials(draft: Draft, wanted: Wanted, observed: Observed) -> None:
    """Make current again what senders were told to use; that it was ever accepted is not for them to say."""
    for kind in KINDS:
        secret, current = (observed.credentials or {}).get(kind, ""), draft.keyring.one(kind, "current")
        if wanted.mode(kind) != "generate" or not is_usable(secret) or (current and current.secret == secret):
            continue
        if fingerprint(secret) not in barred(wanted, observed) and is_confirmed(observed, fingerprint(secret)):
            if current:
                draft.put(kind, current.secret, "previous")
            draft.put(kind, secret, "current")


@dataclass(frozen=True, slots=True)
class _Turn:
    """One pass over the kinds of keys."""

    wanted: Wanted
    observed: Observed
    given: Input
    new_secret: NewSecret
    draft: Draft

    @property
    def _is_proven(self) -> bool:
        before = self.observed.keyring
        return before is not None and before.generation >= highest_generation(self.observed) and is_proven(before, self.observed)

    def revoke(self) -> None:
        """Let revoked keys go at once, also if that leaves a person's integration without any; generated ones are replaced.

        Those that are not there are noted, or one that comes from a backup would be accepted once it is no longer named in the spec.
        """
        for key in self.draft.keyring.keys:
            if key.fingerprint in self.wanted.revoke:
                self.draft.drop(key, "revoked")
                if key.state == "current":
                    self._succeed(key.kind)
        if self.wanted.revoke - {each.fingerprint for each in self.draft.keyring.retired}:
            kind = next((kind for kind in KINDS if self.wanted.mode(kind)), KINDS[0])  # nobody knows: the fingerprint is what counts
            self.draft.bar(kind, self.wanted.revoke)

    def _succeed(self, kind: KeyKind) -> None:
        successor = self.draft.keyring.one(kind, "next")
        if successor and successor.fingerprint not in self.wanted.revoke:
            self.draft.put(kind, successor.secret, "current")
        elif self.wanted.mode(kind) == "generate":
            self._make(kind, "current")

    def apply_spec(self) -> None:
        """Take over the client id and the accounts."""
        keyring, accounts = self.draft.keyring, _accounts(self.wanted)
        before = None if keyring.accounts is None else tuple(sorted(keyring.accounts))
        if (keyring.client_id, before) != (self.wanted.client_id, accounts):
            self.draft.keyring = replace(keyring, client_id=self.wanted.client_id, accounts=accounts)
            self.draft.note("SpecApplied", "The client id or the accounts have changed.")

    def supply(self, kind: KeyKind) -> None:
        """See to it that what is wanted is in the keyring, and that what is no longer wanted is on its way out."""
        keyring, mode = self.draft.keyring, self.wanted.mode(kind)
        following, current = keyring.one(kind, "next"), keyring.one(kind, "current")
        if mode == "generate":
            if current is None:
                self._supply_current(kind, following)
            return
        secret = self.given.secret if mode == "ref" else None
        if mode == "ref" and secret is None:
            return
        for key in (following, current if mode is None else None):
            if key is not None and key.secret != secret:
                self.draft.put(kind, key.secret, "previous")
        if secret is not None and secret not in {key.secret for key in (following, current) if key}:
            self.draft.put(kind, secret, "next" if current else "current")

    def _supply_current(self, kind: KeyKind, following: Key | None) -> None:
        # A kind that was taken out of the spec by mistake and put back goes on with the key that is in use.
        known = following or next(iter(self.draft.keyring.of(kind, "previous")), None)
        if known:
            self.draft.put(kind, known.secret, "current")
        else:
            self._make(kind, "current")

    def _make(self, kind: KeyKind, state: Literal["next", "current"]) -> None:
        self.draft.put(kind, self.new_secret(), state)
        if self.observed.rotate_request is not None:
            self.draft.remember(kind, self.observed.rotate_request)

    def promote(self, kind: KeyKind) -> None:
        """Make the next key current if every pod has proved the document that it stands in."""
        keyring, before = self.draft.keyring, self.observed.keyring
        following, current = keyring.one(kind, "next"), keyring.one(kind, "current")
        if following is None or before is None or following not in before.keys or not self._is_proven:
            return
        if current:
            self.draft.put(kind, current.secret, "previous")
        self.draft.put(kind, following.secret, "current")

    def run_overlap(self, kind: KeyKind) -> None:
        """Let the time of previous keys run once their users know the current one.

        A person wrote the secret of a reference and knows it. A sender of ours reads the credentials Secret, which may be written long
        after the document if somebody died in between. A URL stands in amoCRM until a person changes it, account by account: that shows in
        the traffic. By a clock that no pod agrees with nothing begins and nothing ends.
        """
        if is_clock_doubtful(self.observed):
            return
        for key in self.draft.keyring.of(kind, "previous"):
            if key.not_after is None and self._may_run(key):
                self.draft.limit(
                    key, self.observed.now + self.wanted.max_overlap, "OverlapStarted", "is accepted until its overlap is over"
                )
            elif key.not_after is not None and self._must_hold(key):
                self.draft.limit(key, None, "OverlapHeld", "is used in amoCRM again, not the current one: it stays")

    def _may_run(self, key: Key) -> bool:
        current = self.draft.keyring.one(key.kind, "current")
        if self.wanted.mode(key.kind) != "generate" or current is None:
            return True
        if (self.observed.credentials or {}).get(key.kind) != current.secret:
            return False
        if key.kind != "url_key":
            return True
        # A pod that does not answer may know of one more account.
        return self._is_proven and is_quiet_known(self.observed) and not not_switched(self.wanted, self.observed, key, current)

    def _must_hold(self, key: Key) -> bool:
        """Tell whether an account is back at the old URL; one that uses both was seen to have the new one, and has until not_after."""
        current = self.draft.keyring.one(key.kind, "current")
        if key.kind != "url_key" or current is None or not self._is_proven:
            return False
        return bool(not_switched(self.wanted, self.observed, key, current, self.wanted.quiet_period))

    def retire(self, kind: KeyKind) -> None:
        """Let previous keys go when their overlap is over and nobody uses them, at the latest when the pods stop accepting them."""
        if is_clock_doubtful(self.observed):
            return
        for key in self.draft.keyring.of(kind, "previous"):
            if key.not_after is not None and (self.observed.now >= key.not_after or self._is_quiet(key)):
                self.draft.drop(key, "retired")

    def _is_quiet(self, key: Key) -> bool:
        matched, now = last_matched(self.observed, key.fingerprint), self.observed.now
        if now < key.since + self.wanted.overlap or not self._is_proven or not is_quiet_known(self.observed):
            return False
        return (matched is None or now >= matched + self.wanted.quiet_period) and not self._is_some_account_left(key)

    def _is_some_account_left(self, key: Key) -> bool:
        """Tell whether an account may still have the URL of this key; quiet alone says nothing of one that seldom has news."""
        current = self.draft.keyring.one(key.kind, "current")
        if key.kind != "url_key" or current is None:
            return False
        is_left = bool(not_switched(self.wanted, self.observed, key, current))
        return is_left or is_crowded(self.observed, key.fingerprint, current.fingerprint)

    def rotate(self, kind: KeyKind) -> None:
        """Begin a rotation that is due or asked for; a request made while one is under way is met by that one."""
        keyring, request = self.draft.keyring, self.observed.rotate_request
        current = keyring.one(kind, "current")
        if self.wanted.mode(kind) != "generate" or current is None:
            return
        is_asked = request is not None and request != dict(keyring.rotated_for).get(kind)
        if keyring.one(kind, "next") or keyring.of(kind, "previous"):
            if is_asked and request is not None:
                self.draft.remember(kind, request)
                self.draft.note("RequestCollapsed", f"A rotation of the {kind} is under way: the request is met by it.")
        elif is_asked or self.observed.now >= current.since + self.wanted.rotate_every[kind]:
            self._make(kind, "next")
