"""What retention deletes and what it keeps. Time passes by telling ``prune`` a later one."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from uuid_utils import uuid7

from amo_receiver.worker.maintenance import BATCH, GUARD, Progress, count_old, first_id, prune
from factories import ACCOUNT, form_body, lead
from integration.acceptance import accept, attempt, delivered, make_pending, opened, unparsed
from servers import connect, service_environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg

    from amo_receiver.inbox.repository import Repository

PROCESSED_DAYS, DEAD_DAYS = 30, 90
POISON = 13


@pytest.fixture
async def repository(database_url: str) -> AsyncIterator[Repository]:
    """Return a repository on the fresh database."""
    async with opened(database_url) as opened_repository:
        yield opened_repository


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Return a connection beside it."""
    async with connect(database_url) as opened_connection:
        yield opened_connection


def days_later(days: float) -> datetime:
    """Return a time at which what comes now will be so many days old."""
    return datetime.now(UTC) + timedelta(days=days)


async def pruned(repository: Repository, days: float, **options: Any) -> tuple[int, int, int]:
    """Prune as it will be after so many days, and return how many processed events, dead events and deliveries went."""
    foreseen = await count_old(repository.engine, PROCESSED_DAYS, DEAD_DAYS, now=days_later(days))
    counts = await prune(repository.engine, PROCESSED_DAYS, DEAD_DAYS, now=days_later(days), **options)
    assert counts == foreseen, "a dry run says what a run does"
    return counts["processed events"], counts["dead events"], counts["deliveries"]


async def left(connection: asyncpg.Connection) -> tuple[list[str], int, int]:
    """Return the states of the events that are left, and how many deliveries and attempts are."""
    events = await connection.fetch("SELECT state FROM events ORDER BY state")
    deliveries = await connection.fetchval("SELECT count(*) FROM deliveries")
    return [row["state"] for row in events], deliveries, await connection.fetchval("SELECT count(*) FROM attempts")


async def accept_leads(repository: Repository, *ids: int, account: str = ACCOUNT) -> None:
    """Accept a delivery for each lead."""
    await accept(repository, *(delivered(form_body("leads", "update", lead(id=each), account=account), account) for each in ids))


async def kill_poison(repository: Repository, connection: asyncpg.Connection, *neighbours: int) -> None:
    """Accept one delivery about neighbours and a lead that cannot be written, and let that event end dead."""
    await connection.execute(f"ALTER TABLE leads ADD CONSTRAINT no_thirteen CHECK (id <> {POISON})")
    await accept(repository, delivered(form_body("leads", "update", *(lead(id=each) for each in (*neighbours, POISON)))))
    for _ in range(2):
        await attempt(repository, connection)


async def test_processed_events_go_after_their_days_with_attempts_and_deliveries(
    repository: Repository, connection: asyncpg.Connection
) -> None:
    """Not a day earlier; the leads themselves stay."""
    await accept_leads(repository, 1, 2)
    await make_pending(connection)
    await attempt(repository, connection)
    assert await left(connection) == (["processed", "processed"], 2, 2)
    assert await pruned(repository, PROCESSED_DAYS - 0.1) == (0, 0, 0)
    assert await pruned(repository, PROCESSED_DAYS + 0.1) == (2, 0, 2)
    assert await left(connection) == ([], 0, 0)
    assert await connection.fetchval("SELECT count(*) FROM leads") == 2


async def test_dead_events_are_kept_for_their_own_days_and_so_is_their_delivery(
    repository: Repository, connection: asyncpg.Connection
) -> None:
    """A delivery of which one event is dead outlives the others' days, because the dead one is still to be looked into."""
    await kill_poison(repository, connection, 1, 2)
    await accept_leads(repository, 3)
    assert await pruned(repository, DEAD_DAYS - 0.1) == (3, 0, 1)
    assert await left(connection) == (["dead"], 1, 3)
    assert await pruned(repository, DEAD_DAYS + 0.1) == (0, 1, 1)
    assert await left(connection) == ([], 0, 0)


