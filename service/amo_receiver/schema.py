"""Schema before rollout: guarded migrations on the direct connection, and what revision the database is at.

The guard is a session advisory lock that is polled in autocommit: a waiter blocked inside ``pg_advisory_lock`` would hold a snapshot
for which CREATE INDEX CONCURRENTLY waits, and both would wait forever. Each try waits half a second for its locks at most, because
everything that comes after a waiting ALTER queues behind it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from amo_receiver.database import create_engine, sqlstate
from amo_receiver.errors import CommandError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

GUARD = 0x616D6F77656268
"""Key of the advisory lock around every migration run."""
LOCK_TIMEOUT_MS = 500
LOCK_TRIES = 20
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
LOCK_NOT_AVAILABLE = "55P03"


Outcome = Literal["Upgraded", "Unchanged", "SchemaIsLater", "Incompatible", "Blocked", "Failed"]
Step: TypeAlias = "Callable[[str, Connection], AbstractContextManager[None]]"
LITERAL = re.compile(
    r"(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))"  # comments may quote values, too
    r"|\be'(?:\\.|''|[^'\\])*(?:'|\Z)|'(?:''|[^'])*(?:'|\Z)"  # the text may be cut within a literal: it then ends there
    r"|\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)|(?<![\w$])[+-]?\.?\d[\w.]*",
    re.DOTALL | re.IGNORECASE,
)


class Blocker(NamedTuple):
    """A session that holds locks on our tables; ``query`` is the fingerprint of its last statement, never the text."""

    pid: int
    state: str
    age_seconds: int
    query: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.state}, {self.age_seconds} s, query {self.query})"


@dataclass(slots=True)
class Run:
    """One run of the migrations: how it ended, the database's revision before and now, and who was last in the way."""

    outcome: Outcome = "Failed"
    before: str | None = None
    after: str | None = None
    blockers: tuple[Blocker, ...] = ()


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


def _missing(revision: Revision, known: list[str], target: str, run: Run) -> list[str]:
    """Return the revisions to apply, oldest first; say in ``run`` and by raising where none may be."""
    is_later = revision.current is not None and revision.current not in known
    if is_later and revision.floor is not None and revision.floor not in known:
        run.outcome = "Incompatible"
        msg = f"The database is at {revision.current}, where only code from {revision.floor} on runs: this release goes up to {known[0]}."
        raise CommandError(msg)
    wanted = known[0] if target == "head" else target
    if wanted not in (*known, revision.current):
        run.outcome = "Incompatible"
        msg = f"There is no revision {wanted[:32]!r} in this release, which goes up to {known[0]}: give `head` or one of its revisions."
        raise CommandError(msg)
    run.outcome = "SchemaIsLater" if is_later else "Unchanged"
    until = len(known) if revision.current is None else known.index(revision.current) if not is_later else 0
    return known[known.index(wanted) : until][::-1] if wanted in known else []


