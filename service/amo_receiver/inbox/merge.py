"""Per-column versions: how writes to one lead or contact join, whatever their order and however often they come.

Each column is a last-writer-wins register with the version (time, event id). A row keeps one version for all columns, that of the
newest full snapshot (``base``), and exceptions for the columns that a partial event wrote later. ``join`` is commutative,
associative and idempotent; the database has the same join in SQL (``join_v1``), and a property test compares the two.

Times are ISO 8601 in UTC with six digits of fraction, so that text order is time order, in Python and in Postgres alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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


def join(*rows: Row) -> Row:
    """Return the row that results from all of them, in whatever order they are given."""
    newest = max(rows, key=_base)
    joined = replace(newest, values=dict(newest.values), fields=dict(newest.fields), exceptions=dict(newest.exceptions))
    for row in rows:
        joined.snapshot_at = max(joined.snapshot_at, row.snapshot_at)
        joined.crm_updated_at = max(joined.crm_updated_at, row.crm_updated_at)
        for register, version in row.exceptions.items():
            held = joined.exceptions.get(register, UNWRITTEN if register == TOMBSTONE else joined.base)
            if version > held:
                joined.exceptions[register] = version
                _take(register, row, joined)
    return joined


def _base(row: Row) -> Version:
    return row.base


def _take(register: str, source: Row, row: Row) -> None:
    if register.startswith(FIELD):
        field_id = register[len(FIELD) :]
        if field_id in source.fields:
            row.fields[field_id] = source.fields[field_id]
        else:
            row.fields.pop(field_id, None)
    elif register != TOMBSTONE:
        row.values[register] = source.values.get(register)


def fold(rows: Iterable[Row]) -> list[Row]:
    """Join the rows that share a key; the result is sorted by key, the order in which every process takes its locks."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key, []).append(row)
    return [groups[key][0] if len(groups[key]) == 1 else join(*groups[key]) for key in sorted(groups)]


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
