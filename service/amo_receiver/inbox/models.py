"""The tables. All times are UTC. Every key starts with ``account_id``, so that the tables can be distributed by account.

Two small ones at the end are no account's.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal  # noqa: TC003
from typing import Any
from uuid import UUID  # noqa: TC003

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Index, LargeBinary, MetaData, SmallInteger, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Common metadata; the schema itself is made by the migrations, and `poe check` compares the two."""

    metadata = MetaData()
    type_annotation_map = {str: Text(), datetime: DateTime(timezone=True), dict[str, Any]: JSONB(), bytes: LargeBinary()}  # noqa: RUF012


def _key(doc: str) -> Mapped[Any]:
    return mapped_column(primary_key=True, doc=doc)


class Delivery(Base):
    """One HTTP request amoCRM made. Written once; only the two columns about repetition change."""

    __tablename__ = "deliveries"

    account_id: Mapped[str] = _key("The account of its first event, else of the credential; '' where neither is known.")
    id: Mapped[UUID] = _key("UUIDv7 made by the service when the request arrived.")
    source: Mapped[str] = mapped_column(doc="The configured sender whose key authenticated it.")
    key_kind: Mapped[str] = mapped_column(doc="client_secret (signed path), url_key or token (token path).")
    key_fingerprint: Mapped[str] = mapped_column(doc="First 12 hex digits that name the key which authenticated it.")
    received_at: Mapped[datetime] = mapped_column(doc="When its first byte arrived, by the service's clock.")
    content_type: Mapped[str | None] = mapped_column(doc="Header, as sent.")
    user_agent: Mapped[str | None] = mapped_column(doc="Header, as sent.")
    request_id: Mapped[str | None] = mapped_column(doc="Header x-amocrm-requestid, as sent; not known to survive amoCRM's retries.")
    traceparent: Mapped[str | None] = mapped_column(doc="W3C trace context of the accept.")
    body: Mapped[bytes] = mapped_column(doc="Raw body; cut to 64 KiB where an unparsable one exceeds its source's quota.")
    body_bytes: Mapped[int] = mapped_column(doc="Length of the body as received.")
    body_sha256: Mapped[bytes | None] = mapped_column(doc="Of the whole body; NULL unless the body is cut.")
    events: Mapped[int] = mapped_column(doc="How many events the body held.")
    unparsed: Mapped[bool] = mapped_column(server_default=text("false"), doc="Whether the body could not be parsed.")
    duplicates: Mapped[int] = mapped_column(server_default=text("0"), doc="How often it came again with no new event in it.")
    last_received_at: Mapped[datetime] = mapped_column(doc="When it came last; received_at at first.")

    __table_args__ = (
        CheckConstraint("key_kind IN ('client_secret', 'url_key', 'token')", name="deliveries_key_kind"),
        CheckConstraint("(body_sha256 IS NULL) = (octet_length(body) = body_bytes)", name="deliveries_body_cut"),
        Index("deliveries_received", "received_at", postgresql_using="brin"),
        Index("deliveries_unparsed", "source", postgresql_where=text("unparsed")),
    )


