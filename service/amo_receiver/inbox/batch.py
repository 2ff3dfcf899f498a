"""Group commit: requests that arrive together share one transaction.

A flush runs in a task of its own, which no request's cancellation touches. While one is under way the next batch gathers, so a batch
is as large as the database is slow; once it is large enough it is sent along, so that the database works while requests are parsed.
A flush that takes longer than usual (a long lock, a stalled connection) does not stop the next.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from amo_receiver.database import describe, is_temporary, is_worth_repeating
from amo_receiver.errors import Problem, Unavailable
from amo_receiver.inbox.delivery import Delivery, as_unparsed
from amo_receiver.inbox.repository import Settlement
from amo_receiver.inbox.settling import Failure, attempt_record, settle
from amo_receiver.log import DeliveryLog, get_logger
from amo_receiver.telemetry.current import under
from amo_receiver.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from amo_receiver.inbox.repository import Accepted, Repository
    from amo_receiver.telemetry.tracing import Tracing

log = get_logger(__name__)

MOST_DELIVERIES = 500
MOST_BYTES = 8 * 1024 * 1024
MOST_WEIGHT = 3_000
"""Events and single registers of a batch; a delivery that has more is alone in its batch, and only stored in the first call."""
LARGE_ENOUGH = 32
"""Deliveries that need not wait for company: a larger batch saves the database little and keeps it idle meanwhile."""
PATIENCE_SECONDS = 0.005
"""How long a smaller batch waits for the one under way."""
MOST_FLUSHES = 4
SETTLE_LOCK_TIMEOUT_MS = 100
"""Shorter than the batch's own: what is in the way has been waited for once already."""


@dataclass(slots=True)
class Outcome:
    """What a delivery's answer says: how many of its events have their effect in the tables, and what is wrong with the others."""

    processed: int
    problems: list[Problem]


@dataclass(slots=True, eq=False)
class Waiter:
    """A delivery that waits for its commit since ``since``. ``stored``: committed as pending, so that only the outcome is open."""

    delivery: Delivery
    since: float
    deadline: float
    answer: asyncio.Future[Outcome]
    stored: bool = False
    waiting: set[str] = field(default_factory=set)

    def expire(self) -> None:
        """Answer at the deadline: what is stored is partial, everything else is unknown."""
        if self.answer.done():
            return
        if self.stored:
            self.resolve({})
        else:
            self.fail("The database did not answer in time.")

    def resolve(self, failures: dict[str, str | None]) -> None:
        """Answer with the outcome; ``failures`` maps event id → why it is not applied (None: it is); missing ones are not applied yet."""
        if self.answer.done():
            return
        problems = []
        for event in self.delivery.events:
            if event.problem:
                problems.append(event.problem)
            elif event.id in self.waiting and (reason := failures.get(event.id, "not applied yet")):
                problems.append(Problem(event.path, reason))
        self.answer.set_result(Outcome(len(self.delivery.events) - len(problems), problems))

    def fail(self, message: str) -> None:
        """Answer 503."""
        if not self.answer.done():
            self.answer.set_exception(Unavailable(message))


