"""Fill a database as years of deliveries leave it: one that was really accepted, many times over, in the order of its time.

Every index is in place meanwhile. Ids are what the service would have made then: the milliseconds, and something that makes them differ.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from factories import ACCOUNT
from servers import connect

if TYPE_CHECKING:
    from collections.abc import Callable

STEP = 50_000
SPACING = timedelta(seconds=0.5)
MARGIN = 600
BYTES_PER_EVENT = 5_000
"""Of disk, with its delivery, its part of a lead and the log that Postgres keeps meanwhile."""

NUMBERED = """
    SELECT n, hash, (n - 1) % $3::bigint + 1 AS lead, made_at, to_timestamp(unix) AS occurred_at, unix,
           (milliseconds || '7' || substr(hash, 1, 3) || '8' || substr(hash, 4, 15))::uuid AS id,
           (milliseconds || '7' || substr(hash, 2, 3) || '9' || substr(hash, 5, 15))::uuid AS delivery_id
    FROM (SELECT n, md5(n::text) AS hash, $4::timestamptz + n * $5::interval AS made_at
          FROM generate_series($1::bigint, $2::bigint) n) numbers
    CROSS JOIN LATERAL (SELECT floor(extract(epoch FROM made_at))::bigint AS unix,
                               lpad(to_hex((extract(epoch FROM made_at) * 1000)::bigint), 12, '0') AS milliseconds) times"""
EVENTS = f"""
    INSERT INTO events (account_id, id, delivery_id, entity, action, entity_id, path, payload, occurred_at, received_at, dedup, state,
                        effect, attempts, processed_at)
    SELECT e.account_id, n.id, n.delivery_id, e.entity, e.action, lead::text, e.path,
           e.payload || jsonb_build_object('id', lead::text, 'price', n::text, 'last_modified', unix::text),
           n.occurred_at, made_at, decode(hash, 'hex'), e.state, e.effect, e.attempts, made_at
    FROM events e CROSS JOIN ({NUMBERED}) n WHERE e.id = $6::uuid"""
DELIVERIES = f"""
    INSERT INTO deliveries (account_id, id, source, key_kind, key_fingerprint, received_at, content_type, body, body_bytes, events,
                            last_received_at)
    SELECT d.account_id, n.delivery_id, d.source, d.key_kind, d.key_fingerprint, made_at, d.content_type, d.body, d.body_bytes, d.events,
           made_at
    FROM deliveries d CROSS JOIN ({NUMBERED}) n WHERE d.id = (SELECT delivery_id FROM events WHERE id = $6::uuid)"""
LEADS = f"""
    SELECT upsert_cards_v1(json_agg(to_jsonb(l) || jsonb_build_object(
        'id', lead, 'price', n, 'crm_updated_at', occurred_at, 'snapshot_at', occurred_at, 'version_at', occurred_at,
        'version_event', n.id)), '[]')
    FROM leads l CROSS JOIN ({NUMBERED}) n WHERE l.version_event = $6::uuid"""
SAMPLE = f"SELECT id FROM events WHERE account_id = '{ACCOUNT}' ORDER BY id LIMIT 1"


async def fill(url: str, events: int, leads: int, say: Callable[[str], None]) -> None:
    """Multiply the only event of a database with its delivery and lead; the newest event of each lead is the one that set it."""
    async with connect(url) as connection:
        sample = await connection.fetchval(SAMPLE)
    first_at = datetime.now(UTC) - (events + MARGIN) * SPACING

    async def multiply(table: str, statement: str, first: int) -> None:
        async with connect(url) as connection:
            for start in range(first, events + 1, STEP):
                stop = min(start + STEP - 1, events)
                await connection.execute(statement, start, stop, leads, first_at, SPACING, sample, timeout=600)
            await connection.execute(f"VACUUM (ANALYZE) {table}", timeout=600)
        say(f"{table} filled")

    async def cards_and_deliveries() -> None:
        await multiply("leads", LEADS, events - leads + 1)
        await multiply("deliveries", DELIVERIES, 1)

    # Each table by one connection alone: two would split every index where the first of them writes.
    await asyncio.gather(multiply("events", EVENTS, 1), cards_and_deliveries())
