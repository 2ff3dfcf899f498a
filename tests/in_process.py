"""The real application, lifespan included, inside the tests' own process: for what can be seen without a network."""

from __future__ import annotations

import gc
import logging
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from amo_receiver.app import create_app
from amo_receiver.inbox.endpoints import PATH
from amo_receiver.settings import load_settings
from servers import CLIENT_ID, CLIENT_SECRET, WEBHOOK_TOKEN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from amo_receiver.settings import Settings

TOKEN_PATH = f"{PATH}/{WEBHOOK_TOKEN}"
NOBODY_LISTENS = "postgresql://amo:pw@127.0.0.1:1/amo"
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