class Event(Base):
    """One thing that happened in the CRM. States: see states.py."""

    __tablename__ = "events"

    account_id: Mapped[str] = _key("Account id as text; 'subdomain:<name>' for bodies before 2018, '' where unknown.")
    id: Mapped[UUID] = _key("UUIDv7; ids grow in document order inside a body and in arrival order inside a process.")
    delivery_id: Mapped[UUID] = mapped_column(doc="The delivery it came in.")
    entity: Mapped[str] = mapped_column(doc="amoCRM's word: leads, contacts, task …; 'unparsed' for a body that could not be parsed.")
    action: Mapped[str] = mapped_column(doc="amoCRM's word: add, update, status …")
    entity_id: Mapped[str] = mapped_column(doc="id, else uid, else talk_id; for notes the card's; '' where there is none.")
    path: Mapped[str] = mapped_column(doc="Where it stood in the body: leads.add[0].")
    payload: Mapped[dict[str, Any]] = mapped_column(doc="Decoded fields as sent; NUL and lone surrogates replaced.")
    occurred_at: Mapped[datetime | None] = mapped_column(doc="Its own time; NULL where it has none or lies over 10 minutes ahead.")
    received_at: Mapped[datetime] = mapped_column(doc="Its delivery's received_at: orders it where it has no own time.")
    dedup: Mapped[bytes | None] = mapped_column(doc="Hash of entity, action, id and payload; NULL without own time: never a duplicate.")
    state: Mapped[str] = mapped_column(doc="pending, processed or dead.")
    effect: Mapped[str | None] = mapped_column(doc="applied or recorded; NULL until processed.")
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"), doc="Attempts begun, 1 once accepted.")
    deferrals: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"), doc="Attempts given back: the database's trouble.")
    replays: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"), doc="How often a person asked for it again.")
    available_at: Mapped[datetime | None] = mapped_column(doc="When it is due; NULL unless pending. The database's clock.")
    processed_at: Mapped[datetime | None] = mapped_column(doc="When its effect was committed; NULL unless processed.")
    last_error: Mapped[str | None] = mapped_column(doc="SQLSTATE and constraint, or the problem's path; NULL once processed.")
    traceparent: Mapped[str | None] = mapped_column(doc="W3C trace context of the accept, for later attempts to link to.")

    __table_args__ = (
        CheckConstraint("state IN ('pending', 'processed', 'dead')", name="events_state"),
        CheckConstraint("effect IN ('applied', 'recorded')", name="events_effect"),
        CheckConstraint("(state = 'pending') = (available_at IS NOT NULL)", name="events_due_when_pending"),
        CheckConstraint(
            "(state = 'processed') = (processed_at IS NOT NULL AND effect IS NOT NULL)", name="events_effect_when_processed"
        ),
        CheckConstraint("state <> 'dead' OR last_error IS NOT NULL", name="events_error_when_dead"),
        Index(
            "events_dedup", "account_id", "occurred_at", "dedup",
            unique=True, postgresql_nulls_not_distinct=True, postgresql_where=text("dedup IS NOT NULL"),
        ),
        Index("events_due", "available_at", postgresql_where=text("state = 'pending'")),
        Index("events_dead", "account_id", "id", postgresql_where=text("state = 'dead'")),
        Index("events_of_delivery", "account_id", "delivery_id"),
        Index("events_received", "received_at", postgresql_using="brin"),
    )  # fmt: skip


class Attempt(Base):
    """One failed attempt at applying an event, and each retry or replay whatever came of it."""

    __tablename__ = "attempts"

    account_id: Mapped[str] = _key("The event's account.")
    event_id: Mapped[UUID] = _key("The event.")
    id: Mapped[UUID] = _key("UUIDv7 of this attempt.")
    number: Mapped[int] = mapped_column(SmallInteger, doc="From 1; starts again after a replay.")
    kind: Mapped[str] = mapped_column(doc="accept, retry or replay.")
    outcome: Mapped[str] = mapped_column(doc="applied, failed (counts), deferred (the database's trouble: given back).")
    started_at: Mapped[datetime] = mapped_column(doc="By the service's clock.")
    error: Mapped[str | None] = mapped_column(doc="SQLSTATE and constraint; NULL when applied.")
    traceparent: Mapped[str | None] = mapped_column(doc="W3C trace context of this attempt.")

    __table_args__ = (
        CheckConstraint("kind IN ('accept', 'retry', 'replay')", name="attempts_kind"),
        CheckConstraint("outcome IN ('applied', 'failed', 'deferred')", name="attempts_outcome"),
    )


