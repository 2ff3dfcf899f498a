"""What the process knows of its own condition: whether it is ready, and the two pages for people.

Ready means: the database's schema fits this code, seen once since start, and a key is loaded. A database that goes away later is
answered with 503 per request and never with unreadiness, because taking every pod out of the load balancer would help nobody.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from amo_receiver.database import describe, unsafe_settings
from amo_receiver.inbox.endpoints import PATH, timestamp
from amo_receiver.log import get_logger
from amo_receiver.schema import read_revision, runs_on

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from amo_receiver.inbox.service import Reloadable

log = get_logger(__name__)

CACHE_SECONDS = 1.0
QUESTION_SECONDS = 1.0
SUPPORTED_EVENTS = ["leads.add", "leads.update", "leads.delete", "contacts.add", "contacts.update"]


@dataclass
class Health:
    """What this process knows of its own condition."""

    engine: AsyncEngine
    current: Reloadable
    revisions: list[str]
    schema_seen: bool = False
    schema_problem: str = "the database was not reached yet"
    _page: asyncio.Future[dict[str, Any]] | None = None
    _page_at: float = float("-inf")

    async def watch_schema(self, interval_seconds: float = 1.0) -> None:
        """Look at the database's revision until it fits once."""
        while not self.schema_seen:
            try:
                revision = await read_revision(self.engine)
            except Exception as error:  # noqa: BLE001 - the database may come up after us
                self._note(f"the database is not reached: {describe(error)}")
            else:
                self.schema_seen = runs_on(revision, self.revisions)
                if not self.schema_seen:
                    mend = "run `amo-webhooks migrate upgrade head`"
                    self._note(f"the schema is at {revision.current}, this release needs {self.revisions[0]}: {mend}")
            if not self.schema_seen:
                await asyncio.sleep(interval_seconds)
        log.info("The database's schema fits")
        await self._warn_of_loss()

    async def _warn_of_loss(self) -> None:
        with suppress(Exception):  # nothing depends on it, and `amo-webhooks doctor` asks again
            for name in await unsafe_settings(self.engine):
                log.warning("Postgres runs with %s off: if it crashes, webhooks that were answered 200 are lost; set it to on", name)

    def _note(self, problem: str) -> None:
        if problem != self.schema_problem:
            log.warning("Not ready: %s", problem)
        self.schema_problem = problem

    def obstacles(self) -> list[str]:
        """Return why requests should not come here yet; empty when ready."""
        obstacles = [] if self.schema_seen else [self.schema_problem]
        if not self.current.keyring.loaded:
            obstacles.append("no key is loaded: nothing could be verified")
        return obstacles

    async def page(self) -> dict[str, Any]:
        """Return the health page for people, at most a second old; those who ask together share one question to the database."""
        now = time.monotonic()
        if self._page is None or now - self._page_at >= CACHE_SECONDS:
            self._page_at = now
            self._page = asyncio.ensure_future(self._look())
        return await asyncio.shield(self._page)

    async def _look(self) -> dict[str, Any]:
        connected = await self.answers()
        return {
            "status": "healthy" if connected and self.schema_seen else "unhealthy",
            "timestamp": timestamp(),
            "database": "connected" if connected else "disconnected",
            "webhook_endpoint": "active",
        }

    async def answers(self) -> bool:
        """Tell whether the database answers, within a second."""
        question = asyncio.ensure_future(self._ask())
        question.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({question}, timeout=QUESTION_SECONDS)
        return question.done() and question.exception() is None

    async def _ask(self) -> None:
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))


def test_page() -> dict[str, Any]:
    """Return the page that says that this is the right address."""
    return {
        "status": "success",
        "message": "Webhook endpoint is working",
        "timestamp": timestamp(),
        "endpoint": PATH,
        "supported_events": SUPPORTED_EVENTS,
    }
