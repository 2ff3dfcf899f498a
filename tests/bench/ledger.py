"""What was acknowledged, and what the database has of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from servers import connect

if TYPE_CHECKING:
    import asyncpg

FIRST = 100_000_000
MOST_NUMBERS = 1_000_000
"""Of requests in one run."""
SETTLED_WITHIN_S = 60.0
ANSWERED = 0.9
"""So much of a run is over before the requests begin whose answers its end cuts off: they may be stored or not."""

SERIALS = "SELECT (payload->>'price')::bigint FROM events WHERE received_at >= $1 AND state = 'processed'"
PENDING = "SELECT count(*) FROM events WHERE state = 'pending'"
DIFFERENT = """
    SELECT count(*) FROM (
        SELECT DISTINCT ON (account_id, entity_id) account_id, entity_id::bigint AS id, (payload->>'price')::numeric AS price
        FROM events e WHERE received_at >= $1 AND state = 'processed' ORDER BY account_id, entity_id, occurred_at DESC, e.id DESC
    ) newest LEFT JOIN leads l USING (account_id, id) WHERE l.price IS DISTINCT FROM newest.price"""


@dataclass
class Run:
    """Requests numbered from ``first`` on, with ``events`` events each: how many were answered well and otherwise."""

    first: int
    events: int
    good: int = 0
    bad: int = 0

    def lost(self, stored: Counter[int]) -> int:
        """Return how many of the acknowledged events are not there."""
        early = range(self.first, self.first + int(self.good * ANSWERED))
        missing = sum(number * 10 + position not in stored for number in early for position in range(self.events))
        numbers = range(self.first * 10, (self.first + MOST_NUMBERS) * 10)
        there = sum(serial in numbers for serial in stored)
        return max(missing - self.bad * self.events, self.good * self.events - there, 0)


@dataclass(frozen=True)
class Balance:
    """What one database has of what was acknowledged; ``different`` counts leads that are not as their newest event says.

    ``stored_twice`` are events of the same request: what was *applied* twice would show in ``different``, or not at all.
    """

    deliveries: int
    events: int
    lost: int
    stored_twice: int
    different: int


@dataclass
class Ledger:
    """The runs on one database; every request of theirs has a number of its own, so that no body is a duplicate."""

    url: str = ""
    runs: list[Run] = field(default_factory=list)
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def begin(self, events: int = 1) -> Run:
        """Begin a run."""
        self.runs.append(Run(FIRST + len(self.runs) * MOST_NUMBERS, events))
        return self.runs[-1]

    def balance(self) -> Balance:
        """Compare with the database, as soon as nothing is pending there."""
        return asyncio.run(self._balance())

    async def _balance(self) -> Balance:
        async with connect(self.url) as connection:
            await _settled(connection)
            stored = Counter(row[0] for row in await connection.fetch(SERIALS, self.began_at, timeout=120))
            different = await connection.fetchval(DIFFERENT, self.began_at, timeout=120)
        deliveries, events = sum(run.good for run in self.runs), sum(run.good * run.events for run in self.runs)
        lost = sum(run.lost(stored) for run in self.runs)
        return Balance(deliveries, events, lost, stored.total() - len(stored), different)


async def _settled(connection: asyncpg.Connection) -> None:
    async with asyncio.timeout(SETTLED_WITHIN_S):
        while await connection.fetchval(PENDING):
            await asyncio.sleep(0.5)