async def test_dead_events_may_have_fewer_days_than_processed_ones(repository: Repository, connection: asyncpg.Connection) -> None:
    """A body whose only event is gone is not kept for the days of others."""
    await accept(repository, unparsed(b"{"))
    await accept_leads(repository, 1)
    counts = await prune(repository.engine, processed_days=60, dead_days=7, now=days_later(8))
    assert counts == {"processed events": 0, "dead events": 1, "deliveries": 1}
    assert await left(connection) == (["processed"], 1, 0)


async def test_pending_events_and_their_deliveries_are_never_pruned(repository: Repository, connection: asyncpg.Connection) -> None:
    """However long an outage lasts, what was acknowledged and is not applied yet stays."""
    await accept_leads(repository, 1, 2)
    await make_pending(connection)
    await connection.execute(
        "UPDATE events SET state = 'processed', effect = 'applied', processed_at = now(), available_at = NULL WHERE entity_id = '1'"
    )
    assert await pruned(repository, 20 * 365) == (1, 0, 1)
    assert await left(connection) == (["pending"], 1, 0)


async def test_a_delivery_without_events_goes_too(repository: Repository, connection: asyncpg.Connection) -> None:
    """A body in which nothing was is kept like any other, and not for ever."""
    await accept(repository, delivered(b"account%5Bid%5D=" + ACCOUNT.encode()))
    assert await pruned(repository, PROCESSED_DAYS - 0.1) == (0, 0, 0)
    assert await pruned(repository, PROCESSED_DAYS + 0.1) == (0, 0, 1)


class Heard(Progress):
    """Remembers what it is told, and stops after so many batches."""

    def __init__(self, most: int | None = None) -> None:
        self.batches: list[tuple[str, int]] = []
        self.rivals = 0
        self._most = most

    def pruned(self, what: str, count: int) -> None:
        self.batches.append((what, count))

    def rival(self) -> None:
        self.rivals += 1

    def stopped(self) -> bool:
        return self._most is not None and len(self.batches) >= self._most


async def test_all_accounts_are_pruned_in_batches(repository: Repository, connection: asyncpg.Connection) -> None:
    """Each batch is a short transaction; the next one goes on where it ended, account by account."""
    await accept_leads(repository, *range(1, 8), account="a")
    await accept_leads(repository, *range(1, 4), account="b")
    await accept_leads(repository, 1, account="")
    heard = Heard()
    assert await pruned(repository, PROCESSED_DAYS + 1, progress=heard, batch=3) == (11, 0, 11)
    assert [count for what, count in heard.batches if what == "processed events"] == [1, 4, 7, 8, 11, 11]
    assert [count for what, count in heard.batches if what == "deliveries"] == [1, 4, 7, 8, 11, 11]
    assert await left(connection) == ([], 0, 0)


async def test_a_run_can_be_stopped_between_batches(repository: Repository, connection: asyncpg.Connection) -> None:
    """What is deleted by then stays deleted, and the next run does the rest."""
    await accept_leads(repository, *range(1, 8))
    heard = Heard(most=2)
    counts = await prune(repository.engine, PROCESSED_DAYS, DEAD_DAYS, heard, batch=3, now=days_later(31))
    assert counts == {"processed events": 6, "dead events": 0, "deliveries": 0}
    assert len((await left(connection))[0]) == 1
    assert await pruned(repository, 31) == (1, 0, 7)


async def test_one_process_prunes_at_a_time(repository: Repository, connection: asyncpg.Connection) -> None:
    """The second one says so and ends at once, with nothing done."""
    await accept_leads(repository, 1)
    heard = Heard()
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({GUARD})")
        counts = await prune(repository.engine, PROCESSED_DAYS, DEAD_DAYS, heard, now=days_later(31))
    assert not any(counts.values())
    assert (heard.rivals, heard.batches) == (1, [])
    assert await pruned(repository, 31) == (1, 0, 1)


async def test_rows_that_somebody_holds_are_passed_over(repository: Repository, connection: asyncpg.Connection) -> None:
    """Pruning waits for nobody; an event that is just being replayed is left to the next run."""
    await accept_leads(repository, 1, 2, 3)
    async with connection.transaction():
        await connection.execute("SELECT 1 FROM events WHERE entity_id = '2' FOR UPDATE")
        counts = await prune(repository.engine, PROCESSED_DAYS, DEAD_DAYS, now=days_later(31))
    assert counts == {"processed events": 2, "dead events": 0, "deliveries": 2}
    assert await pruned(repository, 31) == (1, 0, 1)


