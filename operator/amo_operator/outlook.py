"""What a keyring waits for, what a person has to do, and when to look again; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_operator.evidence import (
    OTHERS,
    Change,
    Decision,
    Note,
    account_matches,
    is_clock_doubtful,
    is_crowded,
    is_proven,
    lag,
    last_matched,
    not_switched,
)
from amo_operator.keyring import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from amo_operator.evidence import Input, Observed, Wanted
    from amo_operator.keyring import Key, Keyring

MOST_NAMED, MOST_ACCOUNTS, MOST_ACCOUNT_CHARS = 3, 5, 64
SWITCH = "Make the sender use the current client secret, {current}: {previous} is still used and will be refused."
ENTER_URLS = "Enter the URL of {accounts}, url.<account> in the credentials Secret, in amoCRM: {previous} is still used, not {current}."
LIST_ACCOUNTS = "List the accounts in spec.accounts: then their URLs are in the credentials Secret. {previous} is still used by {accounts}."
UNPAUSE = "There is no good keyring: unset paused to have it written."


def outlook(wanted: Wanted, observed: Observed, given: Input, keyring: Keyring | None, changes: tuple[Change, ...]) -> Decision:
    """Say how things stand with the next document."""
    is_retired = given.problem is not None and given.problem.reason == "InputRetired"
    stalled = given.problem if is_retired else None
    waits = Note("Paused", "Rotation is paused; keys are still revoked.") if wanted.paused else None
    if waits is None and not is_retired:
        waits = given.problem
    if keyring is None:
        asked = [UNPAUSE if wanted.paused else given.action, _unrevoked(wanted, observed)]
        return Decision(None, changes, waits, " ".join(filter(None, asked)) or None, stalled)
    waits = waits or _propagation(observed, keyring) or _departure(wanted, observed, keyring)
    action = given.action or _switch(wanted, observed, keyring)
    dues = [] if wanted.paused else list(_dues(wanted, keyring))
    moments = [] if wanted.paused else [*dues, *_moments(wanted, observed, keyring)]
    wake_at = min((moment for moment in moments if moment > observed.now), default=None)
    return Decision(keyring, changes, waits, action, stalled, min(dues, default=None), wake_at)


def _unrevoked(wanted: Wanted, observed: Observed) -> str | None:
    """Say what is revoked and accepted all the same: without a keyring there is nothing to take it out of."""
    accepted = sorted({name for report in observed.reports or () for name in report.fingerprints & wanted.revoke})
    named = ", ".join(accepted[:MOST_NAMED])
    return f"Pods still accept {named}, although revoked, until there is a good keyring." if accepted else None


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
        name = f"{key.kind} {key.fingerprint}"
        if is_clock_doubtful(observed):
            return Note("Retiring", f"{name} stays while the operator's clock is not that of the pods.")
        if key.not_after is None:
            return Note("SenderNotSwitched", f"{name} stays until its user has been told of the current one and switched to it.")
        if observed.now < key.since + wanted.overlap:
            return Note("Overlap", f"{name} is accepted until {_text(key.since + wanted.overlap)} at least.")
        return _use(wanted, observed, keyring, key, _text(key.not_after))
    return None


def _use(wanted: Wanted, observed: Observed, keyring: Keyring, key: Key, end: str) -> Note:
    """Tell why a key stays whose overlap is over."""
    name, matched, current = f"{key.kind} {key.fingerprint}", last_matched(observed, key.fingerprint), keyring.one(key.kind, "current")
    if matched is not None and observed.now < matched + wanted.quiet_period:
        return Note("PreviousInUse", f"{name} is still used; it is refused from {end}.")
    if key.kind == "url_key" and current is not None:
        if is_crowded(observed, key.fingerprint, current.fingerprint):
            return Note("Overlap", f"{name} has more accounts than can be watched: it is refused from {end}.")
        if not_switched(wanted, observed, key, current):
            return Note("PreviousInUse", f"{name} is what some accounts used last; it is refused from {end}.")
    return Note("Retiring", f"{name} is retired as soon as every pod has proved its keyring.")


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _switch(wanted: Wanted, observed: Observed, keyring: Keyring) -> str | None:
    """Ask for what only a person can do: make a sender use the current key if it goes on with a previous one."""
    for key in (key for kind in KINDS for key in keyring.of(kind, "previous")):
        current = keyring.one(key.kind, "current")
        if current is None:
            continue
        names = {"current": current.fingerprint, "previous": key.fingerprint}
        if key.kind == "url_key" and (late := _late_accounts(wanted, observed, key, current)):
            return (LIST_ACCOUNTS if wanted.accounts is None else ENTER_URLS).format(accounts=_listed(late), **names)
        if key.kind == "client_secret" and _is_preferred(observed, key, current):
            return SWITCH.format(**names)
    return None


def _late_accounts(wanted: Wanted, observed: Observed, key: Key, current: Key) -> list[str]:
    """Name the accounts whose old URL was used after the new one, or again since its end is set: some of its hooks may have been missed."""
    late = set(not_switched(wanted, observed, key, current))
    if key.not_after is not None:
        matches = account_matches(observed, key.fingerprint).items()
        late |= {account for account, at in matches if at > key.since and observed.now < at + wanted.quiet_period}
    return sorted(late)


def _listed(accounts: list[str]) -> str:
    """List the first few of the accounts; whoever may derive URLs chose their names."""
    listed = [account[:MOST_ACCOUNT_CHARS] for account in accounts if account != OTHERS]
    more = [f"{len(listed) - MOST_ACCOUNTS} more"] if len(listed) > MOST_ACCOUNTS else []
    others = ["others that are not listed"] if OTHERS in accounts else []
    return f"account{'s' if len(accounts) > 1 else ''} {', '.join([*listed[:MOST_ACCOUNTS], *more, *others])}"


def _is_preferred(observed: Observed, key: Key, current: Key) -> bool:
    """Tell whether a sender uses a previous secret in place of the current one; it is only known after a request since it was told."""
    previously, currently = last_matched(observed, key.fingerprint), last_matched(observed, current.fingerprint)
    return previously is not None and previously > key.since and (currently is None or currently < previously)


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
