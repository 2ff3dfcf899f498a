"""What the CRM says of leads and contacts, and the rows that must come of it.

The rows are made from the rules alone and share no code with the service: the writes of a card are applied one after the other in the
order of their versions, so that each column ends with the newest write to it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from factories import custom_field, custom_field_v4

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import asyncpg

AHEAD = 9_999_999_999
"""A time so far ahead of any clock that it counts as none."""
STATUSES = {1: "new", 2: "contacted", 3: "presentation", 4: "object_selected", 5: "reserved", 6: "deal", 7: "completed"}
FIELD_COLUMNS = {
    "leads": {123458: "utm_source", 123459: "utm_medium", 123463: "property_cost", 123464: "commission"},
    "contacts": {123456: "phone", 123457: "email"},
}
NUMBERS = {"price", "property_cost", "commission"}
COLUMNS = {
    "leads": {
        *("name", "status_id", "status", "pipeline_id", "price", "responsible_user_id"),
        *("utm_source", "utm_medium", "utm_campaign", "utm_content", "utm_term", "property_cost", "commission"),
    },
    "contacts": {"type", "name", "responsible_user_id", "phone", "email"},
}

Version = tuple[datetime, UUID]
Key = tuple[str, str, int]
"""(account, entity, id)"""


class Stored(NamedTuple):
    """What the service decided about an event: its id and when it was received."""

    id: UUID
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """One event about one card. ``serial`` travels in its payload; ``at`` is its own time, None without one.

    ``columns`` and ``fields`` (custom fields by id) hold what is sent; None is sent as empty. ``full`` has ``last_modified``: what it
    does not name is empty.
    """

    serial: int
    account: str
    entity: str
    action: str
    card: int
    at: int | None = None
    full: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[int, str | None] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """The card."""
        return (self.account, self.entity, self.card)

    def item(self) -> dict[str, Any]:
        """Return the item as it stands in a body: text everywhere in a full one, as amoCRM writes it, numbers in a partial one."""
        sent = {name: "" if value is None else value for name, value in self.columns.items()}
        if self.full:
            custom: dict[str, Any] = {"custom_fields": [custom_field(id_, *_values(value)) for id_, value in self.fields.items()]}
            times: dict[str, Any] = {"last_modified": AHEAD if self.at is None else self.at}
            scalars = {"id": self.card, **sent, **times}
            return {name: str(value) for name, value in scalars.items()} | custom | {"serial": str(self.serial)}
        custom = {"custom_fields_values": [custom_field_v4(id_, *_values(value)) for id_, value in self.fields.items()]}
        times = {} if self.at is None else {"created_at" if self.action == "add" else "updated_at": self.at}
        return {"id": self.card, **sent, **times, "serial": str(self.serial)} | (custom if self.fields else {})


def _values(value: str | None) -> tuple[str, ...]:
    return () if value is None else (value,)


@dataclass(slots=True)
class Card:
    """A lead or contact: its columns with their versions, custom fields by id, and what is known of its end."""

    values: dict[str, Any]
    versions: dict[str, Version] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    deleted_at: datetime | None = None
    crm_updated_at: datetime | None = None


def fold(history: Iterable[tuple[Change, Stored]]) -> dict[Key, Card]:
    """Return the cards that a history makes, whatever the order it is told in."""
    by_card: dict[Key, list[tuple[Version, Change]]] = {}
    for change, stored in history:
        time = stored.received_at if change.at is None else datetime.fromtimestamp(change.at, UTC)
        by_card.setdefault(change.key, []).append(((time, stored.id), change))
    return {key: _replay(key[1], sorted(writes, key=lambda write: write[0])) for key, writes in by_card.items()}


def _replay(entity: str, writes: list[tuple[Version, Change]]) -> Card:
    card = Card(_empty(entity))
    undated = False
    for version, change in writes:
        if change.action == "delete":
            card.deleted_at, undated = version[0], change.at is None
            continue
        if change.action == "restore":
            card.deleted_at = None
        if change.full:
            card.values, card.fields = _empty(entity), {}
            card.versions = dict.fromkeys(card.values, version)
        for column, value in _named(change).items():
            card.values[column] = value
            card.versions[column] = version
        for field_id, sent in change.fields.items():
            card.fields.pop(str(field_id), None)
            if sent is not None:
                card.fields[str(field_id)] = sent
    own_times = [datetime.fromtimestamp(change.at, UTC) for _, change in writes if change.at is not None]
    snapshots = [version[0] for version, change in writes if change.full and change.at is not None and change.action != "delete"]
    card.crm_updated_at = max(own_times, default=None)
    if card.deleted_at and undated and max(snapshots, default=card.deleted_at) > card.deleted_at:
        card.deleted_at = None
    return card


def _empty(entity: str) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS[entity]) | ({"type": "contact"} if entity == "contacts" else {})


def _named(change: Change) -> dict[str, Any]:
    """Return the columns that a change names, a lead's status word and the columns of its custom fields among them."""
    values = dict(change.columns)
    if "status_id" in values:
        values["status"] = STATUSES.get(values["status_id"])
    values |= {FIELD_COLUMNS[change.entity][id_]: value for id_, value in change.fields.items() if id_ in FIELD_COLUMNS[change.entity]}
    return {name: _number(value) if name in NUMBERS else value for name, value in values.items()}


def _number(value: Any) -> Decimal | None:
    try:
        return None if value is None else Decimal(str(value))
    except InvalidOperation:
        return None


async def read_cards(connection: asyncpg.Connection) -> dict[Key, Card]:
    """Return the cards in the tables."""
    cards: dict[Key, Card] = {}
    for entity, columns in COLUMNS.items():
        for row in await connection.fetch(f"SELECT * FROM {entity}"):
            later = json.loads(row["versions"] or "{}").items()
            base = {} if row["version_event"].int == 0 else dict.fromkeys(columns, (row["version_at"], row["version_event"]))
            cards[row["account_id"], entity, row["id"]] = Card(
                {column: row[column] for column in columns},
                base | {name: (datetime.fromisoformat(at), UUID(event)) for name, (at, event, *_) in later if name in columns},
                {id_: custom["values"][0]["value"] for id_, custom in json.loads(row["custom_fields"]).items()},
                row["deleted_at"],
                row["crm_updated_at"],
            )
    return cards


def differences(found: Mapping[Key, Card], expected: Mapping[Key, Card]) -> list[str]:
    """Return a line for each card that is not as expected."""
    wrong = [key for key in sorted({*found, *expected}) if found.get(key) != expected.get(key)]
    return [f"{key} {_difference(found.get(key), expected.get(key))}" for key in wrong]


def _difference(found: Card | None, expected: Card | None) -> str:
    """Tell the first thing in which two cards differ."""
    if found is None or expected is None:
        return "is missing" if found is None else "should not be there"
    name = next(name for name in Card.__slots__ if getattr(found, name) != getattr(expected, name))
    is_, should = getattr(found, name), getattr(expected, name)
    if isinstance(is_, dict):
        column = next(column for column in sorted({*is_, *should}) if is_.get(column) != should.get(column))
        name, is_, should = f"{name}.{column}", is_.get(column), should.get(column)
    return f"{name} is {is_}, should be {should}"
