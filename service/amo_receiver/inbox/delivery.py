"""A delivery with its events, as it goes from the request into the database."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson
from uuid_utils import uuid7

from amo_receiver.amocrm.events import Item, changes_card, dedup_key, storable, storable_text
from amo_receiver.errors import Problem  # noqa: TC001 - a field of a dataclass
from amo_receiver.inbox.effects import iso, row_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_receiver.amocrm.events import Body
    from amo_receiver.amocrm.fields import AccountMapping
    from amo_receiver.inbox.merge import Row
    from amo_receiver.telemetry.spans import OpenSpan

UNPARSED = "unparsed"
"""Entity of the one dead event that stands for a body which could not be parsed."""
CUT_BODY_BYTES = 65_536
HEADER_CHARACTERS = 255


def new_id() -> str:
    """Return a UUIDv7 as text; ids grow within the process, also within one millisecond."""
    return str(uuid7())


@dataclass(slots=True)
class Credential:
    """Which key authenticated a delivery, without the key."""

    source: str
    kind: str
    fingerprint: str


@dataclass(slots=True)
class Headers:
    """The only headers that are stored; the signature is none of them, because it never changes and covers no body."""

    content_type: str | None = None
    user_agent: str | None = None
    request_id: str | None = None
    traceparent: str | None = None

    def __post_init__(self) -> None:
        """Make them storable."""
        for name in ("content_type", "user_agent", "request_id", "traceparent"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, storable_text(value)[:HEADER_CHARACTERS])


@dataclass(slots=True)
class Event:
    """One event on its way: ``row`` is its effect (None: recorded only), ``problem`` why it is dead from the start."""

    id: str
    account_id: str
    entity: str
    action: str
    entity_id: str
    path: str
    payload: bytes
    occurred_at: str | None
    dedup: str | None
    row: Row | None = None
    problem: Problem | None = None

    def record(self, delivery: Delivery) -> dict[str, Any]:
        """Return the event as the database function takes it."""
        return {
            "account_id": self.account_id,
            "id": self.id,
            "delivery_id": delivery.id,
            "entity": self.entity,
            "action": self.action,
            "entity_id": self.entity_id,
            "path": self.path,
            "payload": orjson.Fragment(self.payload),
            "occurred_at": self.occurred_at,
            "received_at": delivery.received_at,
            "dedup": self.dedup and "\\x" + self.dedup,
            "state": "dead" if self.problem else "processed",
            "effect": None if self.problem else "applied" if self.row else "recorded",
            "last_error": str(self.problem) if self.problem else None,
            "traceparent": delivery.headers.traceparent,
        }


@dataclass(slots=True)
class Delivery:
    """One HTTP request amoCRM made. ``body_sha256`` is set where ``body`` is cut, ``ahead`` counts times that do not count.

    ``span`` is that of its acceptance, None where tracing is off.
    """

    id: str
    account_id: str
    received_at: str
    credential: Credential
    headers: Headers
    body: bytes
    events: list[Event] = field(default_factory=list)
    body_bytes: int = 0
    body_sha256: str | None = None
    unparsed: bool = False
    ahead: int = 0
    span: OpenSpan | None = None

    @property
    def weight(self) -> int:
        """How much there is to store and to join: events, and registers that they write one by one."""
        return sum(1 + (len(event.row.exceptions) if event.row else 0) for event in self.events)

    def record(self) -> dict[str, Any]:
        """Return the delivery as the database function takes it; the body goes beside it."""
        return {
            "account_id": self.account_id,
            "id": self.id,
            "source": self.credential.source,
            "key_kind": self.credential.kind,
            "key_fingerprint": self.credential.fingerprint,
            "received_at": self.received_at,
            "content_type": self.headers.content_type,
            "user_agent": self.headers.user_agent,
            "request_id": self.headers.request_id,
            "traceparent": self.headers.traceparent,
            "body_bytes": self.body_bytes,
            "body_sha256": self.body_sha256 and "\\x" + self.body_sha256,
            "events": len(self.events),
            "unparsed": self.unparsed,
        }


def open_delivery(account_id: str, received_at: float, credential: Credential, headers: Headers, body: bytes) -> Delivery:
    """Begin a delivery; ``received_at`` is unix seconds."""
    return Delivery(new_id(), account_id, iso(received_at), credential, headers, body, body_bytes=len(body))


def add_events(
    delivery: Delivery, items: list[Item], account_of: Callable[[Item], str], mapping_of: Callable[[str], AccountMapping]
) -> None:
    """Turn a body's items into the delivery's events; an unusable item becomes a dead one."""
    for item in items:
        account_id = account_of(item)
        payload, dump = storable(item.payload)
        event = Event(
            new_id(),
            account_id,
            item.entity,
            item.action,
            item.entity_id,
            item.path,
            dump,
            None if item.own_time is None else iso(item.own_time),
            dedup_key(item, dump),
        )
        if item.problem is not None:
            event.problem = item.problem
        elif changes_card(item.entity, item.action):
            event.row = row_of(event.id, account_id, item.entity, item.action, item.entity_id, payload, event.occurred_at,
                               delivery.received_at, mapping_of(account_id))  # fmt: skip
        delivery.events.append(event)
    delivery.ahead = sum(item.ahead for item in items)
    if delivery.events:
        delivery.account_id = delivery.events[0].account_id


def account_of(account_id: str | None, body: Body, item: Item) -> str:
    """Return whose event an item is: the credential's account, the body's, the item's own, the subdomain's (before 2018), or ''."""
    return account_id or body.account_id or item.account_id or (f"subdomain:{body.subdomain}" if body.subdomain else "")


def is_foreign(account_id: str, body: Body) -> bool:
    """Return whether a body speaks of another account than its credential does."""
    claimed = {body.account_id} if body.account_id else {item.account_id for item in body.items if item.account_id}
    return not claimed <= {account_id}


def as_unparsed(delivery: Delivery, problem: Problem) -> Delivery:
    """Return the delivery as a raw body with one dead event; identical bodies are duplicates of one another."""
    dedup = hashlib.blake2b(delivery.body, digest_size=16).hexdigest()
    event = Event(new_id(), delivery.account_id, UNPARSED, "", "", "", b"{}", None, dedup, problem=problem)
    return replace(delivery, events=[event], unparsed=True)


def cut_body(delivery: Delivery) -> None:
    """Keep 64 KiB and the hash of a body whose source has used up its quota for unparsable ones."""
    if len(delivery.body) > CUT_BODY_BYTES:
        delivery.body_sha256 = hashlib.sha256(delivery.body).hexdigest()
        delivery.body = delivery.body[:CUT_BODY_BYTES]
