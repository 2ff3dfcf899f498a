"""Fill a database with as many events as years bring, by SQL alone, and look at what is left of them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Self

from servers import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

ACCOUNTS = 7
STEP = 100_000
PROCESSED_DAYS, DEAD_DAYS = 30, 90
AGE_DAYS = "CASE WHEN k % 20 = 0 THEN 95 WHEN k % 5 < 3 THEN 31 + k % 49 ELSE k % 29 END"
"""Of the delivery k, which has two events: three of five are past the days of processed events, every twentieth past those of dead ones."""
DEAD = "n % 10 = 0"

# Ids are what the service would have made then: the milliseconds, and something that makes them differ.
NUMBERED = f"""
    CREATE TEMPORARY TABLE numbered AS
    SELECT n, k, (k % {ACCOUNTS})::text AS account_id, made_at, dead,
           (lpad(to_hex((extract(epoch FROM made_at) * 1000)::bigint), 12, '0') || '7' || substr(md5('e' || n), 1, 3) || '8'
            || substr(md5('e' || n), 4, 15))::uuid AS id,
           (lpad(to_hex((extract(epoch FROM made_at) * 1000)::bigint), 12, '0') || '7' || substr(md5('d' || k), 1, 3) || '8'
            || substr(md5('d' || k), 4, 15))::uuid AS delivery_id
    FROM (SELECT n, n / 2 AS k, {DEAD} AS dead FROM generate_series($1::bigint, $2::bigint) n) numbers
    CROSS JOIN LATERAL (SELECT now() - make_interval(days => ({AGE_DAYS})::int, secs => k::int % 80000) AS made_at) times"""
EVENTS = """
    INSERT INTO events (account_id, id, delivery_id, entity, action, entity_id, path, payload, occurred_at, received_at, dedup, state,
                        effect, attempts, processed_at, last_error)
    SELECT account_id, id, delivery_id, 'leads', 'update', (n + 1)::text, 'leads.update[0]',
           jsonb_build_object('id', (n + 1)::text, 'name', 'Квартира ' || n, 'last_modified', extract(epoch FROM made_at)::bigint::text),
           date_trunc('second', made_at), made_at, decode(md5(n::text), 'hex'), CASE WHEN dead THEN 'dead' ELSE 'processed' END, CASE WHEN NOT dead THEN 'applied' END,
           CASE WHEN dead THEN 3 ELSE 1 END, CASE WHEN NOT dead THEN made_at END, CASE WHEN dead THEN 'CheckViolationError 23514' END
    FROM numbered"""
ATTEMPTS = """
    INSERT INTO attempts (account_id, event_id, id, number, kind, outcome, started_at, error)
    SELECT account_id, id, gen_random_uuid(), number, CASE number WHEN 1 THEN 'accept' ELSE 'retry' END, 'failed', made_at, '23514'
    FROM numbered CROSS JOIN generate_series(1, 3) number WHERE dead"""
DELIVERIES = """
    INSERT INTO deliveries (account_id, id, source, key_kind, key_fingerprint, received_at, body, body_bytes, events, last_received_at)
    SELECT DISTINCT ON (k) account_id, delivery_id, 'default', 'token', 'abcdef012345', made_at, convert_to('body of ' || k, 'UTF8'),
           octet_length(convert_to('body of ' || k, 'UTF8')), 2, made_at FROM numbered"""

STATES = "SELECT state, count(*) FROM events WHERE {condition} GROUP BY 1"
ORPHANS = """
    SELECT (SELECT count(*) FROM events e WHERE NOT EXISTS (
                SELECT FROM deliveries d WHERE d.account_id = e.account_id AND d.id = e.delivery_id)) AS events,
           (SELECT count(*) FROM attempts a WHERE NOT EXISTS (
                SELECT FROM events e WHERE e.account_id = a.account_id AND e.id = a.event_id)) AS attempts"""
OLDEST = "SELECT DISTINCT ON (account_id) account_id, id FROM events WHERE state = 'processed' ORDER BY account_id, id"
STILL_THERE = "SELECT count(*) FROM events WHERE account_id = ANY($1::text[]) AND id = ANY($2::uuid[])"
LOCKS = """
    SELECT (SELECT coalesce(max(extract(epoch FROM clock_timestamp() - waitstart)), 0)::float8 FROM pg_locks WHERE NOT granted) AS waited,
           (SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'amo-webhooks') AS lasted,
           ARRAY(SELECT DISTINCT l.mode FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                 WHERE a.datname = current_database() AND a.application_name = 'amo-webhooks' AND l.locktype = 'relation') AS modes"""
HARMLESS = {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}
"""What statements about single rows take of a table; anything stronger keeps somebody waiting."""


async def fill(url: str, count: int, say: Callable[[str], None]) -> None:
    """Put in so many events with their deliveries and attempts, and let Postgres know what is there."""
    async with connect(url) as connection:
        for first in range(0, count, STEP):
            await connection.execute("DROP TABLE IF EXISTS numbered")
            await connection.execute(NUMBERED, first, min(first + STEP, count) - 1, timeout=600)
            for statement in (EVENTS, ATTEMPTS, DELIVERIES):
                await connection.execute(statement, timeout=600)
            say(f"{min(first + STEP, count)} events made")
        for table in ("events", "deliveries", "attempts"):
            await connection.execute(f"VACUUM ANALYZE {table}", timeout=600)


def expected_states(count: int, *, pruned: bool) -> dict[str, int]:
    """Return how many events there must be in each state."""
    dead = {number for number in range(0, count, 10) if not (pruned and number // 2 % 20 == 0)}
    old = {number for number in range(count) if pruned and (number // 2 % 20 == 0 or number // 2 % 5 < 3)}
    return {"processed": sum(number % 10 != 0 and number not in old for number in range(count)), "dead": len(dead)}


async def states(connection: asyncpg.Connection, condition: str) -> dict[str, int]:
    """Return how many events there are in each state."""
    return {row["state"]: row["count"] for row in await connection.fetch(STATES.format(condition=condition), timeout=600)}


async def require_consistent(connection: asyncpg.Connection) -> None:
    """Require that every event has its delivery and every attempt its event."""
    orphans = await connection.fetchrow(ORPHANS, timeout=600)
    assert tuple(orphans) == (0, 0), orphans


async def first_is_gone(connection: asyncpg.Connection, oldest: list[asyncpg.Record]) -> None:
    """Return when one of these events is deleted."""
    accounts, ids = zip(*oldest, strict=True)
    while await connection.fetchval(STILL_THERE, accounts, ids) == len(oldest):
        await asyncio.sleep(0.005)


class LockWatch:
    """Looks at the locks of the service and its commands, and remembers the longest wait, the longest transaction, and every kind."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._task: asyncio.Task[None] | None = None
        self.waited_seconds = self.lasted_seconds = 0.0
        self.modes: set[str] = set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        async with connect(self._url) as connection:
            while True:
                waited, lasted, modes = await connection.fetchrow(LOCKS)
                self.waited_seconds = max(self.waited_seconds, waited)
                self.lasted_seconds = max(self.lasted_seconds, lasted)
                self.modes |= set(modes)
                await asyncio.sleep(0.02)

    def __str__(self) -> str:
        return f"longest wait for a lock {self.waited_seconds * 1000:.0f} ms, longest transaction {self.lasted_seconds * 1000:.0f} ms"


class Stopwatch:
    """How long something took and how much of it there was."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def per_second(self, count: int) -> str:
        """Return seconds and rate as one phrase."""
        seconds = time.monotonic() - self._started
        return f"{seconds:.1f} s, {count / seconds:.0f}/s"
