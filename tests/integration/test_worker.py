"""What becomes of an event that could not be applied at once. Time passes by moving ``available_at``, never by waiting."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.trace import TracerProvider

from amo_receiver.database import DatabaseTimeout
from amo_receiver.inbox.delivery import cut_body
from amo_receiver.inbox.lookup import NIL, Lookup
from amo_receiver.inbox.repository import CLAIM, Repository
from amo_receiver.inbox.states import DEFERRAL_SECONDS, DELAYS_SECONDS, MAX_ATTEMPTS, MAX_CLAIMS, MAX_DEFERRAL_SECONDS
from amo_receiver.telemetry.metrics import Metrics
from amo_receiver.telemetry.rare import EncodeAtEnd
from amo_receiver.telemetry.setup import Telemetry
from amo_receiver.telemetry.tracing import Tracing
from amo_receiver.worker.journal import AttemptJournal
from exposition import read, sample
from factories import ACCOUNT, digital_pipeline_lead, form_body, json_body, lead
from integration.acceptance import CURRENT, accept, attempt, delivered, make_due, make_pending, opened, retrying, unparsed
from servers import WEBHOOK_TOKEN, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from conftest import StartService

POISON, GOOD = 13, 14
SECRET_NAME = "Иванов Иван"
PAUSED = """
    SELECT *, extract(epoch FROM available_at - (SELECT max(started_at) FROM attempts WHERE event_id = events.id))::float AS pause
    FROM events WHERE id = $1"""
REASON = "CheckViolationError 23514 no_thirteen"


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


@pytest.fixture
async def poisoned(connection: asyncpg.Connection) -> asyncpg.Connection:
    """Return the connection to a database in which one lead cannot be written, by its own fault."""
    await connection.execute(f"ALTER TABLE leads ADD CONSTRAINT no_thirteen CHECK (id <> {POISON})")
    return connection


def leads(*ids: int) -> bytes:
    """Return a body that updates these leads."""
    return form_body("leads", "update", *(lead(id=each, name=SECRET_NAME) for each in ids))


async def event_of(connection: asyncpg.Connection, lead_id: int = POISON) -> asyncpg.Record:
    """Return the one event about a lead, with the seconds until it is due."""
    rows = await connection.fetch(
        "SELECT *, extract(epoch FROM available_at - clock_timestamp())::float AS due_in FROM events WHERE entity_id = $1", str(lead_id)
    )
    assert len(rows) == 1
    return rows[0]


async def attempts_of(connection: asyncpg.Connection, event: asyncpg.Record) -> list[tuple[Any, ...]]:
    """Return what is written of an event's attempts."""
    rows = await connection.fetch("SELECT number, kind, outcome, error FROM attempts WHERE event_id = $1 ORDER BY id", event["id"])
    return [tuple(row) for row in rows]


def require_due(event: asyncpg.Record, seconds: float, less_than_before: float = 0) -> None:
    """Require that an event is due after so many seconds, of which some have passed, but not so many that it could be the delay before."""
    assert event["state"] == "pending"
    assert less_than_before < event["due_in"] <= seconds


async def test_an_event_at_fault_is_answered_partial_and_its_neighbours_are_applied(
    poisoned: asyncpg.Connection, database_url: str, start_service: StartService
) -> None:
    """One event that cannot be applied costs its own effect only: 200, ``partial``, and the first attempt is counted."""
    service = start_service(database_url, args=["--no-worker"])
    status, answer = await asyncio.to_thread(_post, service.url, leads(12, POISON, GOOD))
    assert (status, answer["status"], answer["events_processed"]) == (200, "partial", 2)
    assert answer["errors"] == [{"path": "leads.update[1]", "message": REASON}]
    async with asyncio.timeout(10):  # it is written down behind the answer
        while not await attempts_of(poisoned, await event_of(poisoned)):
            await asyncio.sleep(0.01)
    event = await event_of(poisoned)
    require_due(event, DELAYS_SECONDS[1])
    assert (event["attempts"], event["last_error"], event["effect"]) == (1, REASON, None)
    assert await attempts_of(poisoned, event) == [(1, "accept", "failed", REASON)]
    assert [row["id"] for row in await poisoned.fetch("SELECT id FROM leads ORDER BY id")] == [12, GOOD]


