"""What can go wrong with three services, two workers, a pooler and a Postgres; each fault is over when its function returns."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

from hostile.story import ACCOUNTS, HOT_CARDS
from servers import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from amo_receiver.embedded import EmbeddedPostgres
    from amo_receiver.embedded.processes import StopMode
    from children import Child
    from hostile.clocks import Clock
    from pooler import PgBouncer
    from servers import ServiceProcess

OFFSETS = (-7200, 300, 0)
LONG_SECONDS = 7.0
"""Longer than the five seconds after which an event is due again, so that another worker takes what a stopped one holds."""
BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
Fault = tuple[str, "Callable[[], Awaitable[None]]"]


@dataclass(frozen=True)
class Step:
    """A clock, by its number, that was set to be ahead by other seconds; times are monotonic."""

    clock: int
    seconds: int
    began_at: float
    noticed_at: float


@dataclass
class Place:
    """Everything that faults are made of."""

    services: Sequence[ServiceProcess]
    workers: Sequence[ServiceProcess]
    clocks: Sequence[Clock]
    pgbouncer: PgBouncer
    postgres: EmbeddedPostgres
    database_url: str
    pick: random.Random
    steps: list[Step] = field(default_factory=list)

    def slight(self) -> list[Fault]:
        """Return the faults of single processes, any two of which may happen at once."""
        return [
            ("kill -9 of a service", lambda: self._killed(self.services)),
            ("kill -9 of a worker", lambda: self._killed(self.workers)),
            ("service stopped", lambda: self._stopped(self.pick.choice(self.services), LONG_SECONDS)),
            ("worker stopped", lambda: self._stopped(self.pick.choice(self.workers), LONG_SECONDS)),
            ("locks on hot cards", self._locked),
            *([("clock stepped", self._clock_stepped)] if self.clocks else []),
        ]

    def grave(self) -> list[Fault]:
        """Return the faults of what everybody needs."""
        return [
            ("pooler stopped", lambda: self._stopped(self.pgbouncer, 3)),
            ("pooler restarted", lambda: asyncio.to_thread(self.pgbouncer.restart)),
            ("kill -9 of the pooler", lambda: self._killed([self.pgbouncer])),
            ("Postgres backend stopped", self._backend_stopped),
            ("Postgres restarted, fast", lambda: self._restarted("fast")),
            ("Postgres restarted, immediate", lambda: self._restarted("immediate")),
        ]

    async def keep_locked(self, lead: int) -> None:
        """Hold a lead for longer than the three attempts of an event take, and take it again where Postgres was restarted."""
        while True:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                async with connect(self.database_url) as holder, holder.transaction():
                    while True:
                        await holder.execute("SELECT FROM leads WHERE account_id = $1 AND id = $2 FOR UPDATE", ACCOUNTS[0], lead)
                        await asyncio.sleep(0.5)
            await asyncio.sleep(0.1)

    async def _killed(self, children: Sequence[Child]) -> None:
        child = self.pick.choice(children)
        pause = self.pick.uniform(0, 1)
        await asyncio.to_thread(child.kill)
        await asyncio.sleep(pause)
        await asyncio.to_thread(child.start)

    async def _stopped(self, child: Child, longest: float) -> None:
        seconds = self.pick.uniform(0.5, longest)
        child.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            child.resume()

    async def _backend_stopped(self) -> None:
        async with connect(self.database_url) as connection:
            pids = [row["pid"] for row in await connection.fetch(BACKENDS + " ORDER BY pid")]
        pid = self.pick.choice(pids)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(self.pick.uniform(0.5, 3))
            os.kill(pid, signal.SIGCONT)

    async def _restarted(self, mode: StopMode) -> None:
        pause = self.pick.uniform(0, 2)
        await asyncio.to_thread(self.postgres.stop, mode)
        await asyncio.sleep(pause)
        await asyncio.to_thread(self.postgres.start)

    async def _locked(self) -> None:
        cards = self.pick.sample(HOT_CARDS, 5)
        seconds = self.pick.uniform(1, LONG_SECONDS)
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):  # Postgres may be restarted meanwhile
            async with connect(self.database_url) as holder, holder.transaction():
                for entity in ("leads", "contacts"):
                    await holder.execute(f"SELECT FROM {entity} WHERE id = ANY($1) ORDER BY account_id, id FOR UPDATE SKIP LOCKED", cards)
                await asyncio.sleep(seconds)

    async def _clock_stepped(self) -> None:
        # The first one is a service's: what it receives tells its time, a worker's is nowhere to be seen.
        number = self.pick.randrange(len(self.clocks if self.steps else self.services))
        clock, began_at = self.clocks[number], time.monotonic()
        clock.set(self.pick.choice([seconds for seconds in OFFSETS if seconds != clock.seconds]))
        await asyncio.sleep(2.5)  # until its program has noticed
        self.steps.append(Step(number, clock.seconds, began_at, time.monotonic()))
