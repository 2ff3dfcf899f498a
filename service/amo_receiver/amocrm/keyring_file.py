"""Read one keyring file (schema version 1) into a source."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import datetime
from typing import Any, get_args

from amo_receiver.amocrm.keyring import Key, KeyKind, KeyState, Source
from amo_receiver.errors import ConfigurationError

MOST_SECRET_BYTES = 4096
SOURCE_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")


def parse_source(name: str, text: str | bytes) -> Source:
    """Read a keyring file of schema version 1; unknown fields are for later versions and ignored.

    :raises ConfigurationError: names the field, never its value.
    """
    if not SOURCE_NAME.fullmatch(name):
        raise ConfigurationError("a source's name has letters, digits, dots, dashes and underscores only")
    document = _json(text)
    _require(isinstance(document, dict), "the file", "a JSON object")
    _require(_is_count(document.get("version")) and document["version"] == 1, "version", "1")
    generation, client_id, keys = document.get("generation"), document.get("client_id"), document.get("keys")
    _require(_is_count(generation), "generation", "an integer from 0")
    _require(isinstance(keys, list), "keys", "a list")
    parsed = tuple(_parse_key(f"keys[{index}]", key) for index, key in enumerate(keys))
    nameless = client_id in ("", None) and "client_id" in document and all(key.kind == "url_key" for key in parsed)
    _require(nameless or (_is_text(client_id) and "|" not in client_id), "client_id", "the integration's id, a text without '|'")
    return Source(name, client_id or "", generation, _parse_accounts(document), parsed)


def _json(text: str | bytes) -> Any:
    # Not raised inside a handler: the decoder's error would be its context, and that carries the whole file, secrets included.
    with suppress(ValueError, RecursionError):
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    raise ConfigurationError("the file is not JSON in UTF-8" if text.strip() else "the file is empty")


def _parse_accounts(document: dict[str, Any]) -> frozenset[str] | None:
    # Absent is refused: a misspelt name would silently mean any account.
    accounts = document.get("accounts", "absent")
    listed = isinstance(accounts, list) and all(_is_text(account) for account in accounts)
    _require(accounts is None or listed, "accounts", "null (any account) or a list of account ids as texts")
    return None if accounts is None else frozenset(accounts)


def _parse_key(path: str, key: Any) -> Key:
    _require(isinstance(key, dict), path, "an object")
    kind, secret, state = key.get("kind"), key.get("secret"), key.get("state")
    _require(kind in get_args(KeyKind), f"{path}.kind", " or ".join(get_args(KeyKind)))
    _require(state in get_args(KeyState), f"{path}.state", ", ".join(get_args(KeyState)))
    usable = _is_text(secret) and secret == secret.strip() and len(secret.encode()) <= MOST_SECRET_BYTES
    _require(usable, f"{path}.secret", f"a printable text of at most {MOST_SECRET_BYTES} bytes without surrounding spaces")
    times = [_parse_time(f"{path}.{name}", key.get(name)) for name in ("not_before", "not_after")]
    return Key(kind, secret.encode(), state, *times)


def _parse_time(path: str, value: Any) -> datetime | None:
    if value is None:
        return None
    time = None
    with suppress(TypeError, ValueError):
        time = datetime.fromisoformat(value)
    _require(time is not None and time.tzinfo is not None, path, "null or an ISO 8601 time with its zone")
    return time


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _require(condition: bool, field_name: str, expected: str) -> None:
    if not condition:
        raise ConfigurationError(f"{field_name} must be {expected}")
