"""The metrics pushed over OTLP, as the standard variables ask for it; without an endpoint nothing is imported, built or started.

What is pushed is what ``/metrics`` shows, under OpenTelemetry's names, and always cumulative: a collector can make deltas of it.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

from amo_receiver.errors import ConfigurationError
from amo_receiver.log import get_logger
from amo_receiver.telemetry.setup import PROTOCOL, STOP_SECONDS, _first, _is_http, _positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_receiver.telemetry.metrics import Metrics
    from amo_receiver.telemetry.metrics_counts import Family

log = get_logger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTERS = {"otlp", "prometheus", "none"}
"""Prometheus is served anyway."""
INTERVAL_MS = 60_000
READ_SECONDS = 5.0


class MetricsCollector(Protocol):
    """Where the metrics are posted."""

    def post(self, families: Sequence[Family], started_at: float) -> str:
        """Post all metrics, counted since ``started_at`` (unix seconds); return why they were not taken, empty if they were."""

    def close(self) -> None:
        """End a post that waits for its repetition, and the connection."""


class Push:
    """A thread that pushes every so many seconds, and once more at the end."""

    def __init__(self, metrics: Metrics, collector: MetricsCollector, interval_seconds: float) -> None:
        self._metrics = metrics
        self._collector = collector
        self._interval_seconds = interval_seconds
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._trouble = ""

    def start(self) -> None:
        """Begin to push what is counted in this thread's event loop."""
        self._thread = threading.Thread(target=self._run, args=(asyncio.get_running_loop(),), name="metric-export", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """Push for the last time, for so long at most; blocks, so call it in a thread beside the event loop."""
        self._stopping.set()
        if self._thread:
            self._thread.join(timeout_seconds)
        self._collector.close()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopping.wait(self._interval_seconds):
            self._push(loop)
        self._push(loop)

    def _push(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop has ended
            trouble = self._post(loop)
            loop.call_soon_threadsafe(partial(self._metrics.exported, is_good=not trouble))
            self._tell(trouble)

    def _post(self, loop: asyncio.AbstractEventLoop) -> str:
        reading = self._read()
        try:
            families = asyncio.run_coroutine_threadsafe(reading, loop)
        except RuntimeError:
            reading.close()
            raise
        try:
            return self._collector.post(families.result(READ_SECONDS), self._metrics.started_at)
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on
            return type(error).__name__

    async def _read(self) -> list[Family]:
        await self._metrics.refresh()
        return self._metrics.families()

    def _tell(self, trouble: str) -> None:
        """Say so when pushing begins or ceases to fail, not each time that it does."""
        if trouble and trouble != self._trouble:
            log.warning("Metrics are not exported", reason=trouble)
        elif self._trouble and not trouble:
            log.info("Metrics are exported again")
        self._trouble = trouble


def set_up_push(metrics: Metrics) -> Push | None:
    """Build what the environment asks for; None: nothing.

    :raises ConfigurationError: names the variable that cannot be followed.
    """
    if not _is_wanted():
        return None
    interval_ms = _positive("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL_MS)
    from amo_receiver.telemetry.metrics_otlp import OtlpMetricsCollector  # noqa: PLC0415 - takes a tenth of a second and megabytes

    return Push(metrics, OtlpMetricsCollector(), interval_ms / 1_000)


def _is_wanted() -> bool:
    endpoint = _first(ENDPOINTS)
    exporters = {name.strip().lower() for name in (_first(["OTEL_METRICS_EXPORTER"]) or "otlp").split(",")}
    if not exporters <= EXPORTERS:
        raise ConfigurationError("OTEL_METRICS_EXPORTER must be otlp, prometheus or none")
    if not endpoint or "otlp" not in exporters or _first(["OTEL_SDK_DISABLED"]).lower() == "true":
        return False
    if (_first(PROTOCOLS).lower() or PROTOCOL) != PROTOCOL:
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL must be {PROTOCOL}")
    if not _is_http(endpoint):
        raise ConfigurationError("OTEL_EXPORTER_OTLP_ENDPOINT must be a URL such as http://collector:4318")
    return True
