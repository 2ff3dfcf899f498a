"""What a process counts and measures: a call where something happens, and all of it as families when somebody asks.

The calls of one delivery cost it about two microseconds together. All of them are made in the event loop's thread, and so is the reading.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Protocol

from amo_receiver.amocrm.events import changes_card
from amo_receiver.amocrm.words import action_word, entity_word
from amo_receiver.database import DatabaseTimeout, is_temporary, sqlstate
from amo_receiver.telemetry import metrics_table as table
from amo_receiver.telemetry.metrics_counts import OTHER, Counter, Family, Histogram, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from amo_receiver.telemetry.metrics_counts import Labels
    from amo_receiver.telemetry.metrics_sources import Sources

SIGNED_ROUTE, TOKEN_ROUTE = ROUTES = ("/api/webhooks/amo", "/api/webhooks/amo/{token}")
ACCEPTED = ("success", "partial")
REFUSED = ("InvalidBody", "Unauthorized", "BodyTooLarge", "Unavailable", "ClientGone", OTHER)
LATE = "Late"
LATE_SECONDS = 2.0
"""An answer after this is none for amoCRM."""
FAILED_FROM = 500
ANSWER_LIMIT = 100
WINDOW_MINUTES = 120
"""amoCRM switches a hook off after more bad answers than ``ANSWER_LIMIT`` in this time."""
KINDS = ("accept", "retry", "replay")
CALLS = ("accept", "settle", "claim", "fail", "defer")
FILES = ("keyring", "mapping")
RESULTS = ("success", "failure")
LOOP_SAMPLE_SECONDS = 0.25
TIMES_KEPT = 4_096


class StoredEvent(Protocol):
    """An event on its way, as far as it is needed here: see ``inbox.delivery.Event``."""

    id: str
    entity: str
    action: str
    occurred_at: str | None

    @property
    def row(self) -> object | None:
        """Return its effect; None where it is only recorded."""

    @property
    def problem(self) -> object | None:
        """Return why it is dead from the start, or None."""


class DueEvent(Protocol):
    """An event that the worker took up."""

    entity: str
    action: str
    occurred_at: datetime | None


class Metrics:
    """The metrics of one process."""

    def __init__(self, *, clock: Callable[[], float] = time.time, ticks: Callable[[], float] = time.monotonic) -> None:
        """``clock`` is in unix seconds, ``ticks`` in seconds that nobody sets."""
        self.started_at = clock()
        self._clock = clock
        self._ticks = ticks
        self._newest: float | None = None
        self._sources: Sources | None = None
        self._durations = Histogram(table.REQUEST_DURATION, *(_request(route, 200, "success") for route in ROUTES))
        self._deliveries = Counter(table.DELIVERIES, *product(ROUTES, ACCEPTED + REFUSED))
        self._bad = Window(WINDOW_MINUTES, ticks, *product(ROUTES, (*REFUSED, LATE)))
        self._matches = Counter(table.KEY_MATCHES)
        self._events = Counter(table.EVENTS)
        self._event_lags = Histogram(table.EVENT_LAG, *product(KINDS))
        self._dead = Counter(table.DEAD_LETTERS, *product(("leads", "contacts", "unparsed"), KINDS))
        self._attempts = Counter(table.ATTEMPTS, *product(KINDS[1:], ("applied", "failed", "deferred")))
        self._sizes = Histogram(table.BATCH_SIZE, ())
        self._waits = Histogram(table.BATCH_WAIT, ())
        self._calls = Histogram(table.CALL_DURATION, *product(("postgresql",), CALLS, ("",)))
        self._exports = Counter(table.METRIC_EXPORTS, *product(RESULTS))
        self._reloads = Counter(table.RELOADS, *product(FILES, RESULTS))
        self._loop_lags = Histogram(table.LOOP_LAG, ())

    def attach(self, sources: Sources) -> None:
        """Name those who are asked when the metrics are read."""
        self._sources = sources

    # Acceptance

    def answered(self, route: str, status: int | None, outcome: str, seconds: float, *, stranger: bool = False) -> None:
        """Count a request; ``outcome``: success, partial or the error's type; ``status`` None: nobody was left to be answered.

        A bad answer to a ``stranger``, who does not even say that it is amoCRM, is none that amoCRM counts.
        """
        if outcome in ACCEPTED:
            if seconds > LATE_SECONDS:
                self._bad.add((route, LATE))
        else:
            outcome = outcome if outcome in REFUSED else OTHER
            if not stranger:
                self._bad.add((route, outcome))
        self._deliveries.add((route, outcome))
        self._durations.observe(_request(route, status, outcome), seconds)

    def matched(self, kind: str, fingerprint: str) -> None:
        """Count a request that a key authenticated."""
        self._matches.add((kind, fingerprint))

    def began(self, deliveries: int, waited_seconds: float) -> None:
        """Measure a group commit that begins: its size, and how long its first delivery waited."""
        self._sizes.observe((), deliveries)
        self._waits.observe((), waited_seconds)

    def stored(
        self, events: Iterable[StoredEvent], pending: Container[str] = (), duplicates: Container[str] = (), kind: str = "accept"
    ) -> None:
        """Count events that are committed; ``pending`` and ``duplicates`` hold the ids of those not applied, and of those known before.

        ``kind``: of the attempt that stored them; a body that is parsed later is no new delivery.
        """
        now = self._clock()
        if kind == "accept":
            self._newest = now
        for event in events:
            entity = entity_word(event.entity)
            if event.id in duplicates:
                outcome = "duplicate"
            elif event.problem is not None:
                outcome = "dead"
                self._dead.add((entity, kind))
            elif event.row is None:
                outcome = "recorded"
            elif event.id in pending:
                outcome = "pending"
            else:
                outcome = "applied"
                if event.occurred_at is not None:
                    self._event_lags.observe((kind,), now - _seconds(event.occurred_at))
            self._events.add((entity, action_word(event.action), outcome))

    # The database and the worker

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Measure a call of the database."""
        started, error_type = self._ticks(), ""
        try:
            yield
        except BaseException as error:
            error_type = _error_type(error)
            raise
        finally:
            self._calls.observe(("postgresql", name, error_type), self._ticks() - started)

    def attempted(self, event: DueEvent, kind: str, outcome: str, *, is_dead: bool = False) -> None:
        """Count an attempt of the worker (``retry``, ``replay``) by its outcome: applied, failed or deferred."""
        self._attempts.add((kind, outcome))
        if is_dead:
            self._dead.add((entity_word(event.entity), kind))
        if outcome == "applied" and event.occurred_at is not None and changes_card(event.entity, event.action):
            self._event_lags.observe((kind,), self._clock() - event.occurred_at.timestamp())

    # The process

    def reloaded(self, file: str, *, is_good: bool) -> None:
        """Count a change of a file (``keyring``, ``mapping``)."""
        self._reloads.add((file, RESULTS[not is_good]))

    def exported(self, *, is_good: bool) -> None:
        """Count an export of the metrics themselves."""
        self._exports.add((RESULTS[not is_good],))

    async def watch_loop(self, seconds: float = LOOP_SAMPLE_SECONDS) -> None:
        """Measure until cancelled how much later than asked for the event loop comes back."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + seconds
            await asyncio.sleep(seconds)
            self._loop_lags.observe((), loop.time() - due)

    def bad_answers(self) -> int:
        """Return how many answers of the last two hours amoCRM counts as bad."""
        return sum(count for (route, _), count in self._bad.values().items() if route == TOKEN_ROUTE)

    # Reading

    async def refresh(self) -> None:
        """Ask the database for what only it knows; returns within a second."""
        if self._sources:
            await self._sources.refresh()

    def families(self) -> list[Family]:
        """Return all metrics as they are known now; what cannot be read is missing."""
        counted: tuple[Counter | Histogram, ...] = (
            self._durations, self._deliveries, self._matches, self._events, self._event_lags, self._dead, self._attempts, self._sizes,
            self._waits, self._calls, self._exports, self._reloads, self._loop_lags,
        )  # fmt: skip
        families = [each.family() for each in counted]
        left = max(ANSWER_LIMIT - self.bad_answers(), 0)
        families += [Family(table.ANSWERS_BAD, self._bad.values()), Family(table.ANSWERS_BUDGET, {(): left})]
        if self._sources:
            families += self._sources.families()
        newest = [moment for moment in (self._newest, self._sources.newest if self._sources else None) if moment is not None]
        if newest:
            families.append(Family(table.NEWEST_AGE, {(): max(self._clock() - max(newest), 0.0)}))
        return families


@lru_cache(maxsize=256)
def _request(route: str, status: int | None, outcome: str) -> Labels:
    failed = status is None or status >= FAILED_FROM
    return ("POST", "http", route, "" if status is None else str(status), outcome if failed else "")


@lru_cache(maxsize=TIMES_KEPT)
def _seconds(moment: str) -> float:
    """Return unix seconds; many events have the same, because the CRM's times are whole seconds."""
    return datetime.fromisoformat(moment).timestamp()


def _error_type(error: BaseException) -> str:
    if isinstance(error, DatabaseTimeout):
        return "timeout"
    return sqlstate(error) or ("unreachable" if is_temporary(error) else OTHER)
