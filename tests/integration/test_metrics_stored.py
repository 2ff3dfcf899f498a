"""What only the database knows: the queue, the dead letters, and accounts that have gone silent; cheap, bounded, and never in the way."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from itertools import count
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from amo_receiver.database import create_engine
from amo_receiver.telemetry.metrics import Metrics
from amo_receiver.telemetry.metrics_sources import Sources
from amo_receiver.telemetry.metrics_stored import ACCOUNTS, MOST_COUNTED, PLANNER, QUEUE, StoredGauges
from exposition import read, sample
from servers import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncEngine

    from amo_receiver.embedded import EmbeddedPostgres

HOUR, DAY = 3600.0, 86400.0
GAUGES = ("amo_queue_pending", "amo_queue_due", "amo_queue_age_seconds", "amo_queue_dead", "amo_accounts_silent")
EVENTS = """
    INSERT INTO events (account_id, id, delivery_id, entity, action, entity_id, path, payload, received_at, state, effect, attempts,
                        available_at, processed_at, last_error)
    SELECT 'a', gen_random_uuid(), gen_random_uuid(), 'leads', 'update', '1', 'leads.update[0]', '{}', now(), $1,
           CASE WHEN $1 = 'processed' THEN 'applied' END, 1, CASE WHEN $1 = 'pending' THEN now() - make_interval(secs => $2) END,
           CASE WHEN $1 = 'processed' THEN now() END, CASE WHEN $1 = 'dead' THEN 'no id' END
    FROM generate_series(1, $3)"""
DELIVERY = """
    INSERT INTO deliveries (account_id, id, source, key_kind, key_fingerprint, received_at, body, body_bytes, events, last_received_at)
    VALUES ($1, $2, 'default', 'token', 'abcdef012345', to_timestamp($3), '', 0, 0, to_timestamp($3))"""
_numbers = count()


class Ticks:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Return an engine on the fresh database."""
    made = create_engine(database_url)
    yield made
    await made.dispose()


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Return another connection."""
    async with connect(database_url) as opened:
        yield opened


async def gauges(stored: StoredGauges) -> list[float | None]:
    """Ask, and return pending, due, age, dead and silent; None: not told."""
    await stored.refresh()
    values = {family.definition.prometheus_name: family.values[()] for family in stored.families()}
    return [values.get(name) for name in GAUGES]  # type: ignore[misc]


async def told(stored: StoredGauges) -> list[float | None]:
    """Ask until everything is told: a slow machine may take longer than a reader waits."""
    async with asyncio.timeout(60):
        while None in (values := await gauges(stored)):
            await asyncio.sleep(0.01)
    return values


async def deliver(connection: asyncpg.Connection, account: str, *ages: float) -> None:
    """Store a delivery for each age in seconds."""
    for age in ages:
        moment = time.time() - age
        await connection.execute(DELIVERY, account, UUID(int=(int(moment * 1000) << 80) + next(_numbers)), moment)


async def test_the_queue_is_counted(engine: AsyncEngine, connection: asyncpg.Connection) -> None:
    """Pending events, those of them that are due, for how long the oldest has been, and the dead; processed ones are none of these."""
    assert await told(StoredGauges(engine)) == [0, 0, 0, 0, 0]
    await connection.execute(EVENTS, "processed", 0.0, 9)
    await connection.execute(EVENTS, "pending", -60.0, 3)
    assert await told(StoredGauges(engine)) == [3, 0, 0, 0, 0]
    await connection.execute(EVENTS, "pending", 50.0, 2)
    await connection.execute(EVENTS, "dead", 0.0, 4)
    pending, due, age, dead, _ = await told(StoredGauges(engine))
    assert (pending, due, dead) == (5, 2, 4)
    assert age is not None
    assert 50 <= age < 110


async def test_a_long_queue_is_not_counted_to_its_end(engine: AsyncEngine, connection: asyncpg.Connection) -> None:
    """That would take longer the more trouble there is."""
    await connection.execute(EVENTS, "pending", 1.0, MOST_COUNTED + 5)
    await connection.execute(EVENTS, "dead", 0.0, MOST_COUNTED + 5)
    pending, due, _, dead, _ = await told(StoredGauges(engine))
    assert (pending, due, dead) == (MOST_COUNTED,) * 3


async def test_the_database_is_asked_every_ten_seconds_at_most(engine: AsyncEngine, connection: asyncpg.Connection) -> None:
    """However often somebody reads; about the accounts every five minutes."""
    ticks = Ticks()
    stored = StoredGauges(engine, ticks=ticks)
    assert (await told(stored))[3] == 0
    await connection.execute(EVENTS, "dead", 0.0, 1)
    await deliver(connection, "a", 4 * HOUR, *(7 * DAY + 2 * HOUR + second for second in range(10)))
    for now, dead, silent in ((9.9, 0, 0), (10.0, 1, 0), (299.9, 1, 0), (300.0, 1, 1)):
        ticks.now = now
        assert (await told(stored))[3:] == [dead, silent], now


async def test_readers_share_a_question(engine: AsyncEngine, connection: asyncpg.Connection) -> None:
    """Many scrapes at once cost one connection for the queue and one for the accounts."""
    stored = StoredGauges(engine)
    answers = await asyncio.gather(*(told(stored) for _ in range(20)))
    assert answers == [[0, 0, 0, 0, 0]] * 20
    assert engine.pool.checkedin() <= 2  # type: ignore[attr-defined]


async def test_a_database_that_hangs_holds_nobody_up(engine: AsyncEngine, connection: asyncpg.Connection) -> None:
    """A second later the reader goes without its metrics, and they come back when it does."""
    ticks = Ticks()
    stored = StoredGauges(engine, ticks=ticks)
    async with connection.transaction():
        await connection.execute("LOCK TABLE events, deliveries")
        assert await gauges(stored) == [None] * 5
        assert await gauges(stored) == [None] * 5
    while (await gauges(stored))[:4] == [None] * 4:
        await asyncio.sleep(0)
    assert await told(stored) == [0, 0, 0, 0, 0]


async def test_a_database_that_is_away_is_asked_again(
    engine: AsyncEngine, postgres: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """What it said before is not shown meanwhile: it would look as if all were well."""
    ticks = Ticks()
    stored = StoredGauges(engine, ticks=ticks)
    assert await told(stored) == [0, 0, 0, 0, 0]
    postgres.stop("immediate")
    with caplog.at_level(logging.WARNING):
        for now in (301.0, 312.0, 323.0):
            ticks.now = now
            assert await gauges(stored) == [None] * 5
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"Metrics about the {what} are missing: the database does not tell them" for what in ("accounts", "queue")
    ]
    postgres.start()
    ticks.now = 334.0
    while None in await gauges(stored):  # a connection that died with the server may be tried first
        ticks.now += 11
    assert await told(stored) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("statement", [QUEUE, ACCOUNTS], ids=["queue", "accounts"])
async def test_no_table_is_read_from_end_to_end(connection: asyncpg.Connection, statement: str) -> None:
    """Even where statistics say that most events are pending and there are few accounts, as after an outage."""
    await connection.execute(EVENTS, "pending", 1.0, 2_000)
    await connection.execute(EVENTS, "dead", 1.0, 2_000)
    await deliver(connection, "a", *range(200))
    await connection.execute("ANALYZE events, deliveries")
    async with connection.transaction():
        await connection.execute(PLANNER)
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {statement}"))
    assert re.findall(r"Seq Scan|Bitmap", plan) == []
    assert set(re.findall(r"using (\w+)", plan)) <= {"events_due", "events_dead", "deliveries_pkey"}


LAST_WEEK = [7 * DAY + 2 * HOUR + minute * 60 for minute in range(10)]
BUSY = [hours * HOUR for hours in range(4, 15 * 24)]
SILENCES = {
    "nothing for four hours that were busy a week ago": ([4 * HOUR, *LAST_WEEK], True),
    "nothing for four hours, always busy before": ([*BUSY, *LAST_WEEK], True),
    "nothing for two days, which has a night in it": ([2 * DAY, *LAST_WEEK], True),
    "nothing for not quite three hours": ([2.9 * HOUR, *LAST_WEEK], False),
    "nine deliveries only, a week ago": ([4 * HOUR, *LAST_WEEK[:9]], False),
    "busy a week ago, but before these hours": ([4 * HOUR, *(age + 3 * HOUR for age in LAST_WEEK)], False),
    "busy a week ago, but after these hours": ([4 * HOUR, *(age - 3 * HOUR for age in LAST_WEEK)], False),
    "silent for more than a week": ([7.1 * DAY, *(age + 2 * DAY for age in LAST_WEEK)], False),
    "never seen before": ([5 * HOUR], False),
    "as busy as ever": ([60.0, *BUSY, *LAST_WEEK], False),
}


@pytest.mark.parametrize("what", SILENCES)
async def test_silence_is_unusual_where_the_same_stretch_was_busy(engine: AsyncEngine, connection: asyncpg.Connection, what: str) -> None:
    """A week earlier, so that nights and weekends raise no alarm."""
    ages, is_silent = SILENCES[what]
    await deliver(connection, "a", *ages)
    assert (await told(StoredGauges(engine)))[4] == is_silent


async def test_silent_accounts_are_counted_and_named_once(
    engine: AsyncEngine, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, because a label must not hold them; again after they have spoken. One that may be a person's name is not shown."""
    ticks = Ticks()
    stored = StoredGauges(engine, ticks=ticks)
    for account in ("32000001", "Marked-Name", "subdomain:romashka", ""):
        await deliver(connection, account, 4 * HOUR, *LAST_WEEK)
    await deliver(connection, "32000003", 60.0, *LAST_WEEK)

    async def silent() -> int:
        ticks.now += 300
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            await told(stored)
        return sum("silent unusually long" in record.getMessage() for record in caplog.records)

    assert await silent() == 1
    assert [vars(record)["fields"]["accounts"] for record in caplog.records] == [["", "32000001", "other", "subdomain:romashka"]]
    assert await silent() == 0
    assert (await told(stored))[4] == 4
    await deliver(connection, "32000001", 1.0)
    assert [await silent(), (await told(stored))[4]] == [0, 3]
    await connection.execute("DELETE FROM deliveries WHERE account_id = '32000001' AND received_at > now() - interval '1 hour'")
    assert [await silent(), (await told(stored))[4]] == [1, 4]


async def test_the_newest_delivery_is_anybodys(engine: AsyncEngine, connection: asyncpg.Connection) -> None:
    """Of any account, stored by any process."""
    await deliver(connection, "a", DAY)
    await deliver(connection, "b", HOUR)
    await deliver(connection, "c", 2 * DAY)
    metrics = Metrics()
    metrics.attach(Sources(engine, lambda: True))
    assert HOUR <= (await read(metrics))[sample("amo_delivery_newest_age_seconds")] < HOUR + 60