def _post(url: str, body: bytes) -> tuple[int, dict[str, Any]]:
    sender = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        sender.request("POST", f"/api/webhooks/amo/{WEBHOOK_TOKEN}", body, {"Content-Type": "application/x-www-form-urlencoded"})
        response = sender.getresponse()
        return response.status, json.loads(response.read())
    finally:
        sender.close()


async def test_an_event_is_tried_three_times_and_then_dead(
    repository: Repository, poisoned: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Due 5 s after the first attempt and 30 s after the second; then a dead letter that says why, without a word of the data."""
    await accept(repository, delivered(leads(POISON)))
    require_due(await event_of(poisoned), DELAYS_SECONDS[1])

    assert await attempt(repository, poisoned) == 1
    event = await event_of(poisoned)
    require_due(event, DELAYS_SECONDS[2], less_than_before=DELAYS_SECONDS[1])
    assert event["attempts"] == 2

    assert await attempt(repository, poisoned) == 1
    event = await event_of(poisoned)
    assert (event["state"], event["attempts"], event["available_at"], event["last_error"]) == ("dead", 3, None, REASON)
    assert await attempts_of(poisoned, event) == [
        (1, "accept", "failed", REASON),
        (2, "retry", "failed", REASON),
        (3, "retry", "failed", REASON),
    ]
    given_up = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in given_up] == ["Event given up on: leads.update"]
    assert SECRET_NAME not in caplog.text

    assert await attempt(repository, poisoned) == 0


async def test_nothing_is_tried_before_it_is_due(repository: Repository, poisoned: asyncpg.Connection) -> None:
    """A worker that looks at once leaves the event alone."""
    await accept(repository, delivered(leads(POISON)))
    assert await retrying(repository).run_due() == 0
    assert (await event_of(poisoned))["attempts"] == 1


async def test_the_good_events_of_a_retry_do_not_wait_for_the_bad_one(repository: Repository, poisoned: asyncpg.Connection) -> None:
    """Among many due events one at fault is found by halving, and all others are applied in the same run."""
    await accept(repository, delivered(leads(*range(1, 31))))
    await make_pending(poisoned)
    assert await attempt(repository, poisoned) == 30
    states = await poisoned.fetch("SELECT state, count(*) FROM events GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in states] == [("pending", 1), ("processed", 29)]
    outcomes = await poisoned.fetch("SELECT outcome, count(*) FROM attempts WHERE number = 2 GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in outcomes] == [("applied", 29), ("failed", 1)]


async def test_the_databases_trouble_gives_the_attempt_back(
    repository: Repository, connection: asyncpg.Connection, database_url: str
) -> None:
    """A lock held on the row never counts: the pauses double from 5 s to 5 min, and the event is applied once it is free."""
    await accept(repository, delivered(leads(GOOD)))
    async with connect(database_url) as holder, holder.transaction():
        await holder.execute("SELECT 1 FROM leads WHERE id = $1 FOR UPDATE", GOOD)
        newer = delivered(form_body("leads", "update", lead(id=GOOD, at=1_795_000_700, name="newer")))
        assert [len(outcome.problems) for outcome in await accept(repository, newer)] == [1]
        pause = DEFERRAL_SECONDS
        for deferrals in range(1, 9):
            event = await connection.fetchrow(PAUSED, newer.events[0].id)
            assert (event["state"], event["attempts"], event["deferrals"]) == ("pending", 0, deferrals)
            assert pause <= event["pause"] < 2 * pause
            pause = min(pause * 2, MAX_DEFERRAL_SECONDS)
            assert await attempt(repository, connection) == 1
        written = await attempts_of(connection, event)
        assert {row[2:] for row in written} == {("deferred", "LockNotAvailableError 55P03")}
        assert len(written) == 9
    assert await attempt(repository, connection) == 1
    event = await connection.fetchrow(PAUSED, newer.events[0].id)
    assert (event["state"], event["effect"], event["attempts"], event["last_error"]) == ("processed", "applied", 1, None)
    assert await connection.fetchval("SELECT name FROM leads") == "newer"


async def test_events_that_time_did_not_reach_are_given_back(repository: Repository, connection: asyncpg.Connection) -> None:
    """An attempt that was counted and never made must not lead to a dead letter."""
    await accept(repository, delivered(leads(GOOD, 15)))
    await make_pending(connection)
    for _ in range(5):
        assert await attempt(repository, connection, run_seconds=0) == 2
    rows = await connection.fetch("SELECT state, attempts, deferrals, last_error FROM events")
    assert {tuple(row) for row in rows} == {("pending", 1, 5, "DatabaseTimeout")}
    assert await attempt(repository, connection) == 2
    assert await connection.fetchval("SELECT count(*) FROM events WHERE state = 'processed'") == 2


async def test_events_that_were_not_reached_while_others_waited_for_locks_are_given_back(
    connection: asyncpg.Connection, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Locks can use up the time of a run; what was not tried then is neither counted nor called applied."""
    caplog.set_level("INFO", "amo_receiver")
    async with opened(database_url, lock_timeout_ms=300) as patient, connect(database_url) as holder:
        await accept(patient, delivered(leads(GOOD, 15)))
        await make_pending(connection)
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM leads FOR UPDATE")
            assert await attempt(patient, connection, run_seconds=0.2) == 2
    rows = await connection.fetch("SELECT state, attempts, deferrals, last_error FROM events")
    assert [tuple(row) for row in rows] == [("pending", 1, 1, "DatabaseTimeout")] * 2
    assert "tried again later" in caplog.text
    assert "applied on retry" not in caplog.text


class Ended:
    """Spans of a worker as they are when they have ended, and what they say of their end."""

    def __init__(self) -> None:
        self._encoded: list[bytes] = []

    def telemetry(self) -> Telemetry:
        """Return tracing that leads here."""
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(EncodeAtEnd(self._encoded.append))
        return Telemetry(Tracing(self._encoded.append), provider.get_tracer("test"))

    def attributes(self, name: str) -> dict[str, str]:
        """Return the outcome and the error of the one span of this name."""
        (span,) = [span for each in self._encoded for span in ScopeSpans.FromString(each).spans if span.name == name]
        return {each.key: each.value.string_value for each in span.attributes if each.key in ("amo.outcome", "error.type")}


class AwayWhenNoting(Repository):
    """A repository whose database is away whenever an attempt is to be given back."""

    async def defer(self, *_: Any) -> dict[str, tuple[str, int]]:
        raise DatabaseTimeout


async def test_an_attempt_is_given_back_even_if_the_database_is_away_by_then(
    repository: Repository, connection: asyncpg.Connection, database_url: str
) -> None:
    """What cannot be written down now is written before the next claim, else three outages would make a dead letter."""
    await accept(repository, delivered(leads(GOOD)))
    await make_pending(connection, attempts=2)
    away = AwayWhenNoting(repository.engine, timeout_seconds=10, lock_timeout_ms=50)
    metrics, tracing = Metrics(), Ended()
    retry = retrying(away, journal=AttemptJournal(tracing.telemetry(), metrics))
    async with connect(database_url) as holder, holder.transaction():
        await holder.execute("SELECT 1 FROM leads FOR UPDATE")
        with pytest.raises(DatabaseTimeout):
            await retry.run_due()
        assert (await read(metrics))[sample("amo_attempts_total", amo_attempt_kind="retry", amo_outcome="deferred")] == 1
        assert tracing.attributes("retry") == {"amo.outcome": "deferred", "error.type": "55P03"}
        assert tracing.attributes("batch") == {"error.type": "DatabaseTimeout"}
        assert (await event_of(connection, GOOD))["attempts"] == 3
        with pytest.raises(DatabaseTimeout):
            await retry.run_due()
    away.defer = repository.defer  # type: ignore[method-assign] - it is back
    await make_due(connection)
    assert await retry.run_due() == 0, "given back before the claim, and so not due"
    event = await event_of(connection, GOOD)
    assert (event["state"], event["attempts"], event["deferrals"]) == ("pending", 2, 1)
    assert await attempt(repository, connection) == 1
    assert (await event_of(connection, GOOD))["state"] == "processed"


async def test_an_event_that_kills_its_process_ends_dead(repository: Repository, connection: asyncpg.Connection) -> None:
    """The attempt is counted before it begins; after the sixth that nobody came back from, the event is given up without another."""
    await accept(repository, delivered(leads(GOOD)))
    await make_pending(connection)
    for attempts in range(2, MAX_CLAIMS + 1):
        assert [row.attempts for row in await repository.claim(50)] == [attempts]
        require_due(await event_of(connection, GOOD), DELAYS_SECONDS[min(attempts, MAX_ATTEMPTS)])
        await make_due(connection)
    assert await retrying(repository).run_due() == 1
    event = await event_of(connection, GOOD)
    assert (event["state"], event["last_error"]) == ("dead", "the process died during each attempt")


async def test_events_that_were_claimed_beside_it_are_not_blamed(repository: Repository, connection: asyncpg.Connection) -> None:
    """Whoever was in hand three times when the process died is tried alone, so that one outage after another makes no dead letters."""
    killer, others = 1000, range(1001, 1010)
    await accept(repository, delivered(leads(killer, *others)))
    await make_pending(connection)
    for _ in range(MAX_ATTEMPTS - 1):
        assert len(await repository.claim(50)) == 1 + len(others)
        await make_due(connection)
    await accept(repository, delivered(leads(GOOD)))
    await connection.execute("UPDATE events SET state = 'pending', effect = NULL, available_at = now() WHERE entity_id = $1", str(GOOD))
    assert [row.entity_id for row in await repository.claim(50)] == [str(GOOD)], "those without suspicion come first"
    await connection.execute("UPDATE events SET available_at = now() + interval '1 hour' WHERE entity_id = $1", str(GOOD))
    await connection.execute("UPDATE events SET available_at = now() - interval '1 hour' WHERE entity_id = $1", str(killer))
    assert [row.entity_id for row in await repository.claim(50)] == [str(killer)], "alone"
    for _ in others:
        assert await retrying(repository).run_due() == 1
    assert {(await event_of(connection, number))["state"] for number in others} == {"processed"}
    assert (await event_of(connection, killer))["state"] == "pending"


class Broken:
    """A mapping with a bug."""

    def for_account(self, _: str) -> Any:
        raise KeyError(SECRET_NAME)


async def test_an_event_on_which_our_code_fails_ends_dead(repository: Repository, connection: asyncpg.Connection) -> None:
    """A bug is not the database's trouble: the event is not tried for ever, and its neighbours are not held up."""
    await accept(repository, delivered(leads(GOOD)))
    await make_pending(connection)
    buggy = type(CURRENT)(CURRENT.keyring, Broken())  # type: ignore[arg-type]
    for _ in range(2):
        assert await attempt(repository, connection, current=buggy) == 1
    event = await event_of(connection, GOOD)
    assert (event["state"], event["attempts"], event["last_error"]) == ("dead", 3, "KeyError")


async def test_workers_share_the_due_events_without_making_an_attempt_twice(
    repository: Repository, connection: asyncpg.Connection, database_url: str
) -> None:
    """However many look at once, each due event is attempted by one of them."""
    count = 200
    await accept(repository, delivered(leads(*range(1000, 1000 + count))))
    await make_pending(connection, attempts=0)

    async def work() -> int:
        async with opened(database_url, lock_timeout_ms=5_000) as own:
            return sum([taken async for taken in _runs(own)])

    shares = await asyncio.gather(*(work() for _ in range(4)))
    assert sum(shares) == count
    events = await connection.fetch("SELECT state, attempts, count(*) FROM events GROUP BY 1, 2")
    assert [tuple(row) for row in events] == [("processed", 1, count)]
    attempts = await connection.fetch("SELECT number, kind, outcome, count(*) FROM attempts GROUP BY 1, 2, 3")
    assert [tuple(row) for row in attempts] == [(1, "retry", "applied", count)]


async def _runs(repository: Repository) -> AsyncIterator[int]:
    retry = retrying(repository, most=7)
    while taken := await retry.run_due():
        yield taken


async def test_a_claim_passes_over_what_another_worker_is_claiming(
    repository: Repository, connection: asyncpg.Connection, database_url: str
) -> None:
    """Nobody waits for another worker's claim: the rows it has locked are left to it, the others are taken."""
    await accept(repository, delivered(leads(*range(1, 11))))
    await make_pending(connection)
    async with connect(database_url) as other, other.transaction():
        claimed = {row["id"] for row in await other.fetch(str(CLAIM).replace(":most", "4"))}
        assert len(claimed) == 4
        taken = {row.id for row in await repository.claim(50)}
        assert len(taken) == 6
        assert not taken & claimed


async def test_a_dead_event_is_applied_by_a_replay_once_its_cause_is_mended(repository: Repository, poisoned: asyncpg.Connection) -> None:
    """A replay begins anew: three attempts, the first of them a ``replay``; what it was dead of is gone once it is processed."""
    await accept(repository, delivered(leads(POISON)))
    for _ in range(2):
        await attempt(repository, poisoned)
    event = await event_of(poisoned)
    lookup = Lookup(repository.engine)
    assert await lookup.replay_named(ACCOUNT, [str(event["id"])]) == [str(event["id"])]
    event = await event_of(poisoned)
    assert (event["state"], event["attempts"], event["replays"], event["last_error"]) == ("pending", 0, 1, REASON)

    await attempt(repository, poisoned)
    event = await event_of(poisoned)
    require_due(event, DELAYS_SECONDS[1])
    assert event["attempts"] == 1, "the cause is still there"

    await poisoned.execute("ALTER TABLE leads DROP CONSTRAINT no_thirteen")
    await attempt(repository, poisoned)
    event = await event_of(poisoned)
    assert (event["state"], event["effect"], event["attempts"], event["last_error"]) == ("processed", "applied", 2, None)
    assert (await attempts_of(poisoned, event))[-2:] == [(1, "replay", "failed", REASON), (2, "retry", "applied", None)]
    assert await poisoned.fetchval("SELECT name FROM leads WHERE id = $1", POISON) == SECRET_NAME


async def test_replaying_all_dead_events_ends_even_if_they_die_again_at_once(
    repository: Repository, connection: asyncpg.Connection
) -> None:
    """Each is replayed once, in the order of their ids, whatever a worker does with them meanwhile."""
    deliveries = [delivered(form_body("leads", "update", lead(id="x", name=str(number)))) for number in range(3)]
    await accept(repository, *deliveries)
    ids = [delivery.events[0].id for delivery in deliveries]
    lookup = Lookup(repository.engine)
    assert await lookup.replay_dead(ACCOUNT, None, NIL, 2) == ids[:2]
    await attempt(repository, connection)
    assert await connection.fetchval("SELECT count(*) FROM events WHERE state = 'dead'") == 3
    assert await lookup.replay_dead(ACCOUNT, None, ids[1], 2) == ids[2:]
    assert await lookup.replay_dead(ACCOUNT, None, ids[2], 2) == []


async def test_a_duplicate_of_a_dead_event_arms_it_again(repository: Repository, poisoned: asyncpg.Connection) -> None:
    """The sender's own repetition is as good as a replay, and it is not stored a second time."""
    await accept(repository, delivered(leads(POISON)))
    for _ in range(2):
        await attempt(repository, poisoned)
    await poisoned.execute("ALTER TABLE leads DROP CONSTRAINT no_thirteen")
    outcomes = await accept(repository, delivered(leads(POISON)))
    assert [outcome.processed for outcome in outcomes] == [0]
    event = await event_of(poisoned)
    assert (event["state"], event["attempts"]) == ("pending", 0)
    assert await retrying(repository).run_due() == 1
    assert (await event_of(poisoned))["state"] == "processed"
    assert await poisoned.fetchval("SELECT duplicates FROM deliveries") == 1


async def test_an_unusable_item_is_dead_again_at_once_after_a_replay(repository: Repository, connection: asyncpg.Connection) -> None:
    """What no attempt can mend is not tried three times."""
    body = form_body("leads", "update", lead(id="twelve"), lead(id=GOOD))
    assert [outcome.processed for outcome in await accept(repository, delivered(body))] == [1]
    dead = await connection.fetchval("SELECT id::text FROM events WHERE state = 'dead'")
    await Lookup(repository.engine).replay_named(ACCOUNT, [dead])
    assert await attempt(repository, connection) == 1
    event = (await connection.fetch("SELECT * FROM events WHERE state = 'dead'"))[0]
    assert (event["attempts"], event["last_error"]) == (1, "its id is not a positive 64-bit integer")


class DiesAfterParsing(Repository):
    """A repository of a process that ends between storing a body's events and saying so."""

    async def settle(self, *_: Any, **__: Any) -> None:
        raise DatabaseTimeout


async def test_an_unparsed_body_is_parsed_by_a_replay_and_gives_its_events_once(
    repository: Repository, connection: asyncpg.Connection
) -> None:
    """However often it is attempted and replayed; undated events, which are never duplicates, included."""
    body = json_body("leads", "update", lead(id=GOOD, name="dated"), digital_pipeline_lead(id=15))
    await accept(repository, unparsed(body))
    assert await connection.fetchval("SELECT count(*) FROM leads") == 0
    lookup = Lookup(repository.engine)
    dead = await connection.fetchval("SELECT id::text FROM events WHERE entity = 'unparsed' AND state = 'dead'")
    await lookup.replay_named(ACCOUNT, [dead])
    await attempt(DiesAfterParsing(repository.engine, timeout_seconds=10), connection)
    assert await connection.fetchval("SELECT state FROM events WHERE entity = 'unparsed'") == "pending"
    for _ in range(2):
        await attempt(repository, connection)
        assert await connection.fetchval("SELECT state FROM events WHERE entity = 'unparsed'") == "processed"
        rows = await connection.fetch("SELECT entity_id, state, effect FROM events WHERE entity = 'leads' ORDER BY entity_id")
        assert [tuple(row) for row in rows] == [(str(GOOD), "processed", "applied"), ("15", "processed", "applied")]
        assert await lookup.replay_named(ACCOUNT, [dead]) == [dead]
    names = await connection.fetch("SELECT id, name, status FROM leads ORDER BY id")
    assert [tuple(row) for row in names] == [(GOOD, "dated", "new"), (15, None, "contacted")]
    assert await connection.fetchval("SELECT count(*) FROM deliveries") == 1


async def test_what_an_unparsed_body_held_is_counted(poisoned: asyncpg.Connection, repository: Repository) -> None:
    """By what became of each event, as at acceptance, once, and as events of the attempt that found them."""
    await accept(repository, delivered(json_body("leads", "update", lead(id=15))))
    body = json_body("leads", "update", lead(id=GOOD), lead(id="none"))
    await accept(repository, unparsed(body), unparsed(json_body("leads", "update", lead(id=15), lead(id=16), lead(id=POISON))))
    await Lookup(repository.engine).replay_named(
        ACCOUNT, [row["id"] for row in await poisoned.fetch("SELECT id::text FROM events WHERE entity = 'unparsed'")]
    )
    metrics = Metrics()
    await attempt(repository, poisoned, journal=AttemptJournal(metrics=metrics))
    samples = await read(metrics)
    counted = {dict(labels)["amo_outcome"]: value for (name, labels), value in samples.items() if name == "amo_events_total"}
    assert counted == {"applied": 1, "dead": 1, "duplicate": 1, "pending": 2}
    assert samples[sample("amo_event_lag_seconds_count", amo_attempt_kind="replay")] == 1
    assert samples[sample("amo_dead_letters_total", amo_entity="leads", amo_attempt_kind="replay")] == 1
    assert sample("amo_delivery_newest_age_seconds") not in samples
    await attempt(repository, poisoned, journal=AttemptJournal(metrics=metrics))
    again = await read(metrics)
    assert {key: value for key, value in again.items() if key[0] == "amo_events_total"} == {
        key: value for key, value in samples.items() if key[0] == "amo_events_total"
    }


async def test_a_body_parsed_late_belongs_to_the_account_it_names(repository: Repository, connection: asyncpg.Connection) -> None:
    """Unknown when it came, the account is known from the body; the events' delivery is found there."""
    body = form_body("leads", "update", lead(id=GOOD, account_id=None))
    await accept(repository, unparsed(body, account=""))
    dead = await connection.fetchval("SELECT id::text FROM events WHERE account_id = ''")
    lookup = Lookup(repository.engine)
    await lookup.replay_named("", [dead])
    assert await attempt(repository, connection) == 1
    event = (await lookup.events_named([(await event_of(connection, GOOD))["id"]], ACCOUNT))[0]
    assert event.state == "processed"
    delivery = await lookup.delivery(event, body=True)
    assert (delivery.account_id, delivery.body) == (ACCOUNT, body)


@pytest.mark.parametrize(
    ("body", "cut", "reason"),
    [(b"{not json", False, "not JSON: error at character 1"), (b"x=1&" * 30_000, True, "its body is no longer kept whole")],
    ids=["unparsable", "cut"],
)
async def test_a_body_that_still_cannot_be_parsed_is_dead_again_at_once(
    repository: Repository, connection: asyncpg.Connection, body: bytes, cut: bool, reason: str
) -> None:
    """The reason is today's, and there is no second attempt."""
    delivery = unparsed(body)
    if cut:
        cut_body(delivery)
    await accept(repository, delivery)
    await Lookup(repository.engine).replay_named(ACCOUNT, [delivery.events[0].id])
    assert await attempt(repository, connection) == 1
    rows = await connection.fetch("SELECT state, attempts, last_error FROM events")
    assert [tuple(row) for row in rows] == [("dead", 1, reason)]


async def test_the_claim_reads_the_index_of_due_events_only(repository: Repository, connection: asyncpg.Connection) -> None:
    """Looking for due events costs nothing, however many have been processed."""
    await accept(repository, delivered(leads(POISON)))
    await make_pending(connection)
    await connection.execute(
        "INSERT INTO events (account_id, id, delivery_id, entity, action, entity_id, path, payload, received_at, state, effect,"
        " processed_at) SELECT 'other', gen_random_uuid(), gen_random_uuid(), 'task', 'add', n::text, '', '{}', now(), 'processed',"
        " 'recorded', now() FROM generate_series(1, 20000) n"
    )
    await connection.execute("ANALYZE events")
    plan = "\n".join(row[0] for row in await connection.fetch("EXPLAIN " + str(CLAIM).replace(":most", "50")))
    assert "events_due" in plan
    assert "Seq Scan" not in plan
