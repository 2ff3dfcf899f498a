"""What a keyring waits for, what a person has to do, and when to look again; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_operator.evidence import Change, Decision, Note, is_proven, lag, last_matched
from amo_operator.keyring import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from amo_operator.evidence import Input, Observed, Wanted
    from amo_operator.keyring import Key, Keyring

MOST_NAMED = 3
SWITCH = {
    "client_secret": "Make the sender use the current client secret, {current}: {previous} is still used and will be refused.",
    "url_key": "Enter each account's URL, url.<account> in the credentials Secret, in amoCRM: {previous} is still used, not {current}.",
}
LIST_ACCOUNTS = "List the accounts in spec.accounts: then their URLs are written into the credentials Secret."
UNPAUSE = "There is no good keyring: unset paused to have it written."


def outlook(wanted: Wanted, observed: Observed, given: Input, keyring: Keyring | None, changes: tuple[Change, ...]) -> Decision:
    """Say how things stand with the next document."""
    is_retired = given.problem is not None and given.problem.reason == "InputRetired"
    stalled = given.problem if is_retired else None
    waits = Note("Paused", "Rotation is paused; keys are still revoked.") if wanted.paused else None
    if waits is None and not is_retired:
        waits = given.problem
    if keyring is None:
        return Decision(None, changes, waits, UNPAUSE if wanted.paused else given.action, stalled)
    waits = waits or _propagation(observed, keyring) or _departure(wanted, observed, keyring)
    action = given.action or _switch(wanted, observed, keyring)
    dues = [] if wanted.paused else list(_dues(wanted, keyring))
    moments = [] if wanted.paused else [*dues, *_moments(wanted, observed, keyring)]
    wake_at = min((moment for moment in moments if moment > observed.now), default=None)
    return Decision(keyring, changes, waits, action, stalled, min(dues, default=None), wake_at)


def _propagation(observed: Observed, keyring: Keyring) -> Note | None:
    """Tell which pods do not have the document; without a next key it does not matter that there are none."""
    is_rotating = any(keyring.one(kind, "next") for kind in KINDS)
    if is_proven(keyring, observed):
        return None
    if observed.reports is None:
        return Note("PodsNotAsked", "The pods have not been asked for their keyring yet.") if is_rotating else None
    behind = [f"{report.pod}: {problem}" for report in observed.reports if (problem := lag(keyring, report)) is not None]
    if behind:
        more = f"; and {len(behind) - MOST_NAMED} more" if len(behind) > MOST_NAMED else ""
        return Note("PodsBehind", f"Not every pod has generation {keyring.generation}: {'; '.join(behind[:MOST_NAMED])}{more}.")
    if not is_rotating:
        return None
    if not observed.reports:
        return Note("NoPods", "No pod of the service is there to prove the next key.")
    return Note("PodsChanging", "Pods come or go: the next key is promoted when they are the same twice in a row.")


def _departure(wanted: Wanted, observed: Observed, keyring: Keyring) -> Note | None:
    """Tell why a previous key is still there."""
    for key in (key for kind in KINDS for key in keyring.of(kind, "previous")):
        name, matched = f"{key.kind} {key.fingerprint}", last_matched(observed, key.fingerprint)
        if key.not_after is None:
            return Note("SenderNotSwitched", f"{name} stays until its user has been told of the current one and switched to it.")
        if observed.now < key.since + wanted.overlap:
            return Note("Overlap", f"{name} is accepted until {key.since + wanted.overlap:%Y-%m-%dT%H:%M:%SZ} at least.")
        if matched is not None and observed.now < matched + wanted.quiet_period:
            return Note("PreviousInUse", f"{name} is still used; it is refused from {key.not_after:%Y-%m-%dT%H:%M:%SZ}.")
        return Note("Retiring", f"{name} is retired as soon as every pod has proved its keyring.")
    return None


def _switch(wanted: Wanted, observed: Observed, keyring: Keyring) -> str | None:
    """Ask for what only a person can do: make a sender use the current key if it goes on with a previous one."""
    for key in (key for kind in KINDS for key in keyring.of(kind, "previous")):
        current = keyring.one(key.kind, "current")
        if current is not None and _is_preferred(wanted, observed, key, current):
            if key.kind == "url_key" and wanted.accounts is None:
                return LIST_ACCOUNTS
            return SWITCH[key.kind].format(current=current.fingerprint, previous=key.fingerprint)
    return None


def _is_preferred(wanted: Wanted, observed: Observed, key: Key, current: Key) -> bool:
    """Tell whether a previous key is in use in place of the current one."""
    previously, currently = last_matched(observed, key.fingerprint), last_matched(observed, current.fingerprint)
    if previously is not None and key.kind == "url_key" and key.not_after is not None:
        # One account's URL may be entered and another's not yet: then both keys match in turn.
        return previously > key.since and observed.now < previously + wanted.quiet_period
    if previously is None or (currently is not None and currently >= previously):
        return False
    # A URL stays where it was entered; of a sender it is only known after its first request since it was told.
    return key.kind == "url_key" or previously > key.since


def _dues(wanted: Wanted, keyring: Keyring) -> Iterator[datetime]:
    for kind, length in wanted.rotate_every.items():
        current = keyring.one(kind, "current")
        if current is not None and wanted.mode(kind) == "generate" and keyring.one(kind, "next") is None:
            yield current.since + length


def _moments(wanted: Wanted, observed: Observed, keyring: Keyring) -> Iterator[datetime]:
    for key in keyring.keys:
        if key.state == "previous" and key.not_after is not None:
            matched = last_matched(observed, key.fingerprint)
            yield from (key.since + wanted.overlap, key.not_after)
            if matched is not None:
                yield matched + wanted.quiet_period
