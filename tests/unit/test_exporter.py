"""Spans reach a collector as the official exporter would send them, and one that misbehaves costs the service nothing."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trustme
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from amo_receiver.telemetry.exporter import REJECTED_QUIET_SECONDS, Envelope, Exporter, Limits, OtlpCollector, Reply, encode_span
from otlp_sink import Answer, OtlpSink, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RESOURCE = Resource({"service.name": "amo-webhooks", "service.instance.id": "1"})
SCOPE = InstrumentationScope("amo_receiver", "0.1.0")
SOON = Limits(delay_seconds=0.01)


def readable(number: int) -> ReadableSpan:
    context = SpanContext(number, number, is_remote=False)
    return ReadableSpan(f"span {number}", context, resource=RESOURCE, instrumentation_scope=SCOPE, start_time=1, end_time=2)


SPANS = [readable(number) for number in range(1, 11)]
ENCODED = [encode_span(span) for span in SPANS]


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    """Return a collector."""
    with OtlpSink() as started:
        yield started


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return an environment without any of the standard variables, to set them in."""
    for name in ("ENDPOINT", "HEADERS", "TIMEOUT", "COMPRESSION", "CERTIFICATE"):
        for signal in ("", "TRACES_"):
            monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{signal}{name}", raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # to requests, these count before a session's own
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def exporting(limits: Limits = SOON) -> Exporter:
    made = Exporter(Envelope(RESOURCE, SCOPE), OtlpCollector(), limits)
    made.start()
    return made


def has_dropped(exporter: Exporter, number: int) -> bool:
    return exporter.dropped == number


def add(exporter: Exporter, spans: list[bytes]) -> None:
    for span in spans:
        exporter.add(span)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, object]]:
    """Return the lines that were written, each with its reason."""
    return [(line.getMessage(), getattr(line, "fields", {}).get("reason")) for line in caplog.records]


@dataclass
class Scripted:
    """A collector of pretence: keeps requests, and says what it is told to say."""

    trouble: str | Exception = ""
    rejected: int = 0
    hold: threading.Event = field(default_factory=threading.Event)
    under_way: threading.Event = field(default_factory=threading.Event)
    requests: list[bytes] = field(default_factory=list)
    is_closed: bool = False

    def post(self, request: bytes) -> Reply:
        self.requests.append(request)
        self.under_way.set()
        self.hold.wait(60)
        if isinstance(self.trouble, Exception):
            raise self.trouble
        return Reply(self.trouble, self.rejected)

    def close(self) -> None:
        self.is_closed = True

    def names(self) -> list[list[str]]:
        exports = map(ExportTraceServiceRequest.FromString, self.requests)
        return [[span.name for span in export.resource_spans[0].scope_spans[0].spans] for export in exports]


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """Return a collector of pretence that answers at once; a test that wants it slow clears ``hold``."""
    made = Scripted()
    made.hold.set()
    yield made
    made.hold.set()


def test_a_request_is_the_one_that_the_sdk_would_send() -> None:
    """Resource, scope and spans, byte for byte."""
    ours = Envelope(RESOURCE, SCOPE).wrap(b"".join(ENCODED))
    assert ExportTraceServiceRequest.FromString(ours) == encode_spans(SPANS)
    assert len(ours) == encode_spans(SPANS).ByteSize()


def test_spans_arrive(sink: OtlpSink, environment: pytest.MonkeyPatch) -> None:
    """At the traces path below the endpoint, as protobuf, with the configured headers; counted when they were taken."""
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc,x-scope=amo")
    exporter = exporting()
    add(exporter, ENCODED)
    eventually(lambda: exporter.exported == len(SPANS), "all exported")
    exporter.stop(60)
    (request,) = sink.received
    assert (request.path, request.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
    assert (request.headers["Authorization"], request.headers["X-Scope"]) == ("Bearer abc", "amo")
    assert request.headers["Content-Encoding"] is None
    assert request.export == encode_spans(SPANS)
    assert exporter.dropped == 0


def test_the_variables_of_the_signal_count_before_the_general_ones(sink: OtlpSink, environment: pytest.MonkeyPatch) -> None:
    """Its endpoint is used as it is; gzip is understood on the other side."""
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    environment.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", sink.url + "/other")
    environment.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip")
    exporter = exporting()
    add(exporter, ENCODED)
    exporter.stop(60)
    (request,) = sink.received
    assert (request.path, request.headers["Content-Encoding"]) == ("/other", "gzip")
    assert request.body[:2] == b"\x1f\x8b"
    assert request.export == encode_spans(SPANS)


@pytest.mark.parametrize("is_trusted", [True, False])
def test_the_certificate_of_the_collector_is_verified(
    environment: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_trusted: bool
) -> None:
    """Against the configured authority; nothing is told to a server that cannot show one of its certificates."""
    authority, stranger = trustme.CA(), trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    (authority if is_trusted else stranger).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with OtlpSink(tls) as sink:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
        environment.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "ca.pem"))
        environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
        exporter = exporting()
        add(exporter, ENCODED)
        eventually(lambda: exporter.exported + exporter.dropped == len(SPANS), "exported or given up")
        exporter.stop(60)
        assert len(sink.spans) == exporter.exported == (len(SPANS) if is_trusted else 0)
    assert said(caplog) == ([] if is_trusted else [("Spans are not exported", "SSLError")])


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_collector_that_is_busy_is_asked_again(sink: OtlpSink, environment: pytest.MonkeyPatch, status: int) -> None:
    """With the same request, when it said so; counted once."""
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    sink.answers.extend([Answer(status, retry_after="0"), Answer(status, retry_after="0")])
    exporter = exporting()
    add(exporter, ENCODED)
    eventually(lambda: exporter.exported, "exported at last")
    exporter.stop(60)
    assert [request.export for request in sink.received] == [encode_spans(SPANS)] * 3
    assert (exporter.exported, exporter.dropped) == (len(SPANS), 0)


