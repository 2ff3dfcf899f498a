"""Per-column versions: how writes to one lead or contact join, whatever their order and however often they come.

Each column is a last-writer-wins register with the version (time, event id). A row keeps one version for all columns, that of the
newest full snapshot (``base``), and exceptions for the columns that a partial event wrote later. ``join`` is commutative,
associative and idempotent; the database has the same join in SQL (``join_v1``), and a property test compares the two.

Times are ISO 8601 in UTC with six digits of fraction, so that text order is time order, in Python and in Postgres alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

Version = tuple[str, str]
"""(time, event id); the greater one wins."""

NEVER = "-infinity"
UNWRITTEN: Version = (NEVER, "00000000-0000-0000-0000-000000000000")
"""The version of a row that no full snapshot has set; older than every event's."""
FIELD = "cf:"
"""Prefix of a custom field's id among the exceptions: each custom field is a register of its own."""
TOMBSTONE = "deleted_at"
"""The register of delete and restore; its third part says which: ``delete``, ``undated`` (a delete without own time), ``restore``."""


@dataclass(slots=True)
class Row:
    """What is known of one lead or contact; an event's effect has the same shape.

    ``values`` holds columns (a missing one is NULL), ``fields`` custom fields by id, ``base`` the newest full snapshot's version,
    ``snapshot_at`` the own time of the newest *dated* full snapshot, ``exceptions`` the versions of columns written after ``base``.
    """

    account_id: str
    id: int
    values: dict[str, Any]
    fields: dict[str, Any]
    base: Version = UNWRITTEN
    snapshot_at: str = NEVER
    crm_updated_at: str = NEVER
    exceptions: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """The row's primary key."""
        return (self.account_id, self.id)

    @property
    def deleted_at(self) -> str | None:
        """When the card was deleted, or None; a full snapshot that is strictly newer revives it after an undated delete."""
        time, _, kind = self.exceptions.get(TOMBSTONE, (NEVER, "", "restore"))
        revived = kind == "undated" and self.snapshot_at > time
        return None if kind == "restore" or revived else time


def join(one: Row, other: Row) -> Row:
    """Return the row that results from both, in either order."""
    newer, older = (one, other) if one.base >= other.base else (other, one)
    row = Row(
        newer.account_id,
        newer.id,
        dict(newer.values),
        dict(newer.fields),
        newer.base,
        max(newer.snapshot_at, older.snapshot_at),
        max(newer.crm_updated_at, older.crm_updated_at),
        dict(newer.exceptions),
    )
    for register, version in older.exceptions.items():
        if register == TOMBSTONE:
            if version > row.exceptions.get(TOMBSTONE, UNWRITTEN):
                row.exceptions[TOMBSTONE] = version
        elif version > row.exceptions.get(register, row.base):
            row.exceptions[register] = version
            _take(register, older, row)
    return row


def _take(register: str, source: Row, row: Row) -> None:
    if not register.startswith(FIELD):
        row.values[register] = source.values.get(register)
        return
    field_id = register[len(FIELD) :]
    if field_id in source.fields:
        row.fields[field_id] = source.fields[field_id]
    else:
        row.fields.pop(field_id, None)


def fold(rows: Iterable[Row]) -> list[Row]:
    """Join the rows that share a key; the result is sorted by key, the order in which every process takes its locks."""
    folded: dict[tuple[str, int], Row] = {}
    for row in rows:
        known = folded.get(row.key)
        folded[row.key] = row if known is None else join(known, row)
    return [folded[key] for key in sorted(folded)]


def record(row: Row) -> dict[str, Any]:
    """Return the row as the database function takes it: column name → JSON value."""
    return {
        **row.values,
        "account_id": row.account_id,
        "id": row.id,
        "custom_fields": row.fields,
        "deleted_at": row.deleted_at,
        "crm_updated_at": None if row.crm_updated_at == NEVER else row.crm_updated_at,
        "snapshot_at": row.snapshot_at,
        "version_at": row.base[0],
        "version_event": row.base[1],
        "versions": row.exceptions or None,
    }
