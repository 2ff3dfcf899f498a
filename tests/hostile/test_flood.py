"""Deliveries as large as they may be, as many at once as somebody who knows a token cares to send."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from factories import form_body, lead
from hostile.watched import require_accepting, resident_mib
from hostile.wire import connected, whole

if TYPE_CHECKING:
    from hostile.report import Report
    from servers import Services

SENDERS = 150
EACH = 3
LEADS = 800
MOST_FLOODED_MIB = 320
"""Resident memory that no flood may push a service beyond: what pods are commonly given is 512 MiB."""


def large_body(number: int) -> bytes:
    """Return a body of hundreds of leads, 0.7 MB."""
    return form_body("leads", "update", *(lead(id=80_000_001 + number * LEADS + place) for place in range(LEADS)))


async def flood(url: str, body: bytes) -> Counter[int]:
    """Send a body again and again over one connection, and count the answers by status."""
    async with connected(url) as wire:
        return Counter([(await wire.ask(whole(body))).status for _ in range(EACH)])


async def test_large_bodies_do_not_fill_the_memory(pooled_url: str, services: Services, report: Report) -> None:
    """What is too much at once is answered 503 before it is parsed, and then others are accepted as ever."""
    service = await asyncio.to_thread(services.serve, pooled_url, args=["--no-worker"])
    bodies = [large_body(number) for number in range(10)]
    peak = begun = resident_mib(service)
    async with asyncio.TaskGroup() as group:
        senders = [group.create_task(flood(service.url, bodies[number % len(bodies)])) for number in range(SENDERS)]
        while not all(task.done() for task in senders):
            await asyncio.sleep(0.05)
            peak = max(peak, resident_mib(service))
    codes = sum((task.result() for task in senders), Counter[int]())
    report.say(
        f"{codes.total()} bodies of {len(bodies[0])} bytes from {SENDERS} senders: {dict(codes)}, {begun:.0f} MiB before, {peak:.0f} at most"
    )
    assert set(codes) == {200, 503}
    assert peak <= MOST_FLOODED_MIB
    await asyncio.to_thread(require_accepting, service.url)
