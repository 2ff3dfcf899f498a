"""Connections to Postgres: a plain libpq URL in, an engine that behaves behind a transaction pooler out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from amo_receiver.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LIBPQ_ONLY = {
    "channel_binding",
    "gssencmode",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
}
"""Parameters that libpq understands and asyncpg would pass on to the server, which refuses them."""
CONNECT_TIMEOUT_SECONDS = 2.0
"""Unless the URL says ``connect_timeout``: below the sender's two seconds."""
TEMPORARY_CLASSES = {"08", "25", "3D", "42", "53", "57", "58", "XX"}
"""Connections, resources, operators, and a schema or a right that is missing: trouble of the database or its set-up."""
TEMPORARY_STATES = {"40001", "40P01", "55P03"}


class DatabaseTimeout(Exception):  # noqa: N818 - it is the database's time that is out
    """A call took longer than it may; whether it was committed is unknown."""


OUTAGES = (OSError, DatabaseTimeout, asyncpg.InterfaceError, SQLAlchemyError)
"""What is raised without a SQLSTATE when the database cannot be reached or does not answer; anything else is a bug that data set off."""


def connect_arguments(url: str) -> dict[str, Any]:
    """Translate a libpq URL (``sslmode``, socket hosts and ``postgresql+asyncpg://`` included) into asyncpg's arguments.

    Both statement caches are off: behind a pooler that does not know prepared statements, asyncpg's own would run other
    processes' statements and return their rows.
    """
    parts = urlsplit(url)
    if parts.scheme.partition("+")[0] not in ("postgresql", "postgres"):
        msg = "DB_URL must start with postgresql://."
        raise ConfigurationError(msg)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    timeout = float(query.pop("connect_timeout", CONNECT_TIMEOUT_SECONDS) or CONNECT_TIMEOUT_SECONDS)
    kept = {key: value for key, value in query.items() if key not in LIBPQ_ONLY}
    dsn = f"postgresql://{parts.netloc}{parts.path}"
    if kept:
        dsn += "?" + urlencode(kept, quote_via=quote)
    return {"dsn": dsn, "timeout": timeout, "statement_cache_size": 0}


UNREADABLE = "The database's URL cannot be read: percent-encode what is special in user and password; its port is a number from 0 to 65535."


def span_attributes(url: str) -> dict[str, str | int]:
    """Return what spans say of the database: its name, and its server if there is only one to go to, never the user or password."""
    parts = urlsplit(url)
    named: dict[str, str | int | None] = {"db.namespace": parts.path.strip("/")}
    if "," not in parts.netloc.rpartition("@")[2]:
        try:
            named |= {"server.address": parts.hostname, "server.port": parts.port}
        except ValueError:
            raise ConfigurationError(UNREADABLE) from None
    return {name: value for name, value in named.items() if value}


def connector(url: str, command_timeout_seconds: float | None) -> Callable[[], Awaitable[asyncpg.Connection]]:
    """Return a coroutine function that opens one asyncpg connection to ``url``."""
    settings = {"application_name": "amo-webhooks"}
    return partial(asyncpg.connect, **connect_arguments(url), command_timeout=command_timeout_seconds, server_settings=settings)


def create_engine(url: str, pool_size: int = 10, command_timeout_seconds: float | None = 30.0) -> AsyncEngine:
    """Create the process's engine; at most ``pool_size`` connections, opened when first needed."""
    return create_async_engine(
        "postgresql+asyncpg://?prepared_statement_cache_size=0",
        async_creator=connector(url, command_timeout_seconds),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        pool_recycle=600,
        hide_parameters=True,
    )


async def unsafe_settings(engine: AsyncEngine) -> list[str]:
    """Return which of the server's settings are off without which a crash of it loses what was committed."""
    names = ("fsync", "synchronous_commit")
    async with engine.connect() as connection:
        return [name for name in names if await connection.scalar(text("SELECT current_setting(:name)"), {"name": name}) == "off"]


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of a database error (SQLAlchemy's wrapper included), or None where the server gave none."""
    cause = getattr(error, "orig", None) or error
    state = getattr(cause, "sqlstate", None)
    return state if isinstance(state, str) else None


def is_temporary(error: BaseException) -> bool:
    """Return whether this is the database's trouble and not the data's."""
    state = sqlstate(error)
    if state is None:
        return isinstance(error, OUTAGES)
    return state[:2] in TEMPORARY_CLASSES or state in TEMPORARY_STATES


def is_worth_repeating(error: BaseException) -> bool:
    """Return whether the same call may go through at once: a lost connection, a deadlock; not a call that took too long."""
    state = sqlstate(error)
    if state is None:
        return is_temporary(error) and not isinstance(error, DatabaseTimeout)
    return state.startswith("08") or state in ("40001", "40P01")


def describe(error: BaseException) -> str:
    """Return SQLSTATE, constraint and the error's type: never its message or DETAIL, which quote the data."""
    cause = getattr(error, "orig", None) or error
    parts = [type(cause).__name__, sqlstate(error), getattr(cause, "constraint_name", None)]
    return " ".join(part for part in parts if part)
