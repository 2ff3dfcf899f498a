"""Three processes on one pooler end in the rows that the sent events make, whatever order they came in."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

from integration.books import require_agreement, require_kept, settled, stored_events
from integration.cards import Change
from integration.load import PATIENT, Post, post_of, send, send_together
from servers import connect, run_sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from conftest import StartService

ACCOUNTS = ("32000001", "test-account")
HOT_LEADS = range(1, 51)
HOT_CONTACTS = range(1, 21)
OTHERS = range(1001, 2001)
ROUNDS = 4
KINDS = {"full": 40, "ahead": 6, "partial": 22, "undated": 12, "delete": 8, "restore": 6, "return": 3, "responsible": 6}
TROUBLE = ("ERROR", "CRITICAL", "deadlock", "Traceback", "40P01", "not applied")


class Crm:
    """Makes up what happens in the CRM; the same seed makes up the same."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._now = int(time.time())
        self.changes: dict[int, Change] = {}

    def happen(self, account: str, entity: str, card: int) -> Change:
        """Let something happen to a card. Few distinct times, so that many events tie, some of them after those without a time."""
        pick = self._random
        kind = pick.choices(list(KINDS), list(KINDS.values()))[0]
        at: int | None = self._now + pick.choice((pick.randrange(-300, 500, 50), pick.randrange(10)))
        full, action = kind in ("full", "ahead", "restore"), pick.choice(("add", "update", "status"))
        if kind in ("ahead", "undated", "return") or (kind == "delete" and pick.random() < 0.7):
            at = None
        if kind in ("delete", "restore", "responsible"):
            action = kind
        elif kind == "return":
            action = "restore"
        serial = len(self.changes) + 1
        columns, fields = ({}, {}) if kind == "delete" else self._contents(entity)
        self.changes[serial] = change = Change(serial, account, entity, action, card, at, full, columns, fields)
        return change

    def _contents(self, entity: str) -> tuple[dict[str, object], dict[int, str | None]]:
        """Choose some of a card's columns and custom fields, some of them emptied."""
        pick = self._random
        text = pick.choice(("google", "яндекс", "Ünïcödé 🙂", None))
        columns: dict[str, object] = {"name": pick.choice(("Квартира", "Дом & сад", None)), "responsible_user_id": pick.randrange(500)}
        fields: dict[int, str | None] = {700001: text, 700002: str(pick.randrange(9))}
        if entity == "leads":
            status = pick.choice((1, 2, 7, 142, None))
            columns |= {"status_id": status, "price": pick.choice((4500000, "12.50", "n/a", None)), "pipeline_id": 7001}
            fields |= {123458: text, 123463: pick.choice(("990000.5", "much", None))}
        else:
            columns["type"] = pick.choice(("contact", "company"))
            fields |= {123456: pick.choice(("+7 000", None)), 123457: "ivan@example.test"}
        return {key: columns[key] for key in columns if pick.random() < 0.6}, {key: fields[key] for key in fields if pick.random() < 0.6}

    def deliver(self, changes: Sequence[Change]) -> list[Post]:
        """Put shuffled changes into bodies of one to six, both encodings mixed."""
        bodies: list[Post] = []
        left = self._random.sample(changes, len(changes))
        left.sort(key=lambda change: change.key if change.card % 3 == 0 else ("", "", 0))  # so that some bodies are about one card
        while left:
            size = self._random.choice((1, 1, 1, 2, 4, 6))
            bodies.append(post_of(left[:size], form=self._random.random() < 0.5))
            del left[:size]
        return bodies

    def mix(self, posts: Sequence[Post]) -> list[Post]:
        """Put deliveries in any order."""
        return self._random.sample(posts, len(posts))

    def repeat(self, posts: Sequence[Post]) -> list[Post]:
        """Put deliveries in any order, every third one of them two or three times: at nearly the same moment, or any time."""
        pick = self._random
        places = [(pick.random(), post) for post in posts]
        for place, post in places[:]:
            if pick.random() < 0.33:
                places += [(pick.choice((place + 0.01 * pick.random(), pick.random())), post) for _ in range(pick.choice((1, 2)))]
        return [post for _, post in sorted(places, key=lambda entry: entry[0])]


