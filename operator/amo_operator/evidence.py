"""What a rotation is decided from, what is decided, and what the pods' reports prove; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from amo_operator.keyring import Key, KeyKind, Keyring, Retired, fingerprint, is_usable

Mode: TypeAlias = Literal["ref", "generate"]
NewSecret: TypeAlias = Callable[[], str]
OTHERS = "*"
"""The accounts of a key that a pod does not list one by one, because they are too many."""
CLOCK_TOLERANCE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The spec; ``rotate_every`` has the generated kinds; ``overlap <= max_overlap < rotate_every``, and ``max_overlap`` is positive."""

    client_id: str
    accounts: tuple[str, ...] | None
    client_secret: Mode | None
    rotate_every: Mapping[KeyKind, timedelta]
    overlap: timedelta = timedelta(hours=24)
    max_overlap: timedelta = timedelta(days=7)
    quiet_period: timedelta = timedelta(hours=1)
    revoke: frozenset[str] = frozenset()
    paused: bool = False

    def mode(self, kind: KeyKind) -> Mode | None:
        """Tell where keys of a kind come from: a person's Secret, this operator, or nowhere (there shall be none)."""
        if kind == "client_secret":
            return self.client_secret
        return "generate" if kind in self.rotate_every else None


@dataclass(frozen=True, slots=True)
class Report:
    """What one non-finished pod answered about this integration; ``problem`` if it could not be asked or does not know it."""

    pod: str
    uid: str
    problem: str | None
    generation: int | None
    fingerprints: frozenset[str] = frozenset()
    last_matched: Mapping[str, datetime] = field(default_factory=dict)
    accounts: Mapping[str, Mapping[str, datetime]] = field(default_factory=dict)
    """The last match of each account, by the fingerprint of a URL key; ``OTHERS`` for those that it does not list."""
    reported_at: datetime | None = None
    """When that was, by the pod's clock."""
    knows_matches: bool = True
    """Whether it has read lately what matched in the other pods: one that has only just started, or has no database, has not."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that was read before deciding; secrets do not show in its repr."""

    now: datetime
    keyring: Keyring | None
    problem: str | None
    """Why there is no keyring; unset if there is one."""
    input_secret: str | None = field(default=None, repr=False)
    """What lies behind the spec's reference."""
    credentials: Mapping[str, str] | None = field(default=None, repr=False)
    reports: tuple[Report, ...] | None = None
    """None if the pods were not asked."""
    steady: bool = False
    """The pods were the same twice in a row, and no rollout is running."""
    rotate_request: str | None = None
    floor: int = 0
    """The highest generation ever seen, in the status or a report."""
    known_retired: tuple[Retired, ...] = ()
    """What the status says of keys that are gone."""
    known_keys: frozenset[str] = frozenset()
    """Fingerprints of the keys that the status says are accepted."""


@dataclass(frozen=True, slots=True)
class Note:
    """A reason for programs and a sentence for people; never a secret."""

    reason: str
    message: str


Change: TypeAlias = Note


@dataclass(frozen=True, slots=True)
class Decision:
    """The next document, and how things stand; ``keyring`` is the observed one if nothing is to be written (None: there is none)."""

    keyring: Keyring | None
    changes: tuple[Change, ...] = ()
    waits: Note | None = None
    action: str | None = None
    stalled: Note | None = None
    next_rotation: datetime | None = None
    wake_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """The person's secret if it can be used, else what is wrong with it and what the person has to do."""

    secret: str | None = field(default=None, repr=False)
    problem: Note | None = None
    action: str | None = None
    is_revoked: bool = False


REGENERATE = "Regenerate the integration's secret in amoCRM and write the new one into the Secret that clientSecretRef names."


def judge_input(wanted: Wanted, observed: Observed) -> Input:
    """Tell whether the person's secret can be used; surrounding spaces and the line break of an editor are not part of it."""
    secret = (observed.input_secret or "").strip()
    if not secret:
        action = "Write the client secret that amoCRM shows into the Secret that clientSecretRef names."
        return Input(None, Note("SecretMissing", "The Secret or its key that clientSecretRef names is missing or empty."), action)
    if not is_usable(secret):
        message = "What clientSecretRef names is no client secret: it must be printable text of at most 4096 bytes."
        return Input(None, Note("SecretUnusable", message), REGENERATE)
    name = fingerprint(secret)
    if name in barred(wanted, observed):
        message = f"The secret that clientSecretRef names, {name}, was retired or revoked and is not accepted again."
        return Input(None, Note("InputRetired", message), REGENERATE, name in wanted.revoke)
    return Input(secret)


