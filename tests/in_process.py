"""The real application, lifespan included, inside the tests' own process: for what can be seen without a network."""

from __future__ import annotations

import gc
import json
import logging
import re
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from amo_receiver.app import create_app
from amo_receiver.inbox.endpoints import PATH
from amo_receiver.settings import load_settings
from servers import CLIENT_ID, CLIENT_SECRET, WEBHOOK_TOKEN, signed_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import asyncpg

    from amo_receiver.settings import Settings

TOKEN_PATH = f"{PATH}/{WEBHOOK_TOKEN}"
NOBODY_LISTENS = "postgresql://amo:pw@127.0.0.1:1/amo"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
ENVELOPE = ["status", "message", "events_processed", "timestamp", "errors"]
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
MISSION_BODY = {
    "leads": {
        "add": [
            {
                "id": 12345,
                "name": "Новый лид",
                "status_id": 1,
                "created_at": 1640995200,
                "custom_fields_values": [{"field_id": 123458, "values": [{"value": "google"}]}],
            }
        ],
        "update": [],
        "delete": [],
    },
    "contacts": {"add": [], "update": []},
}
LOGGERS = ("", "amo_receiver", "uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access", "alembic")


def settings_for(db_url: str, **overrides: Any) -> Settings:
    """Return settings with the tests' credentials, none of the caller's own, and budgets that no loaded machine exceeds."""
    values: dict[str, Any] = {
        "amocrm_client_id": CLIENT_ID,
        "amocrm_client_secret": CLIENT_SECRET,
        "amocrm_webhook_token": WEBHOOK_TOKEN,
        "amocrm_account_id": "",
        "amocrm_keyring_dir": None,
        "db_url": db_url,
        "mapping_file": None,
        "log_file": None,
        "log_level": "INFO",
        "log_format": "text",
        "log_deliveries_per_second": 1000,
        "docs_enabled": True,
        "management_port": None,
        "worker_enabled": False,
        "answer_budget_ms": 30_000,
        "statement_timeout_ms": 10_000,
    }
    return load_settings(_env_file=None, **values | overrides)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Run the application with its lifespan and yield a client; afterwards the process is as it was before."""
    with _process_as_it_was():
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service.test") as client:
                yield client


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Give the process its logging and its garbage collector back."""
    loggers = {name: logging.getLogger(name) for name in LOGGERS}
    before = {name: (each.level, each.handlers[:], each.propagate, each.disabled) for name, each in loggers.items()}
    threshold = gc.get_threshold()
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()
        for handler in set(loggers[""].handlers) - set(before[""][1]):
            handler.close()
        for name, each in loggers.items():
            level, each.handlers, each.propagate, each.disabled = before[name]
            each.setLevel(level)


def signed(account: str, encoding: dict[str, str] = JSON) -> dict[str, str]:
    return {**signed_headers(account), **encoding}


def check_envelope(response: httpx.Response, status_code: int, status: str) -> dict[str, Any]:
    """Check what every answer has in common, and return it."""
    assert response.status_code == status_code, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["content-length"] == str(len(response.content))
    answer: dict[str, Any] = response.json()
    assert list(answer) == ENVELOPE
    assert answer["status"] == status
    assert TIMESTAMP.fullmatch(answer["timestamp"])
    assert ("retry-after" in response.headers) == (status_code == 503)
    if status == "error":
        assert answer["events_processed"] == 0
    return answer


def fault(path: str, message: str) -> dict[str, str]:
    return {"path": path, "message": message}


async def states(committed: asyncpg.Connection, account: str) -> list[tuple[str, str, str, str | None]]:
    """Return entity, id, state and effect of an account's events, in order."""
    query = "SELECT entity, entity_id, state, effect FROM events WHERE account_id = $1 ORDER BY id"
    return [tuple(row) for row in await committed.fetch(query, account)]


def write_keyring(
    file: Path, generation: int, keys: list[tuple[str, str]], client_id: str = "acme", accounts: list[str] | None = None
) -> None:
    """Write a keyring file as careful programs do: beside it and renamed."""
    entries = [{"kind": kind, "secret": secret, "state": "current", "not_before": None, "not_after": None} for kind, secret in keys]
    document = {"version": 1, "generation": generation, "client_id": client_id, "accounts": accounts, "keys": entries}
    beside = file.with_name(f".{file.name}")
    beside.write_text(json.dumps(document))
    beside.replace(file)


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in signed_headers("a").items() if key != name}


REFUSED = [
    ({}, PATH, "amoCRM itself"),
    (without("X-Signature"), PATH, "Missing headers X-Signature"),
    (without("X-Client-UUID"), PATH, "Missing headers X-Client-UUID"),
    (without("X-Account-ID"), PATH, "Missing headers X-Account-ID"),
    (signed_headers("a") | {"X-Client-UUID": "stranger"}, PATH, "AMOCRM_CLIENT_ID"),
    (signed_headers("a", secret="another"), PATH, "AMOCRM_CLIENT_SECRET"),
    (signed_headers("a") | {"X-Account-ID": "b"}, PATH, "X-Signature matches no active key"),
    (signed_headers("a") | {"X-Signature": ""}, PATH, "Missing headers X-Signature"),
    ({}, f"{PATH}/wrong", "AMOCRM_WEBHOOK_TOKEN"),
    (signed_headers("a"), f"{PATH}/wrong", "The token in the URL"),
    ({}, f"{PATH}/{WEBHOOK_TOKEN}/more", "The token in the URL"),
    ({}, f"{PATH}/1.{'A' * 43}", "The token in the URL"),
    ({}, f"{PATH}/health", "The token in the URL"),
]
