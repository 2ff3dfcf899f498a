"""Nothing that was acknowledged is lost, whatever dies under load. CHAOS_ROUNDS kills as often as one likes."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from integration.books import require_agreement, require_kept, settled, stored_events
from integration.cards import Change
from integration.load import Answer, Line, Load, Post, open_connection, post_of, read_answer, under_load
from servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from amo_receiver.embedded import EmbeddedPostgres
    from amo_receiver.embedded.processes import StopMode
    from conftest import StartService
    from pooler import PgBouncer

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "10"))
LEADS = 200
HOT_LEAD = LEADS + 1
MOST_CHANGES = 50_000
PATIENCE_SECONDS = 30.0
HANGING_SECONDS = 5.0
"""A sender has given up long before; an answer this late is no answer. Without Postgres, who hangs, hangs for longer."""
UNTIL_ACCEPTED = 200
"""Tries of a delivery, 0.1 s apart: more than any outage here takes."""


class Traffic:
    """An endless, bounded stream of distinct dated deliveries about the same leads."""

    def __init__(self) -> None:
        self.changes: dict[int, Change] = {}
        self._random = random.Random(9)  # noqa: S311 - no secret
        self._now = int(time.time())

    def __iter__(self) -> Iterator[Post]:
        while len(self.changes) < MOST_CHANGES:
            yield self.about(self._random.randint(1, LEADS))

    def about(self, card: int) -> Post:
        """Return a delivery about one lead."""
        pick, serial = self._random, len(self.changes) + 1
        action = pick.choices(("update", "status", "delete", "restore"), (12, 4, 1, 1))[0]
        columns = {} if action == "delete" else {"name": f"Квартира {serial}", "price": serial}
        change = Change(serial, "32000001", "leads", action, card, self._now - pick.randrange(100), pick.random() < 0.6, columns)
        self.changes[serial] = change
        return post_of([change], form=pick.random() < 0.5)


async def more(load: Load, count: int, status: int = 200) -> None:
    """Return when so many more deliveries are accepted, or answered otherwise."""
    seen = len(load.answers)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sum(answer.status == status for answer in load.answers[seen:]) < count:
            await asyncio.sleep(0.01)


def require_answered(load: Load, *statuses: int | None) -> None:
    """Require that there was no other answer, none that came too late, and that each delivery was accepted in the end."""
    assert {answer.status for answer in load.answers} <= set(statuses)
    slowest = max(load.answers, key=lambda answer: answer.seconds)
    print(f"{Counter(answer.status for answer in load.answers)}, slowest {slowest.seconds:.2f} s")  # noqa: T201
    assert slowest.seconds < HANGING_SECONDS
    assert {answer.post.serials for answer in load.answers} == {answer.post.serials for answer in load.accepted}


async def require_nothing_lost(url: str, load: Load, traffic: Traffic) -> None:
    """Require that what was acknowledged is stored once and applied, and that the rows are what the events make."""
    async with connect(url) as connection:
        await settled(connection)
        await require_kept(connection, load.answers, traffic.changes)
        await require_agreement(connection, traffic.changes)


async def test_kill_9_loses_nothing_that_was_acknowledged(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """Killed again and again under load: every 2xx is there with its events, applied, and nothing is there twice."""
    service, traffic, pick = start_service(pooled_url), Traffic(), random.Random(1)  # noqa: S311 - no secret
    async with under_load(iter(traffic), service.url, connections=24, tries=UNTIL_ACCEPTED) as load:
        for _ in range(ROUNDS):
            await more(load, pick.randint(1, 200))
            await asyncio.to_thread(service.kill)
            await asyncio.to_thread(service.start)
        await more(load, 100)
    require_answered(load, 200, 503, None)
    await require_nothing_lost(database_url, load, traffic)


@pytest.mark.parametrize(("mode", "seconds"), [("fast", 5.0), ("immediate", 0.0)])
async def test_without_postgres_only_200_and_503_exist(
    start_service: StartService, postgres: EmbeddedPostgres, pooled_url: str, database_url: str, mode: StopMode, seconds: float
) -> None:
    """Postgres stopped, or crashed, under load: nobody waits for ever, the same process accepts again, and nothing acknowledged is lost."""
    service, traffic = start_service(pooled_url), Traffic()
    async with under_load(iter(traffic), service.url, tries=UNTIL_ACCEPTED, pause_seconds=0.02) as load:
        await more(load, 100)
        await asyncio.to_thread(postgres.stop, mode)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(postgres.start)
        await more(load, 300)
    require_answered(load, 200, 503)
    assert 503 in {answer.status for answer in load.answers}
    assert service.process.poll() is None
    assert "Traceback" not in service.log_path.read_text()
    await require_nothing_lost(database_url, load, traffic)


async def test_a_pooler_that_restarts_costs_no_more_than_503(
    start_service: StartService, pgbouncer: PgBouncer, pooled_url: str, database_url: str
) -> None:
    """The same process accepts again as soon as the pooler is back, and nothing acknowledged is lost."""
    service, traffic = start_service(pooled_url), Traffic()
    async with under_load(iter(traffic), service.url, tries=UNTIL_ACCEPTED, pause_seconds=0.01) as load:
        for _ in range(3):
            await more(load, 100)
            await asyncio.to_thread(pgbouncer.restart)
        await more(load, 200)
    require_answered(load, 200, 503)
    assert service.process.poll() is None
    await require_nothing_lost(database_url, load, traffic)


async def test_sigterm_under_load_answers_what_is_in_flight(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """Requests that have begun are answered, also where the body comes later; nothing is stored without an answer; the process ends."""
    service, traffic = start_service(pooled_url, env={"ANSWER_BUDGET_MS": "8000"}), Traffic()
    begun = [(traffic.about(card), await open_connection(service.url)) for card in range(1, 21)]
    async with under_load(iter(traffic), service.url, connections=24) as load:
        for post, (_, writer) in begun:
            writer.write(post.head() + post.body[:20])
        await more(load, 200)
        service.terminate()
        await _refuses(service.url)
        for post, (_, writer) in begun:
            writer.write(post.body[20:])
        answers = [await read_answer(reader) for _, (reader, _) in begun]
        assert [(status, document["status"]) for status, document in answers] == [(200, "success")] * len(begun)
        assert await asyncio.to_thread(service.wait) in (0, -15)
    for _, (_, writer) in begun:
        writer.close()
    assert {answer.status for answer in load.answers} <= {200, None}
    async with connect(database_url) as connection:
        stored = {event["serial"] for event in await stored_events(connection)}
        unanswered = {serial for answer in load.answers if answer.status is None for serial in answer.post.serials}
        assert not unanswered & stored
        assert {serial for post, _ in begun for serial in post.serials} <= stored
    await require_nothing_lost(database_url, load, traffic)


async def _refuses(url: str) -> None:
    """Return when nobody listens any more."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                _, writer = await open_connection(url)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.01)


