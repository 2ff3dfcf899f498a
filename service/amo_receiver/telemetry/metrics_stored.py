"""Metrics that only the database knows: the queue of due events and the dead letters, and the accounts that have gone silent.

Asked for when somebody reads the metrics, at most every 10 s, and the accounts every 5 min; a reader waits a second for the answer
and does without it then. The queue has partial indexes of its own, and an account costs a few probes of an index: how many rows
there are does not matter.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from amo_receiver.amocrm.words import account_word
from amo_receiver.database import describe
from amo_receiver.log import get_logger
from amo_receiver.telemetry import metrics_table as table
from amo_receiver.telemetry.metrics_counts import Family

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

log = get_logger(__name__)

PATIENCE_SECONDS = 1.0
STATEMENT_TIMEOUT_MS = 5_000
QUEUE_SECONDS, ACCOUNTS_SECONDS = 10.0, 300.0
MOST_COUNTED = 10_000
SILENT_HOURS, SILENT_DAYS, FEWEST_DELIVERIES = 3, 7, 10
MOST_NAMED = 20

# Statistics may be from before an outage: a plan that reads the table from end to end would be taken, and be slow, just then.
PLANNER = f"""
    SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('jit', 'off', true),
           set_config('statement_timeout', '{STATEMENT_TIMEOUT_MS}', true)"""

QUEUE = f"""
    SELECT (SELECT count(*) FROM (SELECT FROM events WHERE state = 'pending' LIMIT {MOST_COUNTED}) p) AS pending,
           (SELECT count(*) FROM (SELECT FROM events WHERE state = 'pending' AND available_at <= now() LIMIT {MOST_COUNTED}) d) AS due,
           (SELECT coalesce(extract(epoch FROM greatest(now() - min(available_at), '0')), 0) FROM events WHERE state = 'pending') AS age,
           (SELECT count(*) FROM (SELECT FROM events WHERE state = 'dead' LIMIT {MOST_COUNTED}) d) AS dead"""

# The first 48 bits of a UUIDv7 are its milliseconds.
WEEK = f"interval '{SILENT_DAYS} days'"
FIRST_ID = "CAST(lpad(to_hex(CAST(extract(epoch FROM {moment}) * 1000 AS bigint)), 12, '0') || repeat('0', 20) AS uuid)"
SAME_STRETCH = f"""
    SELECT count(*) FROM (
        SELECT FROM deliveries d WHERE d.account_id = a.account_id
        AND d.id > {FIRST_ID.format(moment=f"newest.received_at - {WEEK}")} AND d.id < {FIRST_ID.format(moment=f"now() - {WEEK}")}
        LIMIT {FEWEST_DELIVERIES}) found"""
ACCOUNTS = f"""
    WITH RECURSIVE accounts AS (
        (SELECT account_id FROM deliveries ORDER BY account_id LIMIT 1)
        UNION ALL
        SELECT (SELECT d.account_id FROM deliveries d WHERE d.account_id > a.account_id ORDER BY d.account_id LIMIT 1)
        FROM accounts a WHERE a.account_id IS NOT NULL
    )
    SELECT a.account_id, extract(epoch FROM newest.received_at) AS newest,
        newest.received_at BETWEEN now() - {WEEK} AND now() - interval '{SILENT_HOURS} hours'
        AND ({SAME_STRETCH}) = {FEWEST_DELIVERIES} AS silent
    FROM accounts a CROSS JOIN LATERAL (
        SELECT received_at FROM deliveries d WHERE d.account_id = a.account_id ORDER BY d.id DESC LIMIT 1) newest"""


class Question:
    """One query, asked at most every so many seconds; who wants to know meanwhile shares its answer. No answer is None."""

    def __init__(self, about: str, statement: str, seconds: float, engine: AsyncEngine, ticks: Callable[[], float]) -> None:
        self._about = about
        self._statement = text(statement)
        self._seconds = seconds
        self._engine = engine
        self._ticks = ticks
        self._due = float("-inf")
        self._trouble = ""
        self._asking: asyncio.Task[None] | None = None
        self.rows: Sequence[Any] | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether it is being asked."""
        return self._asking is not None and not self._asking.done()

    async def ask(self) -> None:
        """Ask it if the last answer is old, and wait for the answer, but not for long."""
        if not self.is_open and self._ticks() >= self._due:
            self._asking = asyncio.create_task(self._ask(), name="metrics")
        if self._asking:
            await asyncio.wait({self._asking}, timeout=PATIENCE_SECONDS)

    async def _ask(self) -> None:
        try:
            async with self._engine.begin() as connection:
                await connection.execute(text(PLANNER))
                self.rows = (await connection.execute(self._statement)).all()
        except Exception as error:  # noqa: BLE001 - the database may be away
            self.rows = None
            self._tell(describe(error))
        else:
            self._tell("")
        self._due = self._ticks() + (QUEUE_SECONDS if self.rows is None else self._seconds)

    def _tell(self, trouble: str) -> None:
        if trouble and not self._trouble:
            log.warning("Metrics about the %s are missing: the database does not tell them", self._about, error=trouble)
        self._trouble = trouble


class StoredGauges:
    """What the database knew when it was asked last."""

    def __init__(self, engine: AsyncEngine, *, ticks: Callable[[], float] = time.monotonic) -> None:
        self._queue = Question("queue", QUEUE, QUEUE_SECONDS, engine, ticks)
        self._accounts = Question("accounts", ACCOUNTS, ACCOUNTS_SECONDS, engine, ticks)
        self._silent: frozenset[str] = frozenset()

    async def refresh(self) -> None:
        """Ask what may be asked again."""
        await asyncio.gather(self._queue.ask(), self._accounts.ask())
        self._name_silent()

    @property
    def newest(self) -> float | None:
        """Return when the newest delivery came, in unix seconds."""
        return max((float(row.newest) for row in self._accounts.rows or ()), default=None)

    def families(self) -> list[Family]:
        """Return what is known; of the queue only while the database answers."""
        families = []
        if self._queue.rows and not self._queue.is_open:
            pending, due, age, dead = self._queue.rows[0]
            gauges = (table.QUEUE_PENDING, pending), (table.QUEUE_DUE, due), (table.QUEUE_AGE, float(age)), (table.QUEUE_DEAD, dead)
            families = [Family(definition, {(): value}) for definition, value in gauges]
        if self._accounts.rows is not None:
            families.append(Family(table.ACCOUNTS_SILENT, {(): sum(row.silent for row in self._accounts.rows)}))
        return families

    def _name_silent(self) -> None:
        """Write which accounts have gone silent, once, because a label must not hold them."""
        if self._accounts.rows is None:
            return
        silent = frozenset(row.account_id for row in self._accounts.rows if row.silent)
        if new := sorted(silent - self._silent):
            log.warning(
                "Accounts are silent unusually long: is the hook switched off?",
                accounts=[account_word(each) for each in new[:MOST_NAMED]],
                count=len(silent),
            )
        self._silent = silent
