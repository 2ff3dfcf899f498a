"""A connection for one command; trouble with the database becomes one sentence."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from asyncpg import InterfaceError, PostgresError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from amo_receiver.database import create_engine, describe, sqlstate
from amo_receiver.errors import CommandError, ConfigurationError
from amo_receiver.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

Result = TypeVar("Result")

LONGEST_SECONDS = 90.0
NO_SCHEMA = "The database has no schema that fits this release: run amo-webhooks migrate upgrade head."
REFUSED = "The database refuses the user or the password in DB_URL."
ADVICE = {
    "28P01": REFUSED,
    "28000": REFUSED,
    "3D000": "There is no database of the name in DB_URL.",
    "42P01": NO_SCHEMA,
    "42703": NO_SCHEMA,
    "57014": "The database took too long: ask for less, for example with --account.",
    "55P03": "Another process holds rows that this needs: try again in a moment.",
}
"""By SQLSTATE."""


def ask(work: Callable[[AsyncEngine], Awaitable[Result]]) -> Result:
    """Return what ``work`` returns, which is given an engine on DB_URL.

    :raises CommandError: the database is out of reach or refuses.
    """
    url = load_settings().pooled_url
    if not url:
        raise ConfigurationError("DB_URL is not set: it names the database, as postgresql://user:password@host:5432/name.")
    try:
        return asyncio.run(_ask(url, work))
    # asyncpg's own errors come from connecting, which SQLAlchemy leaves to it.
    except (DBAPIError, PoolTimeoutError, PostgresError, InterfaceError, OSError) as error:
        raise CommandError(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """Return what to tell a person about trouble with the database."""
    if isinstance(error, OSError):
        return f"The database is not reached ({describe(error)}): look whether it runs, and at host, port and sslmode in DB_URL."
    return ADVICE.get(sqlstate(error) or "", f"The database did not do it: {describe(error)}.")


async def _ask(url: str, work: Callable[[AsyncEngine], Awaitable[Result]]) -> Result:
    engine = create_engine(url, pool_size=1, command_timeout_seconds=LONGEST_SECONDS)
    try:
        return await work(engine)
    finally:
        await engine.dispose()
