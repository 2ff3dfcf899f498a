"""The poll that keeps a process' recurring work going."""

from __future__ import annotations

import asyncio

import pytest

from amo_receiver.worker.loop import poll


@pytest.mark.parametrize(("at_end", "calls"), [(False, 3), (True, 4)])
async def test_work_is_called_until_the_end_and_once_more_where_asked_for(at_end: bool, calls: int) -> None:
    """Errors do not end it, neither on the way nor at the end."""
    stopping = asyncio.Event()
    made = 0

    async def work() -> None:
        nonlocal made
        made += 1
        if made == 3:
            stopping.set()
        if made > 1:
            raise ConnectionRefusedError

    await poll("Work", work, 0.001, stopping, at_end=at_end)
    assert made == calls


async def test_a_poll_that_is_stopped_before_it_began_is_called_at_the_end() -> None:
    """What was gathered meanwhile is not lost."""
    stopping, calls = asyncio.Event(), []
    stopping.set()

    async def work() -> None:
        calls.append(1)

    await poll("Work", work, 60, stopping, at_end=True)
    assert calls == [1]
