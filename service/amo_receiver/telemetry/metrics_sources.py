"""Metrics that others know, asked for when somebody reads: readiness, the connection pool, the exporter of spans, the database."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

from sqlalchemy.pool import QueuePool

from amo_receiver.log import get_logger
from amo_receiver.telemetry import metrics_table as table
from amo_receiver.telemetry.metrics_counts import Family
from amo_receiver.telemetry.metrics_stored import StoredGauges

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from amo_receiver.telemetry.metrics_counts import Labels

log = get_logger(__name__)

DISTRIBUTION = "amo-webhooks"
POOL = "database"


@dataclass
class Sources:
    """Those who are asked. One that fails is missing, and keeps nothing else from being shown."""

    engine: AsyncEngine
    is_ready: Callable[[], bool]
    spans: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 0)
    schema_revision: str = ""
    source_revision: str = ""
    role: str = "service"
    _stored: StoredGauges = field(init=False)
    _failed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Nothing is asked yet."""
        self._stored = StoredGauges(self.engine)

    @property
    def newest(self) -> float | None:
        """Return when the newest delivery of all came, in unix seconds."""
        return self._stored.newest

    async def refresh(self) -> None:
        """Ask the database."""
        await self._stored.refresh()

    def families(self) -> list[Family]:
        """Return what is known now."""
        families: list[Family] = []
        for read in (self._process, self._pool, self._span_counts, self._stored.families):
            try:
                families += read()
            except Exception as error:  # noqa: BLE001 - the others are needed all the more
                if read.__name__ not in self._failed:
                    log.warning("Metrics about the %s are missing: %s", read.__name__.strip("_").replace("_", " "), type(error).__name__)
                self._failed.add(read.__name__)
        return families

    def _process(self) -> list[Family]:
        build = (version(DISTRIBUTION), self.source_revision, self.schema_revision)
        ready = Family(table.READY, {(self.role,): int(self.is_ready())})
        return [Family(table.UP, {(): 1}), ready, Family(table.BUILD_INFO, {build: 1})]

    def _pool(self) -> list[Family]:
        pool = self.engine.pool
        if not isinstance(pool, QueuePool):
            return []
        counts: dict[Labels, float] = {(POOL, "used"): pool.checkedout(), (POOL, "idle"): pool.checkedin()}
        return [Family(table.CONNECTIONS, counts), Family(table.CONNECTIONS_MAX, {(POOL,): pool.size()})]

    def _span_counts(self) -> list[Family]:
        exported, dropped, waiting = self.spans()
        exports: dict[Labels, float] = {("exported",): exported, ("dropped",): dropped}
        return [Family(table.SPAN_EXPORTS, exports), Family(table.SPAN_QUEUE, {(): waiting})]
