"""The two custom resources, spec and status: what the API server holds, read into values; their CRDs are rendered from these models."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from amo_operator.fields import (
    Accounts,
    DataKey,
    Duration,
    Fingerprints,
    Model,
    ObjectName,
    PodSettings,
    Rule,
    ShortDuration,
    duration_text,
)
from amo_operator.status import AmoIntegrationStatus, SchemaMigrationStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

GROUP, VERSION = "amo-webhooks.io", "v1alpha1"

VISIBLE_WITHOUT_BAR = "[!-{}-~]+"
SHORTEST_LOCK_WAIT, LONGEST_LOCK_WAIT = timedelta(milliseconds=100), timedelta(seconds=5)
LONGEST_NAME_CHARS = 63
CREDENTIALS_SUFFIX = "-credentials"

Resource = TypeVar("Resource", bound=Model)


class InvalidResource(ValueError):  # noqa: N818 - named for what it says
    """A custom resource cannot be understood; the message names each path, never a value."""


class Metadata(Model):
    """What the API server itself knows of an object, as far as it matters here."""

    name: str


class ClientSecretRef(Model):
    """The Secret of this namespace into which a person, a pipeline or another operator puts the current client secret."""

    name: ObjectName
    """Name of the Secret."""
    key: DataKey = "client_secret"
    """Key within its data."""


class GeneratedSecret(Model):
    """A client secret that the operator generates, for signed senders that are ours and read it from the credentials Secret."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "generate",
            "generate can only be true: for a secret from elsewhere set clientSecretRef",
            "self.generate",
            lambda my: my.generate,
        ),
    )

    generate: bool
    """Always true."""
    rotate_every: Duration = timedelta(days=90)
    """Age at which the current secret is rotated; longer than maxOverlap."""


class UrlKey(Model):
    """The key behind the tokens in the URLs that amoCRM calls; it is generated and rotated on schedule."""

    rotate_every: Duration = timedelta(days=90)
    """Age at which the current key is rotated; longer than maxOverlap."""


BEGINS_TOO_EARLY = "rotateEvery must be longer than maxOverlap: a rotation would begin before the last one has ended"


class AmoIntegrationSpec(Model):
    """Which sender it is, where its keys come from and how they are rotated; durations are written like 90d, 36h, 1h30m or 10s."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "clientId",
            "clientId cannot be changed: create another AmoIntegration for another integration",
            "self.clientId == oldSelf.clientId",
        ),
        Rule(
            "clientId",
            "clientId has visible ASCII characters only and no '|', which separates it from the account in what is signed",
            f"self.clientId.matches('^{VISIBLE_WITHOUT_BAR}$')",
            lambda my: re.fullmatch(VISIBLE_WITHOUT_BAR, my.client_id) is not None,
        ),
        Rule(
            "clientSecret",
            "clientSecret and clientSecretRef exclude each other: the secret is either generated or read from a Secret",
            "!has(self.clientSecret) || !has(self.clientSecretRef)",
            lambda my: my.client_secret is None or my.client_secret_ref is None,
        ),
        Rule(
            "",
            "set clientSecretRef, clientSecret or urlKey: without a key nothing could be accepted",
            "has(self.clientSecret) || has(self.clientSecretRef) || has(self.urlKey)",
            lambda my: any((my.client_secret, my.client_secret_ref, my.url_key)),
        ),
        Rule(
            "clientSecretRef",
            "clientSecretRef, once set, cannot be taken away or exchanged for clientSecret: create another AmoIntegration",
            "!has(oldSelf.clientSecretRef) || has(self.clientSecretRef)",
        ),
        Rule(
            "clientSecret",
            "clientSecret, once set, cannot be taken away or exchanged for clientSecretRef: create another AmoIntegration",
            "!has(oldSelf.clientSecret) || has(self.clientSecret)",
        ),
        Rule(
            "maxOverlap",
            "maxOverlap must be longer than 0s: the previous key would be refused before anybody knows the current one",
            "self.maxOverlap > duration('0s')",
            lambda my: my.max_overlap > timedelta(),
        ),
        Rule(
            "overlap",
            "overlap must not be longer than maxOverlap",
            "self.overlap <= self.maxOverlap",
            lambda my: my.overlap <= my.max_overlap,
        ),
        Rule(
            "quietPeriod",
            "quietPeriod must not be longer than maxOverlap: the key would be gone before it could be quiet for so long",
            "self.quietPeriod <= self.maxOverlap",
            lambda my: my.quiet_period <= my.max_overlap,
        ),
        Rule(
            "clientSecret.rotateEvery",
            BEGINS_TOO_EARLY,
            "!has(self.clientSecret) || self.clientSecret.rotateEvery > self.maxOverlap",
            lambda my: my.client_secret is None or my.client_secret.rotate_every > my.max_overlap,
        ),
        Rule(
            "urlKey.rotateEvery",
            BEGINS_TOO_EARLY,
            "!has(self.urlKey) || self.urlKey.rotateEvery > self.maxOverlap",
            lambda my: my.url_key is None or my.url_key.rotate_every > my.max_overlap,
        ),
    )

    client_id: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    """Id of the amoCRM integration, which signed requests name in X-Client-UUID; it cannot be changed."""
    accounts: Accounts | None = None
    """Ids of the accounts whose events are accepted; absent means any account."""
    client_secret_ref: ClientSecretRef | None = None
    client_secret: GeneratedSecret | None = None
    url_key: UrlKey | None = None
    overlap: Duration = timedelta(hours=24)
    """How long the previous key is accepted at least after the current one took its place."""
    max_overlap: Duration = timedelta(days=7)
    """How long the previous key is accepted at most, whoever still uses it."""
    quiet_period: Duration = timedelta(hours=1)
    """How long the previous key must not have matched a request before it retires."""
    revoke: Fingerprints = ()
    """Fingerprints of keys that are refused everywhere at once and for good, also while paused."""
    paused: bool = False
    """While true nothing is rotated; only revoke is still obeyed."""


class AmoIntegration(Model):
    """A sender of webhooks: an amoCRM integration, or a program of ours that signs as one, and the rotation of its keys."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "",
            f"the name has at most {LONGEST_NAME_CHARS} characters: Secrets and metrics are named after it",
            f"self.metadata.name.size() <= {LONGEST_NAME_CHARS}",
            lambda my: len(my.metadata.name) <= LONGEST_NAME_CHARS,
        ),
        Rule(
            "",
            "the name must not end in .json: the service takes that for the ending of a keyring file",
            "!self.metadata.name.endsWith('.json')",
            lambda my: not my.metadata.name.endswith(".json"),
        ),
        Rule(
            "spec.clientSecretRef.name",
            f"clientSecretRef cannot name the Secret NAME{CREDENTIALS_SUFFIX}: the operator itself writes it",
            f"!has(self.spec.clientSecretRef) || self.spec.clientSecretRef.name != self.metadata.name + '{CREDENTIALS_SUFFIX}'",
            lambda my: my.spec.client_secret_ref is None or my.spec.client_secret_ref.name != my.metadata.name + CREDENTIALS_SUFFIX,
        ),
    )

    metadata: Metadata
    spec: AmoIntegrationSpec
    status: AmoIntegrationStatus = AmoIntegrationStatus()