async def test_a_long_lock_on_one_lead_holds_up_no_other(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """While somebody holds one lead for 3 s, all others are accepted; its own events are stored or refused by 503, and applied later."""
    service, traffic = start_service(pooled_url, env={"ANSWER_BUDGET_MS": "2500"}), Traffic()
    hot: list[Answer] = []
    line = Line(service.url)
    async with connect(database_url) as holder, under_load(iter(traffic), service.url, connections=16, pause_seconds=0.01) as load:
        assert (await line.post(traffic.about(HOT_LEAD))).status == 200
        async with holder.transaction():
            await holder.execute("SELECT FROM leads WHERE id = $1 FOR UPDATE", HOT_LEAD)
            released = time.monotonic() + 3
            while time.monotonic() < released:
                hot.append(await line.post(traffic.about(HOT_LEAD)))
        await more(load, 50)
    line.close()
    print(Counter(answer.status for answer in hot), Counter(answer.document["status"] for answer in load.answers))  # noqa: T201
    assert {(answer.status, answer.document["status"]) for answer in hot} <= {(200, "partial"), (503, "error")}
    require_answered(load, 200)
    load.answers += hot
    await require_nothing_lost(database_url, load, traffic)


async def test_a_pooler_that_hangs_keeps_nobody_waiting(
    start_service: StartService, pgbouncer: PgBouncer, pooled_url: str, database_url: str
) -> None:
    """Where the database neither answers nor hangs up, requests are answered 503 in time, and SIGTERM still ends the process."""
    service, traffic = start_service(pooled_url), Traffic()
    try:
        async with under_load(iter(traffic), service.url, tries=UNTIL_ACCEPTED, pause_seconds=0.01) as load:
            await more(load, 100)
            pgbouncer.pause()
            await more(load, 40, status=503)
            pgbouncer.resume()
            await more(load, 100)
        require_answered(load, 200, 503)
        async with under_load(iter(traffic), service.url) as last:
            await more(last, 100)
            pgbouncer.pause()
            service.terminate()
            assert await asyncio.to_thread(service.wait) in (0, -15)
    finally:
        pgbouncer.resume()
    load.answers += last.answers
    await require_nothing_lost(database_url, load, traffic)