def test_the_first_id_of_a_moment_divides_those_made_before_from_those_made_after() -> None:
    """Age is read off the ids, to the millisecond."""
    moment = datetime(2026, 11, 22, 12, 0, 0, 123_000, tzinfo=UTC)
    nanoseconds = int(moment.timestamp()) * 1_000_000_000 + 123_000_000
    assert str(uuid7(nanoseconds=nanoseconds - 1)) < first_id(moment) <= str(uuid7(nanoseconds=nanoseconds))
    assert first_id(datetime(1969, 1, 1, tzinfo=UTC)) == "00000000-0000-0000-0000-000000000000"


def _prune_command(database_url: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "amo_receiver", "prune", *options]
    environment = service_environment(database_url, folder)
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def _ended(command: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = await asyncio.to_thread(command.communicate, timeout=30)
    return command.returncode, out, err


async def test_the_command_counts_and_then_deletes(
    repository: Repository, connection: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    """A dry run changes nothing; the days are those of the settings unless they are given."""
    await accept_leads(repository, 1, 2)
    code, out, err = await _ended(_prune_command(database_url, tmp_path))
    assert (code, out, err) == (0, "Deleted 0 processed events, 0 dead events, 0 deliveries.\n", "")
    code, out, err = await _ended(_prune_command(database_url, tmp_path, "--processed-days", "0", "--dry-run"))
    assert (code, out, err) == (0, "Would delete 2 processed events, 0 dead events, 2 deliveries.\n", "")
    assert await left(connection) == (["processed", "processed"], 2, 0)
    code, out, err = await _ended(_prune_command(database_url, tmp_path, "--processed-days", "0"))
    assert (code, out, err) == (0, "Deleted 2 processed events, 0 dead events, 2 deliveries.\n", "")
    assert await left(connection) == ([], 0, 0)


async def test_the_command_says_that_another_process_is_pruning(
    repository: Repository, connection: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    """A person who asked for it learns why nothing happened."""
    await accept_leads(repository, 1)
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({GUARD})")
        code, out, err = await _ended(_prune_command(database_url, tmp_path, "--processed-days", "0"))
    assert (code, out) == (1, "")
    assert err.startswith("amo-webhooks: Another process is pruning and does what is left; deleted here: 0 processed events")


HELD_UP = """
    CREATE FUNCTION held_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM set_config('lock_timeout', '0', true), pg_advisory_xact_lock(42);
        RETURN NULL;
    END $$;
    CREATE TRIGGER held_up AFTER DELETE ON events EXECUTE FUNCTION held_up()"""
FILL = f"""
    INSERT INTO events (account_id, id, delivery_id, entity, action, entity_id, path, payload, received_at, state, effect, processed_at)
    SELECT 'a', ('01a00000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, gen_random_uuid(), 'task', 'add', '', '', '{{}}', now(),
           'processed', 'recorded', now() FROM generate_series(1, {BATCH + 1}) n"""


async def test_ctrl_c_ends_the_command_after_the_batch_under_way(connection: asyncpg.Connection, database_url: str, tmp_path: Path) -> None:
    """The batch is not undone, the next one does not begin, and the exit code says that it was interrupted."""
    await connection.execute(FILL)
    await connection.execute(HELD_UP)
    await connection.execute("SELECT pg_advisory_lock(42)")
    command = _prune_command(database_url, tmp_path)
    async with asyncio.timeout(30):
        while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            assert command.poll() is None, command.communicate()
            await asyncio.sleep(0.01)
    command.send_signal(signal.SIGINT)
    await connection.execute("SELECT pg_advisory_unlock(42)")
    code, out, err = await _ended(command)
    assert (code, out) == (130, "")
    assert err == f"Interrupted; deleted {BATCH} processed events, 0 dead events, 0 deliveries. The next run goes on from there.\n"
    assert await connection.fetchval("SELECT count(*) FROM events") == 1