async def upgrade(
    url: str,
    migrations: Path,
    target: str,
    say: Callable[[str], None],
    *,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    lock_tries: int = LOCK_TRIES,
    run: Run | None = None,
    step: Step = lambda _revision, _connection: nullcontext(),
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> str | None:
    """Bring the database to ``target`` (``head`` or a revision) and return the revision it is at then.

    Any number of processes may call this at once. A database at a later revision than this code knows is left as it is.
    ``run`` is told how far it came, also when this raises or is cancelled; each revision is applied within its ``step``.
    """
    run = run or Run()
    known = known_revisions(migrations)
    engine = create_engine(url, pool_size=2, command_timeout_seconds=None)
    try:
        async with _guarded(engine, say) as guard:
            revision = await read_revision(engine)
            run.before = run.after = revision.current
            missing = _missing(revision, known, target, run)
            if run.outcome == "SchemaIsLater":
                say(f"The database is at {revision.current}, later than this release's {known[0]}: nothing to do.")
            elif missing:
                run.outcome = "Failed"
                apply = partial(_apply, _config(migrations), missing, run, step)
                number = 0
                while refusal := await _try(engine, lock_timeout_ms, apply):
                    number += 1
                    await _wait_for_lock(guard, (number, lock_tries), refusal, run, say, pause)
                run.outcome, run.blockers = "Upgraded", ()
            return run.after
    finally:
        await engine.dispose()


@asynccontextmanager
async def _guarded(engine: AsyncEngine, say: Callable[[str], None]) -> AsyncIterator[AsyncConnection]:
    try:
        guard = await engine.connect()
    except ValueError as error:  # its message quotes the URL, where the password is
        msg = f"DB_DIRECT_URL cannot be read ({type(error).__name__}): percent-encode what is special in user and password."
        raise ConfigurationError(msg) from None
    try:
        await guard.execution_options(isolation_level="AUTOCOMMIT")
        await _refuse_pooler(guard)
        waited = False
        while not await guard.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": GUARD}):
            if not waited:
                say("Another migration run is under way; waiting for it.")
            waited = True
            await asyncio.sleep(FIRST_PAUSE_SECONDS)
        try:
            yield guard
        finally:
            await guard.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": GUARD})
    finally:
        await guard.close()


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


async def _try(engine: AsyncEngine, lock_timeout_ms: int, apply: Callable[[Connection], None]) -> DBAPIError | None:
    """Call ``apply`` on a connection of its own; return the error if a lock was not available in time."""
    try:
        async with engine.connect() as connection:
            await connection.execute(text(f"SET lock_timeout = '{lock_timeout_ms}ms'"))
            await connection.commit()
            try:
                await connection.run_sync(apply)
            finally:
                await connection.invalidate()
    except DBAPIError as error:
        if sqlstate(error) != LOCK_NOT_AVAILABLE:
            raise
        return error
    return None


async def _wait_for_lock(
    guard: AsyncConnection,
    count: tuple[int, int],
    refusal: DBAPIError,
    run: Run,
    say: Callable[[str], None],
    pause: Callable[[float], Awaitable[None]],
) -> None:
    run.blockers = await _blockers(guard)
    in_the_way = ", ".join(map(str, run.blockers)) or "nobody any more"
    number, most = count
    if number == most:
        run.outcome = "Blocked"
        msg = f"No lock after {most} tries; in the way: {in_the_way}. The database is at {run.after}."
        raise CommandError(msg) from refusal
    seconds = min(FIRST_PAUSE_SECONDS * 2 ** (number - 1), LONGEST_PAUSE_SECONDS)
    say(f"Lock not available (try {number} of {most}), again in {seconds:.1f} s; in the way: {in_the_way}.")
    await pause(seconds)


def _apply(config: Config, missing: list[str], run: Run, step: Step, connection: Connection) -> None:
    """Apply what is still missing, one revision after the other; each is its own transaction."""
    config.attributes["connection"] = connection
    while missing:
        with step(missing[0], connection):
            command.upgrade(config, missing[0])
        run.after = missing.pop(0)


async def _blockers(guard: AsyncConnection) -> tuple[Blocker, ...]:
    rows = await guard.execute(
        text(
            "SELECT DISTINCT a.pid, coalesce(a.state, a.backend_type, 'unknown') AS state, a.query_id, a.query,"
            " coalesce(extract(epoch FROM now() - a.xact_start), 0)::int AS age FROM pg_stat_activity a "
            "JOIN pg_locks l USING (pid) JOIN pg_class c ON c.oid = l.relation AND c.relnamespace = 'public'::regnamespace "
            "WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND l.granted ORDER BY age DESC LIMIT 5"
        )
    )
    return tuple(Blocker(row.pid, row.state, row.age, fingerprint(row.query, row.query_id)) for row in rows)


def fingerprint(query: str, query_id: int | None) -> str:
    """Return what tells one statement from another: Postgres' own number, else a hash of the text without its literals."""
    if query_id is not None:
        return f"{query_id & 0xFFFF_FFFF_FFFF_FFFF:016x}"
    plain = LITERAL.sub(lambda found: " " if found["comment"] else " ? ", query)
    return hashlib.sha256(" ".join(plain.lower().split()).encode()).hexdigest()[:12]
