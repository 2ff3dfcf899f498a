"""The metrics as Prometheus reads them, with what its client says of the process, the garbage collector and Python."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from amo_receiver.telemetry.metrics_counts import Distribution
from amo_receiver.telemetry.metrics_table import UNITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    kind = {"counter": CounterMetricFamily, "histogram": HistogramMetricFamily}.get(definition.type, GaugeMetricFamily)
    metric = kind(definition.prometheus_name, definition.help, labels=definition.prometheus_labels, unit=UNITS.get(definition.unit, ""))
    for labels, value in values.items():
        if isinstance(value, Distribution):
            metric.add_metric(labels, list(_buckets(definition.bounds, value.counts)), value.total)
        else:
            metric.add_metric(labels, value)
    return metric


def _buckets(bounds: tuple[float, ...], counts: tuple[int, ...]) -> Iterator[tuple[str, float]]:
    """Yield each bound with how many values are at most it, and last how many there are."""
    return zip([floatToGoString(bound) for bound in (*bounds, float("inf"))], accumulate(counts), strict=True)
