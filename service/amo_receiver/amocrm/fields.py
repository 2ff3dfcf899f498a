"""What the fields of a lead or contact mean: columns, custom fields, and the mapping between them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from amo_receiver.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

INT64_MAX = 2**63 - 1
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,4})?", re.IGNORECASE)
NUMBER_DIGITS = 30
"""Numbers with more digits before or after the point are no prices."""

MAPPABLE = {
    "leads": ("utm_source", "utm_medium", "utm_campaign", "utm_content", "utm_term", "property_cost", "commission"),
    "contacts": ("phone", "email"),
}
NUMERIC = frozenset({"property_cost", "commission"})


@dataclass(frozen=True, slots=True)
class AccountMapping:
    """One account's mapping, compiled: status id → word, and (entity, field id | code | name) → (rank, column)."""

    statuses: dict[str, str]
    columns: dict[tuple[str, str], tuple[int, str]]

    def column(self, entity: str, field_id: str, code: str | None, name: str | None) -> tuple[int, str] | None:
        """Return (rank, column) for a custom field, rank 0 for a match by id, 1 by code, 2 by name."""
        columns = self.columns
        return (
            columns.get((entity, field_id))
            or (columns.get((entity, f"code:{code.upper()}")) if code else None)
            or (columns.get((entity, f"name:{name.casefold()}")) if name else None)
        )


class Mapping:
    """The mapping file, ready for look-ups by account."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._general = _compile(document, {})
        self._accounts = {str(account): _compile(document, own) for account, own in document.get("accounts", {}).items()}

    @classmethod
    def parse(cls, text: str) -> Mapping:
        """Read a mapping file's text; ConfigurationError says what is wrong with it."""
        try:
            return cls(tomllib.loads(text))
        except ValueError as error:
            msg = f"The mapping file is not usable: {error}."
            raise ConfigurationError(msg) from error

    def for_account(self, account_id: str) -> AccountMapping:
        """Return the account's own mapping, or the general one."""
        return self._accounts.get(account_id, self._general)


def _compile(document: dict[str, Any], own: dict[str, Any]) -> AccountMapping:
    for table in (document, own):
        _require_tables(table)
    statuses = {str(key): str(word) for part in (document, own) for key, word in part.get("leads", {}).get("status", {}).items()}
    columns: dict[tuple[str, str], tuple[int, str]] = {}
    for entity, known in MAPPABLE.items():
        fields = {**document.get(entity, {}).get("fields", {}), **own.get(entity, {}).get("fields", {})}
        for column, names in fields.items():
            if column not in known:
                msg = f"{entity} has no column {column!r} for a custom field, only {', '.join(known)}"
                raise ValueError(msg)
            for name in names if isinstance(names, list) else [names]:
                if isinstance(name, bool) or not isinstance(name, int | str):
                    msg = f"{entity}.fields.{column} must be ids, codes or names"
                    raise ValueError(msg)  # noqa: TRY004 - the file's value is wrong
                if isinstance(name, int):
                    columns[entity, str(name)] = (0, column)
                else:
                    columns[entity, f"code:{name.upper()}"] = (1, column)
                    columns[entity, f"name:{name.casefold()}"] = (2, column)
    return AccountMapping(statuses, columns)


def _require_tables(document: dict[str, Any]) -> None:
    """Raise ValueError where something else stands in the place of a table."""
    for path in (("accounts",), ("leads",), ("contacts",), ("leads", "status"), ("leads", "fields"), ("contacts", "fields")):
        part: Any = document
        for name in path:
            part = part.get(name, {})
        if not isinstance(part, dict):
            msg = f"{'.'.join(path)} must be a table"
            raise ValueError(msg)  # noqa: TRY004 - the file's value is wrong
    for account, own in document.get("accounts", {}).items():
        if not isinstance(own, dict):
            msg = f"accounts.{account} must be a table"
            raise ValueError(msg)  # noqa: TRY004 - the file's value is wrong


@dataclass(slots=True)
class Writes:
    """What one payload says: columns it names (None: empty) and custom fields by id (None: emptied)."""

    columns: dict[str, Any]
    fields: dict[str, dict[str, Any] | None]


