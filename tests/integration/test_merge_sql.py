"""The join in SQL: rows that reach the database one by one or in batches, in any order, end as the fold in Python ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amo_receiver.database import create_engine
from amo_receiver.inbox.merge import fold, record
from amo_receiver.inbox.repository import Repository, Settlement
from histories import ACCOUNT, Past, deliveries, histories
from servers import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    import asyncpg

    from amo_receiver.inbox.merge import Row

# The database is the same for all examples because each of them is rolled back.
EASY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
UPSERT = "SELECT upsert_cards_v1($1::json, $2::json)"


@pytest_asyncio.fixture
async def database_connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Return a connection to a fresh database."""
    async with connect(database_url) as connection:
        # Rows become JSON in the join, and times in JSON are written in the session's zone.
        await connection.execute("SET TimeZone = 'Asia/Kathmandu'")
        yield connection


@pytest_asyncio.fixture
async def repository(database_url: str) -> AsyncIterator[Repository]:
    """Return a repository whose calls may take as long as they need."""
    engine = create_engine(database_url, 4)
    yield Repository(engine, timeout_seconds=60, lock_timeout_ms=30_000)
    await engine.dispose()


def as_json(rows: Iterable[Row]) -> str:
    return orjson.dumps([record(row) for row in rows]).decode()


@st.composite
def batches(draw: st.DrawFn, history: list[Past]) -> list[list[Past]]:
    """Cut the deliveries of a history into batches, each of which is folded before it reaches the database."""
    order = draw(deliveries(history))
    cuts = sorted(draw(st.sets(st.integers(1, len(order)))))
    return [order[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(order)], strict=True) if begin < end]


async def apply(connection: asyncpg.Connection, entity: str, rows: Iterable[Row]) -> None:
    cards = as_json(fold(rows))
    await connection.execute(UPSERT, *((cards, "[]") if entity == "leads" else ("[]", cards)))


async def held(connection: asyncpg.Connection, entity: str) -> list[dict[str, Any]]:
    """Return the rows that the table holds, in its own types."""
    query = f"SELECT (to_jsonb(card) - 'updated_at')::text FROM {entity} card ORDER BY account_id COLLATE \"C\", id"
    return [orjson.loads(row[0]) for row in await connection.fetch(query)]


async def folded(connection: asyncpg.Connection, entity: str, history: Iterable[Past]) -> list[dict[str, Any]]:
    """Return the rows that the fold in Python gives, read into the table's types."""
    query = f"SELECT (to_jsonb(card) - 'updated_at')::text FROM json_populate_recordset(NULL::{entity}, $1::json) card"
    return [orjson.loads(row[0]) for row in await connection.fetch(query, as_json(fold(past.row() for past in history)))]


@EASY
@given(data=st.data())
async def test_the_database_joins_as_python_does(data: st.DataObject, database_connection: asyncpg.Connection) -> None:
    """Any order, repetition and batching leaves the row, versions included, that folding the history gives."""
    history = data.draw(histories())
    entity = history[0].entity
    transaction = database_connection.transaction()
    await transaction.start()
    try:
        for batch in data.draw(batches(history)):
            await apply(database_connection, entity, [past.row() for past in batch])
        assert await held(database_connection, entity) == await folded(database_connection, entity, history)
    finally:
        await transaction.rollback()


@EASY
@given(data=st.data())
async def test_several_cards_in_one_batch_do_not_touch_each_other(data: st.DataObject, database_connection: asyncpg.Connection) -> None:
    """Each row of a batch joins the row of its own card."""
    history = data.draw(histories(card_ids=(7, 9, 10)))
    entity = history[0].entity
    transaction = database_connection.transaction()
    await transaction.start()
    try:
        for batch in data.draw(batches(history)):
            await apply(database_connection, entity, [past.row() for past in batch])
        assert await held(database_connection, entity) == await folded(database_connection, entity, history)
    finally:
        await transaction.rollback()


@settings(EASY, max_examples=20)
@given(data=st.data())
async def test_batches_at_the_same_time_end_in_the_same_row(
    data: st.DataObject, repository: Repository, database_connection: asyncpg.Connection
) -> None:
    """Settled from several connections at once, the events of a card make the row that one connection would make."""
    history = data.draw(histories(card_ids=(7, 9)))
    entity = history[0].entity
    cut = data.draw(batches(history))
    settlements = [[Settlement(ACCOUNT, past.event_id, past.row(), entity) for past in batch] for batch in cut]
    await database_connection.execute(f"TRUNCATE {entity}")
    await asyncio.gather(*(repository.settle(batch) for batch in settlements))
    assert await held(database_connection, entity) == await folded(database_connection, entity, history)


async def test_an_event_that_comes_again_leaves_the_row_as_it_was(database_connection: asyncpg.Connection) -> None:
    """A snapshot that is in the table already, and an older one, do not even touch the row."""
    older, newer = (Past(number, "leads", "update", number, number, True, {"name": (str(number), {})}) for number in (1, 2))
    await apply(database_connection, "leads", [newer.row()])
    before = await database_connection.fetchrow("SELECT xmin, * FROM leads")
    for past in (newer, older, newer):
        await apply(database_connection, "leads", [past.row()])
    assert await database_connection.fetchrow("SELECT xmin, * FROM leads") == before
    assert before["name"] == "2"


async def test_the_row_says_when_it_changed(database_connection: asyncpg.Connection) -> None:
    """updated_at is the database's time of the last write that changed the row."""
    await apply(database_connection, "contacts", [Past(1, "contacts", "add", 1, 1, True).row()])
    first = await database_connection.fetchval("SELECT updated_at FROM contacts")
    await apply(database_connection, "contacts", [Past(2, "contacts", "update", 2, 2, False, {"name": ("Иван", {})}).row()])
    assert await database_connection.fetchval("SELECT updated_at FROM contacts") > first


async def test_an_older_snapshot_still_counts_for_what_it_alone_knows(database_connection: asyncpg.Connection) -> None:
    """A dated snapshot that wins no column may revive a card that was deleted without a date."""
    history = [
        Past(1, "leads", "delete", None, 3, full=False),
        Past(2, "leads", "update", 5, 5, full=False, keys={"name": ("б", {"name": "б"})}),
        Past(3, "leads", "update", None, 9, full=True, keys={"name": ("в", {"name": "в"})}),
        Past(4, "leads", "update", 4, 4, full=True, keys={"name": ("а", {"name": "а"})}),
    ]
    for past in history:
        await apply(database_connection, "leads", [past.row()])
    row = await database_connection.fetchrow("SELECT name, deleted_at FROM leads")
    assert row is not None
    assert tuple(row) == ("в", None)
    assert await held(database_connection, "leads") == await folded(database_connection, "leads", history)
