"""What an event does to a lead or contact: the row it would make on an empty table, for ``merge.join`` to join."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from amo_receiver.amocrm.events import changes_card, is_full
from amo_receiver.amocrm.fields import integer, read_fields
from amo_receiver.inbox.merge import FIELD, NEVER, TOMBSTONE, Row, Version

if TYPE_CHECKING:
    from amo_receiver.amocrm.fields import AccountMapping


def iso(moment: float) -> str:
    """Return unix seconds as ISO 8601 in UTC, fixed width: text order is time order."""
    second, microseconds = divmod(round(moment * 1_000_000), 1_000_000)
    return f"{_second(second)}.{microseconds:06d}Z"


@lru_cache(maxsize=1024)
def _second(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def row_of(
    event_id: str,
    account_id: str,
    entity: str,
    action: str,
    entity_id: str,
    payload: dict[str, Any],
    occurred_at: str | None,
    received_at: str,
    mapping: AccountMapping,
) -> Row | None:
    """Return the event's effect, or None where it is only recorded; ValueError where its id is none.

    ``occurred_at`` is the event's own time or None, ``received_at`` when its delivery arrived; both as ``iso`` writes them.
    """
    if not changes_card(entity, action):
        return None
    number = integer(entity_id)
    if number is None or number <= 0:
        msg = "its id is not a positive 64-bit integer"
        raise ValueError(msg)
    version = (occurred_at or received_at, event_id)
    row = Row(account_id, number, {}, {}, crm_updated_at=occurred_at or NEVER)
    if entity == "contacts":
        row.values["type"] = "contact"
    if action in ("delete", "restore"):
        kind = "restore" if action == "restore" else "delete" if occurred_at else "undated"
        row.exceptions[TOMBSTONE] = (*version, kind)
    if action != "delete":
        _write(row, entity, payload, version, occurred_at, mapping)
    return row


def _write(row: Row, entity: str, payload: dict[str, Any], version: Version, occurred_at: str | None, mapping: AccountMapping) -> None:
    """Put a payload's fields on the row: all columns at once if it is a full snapshot, else each one that it names."""
    writes = read_fields(entity, payload, mapping)
    row.values.update(writes.columns)
    row.fields = {field_id: value for field_id, value in writes.fields.items() if value is not None}
    if is_full(payload):
        row.base = version
        row.snapshot_at = occurred_at or NEVER
        return
    row.exceptions.update(dict.fromkeys(writes.columns, version))
    row.exceptions.update(dict.fromkeys((FIELD + field_id for field_id in writes.fields), version))