@pytest.mark.parametrize("status", [400, 401, 413, 500])
def test_a_request_that_is_refused_is_not_repeated(
    sink: OtlpSink, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Its spans count as dropped, one line says so however often it happens, and another one when it is over."""
    caplog.set_level(logging.INFO)
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    sink.always = Answer(status)
    exporter = exporting()
    for number in range(1, 4):
        exporter.add(ENCODED[number])
        eventually(partial(has_dropped, exporter, number), "refused")
    sink.always = Answer()
    exporter.add(ENCODED[0])
    eventually(lambda: exporter.exported, "taken")
    exporter.add(ENCODED[0])
    exporter.stop(60)
    assert [len(sink.received), exporter.exported, exporter.dropped] == [5, 2, 3]
    assert said(caplog) == [("Spans are not exported", f"HTTP {status}"), ("Spans are exported again", None)]


def partial_success(rejected: int, message: str = "") -> bytes:
    told = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    return ExportTraceServiceResponse(partial_success=told).SerializeToString()


def test_spans_that_a_taken_request_lost_count_as_dropped(
    sink: OtlpSink, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The collector answers 200 and says how many it rejected; its message may quote them and is not repeated."""
    caplog.set_level(logging.INFO)
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    sink.answers.extend([Answer(body=partial_success(3, "Иван")), Answer(body=partial_success(1)), Answer(body=partial_success(0, "slow"))])
    exporter = exporting()
    counts = []
    for expected in (10, 20, 30):
        add(exporter, ENCODED)
        eventually(lambda expected=expected: exporter.exported + exporter.dropped == expected, "counted")  # type: ignore[misc]
        counts.append((exporter.exported, exporter.dropped))
    exporter.stop(60)
    assert said(caplog) == [("The collector rejected some spans (partial success)", None)]
    assert vars(caplog.records[0])["fields"] == {"rejected": 3, "dropped": 3}
    assert counts == [(7, 3), (16, 4), (26, 4)]


def test_a_collector_that_rejects_some_now_and_then_is_told_of_once_a_minute(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """Exporting neither ceased nor began again; a failure in between is another matter, and said at once."""
    caplog.set_level(logging.INFO)
    now = [0.0]
    exporter = Exporter(Envelope(RESOURCE, SCOPE), scripted, SOON, lambda: now[0])
    told = []
    for after, scripted.rejected, scripted.trouble in (
        (0, 1, ""), (1, 0, ""), (1, 1, ""), (1, 0, "HTTP 500"), (1, 1, ""), (REJECTED_QUIET_SECONDS - 5, 1, ""), (1, 1, ""), (1, 1, ""),
    ):  # fmt: skip
        now[0] += after
        add(exporter, ENCODED[:2])
        exporter._export()
        told.append([line for line, _ in said(caplog)])
        caplog.clear()
    rejected = ["The collector rejected some spans (partial success)"]
    assert told == [rejected, [], [], ["Spans are not exported"], ["Spans are exported again"], [], rejected, []]
    assert (exporter.exported, exporter.dropped) == (8, 8)


@pytest.mark.parametrize("body", [b"<html>", partial_success(-5), b""])
def test_an_answer_of_another_kind_is_one_that_took_everything(sink: OtlpSink, environment: pytest.MonkeyPatch, body: bytes) -> None:
    """A proxy in between has pages of its own."""
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    sink.always = Answer(body=body)
    exporter = exporting()
    add(exporter, ENCODED)
    exporter.stop(60)
    assert (exporter.exported, exporter.dropped) == (10, 0)


def test_a_collector_that_is_not_there(environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Spans are given up after the time for it; the reason is named, and nothing of the library's own lines comes along."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port meanwhile
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
        exporter = exporting()
        add(exporter, ENCODED)
        eventually(lambda: exporter.dropped == len(SPANS), "given up")
        exporter.stop(60)
    assert said(caplog) == [("Spans are not exported", "ConnectionError")]


def test_a_collector_that_never_answers_neither_holds_up_nor_fills_the_service(sink: OtlpSink, environment: pytest.MonkeyPatch) -> None:
    """What waits is bounded, the rest is counted as dropped at once, and the end does not wait for the answer."""
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    released = threading.Event()
    sink.always = Answer(when=released)
    exporter = exporting(Limits(delay_seconds=0.01, queue_spans=100, request_spans=10))
    add(exporter, ENCODED)
    eventually(lambda: sink.received, "the first request is under way")
    add(exporter, ENCODED * 100)
    assert (exporter.exported, exporter.dropped) == (0, 10 + 1000 - 100)
    exporter.stop(0.01)
    add(exporter, ENCODED)
    assert (exporter.exported, exporter.dropped) == (0, 1010)
    released.set()
    exporter._thread.join()
    assert (exporter.exported, exporter.dropped, len(sink.received)) == (10, 1010, 1)


@pytest.mark.parametrize("bound", [Limits(queue_spans=7), Limits(queue_bytes=sum(map(len, ENCODED[:7])))])
def test_the_queue_is_bounded_by_number_and_by_size(scripted: Scripted, bound: Limits) -> None:
    """Seven fit, what is under way counts as waiting, and there is room again afterwards."""
    scripted.hold.clear()
    limits = Limits(0.001, bound.queue_spans, bound.queue_bytes)
    exporter = Exporter(Envelope(RESOURCE, SCOPE), scripted, limits)
    exporter.add(ENCODED[0])
    exporter.start()
    assert scripted.under_way.wait(60)
    add(exporter, ENCODED[1:])
    assert exporter.dropped == 3
    scripted.hold.set()
    eventually(lambda: exporter.exported == 7, "room")
    add(exporter, ENCODED[:7])
    exporter.stop(60)
    assert (exporter.exported, exporter.dropped, scripted.is_closed) == (14, 3, True)


@pytest.mark.parametrize("bound", [Limits(request_spans=4), Limits(request_bytes=sum(map(len, ENCODED[:4])) - 1)])
def test_a_request_is_bounded_by_number_and_by_size(scripted: Scripted, bound: Limits) -> None:
    """Everything that waits goes out in the order it came, in as many requests as it takes."""
    limits = Limits(3600, request_spans=bound.request_spans, request_bytes=bound.request_bytes)
    exporter = Exporter(Envelope(RESOURCE, SCOPE), scripted, limits)
    exporter.start()
    add(exporter, ENCODED)
    exporter.stop(60)
    names = [span.name for span in SPANS]
    assert scripted.names() == [names[:4], names[4:8], names[8:]]
    assert (exporter.exported, exporter.dropped) == (10, 0)


def test_what_comes_while_a_request_is_under_way_waits_for_the_next_time(scripted: Scripted) -> None:
    """Else a busy service would send a request for every few spans."""
    scripted.hold.clear()
    exporter = Exporter(Envelope(RESOURCE, SCOPE), scripted, Limits(request_spans=1))
    add(exporter, ENCODED[:2])
    once = threading.Thread(target=exporter._export)
    once.start()
    assert scripted.under_way.wait(60)
    add(exporter, ENCODED[2:])
    scripted.hold.set()
    once.join()
    assert len(scripted.requests) == 2
    exporter._export()
    assert len(scripted.requests) == 10


def test_the_thread_outlives_a_bug(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """An error of any kind drops the spans of its request, and only those."""
    scripted.trouble = RuntimeError("with a message that nobody sees")
    exporter = Exporter(Envelope(RESOURCE, SCOPE), scripted, SOON)
    exporter.start()
    exporter.add(ENCODED[0])
    eventually(lambda: exporter.dropped == 1, "dropped")
    scripted.trouble = ""
    exporter.add(ENCODED[1])
    eventually(lambda: exporter.exported == 1, "exported")
    exporter.stop(60)
    assert said(caplog) == [("Spans are not exported", "RuntimeError")]
    assert "nobody" not in repr(caplog.records[0].__dict__)


def test_nothing_is_exported_after_the_end(scripted: Scripted) -> None:
    """Given no time, what waits is dropped; so is what comes afterwards; to end twice is once."""
    exporter = Exporter(Envelope(RESOURCE, SCOPE), scripted, SOON)
    add(exporter, ENCODED)
    exporter.stop(60)  # never started: there is no thread to wait for
    exporter.add(ENCODED[0])
    exporter.stop(60)
    assert (exporter.exported, exporter.dropped, scripted.requests) == (0, 11, [])


def test_adding_from_many_threads_loses_no_count(scripted: Scripted) -> None:
    """Every span is exported or counted as dropped, whoever brought it."""
    exporter = Exporter(Envelope(RESOURCE, SCOPE), scripted, Limits(0.001, queue_spans=500))
    exporter.start()
    threads = [threading.Thread(target=add, args=(exporter, ENCODED * 200)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    exporter.stop(60)
    assert exporter.exported + exporter.dropped == 8000
    assert sum(map(len, scripted.names())) == exporter.exported > 0
