"""A worker of its own, as a process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from factories import ACCOUNT, form_body, lead
from integration.acceptance import accept_at, delivered
from servers import connect

if TYPE_CHECKING:
    from conftest import StartWorker

EVENT = "SELECT state, attempts, deferrals, last_error FROM events"


async def test_a_worker_told_to_end_gives_back_what_it_had_begun(start_worker: StartWorker, database_url: str) -> None:
    """SIGTERM while a lead is locked: the attempt does not count, or three restarts would make a dead letter; exit code 0."""
    await accept_at(database_url, delivered(form_body("leads", "update", lead(id=1))))
    async with connect(database_url) as connection, connect(database_url) as holder:
        await connection.execute(
            "UPDATE events SET state = 'pending', effect = NULL, processed_at = NULL, attempts = 1, available_at = now()"
        )
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("SELECT FROM leads WHERE account_id = $1 FOR UPDATE", ACCOUNT)
        await holder.execute("UPDATE leads SET name = name")
        await connection.execute("UPDATE events SET occurred_at = now() + interval '1 minute'")  # newer than the row: the upsert must wait
        worker = start_worker(database_url)
        async with asyncio.timeout(20):
            while await connection.fetchval("SELECT attempts FROM events") != 2:
                await asyncio.sleep(0.01)
        worker.terminate()
        assert await asyncio.to_thread(worker.wait) == 0
        await transaction.rollback()
        state, attempts, deferrals, last_error = await connection.fetchrow(EVENT)
        assert (state, attempts, deferrals) == ("pending", 1, 1)
        assert "55P03" in last_error