def barred(wanted: Wanted, observed: Observed) -> frozenset[str]:
    """Name the keys that must never be accepted again."""
    noted = (*observed.known_retired, *(observed.keyring.retired if observed.keyring else ()))
    return wanted.revoke | {each.fingerprint for each in noted}


def highest_generation(observed: Observed) -> int:
    """Return the highest generation that anybody has seen; senders, who read it in their Secret, are asked only if there is no keyring.

    Nobody confirms what stands there, and it must not outdo a keyring that is whole.
    """
    if observed.keyring is not None:
        return observed.floor
    written = (observed.credentials or {}).get("generation", "")
    return max(observed.floor, int(written) if written.isdecimal() and len(written) < len(str(2**63)) else 0)


def is_confirmed(observed: Observed, name: str) -> bool:
    """Tell whether a key that only the credentials still have was accepted before, by the status or a pod; or nobody can tell any more."""
    known = observed.known_keys.union(*(report.fingerprints for report in observed.reports or ()))
    return name in known or not (known or observed.keyring)


def is_clock_doubtful(observed: Observed) -> bool:
    """Tell whether no pod that says what time it is agrees with the operator's clock."""
    told = [report.reported_at for report in observed.reports or () if report.reported_at]
    return bool(told) and all(abs(observed.now - moment) > CLOCK_TOLERANCE for moment in told)


def lag(keyring: Keyring, report: Report) -> str | None:
    """Tell why a report does not prove that its pod has exactly this keyring; None if it does."""
    if report.problem is not None:
        return report.problem
    if report.generation != keyring.generation:
        return f"it has generation {report.generation}, not {keyring.generation}"
    if report.fingerprints != keyring.fingerprints:
        return f"it has other keys than generation {keyring.generation}"
    return None


def is_proven(keyring: Keyring, observed: Observed) -> bool:
    """Tell whether every pod there is, and at least one, has exactly this keyring, and no pod is about to come or go."""
    return observed.steady and bool(observed.reports) and all(lag(keyring, report) is None for report in observed.reports or ())


def is_quiet_known(observed: Observed) -> bool:
    """Tell whether a key of which no pod reports a match has had none."""
    return bool(observed.reports) and all(report.knows_matches for report in observed.reports or ())


def last_matched(observed: Observed, name: str) -> datetime | None:
    """Return when a key last authenticated a request, as far as the pods know."""
    return max((report.last_matched[name] for report in observed.reports or () if name in report.last_matched), default=None)


def account_matches(observed: Observed, name: str) -> dict[str, datetime]:
    """Return when each account last used a URL key, as far as the pods know."""
    found: dict[str, datetime] = {}
    for report in observed.reports or ():
        for account, matched in report.accounts.get(name, {}).items():
            found[account] = max(matched, found.get(account, matched))
    return found


def is_crowded(observed: Observed, *names: str) -> bool:
    """Tell whether a URL key has accounts that pods do not list: nobody can say of each whether it has switched."""
    return any(OTHERS in account_matches(observed, name) for name in names)


def not_switched(wanted: Wanted, observed: Observed, previous: Key, current: Key, slack: timedelta = timedelta()) -> list[str]:
    """Name the accounts that still use the URL of a previous key: they used the current one never, or longer than ``slack`` before it.

    Those that may not send any more do not count. One that was not listed with the current key is among its others, if it has any.
    """
    old, new = account_matches(observed, previous.fingerprint), account_matches(observed, current.fingerprint)
    served = {account for account in old if wanted.accounts is None or account in (*wanted.accounts, OTHERS)}
    switched = {account: new.get(account, new.get(OTHERS)) for account in served}
    return sorted(account for account, moment in switched.items() if moment is None or moment + slack < old[account])