class Card:
    """What leads and contacts share: identity, custom fields and versions (see merge.py)."""

    account_id: Mapped[str] = _key("Account id as text.")
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False, doc="amoCRM's id.")
    name: Mapped[str | None] = mapped_column(doc="As sent.")
    responsible_user_id: Mapped[int | None] = mapped_column(BigInteger, doc="amoCRM's user id.")
    custom_fields: Mapped[dict[str, Any]] = mapped_column(doc="By field id: name, code, values; a field without value is absent.")
    deleted_at: Mapped[datetime | None] = mapped_column(doc="When it was deleted; NULL while it exists.")
    crm_updated_at: Mapped[datetime | None] = mapped_column(doc="Newest own time of its events; NULL if none had one.")
    updated_at: Mapped[datetime] = mapped_column(server_default=text("now()"), doc="When this row last changed, by the database's clock.")
    snapshot_at: Mapped[datetime] = mapped_column(doc="Own time of the newest dated full snapshot; -infinity before the first.")
    version_at: Mapped[datetime] = mapped_column(doc="Time of the newest full snapshot: the version of every column not in versions.")
    version_event: Mapped[UUID] = mapped_column(doc="The event of that snapshot; nil before the first.")
    versions: Mapped[dict[str, Any] | None] = mapped_column(
        doc="Columns written after that snapshot: [time, event id]; custom fields as cf:<id>; deleted_at with its kind."
    )


class Lead(Card, Base):
    """A lead as the CRM has it now."""

    __tablename__ = "leads"

    status_id: Mapped[int | None] = mapped_column(BigInteger, doc="amoCRM's stage.")
    status: Mapped[str | None] = mapped_column(doc="Its word by the mapping; NULL for an unknown stage.")
    pipeline_id: Mapped[int | None] = mapped_column(BigInteger, doc="amoCRM's pipeline.")
    price: Mapped[Decimal | None] = mapped_column(doc="Budget, in the account's currency.")
    utm_source: Mapped[str | None] = mapped_column(doc="Custom field, by the mapping.")
    utm_medium: Mapped[str | None] = mapped_column(doc="Custom field, by the mapping.")
    utm_campaign: Mapped[str | None] = mapped_column(doc="Custom field, by the mapping.")
    utm_content: Mapped[str | None] = mapped_column(doc="Custom field, by the mapping.")
    utm_term: Mapped[str | None] = mapped_column(doc="Custom field, by the mapping.")
    property_cost: Mapped[Decimal | None] = mapped_column(doc="Custom field, by the mapping.")
    commission: Mapped[Decimal | None] = mapped_column(doc="Custom field, by the mapping.")


class Contact(Card, Base):
    """A contact or company as the CRM has it now."""

    __tablename__ = "contacts"

    type: Mapped[str] = mapped_column(doc="contact or company.")
    phone: Mapped[str | None] = mapped_column(doc="First value of the mapped field, as sent.")
    email: Mapped[str | None] = mapped_column(doc="First value of the mapped field, as sent.")

    __table_args__ = (CheckConstraint("type IN ('contact', 'company')", name="contacts_type"),)


class Token(Base):
    """OAuth tokens of an account, for the account side that is still to come; nothing writes it yet."""

    __tablename__ = "tokens"

    account_id: Mapped[str] = _key("The account.")
    client_id: Mapped[str] = _key("The integration.")
    api_domain: Mapped[str] = mapped_column(doc="Host of the account's API.")
    access_token: Mapped[str] = mapped_column(doc="Lives 24 hours.")
    refresh_token: Mapped[str] = mapped_column(doc="Lives three months and is replaced at every refresh.")
    expires_at: Mapped[datetime] = mapped_column(doc="When the access token ends.")
    updated_at: Mapped[datetime] = mapped_column(server_default=text("now()"), doc="When the pair was last refreshed.")


class KeyMatch(Base):
    """When a key was last used; written at most once a minute for each account, and kept for 90 days after that."""

    __tablename__ = "key_matches"

    account_id: Mapped[str] = _key("The account whose URL it was; '' for other keys than url_key, '*' for those beyond the first 200.")
    source: Mapped[str] = _key("The configured sender whose key it is.")
    kind: Mapped[str] = _key("client_secret, url_key or token.")
    fingerprint: Mapped[str] = _key("First 12 hex digits that name the key.")
    matched_at: Mapped[datetime] = mapped_column(doc="When a request that it authenticated came last, by the service's clock.")


class SchemaFloor(Base):
    """The oldest revision whose code still runs on this schema; empty until a contract migration writes it."""

    __tablename__ = "schema_floor"

    revision: Mapped[str] = mapped_column(primary_key=True, doc="An Alembic revision.")
