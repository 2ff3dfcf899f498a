"""Group commit: what shares a transaction, who is answered what, and whom another's trouble does not touch."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from asyncpg import exceptions as pg

from amo_receiver.amocrm.events import read_body
from amo_receiver.amocrm.fields import Mapping
from amo_receiver.errors import Problem, Unavailable
from amo_receiver.inbox.batch import MOST_BYTES, MOST_DELIVERIES, MOST_FLUSHES, GroupCommit, Outcome, Waiter, attempt_record
from amo_receiver.inbox.delivery import UNPARSED, Credential, Delivery, Headers, add_events, open_delivery
from amo_receiver.inbox.repository import Accepted, DatabaseTimeout, Known, Settlement
from amo_receiver.inbox.settling import Failure, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    OnAccept = Callable[[Sequence[Delivery]], Awaitable[Accepted]]

MAPPING = Mapping({})
DONE = Outcome(1, [])
WHOLE = Accepted(applied=True, known={}, sqlstate=None, constraint=None)
NOT_APPLIED = Accepted(applied=False, known={}, sqlstate="40P01", constraint=None)
LATER = 30.0
SOON = 0.3


def delivery(*lead_ids: object, entity: str = "leads", body: bytes = b"{}") -> Delivery:
    """Return a delivery with a lead update for each id; one that is no id makes a dead event."""
    made = open_delivery("1", time.time(), Credential("default", "token", "0" * 12), Headers(), body)
    items = read_body({entity: {"update": [{"id": lead_id, "name": "x"} for lead_id in lead_ids]}}, time.time()).items
    add_events(made, items, lambda _: "1", MAPPING.for_account)
    return made


def known(copies: dict[str, tuple[str, str]]) -> Accepted:
    """Return the answer of a database that knew some events: id → (the first one's id, its state)."""
    return Accepted(False, {event_id: Known(*first) for event_id, first in copies.items()}, None, None)


class Gate:
    """A call of accept that waits until the test opens it."""

    def __init__(self) -> None:
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    async def __call__(self, _: Sequence[Delivery]) -> Accepted:
        await self._open.wait()
        return WHOLE


class FakeRepository:
    """A database that does what a test tells it and remembers what it was asked."""

    def __init__(self) -> None:
        self.accepts: list[list[Delivery]] = []
        self.applied: list[bool] = []
        self.settles: list[list[str]] = []
        self.failed: list[dict[str, Any]] = []
        self.deferred: list[dict[str, Any]] = []
        self.attempts: list[dict[str, Any]] = []
        self.lock_timeouts: set[int | None] = set()
        self.on_accept: list[Exception | Accepted | OnAccept] = []
        self.refuse: Callable[[Sequence[Delivery]], Exception | None] = lambda _: None
        self.unsettled: dict[str, Exception] = {}
        self.settle_gate = asyncio.Event()
        self.settle_gate.set()
        self.note_error: Exception | None = None
        self._gates: list[Gate] = []

    def gate(self) -> Gate:
        """Return a call of accept that waits."""
        self._gates.append(Gate())
        return self._gates[-1]

    def release(self) -> None:
        """Let every call go on, so that a test that failed ends too."""
        self.settle_gate.set()
        for gate in self._gates:
            gate.open()

    async def accept(self, deliveries: Sequence[Delivery], *, apply: bool = True) -> Accepted:
        self.accepts.append(list(deliveries))
        self.applied.append(apply)
        answer = self.on_accept.pop(0) if self.on_accept else self.refuse(deliveries) or WHOLE
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Accepted) else await answer(deliveries)

    async def settle(self, settlements: Sequence[Settlement], lock_timeout_ms: int | None = None) -> None:
        ids = [each.event_id for each in settlements]
        self.settles.append(ids)
        self.lock_timeouts.add(lock_timeout_ms)
        await self.settle_gate.wait()
        for event_id in ids:
            if event_id in self.unsettled:
                raise self.unsettled[event_id]

    async def fail(self, failures: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> None:
        self._note(self.failed, failures, attempts)

    async def defer(self, failures: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> None:
        self._note(self.deferred, failures, attempts)

    def _note(self, kind: list[dict[str, Any]], failures: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> None:
        if self.note_error:
            raise self.note_error
        kind += failures
        self.attempts += attempts

    def ids(self) -> list[list[str]]:
        """Return the delivery ids of each call of accept."""
        return [[each.id for each in deliveries] for deliveries in self.accepts]


@pytest.fixture
async def repository() -> FakeRepository:
    return FakeRepository()


@pytest_asyncio.fixture
async def batches(repository: FakeRepository) -> AsyncIterator[GroupCommit]:
    """Return a group commit that runs."""
    made = GroupCommit(repository)  # type: ignore[arg-type]
    made.start()
    yield made
    repository.release()
    await made.stop()


def submit(batches: GroupCommit, *deliveries: Delivery, within: float = LATER) -> list[asyncio.Task[Outcome]]:
    """Begin a request for each delivery, all at once."""
    deadline = asyncio.get_running_loop().time() + within
    return [asyncio.create_task(batches.submit(each, deadline)) for each in deliveries]


async def until(condition: Callable[[], object]) -> None:
    """Let the others run until a condition holds; the test's own time limit ends it."""
    while not condition():
        await asyncio.sleep(0)


@dataclass
class Held:
    """As many calls as may be under way at once, all stuck: what is submitted now waits."""

    gates: list[Gate]
    tasks: list[asyncio.Task[Outcome]]

    async def end(self) -> None:
        """Let them go on."""
        for gate in self.gates:
            gate.open()
        assert await outcomes(self.tasks) == [DONE] * MOST_FLUSHES


async def hold(repository: FakeRepository, batches: GroupCommit) -> Held:
    """Occupy every call that may be under way."""
    held = Held([repository.gate() for _ in range(MOST_FLUSHES)], [])
    repository.on_accept = list(held.gates)
    while len(repository.accepts) < MOST_FLUSHES:
        held.tasks += submit(batches, delivery(1))
        await until(lambda: len(repository.accepts) == len(held.tasks))
    return held


async def outcomes(tasks: Iterable[asyncio.Task[Outcome]]) -> list[Outcome | str]:
    """Return each request's outcome, or the message of its 503."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Outcome | Unavailable) for result in results), results
    return [result if isinstance(result, Outcome) else str(result) for result in results]


# Sharing a transaction


async def test_requests_that_arrive_together_share_one_call(repository: FakeRepository, batches: GroupCommit) -> None:
    """One call holds all of them in the order of arrival, and each gets its own outcome."""
    sent = [delivery(1), delivery(2, 3), delivery(), delivery(4, "bad")]
    results = await outcomes(submit(batches, *sent))
    assert repository.ids() == [[each.id for each in sent]]
    assert results[:3] == [DONE, Outcome(2, []), Outcome(0, [])]
    assert results[3] == Outcome(1, [Problem("leads.update[1].id", "is not a positive 64-bit integer")])


async def test_a_call_that_is_stuck_does_not_stop_the_next(repository: FakeRepository, batches: GroupCommit) -> None:
    """What arrives meanwhile is committed and answered before it."""
    stuck = repository.gate()
    repository.on_accept = [stuck]
    first = submit(batches, delivery(1))
    await until(lambda: repository.accepts)
    sent = [delivery(2), delivery(3)]
    assert await outcomes(submit(batches, *sent)) == [DONE, DONE]
    assert repository.ids()[1:] == [[each.id for each in sent]]
    assert not first[0].done()
    stuck.open()
    assert await outcomes(first) == [DONE]


async def test_while_calls_are_under_way_the_next_batch_gathers(repository: FakeRepository, batches: GroupCommit) -> None:
    """What arrives one after the other goes into one call once there is room for it."""
    held = await hold(repository, batches)
    sent = [delivery(8), delivery(9)]
    waiting = submit(batches, sent[0])
    await until(lambda: batches._queue)
    waiting += submit(batches, sent[1])
    await until(lambda: len(batches._queue) == 2)
    held.gates[0].open()
    assert await outcomes(waiting) == [DONE, DONE]
    assert repository.ids()[MOST_FLUSHES:] == [[each.id for each in sent]]
    await held.end()


async def test_no_more_calls_than_connections_can_bear(repository: FakeRepository, batches: GroupCommit) -> None:
    """With as many calls stuck as may be, further deliveries wait, and at their deadline they are unknown without a call."""
    held = await hold(repository, batches)
    late = await outcomes(submit(batches, delivery(8), delivery(9), within=SOON))
    assert late == ["The database did not answer in time."] * 2
    assert len(repository.accepts) == MOST_FLUSHES
    await held.end()
    assert await outcomes(submit(batches, delivery(10))) == [DONE]


async def test_a_batch_is_bounded_by_count(repository: FakeRepository, batches: GroupCommit) -> None:
    """More deliveries than a batch may have make another batch, and none is lost between the two."""
    sent = [delivery() for _ in range(MOST_DELIVERIES + 1)]
    assert await outcomes(submit(batches, *sent)) == [Outcome(0, [])] * len(sent)
    assert [len(ids) for ids in repository.ids()] == [MOST_DELIVERIES, 1]
    assert [*chain(*repository.ids())] == [each.id for each in sent]


async def test_a_batch_is_bounded_by_bytes(repository: FakeRepository, batches: GroupCommit) -> None:
    """Bodies beyond the bytes of a batch wait for the next, and one that is larger alone goes alone."""
    half = bytes(MOST_BYTES // 2)
    sent = [delivery(body=half), delivery(body=half), delivery(body=b"x"), delivery(body=bytes(MOST_BYTES + 1)), delivery(body=b"x")]
    await outcomes(submit(batches, *sent))
    assert [len(ids) for ids in repository.ids()] == [2, 1, 1, 1]


async def test_stopping_commits_what_waits(repository: FakeRepository) -> None:
    """Everything that was submitted is answered before stop returns."""
    gate = repository.gate()
    repository.on_accept = [gate]
    batches = GroupCommit(repository)  # type: ignore[arg-type]
    batches.start()
    first = submit(batches, delivery(1))
    await until(lambda: repository.accepts)
    second = submit(batches, delivery(2))
    stopping = asyncio.create_task(batches.stop())
    await asyncio.sleep(0)
    gate.open()
    await stopping
    assert [task.done() for task in first + second] == [True, True]
    assert await outcomes(first + second) == [DONE, DONE]


async def test_stopping_what_was_never_started() -> None:
    """A process that ends before it began has nothing to wait for."""
    await GroupCommit(FakeRepository()).stop()  # type: ignore[arg-type]


# Deadlines and cancellation


async def test_a_waiter_past_its_deadline_is_taken_out(repository: FakeRepository, batches: GroupCommit) -> None:
    """Its answer is unknown, and the batch that it waited for goes without it."""
    held = await hold(repository, batches)
    late, good = delivery(8), delivery(9)
    expired, waiting = submit(batches, late, within=0), submit(batches, good)
    assert await outcomes(expired) == ["The database did not answer in time."]
    await held.end()
    assert await outcomes(waiting) == [DONE]
    assert repository.ids()[MOST_FLUSHES:] == [[good.id]]


async def test_a_deadline_during_the_call_is_unknown(
    repository: FakeRepository, batches: GroupCommit, caplog: pytest.LogCaptureFixture
) -> None:
    """The call itself goes on and may commit; its late answer troubles nobody."""
    gate = repository.gate()
    repository.on_accept = [gate]
    late, good = submit(batches, delivery(1), within=SOON), submit(batches, delivery(2))
    assert await outcomes(late) == ["The database did not answer in time."]
    gate.open()
    assert await outcomes(good) == [DONE]
    assert len(repository.accepts) == 1
    assert not caplog.records


async def test_a_deadline_after_the_commit_is_partial(repository: FakeRepository, batches: GroupCommit) -> None:
    """What is stored is never answered 503: its events are not applied yet."""
    repository.on_accept = [NOT_APPLIED]
    repository.settle_gate.clear()
    (result,) = await outcomes(submit(batches, delivery(1, 2), within=1.0))
    assert result == Outcome(0, [Problem(f"leads.update[{number}]", "not applied yet") for number in (0, 1)])


async def test_a_cancelled_request_does_not_touch_the_others(repository: FakeRepository, batches: GroupCommit) -> None:
    """A sender that goes away while its batch is under way leaves the call and the other answers alone."""
    gate = repository.gate()
    repository.on_accept = [gate]
    gone, stays = submit(batches, delivery(1), delivery(2))
    await until(lambda: repository.accepts)
    gone.cancel()
    await until(gone.done)
    assert gone.cancelled()
    gate.open()
    assert await outcomes([stays]) == [DONE]
    assert [len(ids) for ids in repository.ids()] == [2]


async def test_a_request_cancelled_while_it_waits_is_taken_out(repository: FakeRepository, batches: GroupCommit) -> None:
    """Nothing of it reaches the database."""
    held = await hold(repository, batches)
    sent = [delivery(8), delivery(9)]
    gone, stays = submit(batches, *sent)
    await until(lambda: len(batches._queue) == 2)
    gone.cancel()
    await until(gone.done)
    await held.end()
    assert await outcomes([stays]) == [DONE]
    assert repository.ids()[MOST_FLUSHES:] == [[sent[1].id]]


# Trouble of the database


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        pg.ConnectionDoesNotExistError("x"),
        pg.ConnectionFailureError("x"),
        pg.InterfaceError("connection is closed"),
        pg.DeadlockDetectedError("x"),
        pg.SerializationError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_lost_connection_is_tried_once_more_with_the_same_ids(
    repository: FakeRepository, batches: GroupCommit, error: Exception
) -> None:
    """The commit may have happened, and the same ids make the second call harmless."""
    sent = [delivery(1), delivery(2)]
    event_ids = [event.id for each in sent for event in each.events]
    repository.on_accept = [error]
    assert await outcomes(submit(batches, *sent)) == [DONE, DONE]
    assert repository.ids() == [[each.id for each in sent]] * 2
    assert [event.id for each in repository.accepts[1] for event in each.events] == event_ids


@pytest.mark.parametrize(
    ("errors", "calls"),
    [
        ([ConnectionRefusedError(), ConnectionRefusedError()], 2),
        ([pg.DeadlockDetectedError("x"), pg.DeadlockDetectedError("x")], 2),
        ([pg.ConnectionFailureError("x"), pg.TooManyConnectionsError("x")], 2),
        ([DatabaseTimeout()], 1),
        ([pg.TooManyConnectionsError("x")], 1),
        ([pg.AdminShutdownError("x")], 1),
        ([pg.QueryCanceledError("x")], 1),
        ([pg.LockNotAvailableError("x")], 1),
        ([pg.UndefinedFunctionError("x")], 1),
    ],
    ids=lambda value: "-".join(type(error).__name__ for error in value) if isinstance(value, list) else "",
)
async def test_trouble_of_the_database_is_unknown_for_the_whole_batch(
    repository: FakeRepository, batches: GroupCommit, errors: list[Exception], calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each sender is to come again, the log says why without quoting anything, and the next batch is a new try."""
    repository.on_accept = list(errors)
    assert await outcomes(submit(batches, delivery(1), delivery(2))) == ["The database is not available."] * 2
    assert len(repository.accepts) == calls
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message == "Batch not stored"
    assert type(errors[-1]).__name__ in str(vars(record))
    assert "Иван" not in str(vars(record))
    assert await outcomes(submit(batches, delivery(3))) == [DONE]


async def test_the_second_try_may_find_the_first_one_committed(repository: FakeRepository, batches: GroupCommit) -> None:
    """Events known under their own id and processed are done; those that are pending are settled now."""
    sent = delivery(1, 2)
    one, two = (event.id for event in sent.events)
    repository.on_accept = [ConnectionResetError(), known({one: (one, "processed"), two: (two, "pending")})]
    assert await outcomes(submit(batches, sent)) == [Outcome(2, [])]
    assert repository.settles == [[two]]


# Offending deliveries


OFFENCES = [
    pg.NumericValueOutOfRangeError("x"),
    pg.UntranslatableCharacterError("x"),
    pg.CheckViolationError("x"),
    pg.ProgramLimitExceededError("x"),
]


@pytest.mark.parametrize("offence", OFFENCES, ids=lambda error: error.sqlstate)
async def test_the_offender_is_found_and_stored_as_a_raw_body(
    repository: FakeRepository, batches: GroupCommit, offence: pg.PostgresError, caplog: pytest.LogCaptureFixture
) -> None:
    """The database refuses one delivery's data: all others are stored as they are, that one as its body with a dead event."""
    sent = [delivery(number, body=bytes([number])) for number in range(1, 6)]
    repository.refuse = lambda given: offence if any(each.id == sent[3].id and not each.unparsed for each in given) else None
    results = await outcomes(submit(batches, *sent))
    reason = f"{type(offence).__name__} {offence.sqlstate}"
    assert results == [DONE, DONE, DONE, Outcome(0, [Problem("", reason)]), DONE]
    (kept,) = [each for deliveries in repository.accepts for each in deliveries if each.unparsed]
    assert (kept.id, kept.body, len(kept.events)) == (sent[3].id, b"\x04", 1)
    assert (kept.events[0].entity, str(kept.events[0].problem), kept.events[0].row) == (UNPARSED, reason, None)
    stored = [ids for ids, deliveries in zip(repository.ids(), repository.accepts, strict=True) if not repository.refuse(deliveries)]
    assert sorted(chain(*stored)) == sorted(each.id for each in sent)
    assert [record.message for record in caplog.records] == ["Delivery not storable as events"]


async def test_two_offenders_are_both_found(repository: FakeRepository, batches: GroupCommit) -> None:
    """Halving goes on in both halves."""
    sent = [delivery(number) for number in range(1, 8)]
    bad = {sent[0].id, sent[6].id}
    repository.refuse = lambda given: OFFENCES[0] if any(each.id in bad and not each.unparsed for each in given) else None
    results = await outcomes(submit(batches, *sent))
    assert [isinstance(result, Outcome) and result.processed for result in results] == [0, 1, 1, 1, 1, 1, 0]


async def test_what_is_refused_even_as_a_raw_body_takes_nobody_with_it(repository: FakeRepository, batches: GroupCommit) -> None:
    """Such a delivery alone is answered 503; the others of its batch are stored."""
    sent = [delivery(1), delivery(2), delivery(3)]
    repository.refuse = lambda given: OFFENCES[1] if any(each.id == sent[0].id for each in given) else None
    results = await outcomes(submit(batches, *sent))
    assert results == ["The database refused the delivery.", DONE, DONE]


async def test_trouble_amid_the_search_leaves_what_is_stored(repository: FakeRepository, batches: GroupCommit) -> None:
    """A half that was committed before the database went away is answered 200, the rest is unknown."""
    sent = [delivery(1), delivery(2), delivery(3)]
    repository.on_accept = [OFFENCES[0], WHOLE, pg.TooManyConnectionsError("x")]
    assert await outcomes(submit(batches, *sent)) == [DONE, "The database is not available.", "The database is not available."]


# Applying what is only stored


@pytest.mark.parametrize(
    ("error", "noted", "outcome"),
    [
        (pg.NumericValueOutOfRangeError("x"), "failed", "failed"),
        (pg.InvalidTextRepresentationError("x"), "failed", "failed"),
        (pg.LockNotAvailableError("x"), "deferred", "deferred"),
        (pg.DeadlockDetectedError("x"), "deferred", "deferred"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_an_event_that_cannot_be_applied_does_not_keep_the_others_back(
    repository: FakeRepository, batches: GroupCommit, error: Exception, noted: str, outcome: str
) -> None:
    """What was only stored is settled, halved until the offender stands alone; its request is partial, and the attempt is noted."""
    sent = [delivery(1), delivery(2, 3), delivery(4)]
    bad = sent[1].events[0]
    repository.on_accept = [NOT_APPLIED]
    repository.unsettled = {bad.id: error}
    reason = f"{type(error).__name__} {getattr(error, 'sqlstate', '')}"
    results = await outcomes(submit(batches, *sent))
    assert results == [DONE, Outcome(1, [Problem("leads.update[0]", reason)]), DONE]
    await until(lambda: repository.attempts)
    notes = {"failed": repository.failed, "deferred": repository.deferred}
    assert notes.pop(noted) == [{"account_id": "1", "id": bad.id, "error": reason, "permanent": False}]
    assert list(notes.values()) == [[]]
    (attempt,) = repository.attempts
    assert (attempt["event_id"], attempt["number"], attempt["kind"], attempt["outcome"]) == (bad.id, 1, "accept", outcome)
    applied = {event_id for ids in repository.settles if bad.id not in ids for event_id in ids}
    assert applied == {event.id for each in sent for event in each.events} - {bad.id}
    assert len(repository.accepts) == 1
    assert repository.lock_timeouts == {100}


@pytest.mark.parametrize(
    "error", [DatabaseTimeout(), pg.TooManyConnectionsError("x"), pg.ConnectionFailureError("x"), pg.QueryCanceledError("x")]
)
async def test_a_database_in_trouble_is_not_asked_again_for_each_half(
    repository: FakeRepository, batches: GroupCommit, error: Exception
) -> None:
    """Halving would only ask it more often: all events stay pending, and no attempt counts."""
    sent = [delivery(1), delivery(2)]
    ids = [each.events[0].id for each in sent]
    repository.on_accept = [NOT_APPLIED]
    repository.unsettled = {ids[1]: error}
    results = await outcomes(submit(batches, *sent))
    assert [isinstance(result, Outcome) and result.processed for result in results] == [0, 0]
    await until(lambda: repository.attempts)
    assert repository.settles == [ids]
    assert [note["id"] for note in repository.deferred] == ids
    assert repository.failed == []


async def test_attempts_that_cannot_be_noted_do_no_harm(
    repository: FakeRepository, batches: GroupCommit, caplog: pytest.LogCaptureFixture
) -> None:
    """The events are pending and due in any case."""
    repository.on_accept = [NOT_APPLIED]
    sent = delivery(1)
    repository.unsettled = {sent.events[0].id: OFFENCES[0]}
    repository.note_error = ConnectionResetError()
    (result,) = await outcomes(submit(batches, sent))
    assert isinstance(result, Outcome)
    assert len(result.problems) == 1
    await until(lambda: "Failed attempts not written down" in caplog.text)
    assert await outcomes(submit(batches, delivery(2))) == [DONE]


async def test_what_is_recorded_only_is_not_settled(repository: FakeRepository, batches: GroupCommit) -> None:
    """Tasks and dead items are in the state they stay in once they are stored."""
    task, lead = delivery(1, entity="task"), delivery(2, "bad")
    repository.on_accept = [NOT_APPLIED]
    results = await outcomes(submit(batches, task, lead))
    assert results == [DONE, Outcome(1, [Problem("leads.update[1].id", "is not a positive 64-bit integer")])]
    assert repository.settles == [[lead.events[0].id]]


# Duplicates


@pytest.mark.parametrize(
    ("state", "processed", "reason"),
    [("processed", 1, None), ("pending", 0, "its first copy is pending"), ("dead", 0, "its first copy is dead")],
)
async def test_a_duplicate_counts_as_its_first_one_does(
    repository: FakeRepository, batches: GroupCommit, state: str, processed: int, reason: str | None
) -> None:
    """Processed where the first one's effect is in the tables, else partial; it is not applied a second time."""
    sent = delivery(1)
    repository.on_accept = [known({sent.events[0].id: ("first", state)})]
    problems = [Problem("leads.update[0]", reason)] if reason else []
    assert await outcomes(submit(batches, sent)) == [Outcome(processed, problems)]
    assert repository.settles == []


async def test_the_others_of_a_batch_with_a_duplicate_are_applied(repository: FakeRepository, batches: GroupCommit) -> None:
    """Events that are new are settled in one go, without the duplicate."""
    copy, new = delivery(1), delivery(2, 3)
    repository.on_accept = [known({copy.events[0].id: ("first", "processed")})]
    assert await outcomes(submit(batches, copy, new)) == [DONE, Outcome(2, [])]
    assert repository.settles == [[event.id for event in new.events]]


@pytest.mark.parametrize("error", [None, OFFENCES[0]])
async def test_a_copy_in_the_same_batch_has_its_first_one_s_outcome(
    repository: FakeRepository, batches: GroupCommit, error: Exception | None
) -> None:
    """The first one is pending until the batch is settled, and its copy's answer waits for what becomes of it."""
    first, copy = delivery(1), delivery(1)
    first_id, copy_id = first.events[0].id, copy.events[0].id
    repository.on_accept = [known({copy_id: (first_id, "pending")})]
    repository.unsettled = {first_id: error} if error else {}
    results = await outcomes(submit(batches, first, copy))
    failed = Outcome(0, [Problem("leads.update[0]", "NumericValueOutOfRangeError 22003")])
    assert results == [failed if error else DONE] * 2
    assert repository.settles == [[first_id]]


# The parts


async def test_settling_stops_at_its_deadline(repository: FakeRepository) -> None:
    """What the deadline leaves over has no outcome."""
    settlements = [Settlement("1", event.id, event.row, "leads") for event in delivery(1, 2).events]
    now = asyncio.get_running_loop().time()
    assert await settle(repository, settlements, now) == {}  # type: ignore[arg-type]
    assert await settle(repository, [], now + LATER) == {}  # type: ignore[arg-type]
    assert repository.settles == []


async def test_a_waiter_is_answered_once() -> None:
    """The first of answer, failure and deadline counts."""
    loop = asyncio.get_running_loop()
    waiter = Waiter(delivery(1), loop.time(), loop.create_future())
    waiter.resolve({})
    waiter.fail("x")
    waiter.expire()
    assert await waiter.answer == DONE


def test_what_is_written_down_of_an_attempt() -> None:
    """applied, failed (it counts) or deferred (the database's trouble: given back), and never what the database quoted."""
    error = pg.CheckViolationError("Failing row contains (Иван)")
    record = attempt_record("1", "e", 2, "retry", Failure(error), "2022-01-01")
    assert (record["outcome"], record["error"]) == ("failed", "CheckViolationError 23514")
    assert attempt_record("1", "e", 1, "retry", Failure(DatabaseTimeout()))["outcome"] == "deferred"
    assert (attempt_record("1", "e", 1, "retry", None)["outcome"], attempt_record("1", "e", 1, "retry", None)["error"]) == ("applied", None)
