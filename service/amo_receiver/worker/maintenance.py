"""Retention: prune what is old, in batches that lock little and end soon.

Age is read off the ids: they begin with the time at which the service made them, so the old rows of an account are the beginning of
its primary key, and a batch goes on behind the last one. An index on ``received_at`` would not find them for long: what is pruned
makes room for new rows, and then every part of the table holds old and new ones.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from sqlalchemy import text

from amo_receiver.inbox.lookup import NIL, accounts_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

BATCH = 2_000
LOCK_TIMEOUT_MS = 500
GUARD = 0x616D6F7072756E65
"""Key of the transaction lock that lets one process prune at a time."""

OLD_ROWS = """
    WITH old AS MATERIALIZED (
        SELECT r.id FROM {table} r WHERE r.account_id = :account_id AND r.id > CAST(:after AS uuid) AND {condition}
        ORDER BY r.id LIMIT :most FOR UPDATE OF r SKIP LOCKED
    ), gone AS (
        DELETE FROM {table} r USING old WHERE r.account_id = :account_id AND r.id = old.id
    ), {also}
    SELECT count(*), (SELECT id::text FROM old ORDER BY old.id DESC LIMIT 1) FROM old"""
ACCOUNTS = """
    WITH RECURSIVE {accounts} SELECT a.account_id FROM accounts a
    CROSS JOIN LATERAL (SELECT FROM {table} r WHERE r.account_id = a.account_id AND {condition} ORDER BY r.id LIMIT 1) o"""
COUNT = """
    WITH RECURSIVE {accounts} SELECT coalesce(sum(o.count), 0) FROM accounts a
    CROSS JOIN LATERAL (SELECT count(*) FROM {table} r WHERE r.account_id = a.account_id AND {condition}) o"""
PROCESSED = "r.state = 'processed' AND r.id < CAST(:processed_before AS uuid)"
DEAD = "r.state = 'dead' AND r.id < CAST(:dead_before AS uuid)"
THEIR_ATTEMPTS = "tried AS (DELETE FROM attempts a USING old WHERE a.account_id = :account_id AND a.event_id = old.id)"
OLDEST = "r.id < greatest(CAST(:processed_before AS uuid), CAST(:dead_before AS uuid))"
# OFFSET 0 keeps this one probe of an index for each delivery: joined as a whole, all events of the account would be read.
OF_DELIVERY = "SELECT FROM events e WHERE e.account_id = r.account_id AND e.delivery_id = r.id {condition} OFFSET 0"

UNUSED_KEYS = "DELETE FROM key_matches WHERE matched_at < :before"
UNUSED_KEY_DAYS = 90
"""Longer than a key that is rotated out can still be accepted."""


class Step(NamedTuple):
    """One kind of rows: where they are, which of them are old, which will be once the steps before are done, and what goes with them."""

    what: str
    table: str
    condition: str
    foreseen: str
    also: str


def _deliveries() -> Step:
    kept = f"AND ({PROCESSED} OR {DEAD}) IS NOT TRUE".replace("r.", "e.")
    now, then = (f"{OLDEST} AND NOT EXISTS ({OF_DELIVERY.format(condition=condition)})" for condition in ("", kept))
    return Step("deliveries", "deliveries", now, then, "nothing AS (SELECT)")


STEPS = (
    Step("processed events", "events", PROCESSED, PROCESSED, THEIR_ATTEMPTS),
    Step("dead events", "events", DEAD, DEAD, THEIR_ATTEMPTS),
    _deliveries(),
)


class Progress:
    """What a run reports to, and what may end it; this one is silent and lets it go on."""

    def pruned(self, what: str, count: int) -> None:
        """Take the running total after a batch."""

    def rival(self) -> None:
        """Take that another process is pruning: it does what is left, and this run ends."""

    def stopped(self) -> bool:
        """Tell whether to end before the next batch."""
        return False


def first_id(moment: datetime) -> str:
    """Return the smallest UUIDv7 of a moment: its milliseconds are the first 48 bits."""
    return str(UUID(int=max(int(moment.timestamp() * 1000), 0) << 80))


def _cutoffs(processed_days: int, dead_days: int, now: datetime | None) -> dict[str, str]:
    """Return the first ids that are kept."""
    now = now or datetime.now(UTC)
    return {
        "processed_before": first_id(now - timedelta(days=processed_days)),
        "dead_before": first_id(now - timedelta(days=dead_days)),
    }


async def prune(
    engine: AsyncEngine,
    processed_days: int,
    dead_days: int,
    progress: Progress | None = None,
    *,
    batch: int = BATCH,
    now: datetime | None = None,
) -> dict[str, int]:
    """Delete processed and dead events past their days, and deliveries whose last event is gone; return how many of each.

    Pending events are never deleted, nor is a delivery of which there still is an event. The last matches of keys that nobody uses any
    more go along, uncounted.
    """
    progress = progress or Progress()
    cutoffs = _cutoffs(processed_days, dead_days, now)
    await _prune_unused_keys(engine, now or datetime.now(UTC))
    counts = dict.fromkeys((step.what for step in STEPS), 0)
    for step in STEPS:
        for account_id in await _accounts(engine, step, cutoffs):
            after: str | None = NIL
            while after is not None:
                if progress.stopped():
                    return counts
                deleted, after = await _prune_batch(engine, step, {**cutoffs, "account_id": account_id, "after": after}, batch)
                if deleted is None:
                    progress.rival()
                    return counts
                counts[step.what] += deleted
                progress.pruned(step.what, counts[step.what])
    return counts


async def count_old(engine: AsyncEngine, processed_days: int, dead_days: int, *, now: datetime | None = None) -> dict[str, int]:
    """Return how many of each ``prune`` would delete."""
    cutoffs = _cutoffs(processed_days, dead_days, now)
    counts = {}
    for step in STEPS:
        statement = COUNT.format(accounts=accounts_of(step.table), table=step.table, condition=step.foreseen)
        async with engine.connect() as connection:
            counts[step.what] = int(await connection.scalar(text(statement), cutoffs) or 0)
    return counts


async def _accounts(engine: AsyncEngine, step: Step, cutoffs: dict[str, str]) -> list[str]:
    """Return the accounts that have something to prune."""
    statement = ACCOUNTS.format(accounts=accounts_of(step.table), table=step.table, condition=step.condition)
    async with engine.connect() as connection:
        return list(await connection.scalars(text(statement), cutoffs))


async def _prune_unused_keys(engine: AsyncEngine, now: datetime) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
        await connection.execute(text(UNUSED_KEYS), {"before": now - timedelta(days=UNUSED_KEY_DAYS)})


async def _prune_batch(engine: AsyncEngine, step: Step, parameters: dict[str, str], most: int) -> tuple[int | None, str | None]:
    """Return how many rows are gone (None: another process is pruning) and the id to go on behind (None: there are no more)."""
    statement = OLD_ROWS.format(table=step.table, condition=step.condition, also=step.also)
    async with engine.begin() as connection:
        await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
        if not await connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": GUARD}):
            return None, None
        deleted, last = (await connection.execute(text(statement), {**parameters, "most": most})).one()
    return deleted, last if deleted == most else None
