"""Tracing as the standard variables ask for it, hot and rare spans together; and nothing at all without an endpoint."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN, format_span_id, format_trace_id

from amo_receiver.errors import AmoWebhooksError, ConfigurationError
from amo_receiver.telemetry.links import links_to, open_span
from amo_receiver.telemetry.rare import EncodeAtEnd
from amo_receiver.telemetry.setup import Telemetry, set_up
from otlp_sink import OtlpSink, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

REMOTE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
ROUTE = "/api/webhooks/amo"
LONG_AGO = "OTEL_BSP_SCHEDULE_DELAY", "3600000"  # only what is exported at the end is


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return an environment without any of the standard variables."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def sink(environment: pytest.MonkeyPatch) -> Iterator[OtlpSink]:
    """Return a collector that the environment names."""
    with OtlpSink() as started:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", started.url)
        environment.setenv(*LONG_AGO)
        yield started


def started() -> Telemetry:
    telemetry = set_up()
    telemetry.start()
    return telemetry


def accept(telemetry: Telemetry, traceparent: str | None = None) -> str:
    """Trace one delivery, and return what is stored of it."""
    assert telemetry.tracing
    span = telemetry.tracing.accept(traceparent, 0)
    telemetry.tracing.end_accept(span, ROUTE, 200, "success")
    return span.traceparent


def values(attributes: list[KeyValue]) -> dict[str, str]:
    return {each.key: each.value.string_value for each in attributes}


def named(sink: OtlpSink) -> dict[str, Span]:
    return {span.name: span for span in sink.spans}


OFF = [
    {},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "TRUE"},
    {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"},
    {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318"},
]


@pytest.mark.parametrize("variables", OFF)
def test_nothing_is_built_when_nobody_listens(environment: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """No thread, no queue; rare spans may be made all the same, and have no ids to store."""
    for name, value in variables.items():
        environment.setenv(name, value)
    before = threading.active_count()
    telemetry = started()
    assert (telemetry.tracing, telemetry.exporter, threading.active_count()) == (None, None, before)
    with telemetry.tracer.start_as_current_span("replay", links=links_to(REMOTE)) as span:
        assert open_span(span) is None
    telemetry.stop()


def test_the_sdk_is_not_even_imported_when_nobody_listens(environment: pytest.MonkeyPatch) -> None:
    """Nor is its HTTP client: they take time at start and memory ever after."""
    script = (
        "import sys; from amo_receiver.telemetry import links, setup, spans, tracing; setup.set_up();"
        "print([name for name in ('opentelemetry.sdk', 'opentelemetry.exporter', 'requests', 'google.protobuf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


BROKEN = [
    ("OTEL_TRACES_EXPORTER", "console"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "otel.example:4318"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[collector"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http:///v1"),
    ("OTEL_BSP_SCHEDULE_DELAY", "00"),
    ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "²"),
]


@pytest.mark.parametrize(("name", "value"), BROKEN)
def test_a_variable_that_cannot_be_followed_is_named(sink: OtlpSink, environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    """At start, by a sentence without the value."""
    environment.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name) as raised:
        set_up()
    assert value not in str(raised.value)


def test_a_limit_that_the_sdk_cannot_read_is_an_error_of_ours(sink: OtlpSink, environment: pytest.MonkeyPatch) -> None:
    """Not a traceback."""
    environment.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "some")
    with pytest.raises(ConfigurationError, match="LIMIT"):
        set_up()


def test_who_sends_the_spans(sink: OtlpSink, environment: pytest.MonkeyPatch) -> None:
    """Our name, version and an id of this process; what the environment says about us counts before that."""
    accept(telemetry := started())
    telemetry.stop(60)
    environment.setenv("OTEL_SERVICE_NAME", "hooks")
    environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,service.instance.id=pod-1,deployment.environment.name=prod")
    accept(telemetry := started())
    telemetry.stop(60)
    by_default, by_environment = (values(list(request.export.resource_spans[0].resource.attributes)) for request in sink.received)
    assert (by_default["service.name"], by_default["service.version"]) == ("amo-webhooks", version("amo-webhooks"))
    assert by_default["service.instance.id"]
    assert by_environment | {"service.name": "hooks", "service.instance.id": "pod-1"} == by_environment
    assert by_environment["deployment.environment.name"] == "prod"
    assert by_environment["service.version"] == version("amo-webhooks")
    assert by_default["telemetry.sdk.language"] == "python"


def test_hot_and_rare_spans_of_one_story(sink: OtlpSink) -> None:
    """An attempt links back to the stored accept span, its statement is below it, and all are counted together."""
    telemetry = started()
    assert telemetry.tracing
    assert telemetry.exporter
    stored = accept(telemetry, REMOTE)
    with telemetry.tracer.start_as_current_span("attempt", links=links_to(stored, None, "junk")) as attempt:
        opened = open_span(attempt)
        assert opened
        telemetry.tracing.end_call(telemetry.tracing.call(opened), "settle_v1")
    telemetry.stop(60)
    spans = named(sink)
    assert spans.keys() == {"accept", "attempt", "SELECT settle_v1"}
    assert f"00-{spans['accept'].trace_id.hex()}-{spans['accept'].span_id.hex()}-01" == stored
    assert [(link.trace_id, link.span_id) for link in spans["attempt"].links] == [(spans["accept"].trace_id, spans["accept"].span_id)]
    assert spans["attempt"].links[0].flags == 0x300  # from another process, as far as we know
    assert spans["attempt"].trace_id == spans["SELECT settle_v1"].trace_id != spans["accept"].trace_id
    assert spans["attempt"].span_id == spans["SELECT settle_v1"].parent_span_id
    context = attempt.get_span_context()
    assert opened.traceparent == f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-03"
    assert (telemetry.exporter.exported, telemetry.exporter.dropped) == (3, 0)
    (request,) = sink.received
    (scope,) = request.export.resource_spans[0].scope_spans
    assert (scope.scope.name, scope.scope.version) == ("amo_receiver", version("amo-webhooks"))


def test_an_exception_in_a_rare_span_keeps_its_message(sink: OtlpSink) -> None:
    """To itself: a database's and a parser's messages quote personal data, and the SDK would export them in three places."""
    telemetry = started()
    with pytest.raises(AmoWebhooksError), telemetry.tracer.start_as_current_span("attempt"):
        raise AmoWebhooksError("Иван +79161234567")
    telemetry.stop(60)
    (span,) = sink.spans
    (event,) = span.events
    assert values(list(event.attributes)) == {"exception.type": "amo_receiver.errors.AmoWebhooksError", "exception.escaped": "False"}
    assert (span.status.code, span.status.message) == (2, "")
    assert "79161234567" not in str(sink.received)


SAMPLERS = [
    (None, None, 3),
    ("", None, 3),
    ("always_on", None, 3),
    ("always_off", None, 0),
    ("traceidratio", "0", 0),
    ("traceidratio", "1", 3),
    ("parentbased_always_on", None, 2),
    ("parentbased_always_off", None, 0),
]


@pytest.mark.parametrize(("sampler", "argument", "spans"), SAMPLERS)
def test_the_sampler_decides_about_hot_and_rare_spans_alike(
    sink: OtlpSink, environment: pytest.MonkeyPatch, sampler: str | None, argument: str | None, spans: int
) -> None:
    """Everything by default, also below a sender who says that nothing is recorded there; his word counts only if the operator says so."""
    for name, value in (("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", argument)):
        if value is not None:
            environment.setenv(name, value)
    telemetry = started()
    assert telemetry.tracing
    accept(telemetry, REMOTE)
    batch = telemetry.tracing.batch()
    telemetry.tracing.end_batch(batch, [], 1, 1)
    telemetry.tracer.start_span("replay").end()
    telemetry.stop(60)
    assert len(sink.spans) == spans


def test_what_is_recorded_for_us_alone_is_not_exported() -> None:
    """A sampler of somebody's own can decide so."""
    exported: list[bytes] = []
    for flags in (trace.TraceFlags.DEFAULT, trace.TraceFlags.SAMPLED):
        context = trace.SpanContext(1, 1, is_remote=False, trace_flags=trace.TraceFlags(flags))
        EncodeAtEnd(exported.append).on_end(ReadableSpan("replay", context))
    assert len(exported) == 1


