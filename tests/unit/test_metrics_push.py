"""The metrics pushed over OTLP: the same ones as on the page, and no harm done by whoever does not take them."""

from __future__ import annotations

import asyncio
import gzip
import os
import subprocess
import sys
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

from amo_receiver.database import create_engine
from amo_receiver.errors import ConfigurationError
from amo_receiver.telemetry.metrics import TOKEN_ROUTE, Metrics
from amo_receiver.telemetry.metrics_push import Push, set_up_push
from amo_receiver.telemetry.metrics_sources import Sources
from amo_receiver.telemetry.metrics_table import DEFINITIONS
from exposition import Sample, read, sample
from in_process import NOBODY_LISTENS
from otlp_sink import Answer, OtlpSink, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, ResourceMetrics

    from otlp_sink import Received

STARTED_AT = 1_795_348_800.0
SOON, NEVER = ("OTEL_METRIC_EXPORT_INTERVAL", "20"), ("OTEL_METRIC_EXPORT_INTERVAL", "3600000")
EXPORTS = {outcome: sample("amo_metric_exports_total", amo_outcome=outcome) for outcome in ("success", "failure")}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return an environment without any of the standard variables."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def sink(environment: pytest.MonkeyPatch) -> Iterator[OtlpSink]:
    """Return a collector that the environment names; only what is pushed at the end is."""
    with OtlpSink() as started:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", started.url)
        environment.setenv(*NEVER)
        yield started


@pytest.fixture
async def metrics() -> AsyncIterator[Metrics]:
    """Return metrics that do not change by themselves, each of which has a value if the database's are left out."""
    made = Metrics(clock=lambda: STARTED_AT, ticks=lambda: 0.0)
    engine = create_engine(NOBODY_LISTENS)
    made.attach(Sources(engine, lambda: True, lambda: (5, 3, 2), "0001"))
    made.answered(TOKEN_ROUTE, 200, "success", 0.012)
    made.answered(TOKEN_ROUTE, 503, "Unavailable", 1.5)
    made.matched("url_key", "abcdef012345")
    made.began(3, 0.004)
    made.stored([])
    yield made
    await engine.dispose()


def started(metrics: Metrics) -> Push:
    push = set_up_push(metrics)
    assert push
    push.start()
    return push


async def stopped(push: Push, timeout_seconds: float = 60) -> None:
    await asyncio.to_thread(push.stop, timeout_seconds)


async def soon(condition: Any, what: str) -> None:
    """Poll until a condition holds, while the event loop goes on."""
    await asyncio.to_thread(eventually, condition, what)


