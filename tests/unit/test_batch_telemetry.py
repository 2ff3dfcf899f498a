"""What a group commit tells of itself: a span that its calls are below, its size and wait, and what became of each event."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from asyncpg import exceptions as pg

from amo_receiver.inbox.batch import GroupCommit
from amo_receiver.inbox.settling import MOST_AT_ONCE
from amo_receiver.telemetry.current import CURRENT
from amo_receiver.telemetry.metrics import Metrics
from amo_receiver.telemetry.spans import batch_shape, batch_span
from amo_receiver.telemetry.tracing import Tracing
from exposition import read, sample
from fake_repository import NOT_APPLIED, OFFENCES, SOON, WHOLE, FakeRepository, delivery, known, outcomes, submit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from amo_receiver.inbox.delivery import Delivery
    from amo_receiver.inbox.repository import Accepted
    from amo_receiver.telemetry.spans import OpenSpan

NOW = 1_700_000_000_000_000_000
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Watching(FakeRepository):
    """It remembers the span that each call was made under."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[OpenSpan | None] = []

    async def accept(self, deliveries: Sequence[Delivery], *, apply: bool = True) -> Accepted:
        self.spans.append(CURRENT.get())
        return await super().accept(deliveries, apply=apply)


@asynccontextmanager
async def running(repository: FakeRepository, tracing: Tracing | None = None, metrics: Metrics | None = None) -> AsyncIterator[GroupCommit]:
    """Yield a group commit; afterwards everything of it has ended."""
    batches = GroupCommit(repository, tracing, metrics)  # type: ignore[arg-type]
    batches.start()
    yield batches
    await batches.stop()


@pytest.mark.parametrize("error", [None, pg.TooManyConnectionsError("x")], ids=["stored", "not stored"])
async def test_a_batch_is_a_span_linked_with_its_deliveries(error: Exception | None) -> None:
    """Its calls are made below it; it counts deliveries and events, links those that are traced, and names the error."""
    written: list[bytes] = []
    tracing = Tracing(written.append, clock=lambda: NOW)
    repository = Watching()
    repository.on_accept = [error or WHOLE]
    sent = [delivery(1, 2), delivery(3), delivery(4)]
    sent[0].span, sent[2].span = tracing.accept(PARENT, NOW), tracing.accept(None, NOW)
    async with running(repository, tracing) as batches:
        await outcomes(submit(batches, *sent))
    (span,) = repository.spans
    assert span is not None
    assert (span.parent_id, span.start_ns) == (b"", NOW)
    accepts = [sent[0].span, sent[2].span]
    assert written == [batch_span(span, NOW, accepts, batch_shape(3, 4, type(error).__name__ if error else ""))]


async def test_where_nothing_is_traced_there_is_no_span() -> None:
    """A call is then below nothing."""
    repository = Watching()
    async with running(repository) as batches:
        await outcomes(submit(batches, delivery(1)))
    assert repository.spans == [None]


@pytest.mark.parametrize("error", [pg.LockNotAvailableError("x"), OFFENCES[0]])
async def test_a_failed_attempt_belongs_to_the_trace_of_its_delivery(error: Exception) -> None:
    """Whoever looks at the attempt finds the request that brought the event."""
    repository = FakeRepository()
    sent = [delivery(1), delivery(2)]
    sent[1].headers.traceparent = PARENT
    repository.on_accept = [NOT_APPLIED]
    repository.unsettled = {each.events[0].id: error for each in sent}
    async with running(repository) as batches:
        await outcomes(submit(batches, *sent))
    assert [attempt["traceparent"] for attempt in repository.attempts] == [None, PARENT]


async def counts(metrics: Metrics, entity: str = "leads") -> dict[str, float]:
    """Return how many updates of an entity there were, by outcome."""
    words = ("applied", "recorded", "pending", "dead", "duplicate")
    series = await read(metrics)
    names = {outcome: sample("amo_events_total", amo_entity=entity, amo_action="update", amo_outcome=outcome) for outcome in words}
    return {outcome: series[name] for outcome, name in names.items() if series.get(name)}


async def test_the_size_and_the_wait_of_a_batch_are_measured() -> None:
    """The wait is that of its first delivery, so it is never longer than the requests took."""
    metrics = Metrics()
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with running(FakeRepository(), metrics=metrics) as batches:
        await outcomes(submit(batches, delivery(1), delivery(2)))
        await outcomes(submit(batches, delivery(3)))
    series = await read(metrics)
    assert (series[sample("amo_batch_size_count")], series[sample("amo_batch_size_sum")]) == (2, 3)
    assert series[sample("amo_batch_wait_seconds_count")] == 2
    assert 0 <= series[sample("amo_batch_wait_seconds_sum")] <= loop.time() - began


async def test_each_event_is_counted_by_what_became_of_it() -> None:
    """Applied, recorded, dead, a duplicate of another, or pending because it failed or its first copy waits."""
    metrics, repository = Metrics(), FakeRepository()
    whole = [delivery(1, 2), delivery(3, entity="task"), delivery("bad")]
    late = [delivery(4, 5, 6), delivery(7)]
    good, failing, copy = (event.id for event in late[0].events)
    again = late[1].events[0].id
    repository.on_accept = [WHOLE, known({copy: ("first", "pending"), again: (again, "pending")})]
    repository.unsettled = {failing: OFFENCES[0]}
    async with running(repository, metrics=metrics) as batches:
        await outcomes(submit(batches, *whole))
        await outcomes(submit(batches, *late))
    assert repository.settles[0] == [good, failing, again]
    assert await counts(metrics) == {"applied": 4, "dead": 1, "pending": 1, "duplicate": 1}
    assert await counts(metrics, "task") == {"recorded": 1}


async def test_what_the_deadline_leaves_over_is_counted_as_pending() -> None:
    """Of more events than one call settles, those of the second call when there is no time left for it."""
    metrics, repository = Metrics(), FakeRepository()
    repository.on_accept = [NOT_APPLIED]
    repository.settle_gate.clear()
    async with running(repository, metrics=metrics) as batches:
        await outcomes(submit(batches, delivery(*range(1, MOST_AT_ONCE + 3)), within=SOON))
        repository.release()
    assert await counts(metrics) == {"applied": MOST_AT_ONCE, "pending": 2}
