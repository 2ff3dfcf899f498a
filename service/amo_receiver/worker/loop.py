"""The worker: polls for due events with jitter, so that many workers do not ask in step."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

from amo_receiver.database import describe
from amo_receiver.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = get_logger(__name__)

LONGEST_PAUSE_SECONDS = 30.0


async def poll(
    name: str, work: Callable[[], Awaitable[object]], seconds: float, stopping: asyncio.Event, *, at_once: bool = True, at_end: bool = False
) -> None:
    """Call ``work`` every ``seconds`` (± 25 %) until ``stopping`` is set, at once again while it returns something true.

    Its errors are logged and slow the polling down to twice a minute; they never end it. With ``at_end`` it is called once more then.
    """
    pause = seconds
    if not at_once:
        await _sleep(seconds * random.random(), stopping)  # noqa: S311 - spreads load
    while not stopping.is_set():
        pause = await _call(name, work, seconds, pause)
        await _sleep(pause * random.uniform(0.75, 1.25), stopping)  # noqa: S311
    if at_end:
        await _call(name, work, seconds, pause)


async def _call(name: str, work: Callable[[], Awaitable[object]], seconds: float, pause: float) -> float:
    """Return how long to pause after this call; ``pause`` was the one before it."""
    try:
        return 0.0 if await work() else seconds
    except Exception as error:  # noqa: BLE001 - the database may be away for a while
        log.warning("%s could not run", name, error=describe(error))
        return min(max(pause, seconds) * 2, max(LONGEST_PAUSE_SECONDS, seconds))


async def _sleep(seconds: float, stopping: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
