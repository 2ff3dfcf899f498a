"""The metrics as Prometheus reads them, with what its client says of the process, the garbage collector and Python."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from amo_receiver.telemetry.metrics_counts import Distribution
from amo_receiver.telemetry.metrics_table import UNITS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from amo_receiver.telemetry.metrics import Metrics
    from amo_receiver.telemetry.metrics_counts import Family


class Page(Collector):
    """``/metrics``."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return the page and its Content-Type, in the format that an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        await self._metrics.refresh()
        return encode(self._registry), content_type

    def collect(self) -> Iterable[Metric]:
        """Return what the registry asks for: all of our own."""
        return [_metric(family) for family in self._metrics.families()]


def _metric(family: Family) -> Metric:
    definition, values = family
    name, labels, unit = definition.prometheus_name, definition.prometheus_labels, UNITS.get(definition.unit, "")
    if definition.type == "histogram":
        histogram = HistogramMetricFamily(name, definition.help, labels=labels, unit=unit)
        for key, value in values.items():
            if isinstance(value, Distribution):
                histogram.add_metric(key, _buckets(definition.bounds, value.counts), value.total)
        return histogram
    kind = CounterMetricFamily if definition.type == "counter" else GaugeMetricFamily
    metric = kind(name, definition.help, labels=labels, unit=unit)
    for key, value in values.items():
        if not isinstance(value, Distribution):
            metric.add_metric(key, value)
    return metric


def _buckets(bounds: tuple[float, ...], counts: tuple[int, ...]) -> list[tuple[str, float]]:
    """Return each bound with how many values are at most it; the last one has none and holds them all."""
    return list(zip([*map(str, bounds), "+Inf"], accumulate(counts), strict=True))
