"""The metrics as the SDK's exporter takes them."""

from __future__ import annotations

import logging
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from amo_receiver.telemetry.metrics_counts import Distribution
from amo_receiver.telemetry.rare import DISTRIBUTION, PACKAGE, resource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_receiver.telemetry.metrics_counts import Family, Labels

NUMBERS = {"http.response.status_code"}
"""Labels whose values are numbers by the conventions."""
CUMULATIVE = AggregationTemporality.CUMULATIVE


class OtlpMetricsCollector:
    """The collector that the standard variables ``OTEL_EXPORTER_OTLP_*`` describe."""

    def __init__(self) -> None:
        self._exporter = OTLPMetricExporter()
        self._resource = resource()
        self._scope = InstrumentationScope(PACKAGE, version(DISTRIBUTION))
        # Its lines would come with every attempt, and repeat what the other side answered.
        logging.getLogger(OTLPMetricExporter.__module__).setLevel(logging.CRITICAL)

    def post(self, families: Sequence[Family], started_at: float) -> str:
        """Post all metrics, repeated as OTLP asks for within ``OTEL_EXPORTER_OTLP_TIMEOUT``."""
        now_ns = time.time_ns()
        metrics = [_metric(family, int(started_at * 1e9), now_ns) for family in families if family.values]
        of_scope = ScopeMetrics(self._scope, metrics, "")
        data = MetricsData([ResourceMetrics(self._resource, [of_scope], "")])
        return "" if self._exporter.export(data) is MetricExportResult.SUCCESS else "the collector did not take them"

    def close(self) -> None:
        """Let go."""
        self._exporter.shutdown()


def _metric(family: Family, start_ns: int, now_ns: int) -> Metric:
    definition, values = family
    numbers: list[NumberDataPoint] = []
    distributions: list[HistogramDataPoint] = []
    for labels, value in values.items():
        attributes = _attributes(definition.labels, labels)
        if isinstance(value, Distribution):
            unknown: float = None  # type: ignore[assignment] # OTLP leaves the extremes out, the SDK always has them
            distributions.append(
                HistogramDataPoint(
                    attributes, start_ns, now_ns, sum(value.counts), value.total, value.counts, definition.bounds, unknown, unknown
                )
            )
        else:
            numbers.append(NumberDataPoint(attributes, start_ns, now_ns, value))
    data: Sum | Gauge | Histogram
    if definition.type == "histogram":
        data = Histogram(distributions, CUMULATIVE)
    elif definition.type == "gauge":
        data = Gauge(numbers)
    else:
        data = Sum(numbers, CUMULATIVE, is_monotonic=definition.type == "counter")
    return Metric(definition.name, definition.help, definition.unit, data)


def _attributes(names: tuple[str, ...], labels: Labels) -> dict[str, str | int]:
    """Return what is not empty: in Prometheus an empty label is none."""
    named = zip(names, labels, strict=True)
    return {name: int(value) if name in NUMBERS and value.isdigit() else value for name, value in named if value}
