"""The statuses of the two custom resources: what the operator shows, in the words that people and programs read."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AwareDatetime, Field

from amo_operator.fields import Model

KeyKind: TypeAlias = Literal["client_secret", "url_key"]


class Condition(Model):
    """One of the conditions Ready, Reconciling and Stalled, as kstatus reads them."""

    type: str
    """Name of the condition."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: str
    """Why, in one word for programs."""
    message: str
    """Why, in a sentence for people."""
    last_transition_time: AwareDatetime
    """Since when the status is what it is."""
    observed_generation: int | None = None
    """Generation of the spec of which this is said."""


class Status(Model):
    """What the statuses have in common."""

    observed_generation: int = -1
    """Generation of the spec that the rest of the status is about; -1 until the operator has seen the object."""
    conditions: Annotated[
        tuple[Condition, ...], Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]})
    ] = ()
    """How the object stands."""


class KeyStatus(Model):
    """One key of the keyring; its fingerprint names it without telling it."""

    kind: KeyKind
    """What the key is for."""
    fingerprint: str
    """First 12 hex digits of a salted SHA-256 of the key."""
    state: Literal["next", "current", "previous", "retired", "revoked"]
    """Next, current and previous keys are accepted, retired and revoked ones are refused."""
    since: AwareDatetime
    """Since when it is in this state."""
    not_after: AwareDatetime | None = None
    """When every pod stops accepting it, even one that is cut off."""
    last_matched: AwareDatetime | None = None
    """When it last authenticated a request."""


class PodStatus(Model):
    """What one pod reports about this integration."""

    name: str
    """Name of the pod."""
    generation: int | None = None
    """Generation of the keyring that it has; absent where it could not be asked."""
    in_step: bool
    """Whether it has exactly the published keyring."""
    problem: str | None = None
    """Why it is not, or why that is not known."""


class AmoIntegrationStatus(Status):
    """How the integration's keys stand."""

    generation: int | None = None
    """Generation of the published keyring; it only ever grows."""
    keys: tuple[KeyStatus, ...] = ()
    """The keys that are accepted, and those that no longer are."""
    pods: tuple[PodStatus, ...] = ()
    """The pods that verify requests."""
    next_rotation: AwareDatetime | None = None
    """When the next rotation is due."""
    action: str | None = None
    """What a person has to do now; absent if nothing."""
    credentials_secret: str | None = None
    """Name of the Secret with what senders need: client id, generated secret and the URL of each account."""


class Blocker(Model):
    """A session of the database that holds a lock that the migration waits for."""

    pid: int
    """Its process id in the database server."""
    state: str
    """What it is doing, in the words of pg_stat_activity."""
    age_seconds: int
    """Age of its transaction in seconds."""
    query: str
    """Fingerprint of its query, which itself may hold personal data."""


class SchemaMigrationStatus(Status):
    """How far the migration is."""

    current_revision: str | None = None
    """Revision of the database when it was last seen."""
    target_revision: str | None = None
    """Revision that is aimed at."""
    completed_hash: str | None = None
    """Hash of the image, database and revision that were last completed; the same is not done again."""
    completed_at: AwareDatetime | None = None
    """When that was."""
    completed_job_made_at: AwareDatetime | None = None
    """When the Job that did it was made; one made earlier does not tell how the database is now."""
    outcome: str | None = None
    """What the last finished try came to."""
    job: str | None = None
    """Name of the Job of the last try."""
    job_made_at: AwareDatetime | None = None
    """When that Job was made."""
    tries: int | None = None
    """How many tries have begun."""
    next_try: AwareDatetime | None = None
    """When the next try begins, after one that failed."""
    blockers: tuple[Blocker, ...] = ()
    """Who held the locks that the last try waited for."""
    last_error: str | None = None
    """First line of the last error, with its SQLSTATE."""
