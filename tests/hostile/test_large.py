"""Retention and replay of as many events as years bring, while deliveries go on coming in; HOSTILE_EVENTS says how many."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from hostile.bulk import (
    DEAD_DAYS,
    HARMLESS,
    OLDEST,
    PROCESSED_DAYS,
    LockWatch,
    Stopwatch,
    expected_states,
    fill,
    first_is_gone,
    require_consistent,
    states,
)
from hostile.senders import Senders
from hostile.story import Ending, Story
from servers import Services, connect, run_sql, service_environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import asyncpg

    from amo_receiver.embedded import EmbeddedPostgres
    from hostile.report import Report
    from pooler import PgBouncer

EVENTS = int(os.environ.get("HOSTILE_EVENTS", "1000000"))
SOME_SECONDS_OF_EVENTS = 500_000
"""Only what takes a while says how far it is."""
PER_SECOND = 50.0
INTERRUPTED = 130
NOT_THE_LOADS = "NOT payload ? 'serial'"
"""What tells the generated events from those that come in meanwhile."""
APPLIED_ONCE = f"""
    SELECT count(*) FROM (
        SELECT FROM attempts a JOIN events e ON e.account_id = a.account_id AND e.id = a.event_id
        WHERE a.outcome = 'applied' AND {NOT_THE_LOADS} GROUP BY a.account_id, a.event_id HAVING count(*) = 1) once"""
LOCK_LAST_DEAD = "SELECT FROM events WHERE state = 'dead' ORDER BY account_id DESC, id DESC LIMIT 1 FOR UPDATE"
WITHOUT_EVENTS = """
    SELECT count(*) FROM deliveries d
    WHERE NOT EXISTS (SELECT FROM events e WHERE e.account_id = d.account_id AND e.delivery_id = d.id)"""


@pytest.fixture(scope="module")
def database_name(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """Return a database for both tests."""
    run_sql(postgres.url(), f"CREATE DATABASE large TEMPLATE {template}")
    yield "large"
    run_sql(postgres.url(), "DROP DATABASE large WITH (FORCE)")


@pytest.fixture
async def filled(database_name: str, postgres: EmbeddedPostgres, report: Report) -> str:
    """Return the direct URL of that database, with the events in it."""
    url = postgres.url(database_name)
    async with connect(url) as connection:
        is_empty = not await connection.fetchval("SELECT count(*) FROM (SELECT FROM events LIMIT 1) e")
    if is_empty:
        await fill(url, EVENTS, report.say)
    return url


class Command:
    """A command of the service that runs while deliveries come in."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    @classmethod
    async def start(cls, url: str, folder: Path, *arguments: str) -> Command:
        """Start it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "amo_receiver", *arguments),
            cwd=folder,
            env=service_environment(url, folder),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return cls(process)

    async def says(self, pattern: str) -> str:
        """Return its next line that matches, or the last one it says."""
        assert self._process.stdout is not None
        line = ""
        while raw := await self._process.stdout.readline():
            line = raw.decode().rstrip()
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        return line

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    async def ends(self) -> tuple[int, str]:
        """Return its exit code and the last line it said."""
        await self.says(r"(?!)")
        return await self._process.wait(), self.lines[-1] if self.lines else ""


@asynccontextmanager
async def accepting(pooled_url: str, direct_url: str, services: Services, report: Report, seed: int) -> AsyncIterator[None]:
    """Send deliveries while the block runs: none acknowledged is lost, and nobody takes a lock that keeps a whole table."""
    service = await asyncio.to_thread(services.serve, pooled_url, args=["--no-worker"])
    story = Story(seed)
    senders = Senders(story, [service.url], seed, PER_SECOND)
    async with LockWatch(direct_url) as watch, asyncio.TaskGroup() as group:
        group.create_task(senders.run())
        yield
        senders.ended = True
    codes = Counter(answer.status for answer in senders.answers)
    seconds = sorted(answer.answered_at - answer.sent_at for answer in senders.answers)
    p50, p99 = (seconds[len(seconds) * part // 100] * 1000 for part in (50, 99))
    report.say(f"deliveries meanwhile {dict(codes)}, p50 {p50:.0f} ms, p99 {p99:.0f} ms; {watch}")
    assert set(codes) <= {200, 503}
    assert {"RowExclusiveLock"} <= watch.modes <= HARMLESS
    async with connect(direct_url) as connection:
        ending = await Ending.read(connection, story)
        assert not ending.lost(answer.post for answer in senders.answers if answer.status == 200)


async def generated(connection: asyncpg.Connection) -> dict[str, int]:
    """Return how many of the generated events there are in each state."""
    return await states(connection, NOT_THE_LOADS)


@pytest.mark.timeout(1800)
async def test_pruning_goes_on_beside_deliveries_and_can_be_interrupted(
    filled: str, pgbouncer: PgBouncer, services: Services, tmp_path: Path, report: Report
) -> None:
    """It says how far it is; after Ctrl-C it says what is gone, everything left is consistent, and the next run does the rest and no more."""
    options = ("prune", "--processed-days", str(PROCESSED_DAYS), "--dead-days", str(DEAD_DAYS))
    async with connect(filled) as connection, accepting(pgbouncer.url("large"), filled, services, report, 1):
        before = await generated(connection)
        assert before == expected_states(EVENTS, pruned=False)
        oldest = await connection.fetch(OLDEST, timeout=600)
        first = await Command.start(filled, tmp_path, *options)
        await first_is_gone(connection, oldest)
        first.interrupt()
        code, sentence = await first.ends()
        assert (code, sentence.partition(" ")[0]) == (INTERRUPTED, "Interrupted;"), first.lines
        gone = {what: int(count) for count, what in re.findall(r"(\d+) (processed|dead) events", sentence)}
        assert gone == {state: before[state] - count for state, count in (await generated(connection)).items()}
        await require_consistent(connection)
        report.say(sentence)

        clock = Stopwatch()
        second = await Command.start(filled, tmp_path, *options)
        code, sentence = await second.ends()
        assert (code, sentence.partition(" ")[0]) == (0, "Deleted"), second.lines
        assert len(second.lines) > 1 or EVENTS < SOME_SECONDS_OF_EVENTS
        gone_now = sum(int(count) for count in re.findall(r"(\d+) (?:processed|dead)", sentence))
        report.say(f"{sentence} {clock.per_second(gone_now)}; {len(second.lines) - 1} lines of progress")
        assert await generated(connection) == expected_states(EVENTS, pruned=True)
        await require_consistent(connection)
        assert await connection.fetchval(WITHOUT_EVENTS, timeout=600) == 0


@pytest.mark.timeout(1800)
async def test_replaying_many_dead_events_can_be_interrupted(
    filled: str, pgbouncer: PgBouncer, services: Services, tmp_path: Path, report: Report
) -> None:
    """Ctrl-C leaves each event dead or pending, a second run takes the others, and a worker applies every one of them once."""
    async with connect(filled) as connection:
        dead = (await generated(connection))["dead"]
        async with connection.transaction():
            await connection.execute(LOCK_LAST_DEAD)  # so that it is not over before Ctrl-C
            first = await Command.start(filled, tmp_path, "replay", "--dead")
            assert "so far" in await first.says("so far|pending again")
            first.interrupt()
            code, sentence = await first.ends()
        assert (code, sentence.partition(".")[0]) == (INTERRUPTED, "Interrupted"), first.lines
        report.say(sentence)
        now = await generated(connection)
        assert now["dead"] + now["pending"] == dead

        async with accepting(pgbouncer.url("large"), filled, services, report, 2):
            clock = Stopwatch()
            await asyncio.to_thread(services.work, pgbouncer.url("large"), env={"RETENTION_PROCESSED_DAYS": "3650"})
            second = await Command.start(filled, tmp_path, "replay", "--dead", "--wait")
            code, sentence = await second.ends()
            assert (code, f"{now['dead']} processed." == sentence) == (0, True), second.lines
            async with asyncio.timeout(1200):
                while pending := (await generated(connection)).get("pending", 0):
                    report.say(f"{pending} are pending")
                    await asyncio.sleep(2)
            report.say(f"{dead} replayed and applied: {clock.per_second(dead)}; {len(second.lines)} lines of progress")
        assert "dead" not in await generated(connection)
        assert await connection.fetchval(APPLIED_ONCE, timeout=600) == dead
        await require_consistent(connection)
