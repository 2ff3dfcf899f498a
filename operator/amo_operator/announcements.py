"""What is told in Kubernetes Events: at the end of a round, so that nothing waits for it, and whatever becomes of it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from amo_operator.resources import event

if TYPE_CHECKING:
    from datetime import datetime

    from amo_operator.kube import Kube
    from amo_operator.metrics import Metrics

log = logging.getLogger(__name__)

POST_SECONDS = 5.0


class Announcements:
    """Events that are still to be told; who dies before has told less, and done the same."""

    def __init__(self, kube: Kube, metrics: Metrics) -> None:
        self._kube = kube
        self._metrics = metrics
        self._pending: list[dict[str, Any]] = []

    def add(self, about: dict[str, Any], reason: str, message: str, now: datetime, *, is_warning: bool = False) -> None:
        """Keep an Event about a custom resource until the round ends."""
        self._pending.append(event(about, reason, message, now, is_warning=is_warning))

    async def post(self) -> None:
        """Tell all of them at once; what cannot be told is logged and counted, never raised."""
        pending, self._pending = self._pending, []
        await asyncio.gather(*map(self._post, pending))

    async def _post(self, manifest: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(POST_SECONDS):
                await self._kube.post_event(manifest)
        except Exception as error:  # noqa: BLE001 - what it tells of is done
            self._metrics.event_lost()
            about = manifest["involvedObject"]
            log.warning("The Event %s about %s could not be told: %s", manifest["reason"], about["name"], type(error).__name__)
