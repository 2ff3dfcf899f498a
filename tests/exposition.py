"""A page of metrics as its readers take it apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from amo_receiver.telemetry.metrics import Metrics

Sample: TypeAlias = tuple[str, frozenset[tuple[str, str]]]
TEXT = "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5"


def sample(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def metrics_on(page: bytes, content_type: str = "") -> list[Metric]:
    """Parse a page by the official parser of its format."""
    parse = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse_text
    return list(parse(page.decode()))


def samples_on(page: bytes, content_type: str = "") -> dict[Sample, float]:
    """Return each series' value; an empty label is none, as in Prometheus."""
    return {
        sample(each.name, **{label: value for label, value in each.labels.items() if value}): each.value
        for metric in metrics_on(page, content_type)
        for each in metric.samples
    }


def own(samples: dict[Sample, float]) -> dict[Sample, float]:
    """Leave out what Prometheus' client says of the process and Python."""
    return {key: value for key, value in samples.items() if not key[0].startswith(("process_", "python_"))}


async def read(metrics: Metrics, accept: str = TEXT) -> dict[Sample, float]:
    """Render the page and return its series, without the process'."""
    from amo_receiver.telemetry.metrics_page import Page

    return own(samples_on(*await Page(metrics).render(accept)))
