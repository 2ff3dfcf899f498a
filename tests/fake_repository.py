"""A database that does what a test tells it, for the group commit, and requests that wait for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncpg import exceptions as pg

from amo_receiver.amocrm.events import read_body
from amo_receiver.amocrm.fields import Mapping
from amo_receiver.errors import Unavailable
from amo_receiver.inbox.batch import MOST_FLUSHES, GroupCommit, Outcome
from amo_receiver.inbox.delivery import Credential, Delivery, Headers, add_events, open_delivery
from amo_receiver.inbox.repository import Accepted, Known, Settlement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    OnAccept = Callable[[Sequence[Delivery]], Awaitable[Accepted]]

MAPPING = Mapping({})
DONE = Outcome(1, [])
WHOLE = Accepted(applied=True, known={}, sqlstate=None, constraint=None)
NOT_APPLIED = Accepted(applied=False, known={}, sqlstate="40P01", constraint=None)
LATER = 30.0
SOON = 0.3
OFFENCES = [
    pg.NumericValueOutOfRangeError("x"),
    pg.UntranslatableCharacterError("x"),
    pg.CheckViolationError("x"),
    pg.ProgramLimitExceededError("x"),
]


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
