"""Set tracing up from the standard variables; without an endpoint nothing is imported, built or started."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.trace import NoOpTracer

from amo_receiver.errors import ConfigurationError
from amo_receiver.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Tracer

    from amo_receiver.telemetry.exporter import Exporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
STOP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Tracing of one process: ``tracing`` for the hot spans, ``tracer`` for all others; off unless built by ``set_up``."""

    tracing: Tracing | None = None
    tracer: Tracer = field(default_factory=NoOpTracer)
    exporter: Exporter | None = None

    def start(self) -> None:
        """Begin to export."""
        if self.exporter:
            self.exporter.start()

    def span_counts(self) -> tuple[int, int, int]:
        """Return how many spans were exported, were dropped, and wait."""
        exporter = self.exporter
        return (exporter.exported, exporter.dropped, exporter.waiting) if exporter else (0, 0, 0)

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """Export what waits, for so long at most; blocks."""
        if self.exporter:
            self.exporter.stop(timeout_seconds)


def set_up(database: Mapping[str, str | int] | None = None) -> Telemetry:
    """Build what the environment asks for; ``database``: see ``Tracing``.

    :raises ConfigurationError: names the variable that cannot be followed.
    """
    if not _is_wanted():
        return Telemetry()
    # Only here: the SDK and its HTTP client take a tenth of a second and several megabytes.
    try:
        from amo_receiver.telemetry.exporter import Limits  # noqa: PLC0415
        from amo_receiver.telemetry.rare import build  # noqa: PLC0415

        usual = Limits()
        limits = Limits(
            delay_seconds=_positive("OTEL_BSP_SCHEDULE_DELAY", round(usual.delay_seconds * 1_000)) / 1_000,
            queue_spans=_positive("OTEL_BSP_MAX_QUEUE_SIZE", usual.queue_spans),
            request_spans=_positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", usual.request_spans),
        )
        exporter, tracer, sampler = build(limits)
    except ValueError:  # the SDK's, already while it is imported
        raise ConfigurationError("The OTEL_*_LIMIT variables must be whole numbers") from None
    return Telemetry(Tracing(exporter.add, sampler=sampler, database=database), tracer, exporter)


def _is_wanted() -> bool:
    endpoint = _first(ENDPOINTS)
    exporter = _first(["OTEL_TRACES_EXPORTER"]).lower() or "otlp"
    if not endpoint or exporter == "none" or _first(["OTEL_SDK_DISABLED"]).lower() == "true":
        return False
    if exporter != "otlp":
        raise ConfigurationError("OTEL_TRACES_EXPORTER must be otlp or none")
    if (_first(PROTOCOLS).lower() or PROTOCOL) != PROTOCOL:
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL must be {PROTOCOL}")
    if not _is_http(endpoint):
        raise ConfigurationError("OTEL_EXPORTER_OTLP_ENDPOINT must be a URL such as http://collector:4318")
    return True


def _first(names: tuple[str, ...] | list[str]) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def _positive(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip() or str(default)
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ConfigurationError(f"{name} must be a whole number above 0")
    return int(text)
