"""Compare what the tables hold with what was sent and what was answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from integration.cards import Stored, differences, fold, read_cards

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import asyncpg

    from integration.cards import Change
    from integration.load import Answer

SETTLED_TIMEOUT_SECONDS = 30.0


async def stored_events(connection: asyncpg.Connection) -> Sequence[Any]:
    """Return the events that carry a serial."""
    events: Sequence[Any] = await connection.fetch(
        "SELECT id, delivery_id, account_id, received_at, state, last_error, (payload->>'serial')::int AS serial FROM events"
        " WHERE payload ? 'serial' ORDER BY id"
    )
    return events


async def require_agreement(connection: asyncpg.Connection, changes: Mapping[int, Change]) -> None:
    """Require that leads and contacts are what the stored events make of an empty table, by the rules alone."""
    events = await stored_events(connection)
    expected = fold((changes[event["serial"]], Stored(event["id"], event["received_at"])) for event in events)
    wrong = differences(await read_cards(connection), expected)
    assert not wrong, f"{len(wrong)} of {len(expected)} cards are wrong, such as\n" + "\n".join(wrong[:3])


async def require_kept(connection: asyncpg.Connection, answers: Iterable[Answer], changes: Mapping[int, Change]) -> None:
    """Require that all that was acknowledged is stored, applied where the answer says so, and nothing dated is there twice."""
    events = await stored_events(connection)
    states = {event["serial"]: event["state"] for event in events}
    accepted = [answer for answer in answers if answer.status == 200]
    missing = {serial for answer in accepted for serial in answer.post.serials if serial not in states}
    assert not missing, f"acknowledged and not stored: {sorted(missing)[:10]}"
    whole = [answer for answer in accepted if answer.document["status"] == "success"]
    unapplied = {serial for answer in whole for serial in answer.post.serials if states[serial] != "processed"}
    assert not unapplied, f"answered as applied and not processed: {sorted(unapplied)[:10]}"
    counts = Counter(event["serial"] for event in events)
    twice = [serial for serial, count in counts.items() if count > 1 and changes[serial].at is not None]
    assert not twice, f"stored twice: {twice[:10]}"


async def settled(connection: asyncpg.Connection) -> None:
    """Return when no event is pending."""
    async with asyncio.timeout(SETTLED_TIMEOUT_SECONDS):
        while await connection.fetchval("SELECT count(*) FROM events WHERE state = 'pending'"):
            await asyncio.sleep(0.1)
