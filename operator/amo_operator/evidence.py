"""What a rotation is decided from, what is decided, and what the pods' reports prove; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from amo_operator.keyring import KeyKind, Keyring, Retired, fingerprint, is_usable

Mode: TypeAlias = Literal["ref", "generate"]
NewSecret: TypeAlias = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The spec; ``rotate_every`` has the generated kinds. Durations are positive, ``overlap <= max_overlap < rotate_every``."""

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
    """Return the highest generation that anybody has seen, the credentials Secret's readers included."""
    written = (observed.credentials or {}).get("generation", "")
    return max(observed.floor, int(written) if written.isdecimal() and len(written) < len(str(2**63)) else 0)


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
