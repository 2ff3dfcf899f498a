"""What others know of the process, on the page; and a page that shows the rest when one of them fails."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from amo_receiver.database import create_engine
from amo_receiver.telemetry.metrics import Metrics
from amo_receiver.telemetry.metrics_page import Page
from amo_receiver.telemetry.metrics_sources import Sources
from exposition import OPENMETRICS, TEXT, Sample, metrics_on, own, read, sample, samples_on
from in_process import NOBODY_LISTENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

POOL = {"db_client_connection_pool_name": "database"}


def fail() -> tuple[int, int, int]:
    raise KeyError("+79991234567")


@pytest.fixture
def engine() -> AsyncEngine:
    """Return an engine whose database is away."""
    return create_engine(NOBODY_LISTENS, 7)


def attached(
    engine: AsyncEngine, is_ready: Callable[[], bool] = lambda: True, spans: Callable[[], tuple[int, int, int]] = lambda: (5, 3, 2)
) -> Metrics:
    metrics = Metrics()
    metrics.attach(Sources(engine, is_ready, spans, "0001", "205d903"))
    return metrics


async def test_what_the_process_says_of_itself(engine: AsyncEngine) -> None:
    """Up, its build, whether it is ready now, what became of its spans, and how many connections it may have."""
    ready = [False]
    metrics = attached(engine, lambda: ready[0])
    samples = await read(metrics)
    expected: dict[Sample, float] = {
        sample("amo_up"): 1,
        sample("amo_ready", amo_role="service"): 0,
        sample("amo_build_info", service_version=version("amo-webhooks"), vcs_ref_head_revision="205d903", amo_schema_revision="0001"): 1,
        sample("amo_span_exports_total", amo_outcome="exported"): 5,
        sample("amo_span_exports_total", amo_outcome="dropped"): 3,
        sample("amo_span_queue"): 2,
        sample("db_client_connection_max", **POOL): 7,
        sample("db_client_connection_count", **POOL, db_client_connection_state="used"): 0,
        sample("db_client_connection_count", **POOL, db_client_connection_state="idle"): 0,
    }
    assert {key: samples.get(key) for key in expected} == expected
    ready[0] = True
    assert (await read(metrics))[sample("amo_ready", amo_role="service")] == 1


async def test_without_spans_none_are_counted(engine: AsyncEngine) -> None:
    """Zero is shown where nothing is traced, so that no query for it comes back empty."""
    metrics = Metrics()
    metrics.attach(Sources(engine, lambda: True))
    samples = await read(metrics)
    assert [value for (name, _), value in samples.items() if name.startswith("amo_span_")] == [0, 0, 0]


async def test_a_database_that_is_away_leaves_its_metrics_out(engine: AsyncEngine) -> None:
    """And all others in."""
    samples = await read(attached(engine))
    assert [name for name, _ in samples if name.startswith(("amo_queue", "amo_accounts", "amo_delivery_newest"))] == []
    assert samples[sample("amo_up")] == 1


async def test_a_source_that_fails_is_missing_and_named_once(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """The page comes without it; the log says which, and not what the error quotes."""
    metrics = attached(engine, spans=fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            samples = await read(metrics)
    assert (sample("amo_span_queue") in samples, samples[sample("amo_ready", amo_role="service")]) == (False, 1)
    assert [record.getMessage() for record in caplog.records].count("Metrics about the span counts are missing: KeyError") == 1
    assert "79991234567" not in caplog.text


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        (TEXT, "text/plain; version=0.0.4; charset=utf-8"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"),
        ("?", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
async def test_the_page_is_in_the_format_that_is_asked_for(engine: AsyncEngine, accept: str, content_type: str) -> None:
    """The official parser of the format reads it, and finds the same series in both."""
    metrics = attached(engine)
    metrics.answered("/api/webhooks/amo", 200, "success", 0.1)
    page, shown = await Page(metrics).render(accept)
    assert shown == content_type
    assert own(samples_on(page, shown)) == await read(metrics)


async def test_types_units_and_meanings_are_shown(engine: AsyncEngine) -> None:
    """OpenMetrics says them for each metric, and they are those of the table."""
    page, content_type = await Page(attached(engine)).render(OPENMETRICS)
    shown = {metric.name: (metric.type, metric.unit, metric.documentation[:8]) for metric in metrics_on(page, content_type)}
    assert shown["http_server_request_duration_seconds"] == ("histogram", "seconds", "Time fro")
    assert shown["amo_deliveries"] == ("counter", "", "Webhook ")
    assert shown["db_client_connection_max"] == ("gauge", "", "How many")


async def test_prometheus_client_adds_the_process_and_python(engine: AsyncEngine) -> None:
    """Under the names that everybody's dashboards know."""
    page, content_type = await Page(attached(engine)).render(TEXT)
    names = {name for name, _ in samples_on(page, content_type)}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "python_info"} <= names
    assert "python_gc_collections_total" in names


async def test_no_metric_is_shown_twice(engine: AsyncEngine) -> None:
    """Prometheus would refuse the whole page."""
    page, content_type = await Page(attached(engine)).render(TEXT)
    names = [metric.name for metric in metrics_on(page, content_type)]
    assert len(names) == len(set(names))
    lines = [line.rpartition(b" ")[0] for line in page.splitlines() if not line.startswith(b"#")]
    assert len(lines) == len(set(lines))