def read_fields(entity: str, payload: dict[str, Any], mapping: AccountMapping) -> Writes:
    """Read a lead's or contact's payload, in the webhook's shape (api v2) or in api v4's."""
    columns = _lead_columns(payload, mapping) if entity == "leads" else _contact_columns(payload)
    fields: dict[str, dict[str, Any] | None] = {}
    ranks: dict[str, tuple[bool, int]] = {}
    for field_id, code, name, values in _custom_fields(payload):
        fields[field_id] = {"name": name, "code": code, "values": values} if values else None
        target = mapping.column(entity, field_id, code, name)
        if target is None:
            continue
        rank, column = target
        value = first_value(values)
        preference = (value is None, rank)
        if column not in ranks or preference < ranks[column]:
            ranks[column] = preference
            columns[column] = number(value) if column in NUMERIC else text(value)
    return Writes(columns, fields)


def _lead_columns(payload: dict[str, Any], mapping: AccountMapping) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if "name" in payload:
        columns["name"] = text(payload["name"])
    if "status_id" in payload:
        columns["status_id"] = integer(payload["status_id"])
        columns["status"] = mapping.statuses.get(str(columns["status_id"]))
    if "pipeline_id" in payload:
        columns["pipeline_id"] = integer(payload["pipeline_id"])
    if "price" in payload:
        columns["price"] = number(payload["price"])
    if "responsible_user_id" in payload:
        columns["responsible_user_id"] = integer(payload["responsible_user_id"])
    return columns


def _contact_columns(payload: dict[str, Any]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if "name" in payload:
        columns["name"] = text(payload["name"])
    if "type" in payload:
        columns["type"] = "company" if payload["type"] == "company" else "contact"
    if "responsible_user_id" in payload:
        columns["responsible_user_id"] = integer(payload["responsible_user_id"])
    return columns


def _custom_fields(payload: dict[str, Any]) -> Iterator[tuple[str, str | None, str | None, list[dict[str, Any]]]]:
    for key, prefix in (("custom_fields", ""), ("custom_fields_values", "field_")):
        for field in elements(payload.get(key)):
            if not isinstance(field, dict):
                continue
            code, name = text(field.get(prefix + "code")), text(field.get(prefix + "name"))
            field_id = text(field.get(prefix + "id")) or code
            if field_id:
                yield field_id, code, name, _values(field.get("values"))


def _values(raw: Any) -> list[dict[str, Any]]:
    """Give a field's values one shape; a date field sends them bare, a radio button sends one object instead of a list."""
    entries = [raw] if isinstance(raw, dict) and "value" in raw else elements(raw)
    shaped = [entry if isinstance(entry, dict) else {"value": entry} for entry in entries]
    return [entry for entry in shaped if entry.get("value", entry) not in (None, "")]


def elements(raw: Any) -> list[Any]:
    """Return what a JSON list or a form's numbered keys hold, those by number; a scalar is a list of itself.

    By number and not in document order, because a payload comes back from jsonb with its keys in another order.
    """
    if isinstance(raw, list):
        return raw
    if isinstance(raw, dict):
        return [raw[key] for key in sorted(raw, key=_length_first)]
    return [] if raw is None or raw == "" else [raw]


def _length_first(key: str) -> tuple[int, str]:
    return (len(key), key)


def first_value(values: list[dict[str, Any]]) -> Any:
    """Return a custom field's first value, or None."""
    return values[0].get("value") if values else None


def text(raw: Any) -> str | None:
    """Return a scalar as text; empty, missing and structured values are None."""
    if isinstance(raw, str):
        return raw or None
    if isinstance(raw, float):
        return format(Decimal(repr(raw)), "f")  # as jsonb writes it, so that a retry reads the same text
    return str(raw) if isinstance(raw, int) and not isinstance(raw, bool) else None


def integer(raw: Any) -> int | None:
    """Return a whole number that fits a bigint, or None."""
    if isinstance(raw, str):
        digits = raw.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):  # noqa: PLR2004 - digits of an int64
            return None
        raw = int(raw)
    if isinstance(raw, float) and raw.is_integer():
        raw = int(raw)  # jsonb gives 1e5 back as 100000
    if isinstance(raw, bool) or not isinstance(raw, int):
        return None
    return raw if -INT64_MAX <= raw <= INT64_MAX else None


def number(raw: Any) -> str | None:
    """Return a finite number of at most 30 digits on either side of the point, as text that SQL reads exactly, or None."""
    if isinstance(raw, bool) or not isinstance(raw, str | int | float) or (isinstance(raw, int) and abs(raw) >= 10**NUMBER_DIGITS):
        return None
    written = str(raw).strip()
    if not NUMBER.fullmatch(written):
        return None
    value = Decimal(written)
    if len(value.as_tuple().digits) > NUMBER_DIGITS or abs(value.adjusted()) > NUMBER_DIGITS:
        return None
    return format(value, "f")
