"""Settling: events that were only stored are applied in spite of one another, and duplicates are answered as their first ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from asyncpg import exceptions as pg

from amo_receiver.database import DatabaseTimeout
from amo_receiver.errors import Problem
from amo_receiver.inbox.batch import GroupCommit, Outcome, Waiter
from amo_receiver.inbox.repository import Settlement
from amo_receiver.inbox.settling import Failure, attempt_record, settle
from fake_repository import (
    DONE,
    LATER,
    NOT_APPLIED,
    OFFENCES,
    FakeRepository,
    delivery,
    known,
    outcomes,
    submit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class Remembering(FakeRepository):
    """It keeps what it was asked to settle."""

    def __init__(self) -> None:
        super().__init__()
        self.settlements: list[Settlement] = []

    async def settle(self, settlements: Sequence[Settlement], lock_timeout_ms: int | None = None) -> None:
        self.settlements += settlements
        await super().settle(settlements, lock_timeout_ms)


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
    await batches.stop()
    notes = {"failed": repository.failed, "deferred": repository.deferred}
    assert notes.pop(noted) == [{"account_id": "1", "id": bad.id, "error": reason, "permanent": False}]
    assert list(notes.values()) == [[]]
    (attempt,) = repository.attempts
    assert (attempt["account_id"], attempt["event_id"], attempt["number"]) == ("1", bad.id, 1)
    assert (attempt["kind"], attempt["outcome"], attempt["error"]) == ("accept", outcome, reason)
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
    await batches.stop()
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
    assert await outcomes(submit(batches, delivery(2))) == [DONE]
    await batches.stop()
    assert caplog.messages == ["Events not applied yet", "Failed attempts not written down"]
    assert vars(caplog.records[1])["fields"] == {"error": "ConnectionResetError"}


async def test_one_line_tells_of_all_that_is_not_applied_yet(
    repository: FakeRepository, batches: GroupCommit, caplog: pytest.LogCaptureFixture
) -> None:
    """How many events wait, those that failed and those deferred, and the first of them with its reason."""
    sent = delivery(1, 2, 3, 4)
    ids = [event.id for event in sent.events]
    repository.on_accept = [NOT_APPLIED]
    repository.unsettled = {ids[0]: pg.LockNotAvailableError("x"), ids[1]: OFFENCES[0], ids[3]: OFFENCES[1]}
    (result,) = await outcomes(submit(batches, sent))
    assert isinstance(result, Outcome)
    assert result.processed == 1
    await batches.stop()
    assert [note["id"] for note in repository.failed] == [ids[1], ids[3]]
    assert [note["id"] for note in repository.deferred] == [ids[0]]
    fields = {"events": 3, "event_id": ids[1], "error": "NumericValueOutOfRangeError 22003"}
    assert [(record.levelname, record.message, vars(record)["fields"]) for record in caplog.records] == [
        ("WARNING", "Events not applied yet", fields)
    ]


async def test_what_is_settled_is_each_event_s_own_effect() -> None:
    """Account, id, row and entity of the event, from which the database applies it."""
    repository = Remembering()
    batches = GroupCommit(repository)  # type: ignore[arg-type]
    batches.start()
    sent = [delivery(1, 2), delivery(3, entity="contacts")]
    repository.on_accept = [NOT_APPLIED]
    await outcomes(submit(batches, *sent))
    await batches.stop()
    settled = [(each.account_id, each.event_id, each.row, each.entity) for each in repository.settlements]
    assert settled == [("1", event.id, event.row, event.entity) for each in sent for event in each.events]
    assert all(row is not None for _, _, row, _ in settled)


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
    waiter = Waiter(delivery(1), loop.time(), loop.time(), loop.create_future())
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