def test_a_ratio_keeps_whole_traces(sink: OtlpSink, environment: pytest.MonkeyPatch) -> None:
    """Hot spans are chosen by their trace id as the SDK chooses, so that the rare ones of the same trace go with them."""
    environment.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    environment.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    telemetry = started()
    assert telemetry.tracing
    for _ in range(200):
        batch = telemetry.tracing.batch()
        telemetry.tracing.end_batch(batch, [], 1, 1)
        context = trace.set_span_in_context(trace.NonRecordingSpan(links_to(batch.traceparent)[0].context))
        telemetry.tracer.start_span("below", context).end()
    telemetry.stop(60)
    kept = {name: {span.trace_id for span in sink.spans if span.name == name} for name in ("batch", "below")}
    assert kept["batch"] == kept["below"]
    assert 0 < len(kept["batch"]) < 200


def test_the_provider_is_private(sink: OtlpSink) -> None:
    """A global one would make the web framework and every instrumented library trace on their own."""
    telemetry = started()
    with telemetry.tracer.start_as_current_span("attempt"):
        assert type(trace.get_tracer_provider()) is trace.ProxyTracerProvider
        assert trace.get_tracer("fastapi").start_span("request").is_recording() is False
    telemetry.stop(60)
    assert open_span(INVALID_SPAN) is None


def test_the_queue_s_variables_are_followed(sink: OtlpSink, environment: pytest.MonkeyPatch) -> None:
    """Size of the queue and of a request; the delay is what keeps these spans in the queue."""
    environment.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "5")
    environment.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    telemetry = started()
    for _ in range(7):
        accept(telemetry)
    assert telemetry.exporter
    assert telemetry.exporter._limits.delay_seconds == 3600
    telemetry.stop(60)
    assert (telemetry.exporter.exported, telemetry.exporter.dropped) == (5, 2)
    assert [len(request.export.resource_spans[0].scope_spans[0].spans) for request in sink.received] == [2, 2, 1]


def test_spans_are_exported_while_the_service_runs(sink: OtlpSink, environment: pytest.MonkeyPatch) -> None:
    """After the delay that is set, in milliseconds; nobody has to stop it first."""
    environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    telemetry = started()
    accept(telemetry)
    eventually(lambda: sink.spans, "exported")
    telemetry.stop(60)
