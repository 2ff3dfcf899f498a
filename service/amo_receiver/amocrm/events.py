"""The events in a decoded body: ``entity[action][n]``, who they are about and when they happened."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from amo_receiver.amocrm.fields import INT64_MAX, integer, text
from amo_receiver.errors import Problem, Unparsable

if TYPE_CHECKING:
    from collections.abc import Iterator

CARDS = frozenset({"leads", "contacts"})
"""Entities that have a table of their own; companies arrive as contacts with ``type=company``."""
APPLIED = frozenset({"add", "update", "status", "responsible", "delete", "restore"})
"""Actions that change a card; notes and Digital Pipeline's other events are recorded only."""
CLOCK_TOLERANCE_SECONDS = 600
"""A time further ahead of ours than this cannot order anything and counts as absent."""
OWN_TIMES = ("updated_at", "last_modified", "date_modify", "created_at")
"""Where an event's own time stands, best first; ``created_at`` is when an ``add`` happened and nothing else."""
IDENTITY_CHARACTERS = 255
"""Entity and account ids stand in indexes; a longer one is cut (the payload keeps it whole)."""
NAME_CHARACTERS = 64
WORD = re.compile(r"\w+")
POSITION = re.compile(r"[0-9]{1,8}")


@dataclass(slots=True)
class Item:
    """One event as the body states it.

    ``path`` is where it stands (``leads.add[1]``), ``own_time`` its own time in unix seconds or None, ``account_id`` what the
    item says of its account or None, ``problem`` why it cannot be applied or None.
    """

    path: str
    entity: str
    action: str
    entity_id: str
    account_id: str | None
    own_time: int | None
    payload: dict[str, Any]
    problem: Problem | None = None
    ahead: bool = False

    @property
    def is_applied(self) -> bool:
        """Whether it changes a lead or contact; every other event is recorded."""
        return changes_card(self.entity, self.action)


@dataclass(slots=True)
class Body:
    """A body's events in document order, and what it says of its account."""

    account_id: str | None
    subdomain: str | None
    items: list[Item]


def changes_card(entity: str, action: str) -> bool:
    """Return whether an event of this kind changes a lead or contact."""
    return action in APPLIED and entity in CARDS


def is_full(payload: dict[str, Any]) -> bool:
    """Return whether a card's payload is a full snapshot, in which an absent field is empty: those carry ``last_modified``."""
    return payload.get("last_modified") not in (None, "")


def read_body(document: dict[str, Any], now: float) -> Body:
    """Take the events out of a decoded body; ``now`` is our clock in unix seconds.

    Raise Unparsable where the body is not empty and has no ``entity[action][n]`` at all.
    """
    account = document.get("account")
    account = account if isinstance(account, dict) else {}
    items = [item for entity, actions in document.items() if entity != "account" for item in _items(entity, actions, now)]
    # A key that is no word is no form's: text, or JSON under a form's Content-Type.
    if not items and any(_has_content(value) or not WORD.fullmatch(key) for key, value in document.items() if key != "account"):
        raise Unparsable("no entity[action][n] in it")
    return Body(_cut(text(account.get("id"))), _cut(text(account.get("subdomain"))), items)


def _has_content(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_content(part) for part in value.values())
    return value not in (None, "", [])


def _items(entity: str, actions: Any, now: float) -> Iterator[Item]:
    if not isinstance(actions, dict):
        return
    for action, raw in actions.items():
        name, kind = storable_text(entity[:NAME_CHARACTERS]), storable_text(action[:NAME_CHARACTERS])
        if isinstance(raw, list):
            numbered: Any = enumerate(raw)
        elif isinstance(raw, dict) and any(key.isdigit() and isinstance(part, dict) for key, part in raw.items()):
            numbered = raw.items()
        elif changes_card(name, kind) and _has_content(raw):
            yield _misshapen(name, kind, f"{name}.{kind}", raw, "is not a list of objects")
            continue
        else:
            continue
        for ordinal, (position, payload) in enumerate(numbered):
            # The sender's own number while it is one; anything else may be personal, a long number too.
            path = f"{name}.{kind}[{position if POSITION.fullmatch(str(position)) else ordinal}]"
            if isinstance(payload, dict):
                yield _item(name, kind, path, payload, now)
            else:
                yield _misshapen(name, kind, path, payload, "is not an object")


def _misshapen(entity: str, action: str, path: str, raw: Any, reason: str) -> Item:
    problem = Problem(path, reason) if changes_card(entity, action) else None
    return Item(path, entity, action, "", None, None, {"value": raw}, problem)


def _item(entity: str, action: str, path: str, payload: dict[str, Any], now: float) -> Item:
    note = payload.get("note") if action == "note" else None
    facts = note if isinstance(note, dict) else payload
    identity = facts.get("element_id") if action == "note" else _identity(facts)
    own_time, ahead = _own_time(facts, action, now)
    problem = None
    if changes_card(entity, action) and (integer(identity) or 0) <= 0:
        problem = Problem(f"{path}.id", "is missing" if identity is None else "is not a positive 64-bit integer")
    account_id, entity_id = _cut(text(facts.get("account_id"))), _cut(text(identity)) or ""
    return Item(path, entity, action, entity_id, account_id, own_time, payload, problem, ahead)


def _identity(facts: dict[str, Any]) -> Any:
    for key in ("id", "uid", "talk_id"):
        if facts.get(key) not in (None, ""):
            return facts[key]
    return None


def _own_time(facts: dict[str, Any], action: str, now: float) -> tuple[int | None, bool]:
    """Return the event's own time and whether a time was passed over for lying too far ahead."""
    ahead = False
    for key in OWN_TIMES if action == "add" else OWN_TIMES[:3]:
        moment = integer(facts.get(key))
        if moment is None or moment <= 0:
            continue
        if moment <= now + CLOCK_TOLERANCE_SECONDS:
            return moment, ahead
        ahead = True
    return None, ahead


def _cut(value: str | None) -> str | None:
    return storable_text(value)[:IDENTITY_CHARACTERS] if value is not None else None


def storable(payload: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Return the payload as Postgres can hold it, and as JSON with sorted keys: equal payloads give equal bytes."""
    try:
        dumped = orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a lone surrogate, or an integer beyond 64 bits
        dumped = b"\\u0000"
    if b"\\u0000" in dumped:
        payload = _storable(payload)
        dumped = orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)
    return payload, dumped


def dedup_key(item: Item, payload: bytes) -> str | None:
    """Return what makes two events the same one besides account and own time; None without an own time, but for unusable items."""
    if item.own_time is None and item.problem is None:
        return None
    head = f"{item.entity}\0{item.action}\0{item.entity_id}\0".encode()
    return hashlib.blake2b(head + payload, digest_size=16).hexdigest()


def storable_text(value: str) -> str:
    """Replace what a Postgres text cannot hold: NUL and lone surrogates."""
    if value.isascii():
        return value.replace("\0", "\ufffd")
    return value.replace("\0", "\ufffd").encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, dict):
        return {storable_text(key): _storable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_storable(part) for part in value]
    if isinstance(value, int) and not -INT64_MAX <= value <= 2 * INT64_MAX:
        return str(value)
    return value
