"""Group commit: what shares a transaction, who is answered what, and whom another's trouble does not touch."""

from __future__ import annotations

import asyncio
import time
from itertools import chain
from typing import TYPE_CHECKING

import pytest
from asyncpg import exceptions as pg

from amo_receiver.database import DatabaseTimeout, describe
from amo_receiver.errors import Problem
from amo_receiver.inbox.batch import LARGE_ENOUGH, MOST_BYTES, MOST_DELIVERIES, MOST_FLUSHES, MOST_WEIGHT, GroupCommit, Outcome
from amo_receiver.inbox.delivery import UNPARSED
from amo_receiver.inbox.settling import MOST_AT_ONCE
from fake_repository import (
    DONE,
    LATER,
    NOT_APPLIED,
    OFFENCES,
    SOON,
    WHOLE,
    FakeRepository,
    delivery,
    hold,
    known,
    outcomes,
    submit,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_receiver.inbox.delivery import Delivery


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, dict[str, object]]]:
    """Return level, message and pairs of each line."""
    return [(record.levelname, record.message, vars(record)["fields"]) for record in caplog.records]


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
    held.gates[0].open()
    await until(lambda: not batches._queue)
    assert await outcomes(submit(batches, delivery(10))) == [DONE]
    await held.end()


async def test_a_batch_is_bounded_by_count(repository: FakeRepository, batches: GroupCommit) -> None:
    """More deliveries than a batch may have make another batch, and none is lost between the two."""
    sent = [delivery() for _ in range(MOST_DELIVERIES * 2 + 2)]
    assert await outcomes(submit(batches, *sent)) == [Outcome(0, [])] * len(sent)
    assert [len(ids) for ids in repository.ids()][:2] == [MOST_DELIVERIES, MOST_DELIVERIES // 2 + 1]
    assert [*chain(*repository.ids())] == [each.id for each in sent]


async def test_what_waits_goes_out_in_halves(repository: FakeRepository, batches: GroupCommit) -> None:
    """So that the database works on one while the answers of the other are written."""
    await outcomes(submit(batches, *[delivery() for _ in range(LARGE_ENOUGH * 3)]))
    assert [len(ids) for ids in repository.ids()] == [LARGE_ENOUGH * 3 // 2, LARGE_ENOUGH, LARGE_ENOUGH // 2]


async def test_a_small_batch_waits_for_the_call_under_way(repository: FakeRepository) -> None:
    """It goes out when that call ends, or as soon as it is large enough."""
    first, second = repository.gate(), repository.gate()
    repository.on_accept = [first, second]
    batches = GroupCommit(repository, patience_seconds=LATER)  # type: ignore[arg-type]
    batches.start()
    waiting = submit(batches, delivery(1))
    await until(lambda: len(repository.accepts) == 1)
    waiting += submit(batches, *[delivery(2) for _ in range(LARGE_ENOUGH - 1)])
    await until(lambda: len(batches._queue) == LARGE_ENOUGH - 1)
    assert len(repository.accepts) == 1
    waiting += submit(batches, delivery(2))
    await until(lambda: len(repository.accepts) == 2)
    waiting += submit(batches, delivery(3))
    await until(lambda: batches._queue)
    first.open()
    await until(lambda: len(repository.accepts) == 3)
    second.open()
    assert await outcomes(waiting) == [DONE] * len(waiting)
    assert [len(ids) for ids in repository.ids()] == [1, LARGE_ENOUGH, 1]
    await batches.stop()


async def test_a_large_batch_waits_for_nobody(repository: FakeRepository) -> None:
    """It is sent along while a call is under way."""
    gate = repository.gate()
    repository.on_accept = [gate]
    batches = GroupCommit(repository, patience_seconds=LATER)  # type: ignore[arg-type]
    batches.start()
    stuck = submit(batches, delivery(1))
    await until(lambda: repository.accepts)
    assert await outcomes(submit(batches, *[delivery(2) for _ in range(LARGE_ENOUGH)])) == [DONE] * LARGE_ENOUGH
    assert not stuck[0].done()
    gate.open()
    await batches.stop()


async def test_a_batch_is_bounded_by_bytes(repository: FakeRepository, batches: GroupCommit) -> None:
    """Bodies beyond the bytes of a batch wait for the next, and one that is larger alone goes alone."""
    half = bytes(MOST_BYTES // 2)
    sent = [delivery(body=half), delivery(body=half), delivery(body=b"x"), delivery(body=bytes(MOST_BYTES + 1)), delivery(body=b"x")]
    await outcomes(submit(batches, *sent))
    assert [len(ids) for ids in repository.ids()] == [2, 1, 1, 1]


async def test_a_batch_is_bounded_by_its_weight(repository: FakeRepository, batches: GroupCommit) -> None:
    """Events and the registers they write one by one count: what would be too much together makes two calls, both applied at once."""
    sent = [delivery(*range(1, MOST_WEIGHT // 4 + 1)) for _ in range(3)]
    assert [each.weight for each in sent] == [MOST_WEIGHT // 4 * 2] * 3
    await outcomes(submit(batches, *sent))
    assert [len(ids) for ids in repository.ids()] == [2, 1]
    assert repository.applied == [True, True]


async def test_a_delivery_too_heavy_for_one_call_is_stored_first(repository: FakeRepository, batches: GroupCommit) -> None:
    """It is alone in its batch, its first call only stores it, and then its events are applied in parts."""
    heavy, light = delivery(*range(1, MOST_WEIGHT // 2 + 2)), delivery(1)
    assert heavy.weight == MOST_WEIGHT + 2
    repository.on_accept = [NOT_APPLIED]
    results = await outcomes(submit(batches, heavy, light))
    assert results == [Outcome(len(heavy.events), []), DONE]
    assert [len(ids) for ids in repository.ids()] == [1, 1]
    assert repository.applied == [False, True]
    assert max(len(ids) for ids in repository.settles) <= MOST_AT_ONCE
    assert list(chain(*repository.settles)) == [event.id for event in heavy.events]


async def test_stopping_commits_what_waits(repository: FakeRepository) -> None:
    """Everything that was submitted is answered before stop returns."""
    gate = repository.gate()
    repository.on_accept = [gate]
    batches = GroupCommit(repository, patience_seconds=LATER)  # type: ignore[arg-type]
    batches.start()
    first = submit(batches, delivery(1))
    await until(lambda: repository.accepts)
    second = submit(batches, delivery(2))
    stopping = asyncio.create_task(batches.stop())
    await until(second[0].done)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not stopping.done()
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
    fields = {"deliveries": 2, "error": describe(errors[-1]), "error_type": type(errors[-1]).__name__}
    assert logged(caplog) == [("ERROR", "Batch not stored", fields)]
    assert await outcomes(submit(batches, delivery(3))) == [DONE]


async def test_an_outage_does_not_fill_the_log(repository: FakeRepository, caplog: pytest.LogCaptureFixture) -> None:
    """Of the batches that fail within a second one is written down, and how many others there were."""
    began = time.monotonic()
    batches = GroupCommit(repository)  # type: ignore[arg-type]
    batches.start()
    for _ in range(50):
        repository.on_accept = [pg.TooManyConnectionsError("x")]
        await outcomes(submit(batches, delivery(1)))
    batches.failures.close()
    await batches.stop()
    seconds = 1 + int(time.monotonic() - began)
    assert 1 <= caplog.messages.count("Batch not stored") <= seconds
    assert all(record.levelname == "ERROR" for record in caplog.records)
    assert len(caplog.messages) > caplog.messages.count("Batch not stored")


async def test_what_was_too_heavy_for_the_first_try_is_so_for_the_second(repository: FakeRepository, batches: GroupCommit) -> None:
    """After a lost connection, too, it is only stored first; what is light is applied at once."""
    for number, sent in enumerate((delivery(*range(1, MOST_WEIGHT // 2 + 2)), delivery(1))):
        repository.on_accept = [ConnectionResetError(), NOT_APPLIED]
        assert await outcomes(submit(batches, sent)) == [Outcome(len(sent.events), [])]
        assert repository.applied[number * 2 :] == [number == 1] * 2


async def test_the_second_try_may_find_the_first_one_committed(repository: FakeRepository, batches: GroupCommit) -> None:
    """Events known under their own id and processed are done; those that are pending are settled now."""
    sent = delivery(1, 2)
    one, two = (event.id for event in sent.events)
    repository.on_accept = [ConnectionResetError(), known({one: (one, "processed"), two: (two, "pending")})]
    assert await outcomes(submit(batches, sent)) == [Outcome(2, [])]
    assert repository.settles == [[two]]


# Offending deliveries


@pytest.mark.parametrize("offence", OFFENCES, ids=lambda error: error.sqlstate)
async def test_the_offender_is_found_and_stored_as_a_raw_body(
    repository: FakeRepository, batches: GroupCommit, offence: pg.PostgresError, caplog: pytest.LogCaptureFixture
) -> None:
    """The database refuses one delivery's data: all others are stored as they are, that one as its body with a dead event."""
    sent = [delivery(number, body=bytes([number])) for number in range(1, 6)]
    stored: list[str] = []

    def refuse(given: Sequence[Delivery]) -> Exception | None:
        is_refused = any(each.id == sent[3].id and not each.unparsed for each in given)
        stored.extend(each.id for each in given if not is_refused)
        return offence if is_refused else None

    repository.refuse = refuse
    results = await outcomes(submit(batches, *sent))
    reason = f"{type(offence).__name__} {offence.sqlstate}"
    assert results == [DONE, DONE, DONE, Outcome(0, [Problem("", reason)]), DONE]
    (kept,) = [each for each in sent if each.unparsed]  # in place: whoever submitted it tells of it
    assert (kept.id, kept.body, len(kept.events)) == (sent[3].id, b"\x04", 1)
    assert (kept.events[0].entity, str(kept.events[0].problem), kept.events[0].row) == (UNPARSED, reason, None)
    assert sorted(stored) == sorted(each.id for each in sent)
    fields = {"delivery_id": sent[3].id, "error_type": type(offence).__name__}
    assert logged(caplog) == [("ERROR", "Delivery not storable as events", fields)]


async def test_two_offenders_are_both_found(repository: FakeRepository, batches: GroupCommit) -> None:
    """Halving goes on in both halves."""
    sent = [delivery(number) for number in range(1, 8)]
    bad = {sent[0].id, sent[6].id}
    repository.refuse = lambda given: OFFENCES[0] if any(each.id in bad and not each.unparsed for each in given) else None
    results = await outcomes(submit(batches, *sent))
    assert [isinstance(result, Outcome) and result.processed for result in results] == [0, 1, 1, 1, 1, 1, 0]


async def test_what_is_refused_even_as_a_raw_body_takes_nobody_with_it(
    repository: FakeRepository, batches: GroupCommit, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a delivery alone is answered 503, and the log names it; the others of its batch are stored."""
    sent = [delivery(1), delivery(2), delivery(3)]
    repository.refuse = lambda given: OFFENCES[1] if any(each.id == sent[0].id for each in given) else None
    results = await outcomes(submit(batches, *sent))
    assert results == ["The database refused the delivery.", DONE, DONE]
    fields = {"delivery_id": sent[0].id, "error_type": type(OFFENCES[1]).__name__}
    assert logged(caplog)[1:] == [("ERROR", "Delivery not storable at all", fields)]


async def test_trouble_amid_the_search_leaves_what_is_stored(repository: FakeRepository, batches: GroupCommit) -> None:
    """A half that was committed before the database went away is answered 200, the rest is unknown."""
    sent = [delivery(1), delivery(2), delivery(3)]
    repository.on_accept = [OFFENCES[0], WHOLE, pg.TooManyConnectionsError("x")]
    assert await outcomes(submit(batches, *sent)) == [DONE, "The database is not available.", "The database is not available."]
