"""Make what amoCRM sends: whole bodies, their items, and the bytes PHP would write them as."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

BODIES = Path(__file__).parent / "bodies"
ACCOUNT = "32000001"
CREATED_AT = 1_795_000_000
MODIFIED_AT = 1_795_000_600


def body(name: str) -> bytes:
    """Return one of the bodies in ``tests/bodies``."""
    return (BODIES / name).read_bytes()


def http_build_query(document: Mapping[str, Any]) -> bytes:
    """Encode a document as PHP's function of that name does by default (RFC 1738)."""
    return "&".join(f"{key}={value}" for name, child in document.items() for key, value in _fields(_urlencode(name), child)).encode()


def _fields(key: str, node: object) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for name, child in node.items():
            yield from _fields(f"{key}%5B{_urlencode(str(name))}%5D", child)
    elif isinstance(node, list | tuple):
        yield from _fields(key, dict(enumerate(node)))
    elif isinstance(node, bool):
        yield key, "1" if node else "0"
    elif isinstance(node, str | int):
        yield key, _urlencode(str(node))
    elif node is not None:
        message = f"how PHP writes a {type(node).__name__} is not known here"
        raise TypeError(message)


def _urlencode(text: str) -> str:
    # PHP escapes the tilde, Python does not
    return quote_plus(text).replace("~", "%7E")


def account_block(account: str, subdomain: str = "romashka") -> dict[str, Any]:
    """Return the ``account`` block of an account webhook."""
    return {"subdomain": subdomain, "id": account, "_links": {"self": f"https://{subdomain}.example.test"}}


def form_body(entity: str, action: str, *items: Mapping[str, Any], account: str | None = ACCOUNT) -> bytes:
    """Return a form body of one entity and action, its account block first; without one if ``account`` is None."""
    return http_build_query(_document(entity, action, items, account))


def json_body(entity: str, action: str, *items: Mapping[str, Any], account: str | None = None) -> bytes:
    """Return a JSON body of one entity and action; without an account block unless ``account`` is given."""
    return json.dumps(_document(entity, action, items, account), ensure_ascii=False).encode()


def _document(entity: str, action: str, items: tuple[Mapping[str, Any], ...], account: str | None) -> dict[str, Any]:
    block = {} if account is None else {"account": account_block(account)}
    return {**block, entity: {action: list(items)}}


def lead(*, at: int = MODIFIED_AT, **overrides: Any) -> dict[str, Any]:
    """Return a full lead, scalars as strings, last changed ``at``; an override of None leaves its key out."""
    return _item(
        {
            "id": 10000001,
            "name": "Квартира на Садовой",
            "status_id": 1,
            "price": 4500000,
            "responsible_user_id": 500001,
            "last_modified": at,
            "modified_user_id": 500001,
            "created_user_id": 500001,
            "date_create": min(at, CREATED_AT),
            "pipeline_id": 700001,
            "account_id": ACCOUNT,
            "custom_fields": [custom_field(123458, "google", name="utm_source")],
            "created_at": min(at, CREATED_AT),
            "updated_at": at,
        },
        overrides,
    )


def contact(*, at: int = MODIFIED_AT, **overrides: Any) -> dict[str, Any]:
    """Return a full contact (a company with ``type="company"``), scalars as strings; an override of None leaves its key out."""
    return _item(
        {
            "id": 20000001,
            "name": "Иван Тестовый",
            "responsible_user_id": 500001,
            "date_create": min(at, CREATED_AT),
            "last_modified": at,
            "created_user_id": 500001,
            "modified_user_id": 500001,
            "account_id": ACCOUNT,
            "custom_fields": [
                custom_field(123456, "+70000000001", name="Телефон", code="PHONE", enum=900001),
                custom_field(123457, "ivan@example.test", name="Email", code="EMAIL", enum=900002),
            ],
            "created_at": min(at, CREATED_AT),
            "updated_at": at,
            "type": "contact",
        },
        overrides,
    )


def custom_field(field_id: int, *values: str, name: str = "Поле", code: str | None = None, enum: int | None = None) -> dict[str, Any]:
    """Return one of an item's ``custom_fields``; only built-in fields have a ``code``, only choices an ``enum``."""
    chosen = {} if enum is None else {"enum": str(enum)}
    field = {"id": str(field_id), "name": name, "values": [{"value": value, **chosen} for value in values]}
    return field if code is None else {**field, "code": code}


def lead_v4(**overrides: Any) -> dict[str, Any]:
    """Return a partial lead as JSON senders write it: numbers, ``custom_fields_values``, no ``last_modified``."""
    item = {
        "id": 10000001,
        "name": "Новый лид",
        "status_id": 1,
        "created_at": CREATED_AT,
        "custom_fields_values": [custom_field_v4(123458, "google")],
    }
    return _overridden(item, overrides)


def contact_v4(**overrides: Any) -> dict[str, Any]:
    """Return a partial contact as JSON senders write it."""
    item = {
        "id": 20000001,
        "name": "Иван Тестовый",
        "created_at": CREATED_AT,
        "custom_fields_values": [custom_field_v4(123456, "+70000000001"), custom_field_v4(123457, "ivan@example.test")],
    }
    return _overridden(item, overrides)


def custom_field_v4(field_id: int, *values: object) -> dict[str, Any]:
    """Return one of a partial item's ``custom_fields_values``."""
    return {"field_id": field_id, "values": [{"value": value} for value in values]}


def digital_pipeline_lead(**overrides: Any) -> dict[str, Any]:
    """Return the few keys a Digital Pipeline hook has of a lead: partial and without a time of its own."""
    item = {"id": 10000001, "status_id": 2, "pipeline_id": 700001, "old_status_id": 1, "old_pipeline_id": 700001}
    return _item(item, overrides)


def _item(fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    return {name: _as_sent(value) for name, value in _overridden(fields, overrides).items()}


def _overridden(fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**fields, **overrides}.items() if value is not None}


def _as_sent(value: Any) -> Any:
    return value if isinstance(value, list | dict) else str(value)
