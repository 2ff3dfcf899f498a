"""Retention: prune what is old, in batches that lock little and end soon."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import text

from amo_receiver.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

log = get_logger(__name__)

BATCH = 2_000
GUARD = 0x616D6F7072756E65
"""Key of the transaction lock that lets one process prune at a time."""

EVENTS = text("""
    WITH old AS (
        SELECT account_id, id FROM events WHERE received_at < :cutoff AND state = :state LIMIT :most FOR UPDATE SKIP LOCKED
    ), tried AS (
        DELETE FROM attempts a USING old WHERE a.account_id = old.account_id AND a.event_id = old.id
    )
    DELETE FROM events e USING old WHERE e.account_id = old.account_id AND e.id = old.id""")

DELIVERIES = text("""
    DELETE FROM deliveries WHERE (account_id, id) IN (
        SELECT account_id, id FROM deliveries d WHERE received_at < :cutoff
        AND NOT EXISTS (SELECT 1 FROM events e WHERE e.account_id = d.account_id AND e.delivery_id = d.id)
        LIMIT :most FOR UPDATE SKIP LOCKED)""")


async def prune(
    engine: AsyncEngine, processed_days: int, dead_days: int, say: Callable[[str, int], None] = lambda what, count: None
) -> dict[str, int]:
    """Delete processed and dead events past their days, and deliveries whose last event is gone; return how many of each.

    ``say`` is told the running total after each batch. Pending events are never deleted.
    """
    now = datetime.now(UTC)
    counts: dict[str, int] = {}
    steps = (
        ("processed events", EVENTS, {"state": "processed", "cutoff": now - timedelta(days=processed_days)}),
        ("dead events", EVENTS, {"state": "dead", "cutoff": now - timedelta(days=dead_days)}),
        ("deliveries", DELIVERIES, {"cutoff": now - timedelta(days=processed_days)}),
    )
    for what, statement, parameters in steps:
        counts[what] = 0
        while True:
            async with engine.begin() as connection:
                await connection.execute(text("SET LOCAL lock_timeout = 500"))
                if not await connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": GUARD}):
                    return counts
                deleted = (await connection.execute(statement, {**parameters, "most": BATCH})).rowcount
            counts[what] += deleted
            if deleted:
                say(what, counts[what])
            if deleted < BATCH:
                break
    return counts