class DatabaseSecretRef(Model):
    """The Secret of this namespace with the URL of the database; one that leads to it directly, not through a pooler."""

    name: ObjectName
    """Name of the Secret."""
    key: DataKey = "url"
    """Key within its data."""


class SchemaMigrationSpec(PodSettings):
    """Which image takes which database to which revision; durations are written like 1h, 1h30m or 10s."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "databaseSecretRef",
            "databaseSecretRef cannot be changed: create another SchemaMigration for another database",
            "self.databaseSecretRef == oldSelf.databaseSecretRef",
        ),
        Rule(
            "lockTimeout",
            "lockTimeout must be at least 100ms, or no lock is ever had, and at most 5s, for which all queries wait behind it",
            "self.lockTimeout >= duration('100ms') && self.lockTimeout <= duration('5s')",
            lambda my: SHORTEST_LOCK_WAIT <= my.lock_timeout <= LONGEST_LOCK_WAIT,
        ),
        Rule(
            "activeDeadline",
            "activeDeadline must be longer than lockTimeout: no lock could be waited for",
            "self.activeDeadline > self.lockTimeout",
            lambda my: my.active_deadline > my.lock_timeout,
        ),
    )

    image: Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=r"^\S+$")]
    """Image of the service, best by digest; its migrations are the ones that run."""
    database_secret_ref: DatabaseSecretRef
    target_revision: Annotated[str, StringConstraints(max_length=64, pattern=r"^[0-9A-Za-z_]+$")] = "head"
    """Revision to reach; head is the image's latest."""
    lock_timeout: ShortDuration = timedelta(milliseconds=500)
    """How long one try waits for a lock before it lets the queries behind it pass; from 100ms to 5s."""
    backoff_limit: Annotated[int, Field(ge=0, le=10)] = 3
    """How often Kubernetes repeats a failed pod of one try."""
    active_deadline: Duration = timedelta(hours=1)
    """How long one try may take altogether."""
    paused: bool = False
    """While true no new try begins."""

    @property
    def lock_timeout_text(self) -> str:
        """Return the lock timeout as the command takes it."""
        return duration_text(self.lock_timeout)


class SchemaMigration(Model):
    """The revision that a database is to be at before a release runs on it."""

    metadata: Metadata
    spec: SchemaMigrationSpec
    status: SchemaMigrationStatus = SchemaMigrationStatus()


def parse_integration(resource: Mapping[str, Any]) -> AmoIntegration:
    """Read an AmoIntegration as the API server returns it.

    :raises InvalidResource: names every path at fault.
    """
    return _parse(AmoIntegration, resource)


def parse_migration(resource: Mapping[str, Any]) -> SchemaMigration:
    """Read a SchemaMigration as the API server returns it.

    :raises InvalidResource: names every path at fault.
    """
    return _parse(SchemaMigration, resource)


def _parse(model: type[Resource], resource: Mapping[str, Any]) -> Resource:
    try:
        return model.model_validate(resource)
    except ValidationError as error:
        found = "; ".join(_said(each) for each in error.errors(include_input=False, include_url=False))
    # Not raised inside the handler: the context would carry the values.
    raise InvalidResource(found)


def _said(error: ErrorDetails) -> str:
    place = ".".join(str(part) for part in (*error["loc"], error.get("ctx", {}).get("path")) if part not in ("", None))
    return f"{place or 'metadata'}: {error['msg']}"