class GroupCommit:
    """The batches of one process."""

    def __init__(
        self,
        repository: Repository,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._repository = repository
        self._tracing = tracing
        self._metrics = metrics or Metrics()
        self._patience_seconds = patience_seconds
        self._queue: list[Waiter] = []
        self._filled = asyncio.Event()
        self._ripe = asyncio.Event()
        self._flushes: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None
        self._closing = False
        self.failures = DeliveryLog(log, 1, level=logging.ERROR)

    async def submit(self, delivery: Delivery, deadline: float) -> Outcome:
        """Return once the delivery is committed; Unavailable at ``deadline`` (loop time) or when the database is out of reach."""
        loop = asyncio.get_running_loop()
        waiter = Waiter(delivery, loop.time(), deadline, loop.create_future())
        timer = loop.call_at(deadline, waiter.expire)
        self._queue.append(waiter)
        self._filled.set()
        if len(self._queue) >= LARGE_ENOUGH:
            self._ripe.set()
        try:
            return await waiter.answer
        finally:
            timer.cancel()

    def start(self) -> None:
        """Begin to flush."""
        self._runner = asyncio.create_task(self._run(), name="group-commit")

    async def stop(self) -> None:
        """Flush what waits, and end."""
        self._closing = True
        self._filled.set()
        self._ripe.set()
        if self._runner:
            await self._runner
        await asyncio.gather(*self._flushes, return_exceptions=True)

    async def _run(self) -> None:
        while self._queue or not self._closing:
            await self._filled.wait()
            await self._ripen()
            batch = self._take()
            if not batch:
                continue
            flush = asyncio.create_task(self._flush(batch))
            self._flushes.add(flush)
            flush.add_done_callback(self._flushed)
            while len(self._flushes) >= MOST_FLUSHES:
                await asyncio.wait(self._flushes, return_when=asyncio.FIRST_COMPLETED)

    async def _ripen(self) -> None:
        """Let a small batch gather while a flush is under way, but not for long."""
        if not self._flushes or self._closing or len(self._queue) >= LARGE_ENOUGH:
            return
        self._ripe.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_seconds):
                await self._ripe.wait()

    def _flushed(self, flush: asyncio.Task[None]) -> None:
        self._flushes.discard(flush)
        self._ripe.set()

    def _take(self) -> list[Waiter]:
        """Take the next batch, without those whose time is over or whose request is gone; half of a long queue, to overlap."""
        size = weight = count = 0
        most = min(MOST_DELIVERIES, max(LARGE_ENOUGH, len(self._queue) // 2))
        for waiter in self._queue:
            size += len(waiter.delivery.body)
            weight += waiter.delivery.weight
            if count and (size > MOST_BYTES or weight > MOST_WEIGHT or count >= most):
                break
            count += 1
        batch = [waiter for waiter in self._queue[:count] if not waiter.answer.done()]
        del self._queue[:count]
        if not (self._queue or self._closing):
            self._filled.clear()
        return batch

    async def _flush(self, batch: list[Waiter]) -> None:
        self._metrics.began(len(batch), asyncio.get_running_loop().time() - batch[0].since)
        if self._tracing is None:
            await self._answer(batch)
            return
        span = self._tracing.batch()
        with under(span):
            error_type = await self._answer(batch)
        events = sum(len(waiter.delivery.events) for waiter in batch)
        self._tracing.end_batch(span, [each for waiter in batch if (each := waiter.delivery.span)], len(batch), events, error_type)

    async def _answer(self, batch: list[Waiter]) -> str:
        """Store and answer a batch; return the error's type where that failed, else nothing."""
        try:
            await self._accept(batch)
        except Exception as error:  # noqa: BLE001 - whatever it was, the sender is to come again
            if self.failures.admits():
                # Without its message and traceback: an outage is no bug of ours, and messages quote data.
                log.error("Batch not stored", deliveries=len(batch), error=describe(error), error_type=type(error).__name__)  # noqa: TRY400
            for waiter in batch:
                waiter.fail("The database is not available.")
            return type(error).__name__
        return ""

    async def _accept(self, batch: list[Waiter]) -> None:
        try:
            accepted = await self._store(batch)
        except Exception as error:
            if is_temporary(error):
                raise
            await self._isolate(batch, error)
            return
        if accepted.applied:
            for waiter in batch:
                waiter.resolve({})
                self._metrics.stored(waiter.delivery.events)
        else:
            await self._settle(batch, accepted)

    async def _store(self, batch: list[Waiter]) -> Accepted:
        deliveries = [waiter.delivery for waiter in batch]
        # What is too much to apply in one call's time would never be stored either, however often it came again.
        apply = sum(delivery.weight for delivery in deliveries) <= MOST_WEIGHT
        try:
            return await self._repository.accept(deliveries, apply=apply)
        except Exception as error:
            if not is_worth_repeating(error):
                raise
            # A commit whose answer was lost may have happened: the same ids make the second try harmless.
            return await self._repository.accept(deliveries, apply=apply)

    async def _isolate(self, batch: list[Waiter], error: Exception) -> None:
        """Find the delivery whose data the database refuses, and store that one as a raw body with a dead event."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._accept(batch[:middle])
            await self._accept(batch[middle:])
            return
        waiter = batch[0]
        if waiter.delivery.unparsed:
            # Raised, it would take the rest of the batch with it.
            log.error("Delivery not storable at all", delivery_id=waiter.delivery.id, error_type=type(error).__name__)
            waiter.fail("The database refused the delivery.")
            return
        # In place: whoever submitted it tells afterwards what became of it.
        waiter.delivery.events = as_unparsed(waiter.delivery, Problem("", describe(error))).events
        waiter.delivery.unparsed = True
        log.error("Delivery not storable as events", delivery_id=waiter.delivery.id, error_type=type(error).__name__)
        await self._accept(batch)

    async def _settle(self, batch: list[Waiter], accepted: Accepted) -> None:
        """Apply what was only stored: the upsert failed, or duplicates have to be left out of it."""
        pending: list[Settlement] = []
        for waiter in batch:
            waiter.stored = True
            for event in waiter.delivery.events:
                known = accepted.known.get(event.id)
                if known is None or known == (event.id, "pending"):
                    if event.row is not None:
                        waiter.waiting.add(event.id)
                        pending.append(
                            Settlement(event.account_id, event.id, event.row, event.entity, traceparent=waiter.delivery.headers.traceparent)
                        )
                elif known.state != "processed":
                    waiter.waiting.add(event.id)
        settled = await settle(self._repository, pending, max(waiter.deadline for waiter in batch), SETTLE_LOCK_TIMEOUT_MS)
        reasons = {event_id: str(failure) if failure else None for event_id, failure in settled.items()}
        for event_id, known in accepted.known.items():
            reasons.setdefault(event_id, reasons.get(known.of, f"its first copy is {known.state}"))
        duplicates = {event_id for event_id, known in accepted.known.items() if known.of != event_id}
        for waiter in batch:
            waiter.resolve(reasons)
            unapplied = {event_id for event_id in waiter.waiting if reasons.get(event_id, "not applied yet")}
            self._metrics.stored(waiter.delivery.events, unapplied, duplicates)
        await self._note(pending, settled)

    async def _note(self, pending: list[Settlement], settled: dict[str, Failure | None]) -> None:
        """Write down the failed first attempts; one that was the database's trouble is given back."""
        counted: list[dict[str, Any]] = []
        deferred: list[dict[str, Any]] = []
        attempts: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for each in pending:
            failure = settled.get(each.event_id)
            if failure is None:
                continue
            key = {"account_id": each.account_id, "id": each.event_id, "error": str(failure), "permanent": False}
            (deferred if failure.temporary else counted).append(key)
            record = attempt_record(each.account_id, each.event_id, 1, "accept", failure, traceparent=each.traceparent)
            attempts[failure.temporary].append(record)
        if counted or deferred:
            first = (counted or deferred)[0]
            log.warning("Events not applied yet", events=len(counted) + len(deferred), event_id=first["id"], error=first["error"])
        try:
            if counted:
                await self._repository.fail(counted, attempts[False])
            if deferred:
                await self._repository.defer(deferred, attempts[True])
        except Exception as error:  # noqa: BLE001 - they are pending and due in five seconds, noted or not
            log.warning("Failed attempts not written down", error=describe(error))