def export(received: Received) -> ResourceMetrics:
    body = gzip.decompress(received.body) if received.headers.get("Content-Encoding") == "gzip" else received.body
    (of_resource,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
    return of_resource


def pushed(received: Received) -> list[Metric]:
    (of_scope,) = export(received).scope_metrics
    assert (of_scope.scope.name, of_scope.scope.version) == ("amo_receiver", version("amo-webhooks"))
    return list(of_scope.metrics)


def labels_of(attributes: list[KeyValue]) -> dict[str, str]:
    return {each.key.replace(".", "_"): str(getattr(each.value, each.value.WhichOneof("value"))) for each in attributes}


def as_samples(metrics: list[Metric]) -> dict[Sample, float]:
    """Return what Prometheus makes of OTLP's metrics, by its rules."""
    names = {each.name: each.prometheus_name for each in DEFINITIONS}
    samples: dict[Sample, float] = {}
    for metric in metrics:
        name, data = names[metric.name], getattr(metric, metric.WhichOneof("data"))
        for point in data.data_points:
            labels = labels_of(list(point.attributes))
            if metric.HasField("histogram"):
                total = 0
                for bound, count in zip([*point.explicit_bounds, float("inf")], point.bucket_counts, strict=True):
                    total += count
                    samples[sample(f"{name}_bucket", **labels, le="+Inf" if bound == float("inf") else str(bound))] = total
                samples |= {sample(f"{name}_count", **labels): point.count, sample(f"{name}_sum", **labels): point.sum}
            else:
                samples[sample(name, **labels)] = getattr(point, point.WhichOneof("value"))
    return samples


async def test_what_is_pushed_is_what_the_page_shows(metrics: Metrics, sink: OtlpSink) -> None:
    """Every series with its value, by the rules that turn OpenTelemetry's names into Prometheus'."""
    push = started(metrics)
    shown = await read(metrics)
    await stopped(push)
    (received,) = sink.accepted
    assert received.path == "/v1/metrics"
    assert as_samples(pushed(received)) == shown


async def test_types_units_and_meanings_are_those_of_the_table(metrics: Metrics, sink: OtlpSink) -> None:
    """What only grows is monotonic, all sums are cumulative since the start, and status codes are numbers."""
    await stopped(started(metrics))
    of_table = {each.name: each for each in DEFINITIONS}
    kinds = {"counter": "sum", "updowncounter": "sum"}
    for metric in pushed(sink.accepted[0]):
        definition, data = of_table[metric.name], getattr(metric, metric.WhichOneof("data"))
        assert (metric.unit, metric.description) == (definition.unit, definition.help)
        assert metric.WhichOneof("data") == kinds.get(definition.type, definition.type)
        if metric.WhichOneof("data") != "gauge":
            assert data.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
            assert {point.start_time_unix_nano for point in data.data_points} == {int(STARTED_AT * 1e9)}
        if metric.HasField("sum"):
            assert data.is_monotonic == (definition.type == "counter")
        if metric.HasField("histogram"):
            assert not any(point.HasField("min") or point.HasField("max") for point in data.data_points)
        codes = {each.value.WhichOneof("value") for p in data.data_points for each in p.attributes if each.key.endswith("status_code")}
        assert codes <= {"int_value"}


async def test_the_resource_is_that_of_the_spans(metrics: Metrics, sink: OtlpSink, environment: pytest.MonkeyPatch) -> None:
    """Who we are, with the environment's own words."""
    environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    await stopped(started(metrics))
    attributes = labels_of(list(export(sink.accepted[0]).resource.attributes))
    assert attributes.items() >= {"service_name": "amo-webhooks", "deployment_environment_name": "test"}.items()


async def test_it_pushes_again_and_again_and_at_the_end(metrics: Metrics, sink: OtlpSink, environment: pytest.MonkeyPatch) -> None:
    """The last one has what was counted last."""
    environment.setenv(*SOON)
    push = started(metrics)
    await soon(lambda: len(sink.accepted) >= 3, "three pushes")
    metrics.matched("token", "ffffffffffff")
    await stopped(push)
    key = sample("amo_key_matches_total", amo_key_kind="token", amo_key_fingerprint="ffffffffffff")
    assert as_samples(pushed(sink.accepted[-1]))[key] == 1
    assert (await read(metrics))[EXPORTS["success"]] == len(sink.accepted)


async def test_a_collector_that_refuses_is_counted_and_asked_again(
    metrics: Metrics, sink: OtlpSink, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once when it begins and once when it ends, without what the other side answered."""
    environment.setenv(*SOON)
    sink.answers.extend([Answer(400), Answer(403), Answer(400)])
    caplog.set_level("INFO")
    push = started(metrics)
    await soon(lambda: len(sink.accepted) >= 2, "pushes after the refused ones")
    await stopped(push)
    samples = await read(metrics)
    assert (samples[EXPORTS["failure"]], samples[EXPORTS["success"]]) == (3, len(sink.accepted))
    told = [
        record.getMessage() for record in caplog.records if record.name.startswith(("amo_receiver.telemetry.metrics_push", "opentelemetry"))
    ]
    assert told == ["Metrics are not exported", "Metrics are exported again"]


async def test_an_end_does_not_wait_for_a_collector_that_hangs(metrics: Metrics, sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold up the whole process; the thread does not keep it alive either."""
    released = threading.Event()
    sink.always = Answer(when=released)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "10")
    push = started(metrics)
    await soon(lambda: sink.received, "a push that hangs")
    await stopped(push, 0.01)
    left = [thread for thread in threading.enumerate() if thread.name == "metric-export"]
    assert [thread.daemon for thread in left] == [True]
    released.set()
    await soon(lambda: not left[0].is_alive(), "the end of the thread")


async def test_a_push_after_the_end_of_the_loop_harms_nobody(metrics: Metrics, sink: OtlpSink) -> None:
    """A service that ended by itself leaves the thread behind, whose last push has nobody to ask."""

    def elsewhere() -> Push:
        async def start() -> Push:
            return started(metrics)

        return asyncio.run(start())

    push = await asyncio.to_thread(elsewhere)
    await stopped(push)
    assert sink.received == []


OFF = [
    {},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_METRICS_EXPORTER": "None"},
    {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318", "OTEL_METRICS_EXPORTER": "prometheus"},
    {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318"},
]


@pytest.mark.parametrize("variables", OFF)
def test_nothing_is_built_when_nobody_listens(environment: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """The page is all there is then."""
    for name, value in variables.items():
        environment.setenv(name, value)
    assert set_up_push(Metrics()) is None


async def test_the_endpoint_may_be_the_metrics_own(metrics: Metrics, environment: pytest.MonkeyPatch) -> None:
    """It is taken as it is, path and all; Prometheus beside OTLP is what there is anyway."""
    with OtlpSink() as sink:
        environment.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{sink.url}/mine")
        environment.setenv("OTEL_METRICS_EXPORTER", "otlp, prometheus")
        await stopped(started(metrics))
        assert [received.path for received in sink.accepted] == ["/mine"]


def test_the_sdk_is_not_even_imported_when_nobody_listens(environment: pytest.MonkeyPatch) -> None:
    """Nor is its HTTP client: they take time at start and memory ever after."""
    script = (
        "import sys; from amo_receiver.telemetry import metrics, metrics_page, metrics_push, metrics_sources;"
        "metrics_push.set_up_push(metrics.Metrics());"
        "print([name for name in ('opentelemetry.sdk', 'opentelemetry.exporter', 'requests', 'google.protobuf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


BROKEN = [
    ("OTEL_METRICS_EXPORTER", "console"),
    ("OTEL_METRICS_EXPORTER", "otlp,console"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "otel.example:4318"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "00"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "a minute"),
]


@pytest.mark.parametrize(("name", "value"), BROKEN)
def test_a_variable_that_cannot_be_followed_is_named(sink: OtlpSink, environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    """At start, by a sentence without the value."""
    environment.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name) as raised:
        set_up_push(Metrics())
    assert value not in str(raised.value)