async def test_three_processes_end_in_the_rows_that_the_events_make(
    start_service: StartService, pooled_url: str, database_url: str, database: str
) -> None:
    """Every delivery is answered 200 and applied at once, each event stored once, and the rows equal a plain fold of what was sent."""
    # sooner than the lock timeout, which would hide a deadlock
    run_sql(database_url, f"ALTER DATABASE {database} SET deadlock_timeout = '20ms'")
    services = [start_service(pooled_url, env=PATIENT) for _ in range(3)]
    crm = Crm(20240101)
    posts: list[Post] = []
    for account in ACCOUNTS:
        hot = [crm.happen(account, "leads", card) for card in HOT_LEADS for _ in range(14)]
        hot += [crm.happen(account, "contacts", card) for card in HOT_CONTACTS for _ in range(14)]
        posts += crm.deliver(hot + [crm.happen(account, "leads", card) for card in OTHERS])
    sent = crm.repeat(posts)

    answers = await send(sent, *(service.url for service in services), connections=96)

    assert Counter(answer.status for answer in answers) == {200: len(sent)}
    for answer in answers:
        problems = answer.document["errors"] or []
        assert answer.document["events_processed"] == len(answer.post.serials) - len(problems)
        # a copy that overtakes its first is told so; that one is applied a moment later
        assert {problem["message"] for problem in problems} <= {"its first copy is pending"}
    for service in services:
        assert not [line for line in service.log_path.read_text().splitlines() if any(word in line for word in TROUBLE)]
    async with connect(database_url) as connection:
        await settled(connection)
        await require_kept(connection, answers, crm.changes)
        await require_agreement(connection, crm.changes)
        await _require_counted(connection, sent, crm.changes)
        await _require_document_order(connection, sent)


async def _require_counted(connection: asyncpg.Connection, sent: Sequence[Post], changes: dict[int, Change]) -> None:
    """Require an event without a time for each copy sent, any other once, and a count of the deliveries that brought nothing new."""
    copies = Counter(serial for post in sent for serial in post.serials)
    events = await stored_events(connection)
    expected = {serial: count if changes[serial].at is None else 1 for serial, count in copies.items()}
    assert Counter(event["serial"] for event in events) == expected
    repeats = Counter(post.serials for post in sent if all(changes[serial].at is not None for serial in post.serials))
    duplicates = sum(count - 1 for count in repeats.values())
    assert duplicates
    assert await connection.fetchval("SELECT sum(duplicates) FROM deliveries") == duplicates
    assert await connection.fetchval("SELECT count(*) FROM deliveries") == len(sent) - duplicates
    assert await connection.fetchval("SELECT count(*) FROM events WHERE state <> 'processed'") == 0
    assert await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


async def _require_document_order(connection: asyncpg.Connection, sent: Sequence[Post]) -> None:
    """Require that the ids of a body's events grow as they stand in it."""
    positions = {serial: position for post in sent for position, serial in enumerate(post.serials)}
    orders: dict[object, list[int]] = {}
    for event in await stored_events(connection):
        orders.setdefault(event["delivery_id"], []).append(positions[event["serial"]])
    assert all(order == sorted(order) for order in orders.values())


async def test_the_same_deliveries_reach_all_processes_at_once(
    start_service: StartService, pooled_url: str, database_url: str, database: str
) -> None:
    """Copies, and events of the same leads, that meet inside the database wait for one another in one order: none fails or counts twice."""
    run_sql(database_url, f"ALTER DATABASE {database} SET deadlock_timeout = '20ms'")
    services, crm, sent = [start_service(pooled_url, env=PATIENT) for _ in range(3)], Crm(7), []
    for _ in range(ROUNDS):
        common, *own = [crm.deliver([crm.happen(ACCOUNTS[0], "leads", card) for card in HOT_LEADS for _ in range(2)]) for _ in range(4)]
        copies = [crm.mix(common + posts) for posts in own]
        answers = await asyncio.gather(*map(send_together, copies, services))
        assert {answer.status for of_one in answers for answer in of_one} == {200}
        sent += [post for copy in copies for post in copy]
    async with connect(database_url) as connection:
        await settled(connection)
        await require_agreement(connection, crm.changes)
        await _require_counted(connection, sent, crm.changes)
