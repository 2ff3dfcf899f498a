"""Schema before rollout: guarded migrations on the direct connection, and what revision the database is at.

The guard is a session advisory lock that is polled in autocommit: a waiter blocked inside ``pg_advisory_lock`` would hold a snapshot
for which CREATE INDEX CONCURRENTLY waits, and both would wait forever. Each try waits half a second for its locks at most, because
everything that comes after a waiting ALTER queues behind it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from amo_receiver.database import create_engine, sqlstate
from amo_receiver.errors import CommandError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

GUARD = 0x616D6F77656268
"""Key of the advisory lock around every migration run."""
LOCK_TIMEOUT_MS = 500
LOCK_TRIES = 20
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
LOCK_NOT_AVAILABLE = "55P03"


class Revision(NamedTuple):
    """The database's revision (None: no schema) and the oldest one whose code still runs on it (None: not recorded)."""

    current: str | None
    floor: str | None


def _config(migrations: Path, **attributes: Any) -> Config:
    if not (migrations / "env.py").is_file():
        msg = f"No migrations in {migrations}: set MIGRATIONS_DIR to the folder that holds env.py."
        raise ConfigurationError(msg)
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("prepend_sys_path", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes.update(attributes)
    return config


def known_revisions(migrations: Path) -> list[str]:
    """Return the revisions this code brings, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config(migrations)).walk_revisions()]


async def read_revision(engine: AsyncEngine) -> Revision:
    """Ask the database for its revision."""
    async with engine.connect() as connection:
        if not await connection.scalar(
            text("SELECT to_regclass('alembic_version') IS NOT NULL AND to_regclass('schema_floor') IS NOT NULL")
        ):
            return Revision(None, None)
        current = await connection.scalar(text("SELECT version_num FROM alembic_version"))
        return Revision(current, await connection.scalar(text("SELECT revision FROM schema_floor")))


def runs_on(revision: Revision, known: list[str]) -> bool:
    """Return whether code that knows these revisions runs on the database: at mine or later, and not past what mine can run on.

    A revision that mine does not know is a later one.
    """
    if revision.current in known:
        return revision.current == known[0]
    return revision.current is not None and (revision.floor is None or revision.floor in known)


async def upgrade(url: str, migrations: Path, target: str, say: Callable[[str], None]) -> str | None:
    """Bring the database to ``target`` (``head`` or a revision) and return the revision it is at then.

    Any number of processes may call this at once. A database at a later revision than this code knows is left as it is.
    """
    known = known_revisions(migrations)
    engine = create_engine(url, pool_size=2, command_timeout_seconds=None)
    try:
        async with engine.connect() as guard, _guarded(guard, say):
            revision = await read_revision(engine)
            if revision.current is not None and revision.current not in known:
                say(f"The database is at {revision.current}, later than this release's {known[0]}: nothing to do.")
                return revision.current
            await _upgrade_with_retries(engine, guard, _config(migrations), target, say)
            return (await read_revision(engine)).current
    finally:
        await engine.dispose()


@asynccontextmanager
async def _guarded(guard: AsyncConnection, say: Callable[[str], None]) -> AsyncIterator[None]:
    await guard.execution_options(isolation_level="AUTOCOMMIT")
    await _refuse_pooler(guard)
    waited = False
    while not await guard.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": GUARD}):
        if not waited:
            say("Another migration run is under way; waiting for it.")
        waited = True
        await asyncio.sleep(FIRST_PAUSE_SECONDS)
    try:
        yield
    finally:
        await guard.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": GUARD})


async def _refuse_pooler(connection: AsyncConnection) -> None:
    if await is_pooled(connection):
        msg = "DB_DIRECT_URL leads to a pooler: migrations need Postgres itself, because session locks and settings do not survive pooling."
        raise ConfigurationError(msg)


async def is_pooled(connection: AsyncConnection) -> bool:
    """Return whether a pooler stands between: the process id told at connect is then not the backend's."""
    driver = (await connection.get_raw_connection()).driver_connection
    if driver is None:
        return False
    return bool(driver.get_server_pid() != await driver.fetchval("SELECT pg_backend_pid()"))


async def _upgrade_with_retries(
    engine: AsyncEngine, guard: AsyncConnection, config: Config, target: str, say: Callable[[str], None]
) -> None:
    for number in range(1, LOCK_TRIES + 1):
        try:
            async with engine.connect() as connection:
                await connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT_MS}ms'"))
                await connection.commit()
                try:
                    await connection.run_sync(partial(_run, config, target))
                finally:
                    await connection.invalidate()
        except DBAPIError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            if number == LOCK_TRIES:
                msg = f"No lock after {LOCK_TRIES} tries; in the way: {await _blockers(guard)}. Nothing was changed by this migration."
                raise CommandError(msg) from error
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (number - 1), LONGEST_PAUSE_SECONDS)
            say(f"Lock not available (try {number} of {LOCK_TRIES}), again in {pause:.1f} s; in the way: {await _blockers(guard)}.")
            await asyncio.sleep(pause)
        else:
            return


def _run(config: Config, target: str, connection: Connection) -> None:
    config.attributes["connection"] = connection
    command.upgrade(config, target)


async def _blockers(guard: AsyncConnection) -> str:
    rows = await guard.execute(
        text(
            "SELECT DISTINCT a.pid, a.state, extract(epoch FROM now() - a.xact_start)::int AS age FROM pg_stat_activity a "
            "JOIN pg_locks l USING (pid) JOIN pg_class c ON c.oid = l.relation AND c.relnamespace = 'public'::regnamespace "
            "WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND l.granted ORDER BY age DESC LIMIT 5"
        )
    )
    return ", ".join(f"pid {row.pid} ({row.state}, {row.age} s)" for row in rows) or "nobody any more"
