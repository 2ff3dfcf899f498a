"""The bytes of the hot spans are those the SDK makes of the same spans, field by field."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Encoded
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.semconv._incubating.attributes import messaging_attributes as messaging
from opentelemetry.semconv.attributes import db_attributes as db
from opentelemetry.semconv.attributes import error_attributes as errors
from opentelemetry.semconv.attributes import http_attributes as http
from opentelemetry.semconv.attributes import server_attributes as server
from opentelemetry.semconv.attributes import url_attributes as url
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from amo_receiver.amocrm.words import ENTITIES, account_word
from amo_receiver.telemetry.spans import MOST_ENTITY_ACTIONS, Remote, entity_actions, parse_traceparent
from amo_receiver.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_receiver.telemetry.spans import OpenSpan

TOKEN_ROUTE = "/api/webhooks/amo/{token}"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
W3C = TraceContextTextMapPropagator()

trace_ids = st.binary(min_size=16, max_size=16).filter(any)
span_ids = st.binary(min_size=8, max_size=8).filter(any)
traceparents = st.builds(lambda trace, span, flags: f"00-{trace.hex()}-{span.hex()}-{flags:02x}", trace_ids, span_ids, st.integers(0, 255))
times = st.integers(0, 2**63 - 1)
words = st.from_regex(r"[a-z_]{0,20}", fullmatch=True)
kinds = st.lists(st.builds("{}.{}".format, words, words), max_size=4, unique=True).map(tuple)
counts = st.integers(0, 2**40)
accounts = st.from_regex(r"[0-9A-Za-z_.:-]{0,255}", fullmatch=True)
identities = st.uuids().map(str) | st.just("")


@dataclass
class Event:
    """As much of an event as a span shows."""

    entity: str = "leads"
    action: str = "update"


@dataclass
class Ids(IdGenerator):
    """Ids that are known beforehand."""

    trace_id: int = 1
    span_id: int = 1

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id

    def is_trace_id_random(self) -> bool:
        return True


@dataclass
class Written:
    """Spans as our encoder writes them, at a time that stands still."""

    now: int = 0
    bytes: list[bytes] = field(default_factory=list)

    def tracing(self, **options: Any) -> Tracing:
        return Tracing(self.bytes.append, clock=lambda: self.now, **options)

    def only(self) -> Encoded:
        (encoded,) = self.bytes
        (span,) = ScopeSpans.FromString(encoded).spans
        return span


IDS = Ids()
PROVIDER = TracerProvider(
    sampler=ALWAYS_ON,
    resource=Resource.get_empty(),
    shutdown_on_exit=False,
    id_generator=IDS,
    span_limits=SpanLimits(max_links=SpanLimits.UNSET),
)


def by_sdk(name: str, kind: SpanKind, span: OpenSpan, end_ns: int, attributes: dict[str, Any], **more: Any) -> Encoded:
    """Make the same span with the SDK's API, and encode it with the SDK's exporter; what is empty is no attribute."""
    IDS.trace_id, IDS.span_id = int.from_bytes(span.trace_id, "big"), int.from_bytes(span.span_id, "big")
    parent, links, failed = more.get("parent"), more.get("links", ()), more.get("failed", False)
    made = PROVIDER.get_tracer("test").start_span(
        name,
        set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context(),
        kind,
        {key: value for key, value in attributes.items() if value not in ("", ())},
        links,
        span.start_ns,
    )
    if failed:
        made.set_status(Status(StatusCode.ERROR))
    made.end(end_ns)
    assert isinstance(made, ReadableSpan)
    return encode_spans([made]).resource_spans[0].scope_spans[0].spans[0]


def assert_same(ours: Encoded, theirs: Encoded) -> None:
    """Compare each field that a span can have, and then whatever else there is."""
    for each in Encoded.DESCRIPTOR.fields:
        assert getattr(ours, each.name) == getattr(theirs, each.name), each.name
        assert each.is_repeated or not each.has_presence or ours.HasField(each.name) == theirs.HasField(each.name), each.name
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


def context_of(span: OpenSpan | Remote, *, remote: bool) -> SpanContext:
    trace_id, span_id = int.from_bytes(span.trace_id, "big"), int.from_bytes(span.span_id, "big")
    return SpanContext(trace_id, span_id, remote, TraceFlags(span.flags))


def extracted(header: str) -> SpanContext | None:
    """Read a traceparent with the API."""
    context = W3C.extract({"traceparent": header}, Context())
    return next((value.get_span_context() for value in context.values() if isinstance(value, NonRecordingSpan)), None)


@given(traceparents | st.none(), times, times, identities, accounts, kinds, counts, st.sampled_from([200, 400, 413, 503, 500, None]))
@example(None, 0, 0, "", "", (), 0, 200)
@example(None, 0, 0, "", "", (), 0, None)
def test_an_accept_span(
    header: str | None, start: int, end: int, delivery_id: str, account: str, kinds: tuple[str, ...], events: int, status: int | None
) -> None:
    """The conventions' names and ours, in a root or below the sender's span; our own failures are errors, and no answer at all is one."""
    failed = status is None or status >= 500
    written = Written(end)
    tracing = written.tracing()
    span = tracing.accept(header, start)
    who: dict[str, Any] = {"delivery_id": delivery_id, "account_id": account, "key_kind": "url_key", "key_fingerprint": "0123456789ab"}
    tracing.end_accept(span, TOKEN_ROUTE, status, "Outcome", kinds=kinds, events=events, **who)
    attributes = {
        messaging.MESSAGING_MESSAGE_ID: delivery_id,
        "amo.account_id": account,
        http.HTTP_REQUEST_METHOD: http.HttpRequestMethodValues.POST.value,
        url.URL_SCHEME: "http",
        http.HTTP_ROUTE: TOKEN_ROUTE,
        http.HTTP_RESPONSE_STATUS_CODE: status or "",
        errors.ERROR_TYPE: "Outcome" if failed else "",
        messaging.MESSAGING_SYSTEM: "amocrm",
        messaging.MESSAGING_OPERATION_NAME: "accept",
        messaging.MESSAGING_OPERATION_TYPE: messaging.MessagingOperationTypeValues.PROCESS.value,
        "amo.entity_actions": kinds,
        "amo.events": events,
        "amo.key.kind": "url_key",
        "amo.key.fingerprint": "0123456789ab",
        "amo.outcome": "Outcome",
    }
    parent = extracted(header) if header else None
    assert (parent is None) == (header is None)
    assert_same(written.only(), by_sdk("accept", SpanKind.SERVER, span, end, attributes, parent=parent, failed=failed))


@example(1, 2, [None], 127, 128, "")
@example(1, 2, [None] * 500, 16_383, 16_384, "")
@given(times, times, st.lists(traceparents | st.none(), max_size=70), counts, counts, st.sampled_from(["", "DatabaseTimeout"]))
def test_a_batch_span(start: int, end: int, headers: list[str | None], deliveries: int, events: int, error: str) -> None:
    """A root of its own, with a link to each accept span that it carried."""
    written = Written(start)
    tracing = written.tracing()
    accepts = [tracing.accept(header, 0) for header in headers]
    span = tracing.batch()
    written.now = end
    tracing.end_batch(span, accepts, deliveries, events, error)
    attributes = {
        messaging.MESSAGING_SYSTEM: "amocrm",
        messaging.MESSAGING_OPERATION_NAME: "batch",
        messaging.MESSAGING_OPERATION_TYPE: "process",
        messaging.MESSAGING_BATCH_MESSAGE_COUNT: deliveries,
        "amo.events": events,
        errors.ERROR_TYPE: error,
    }
    links = [Link(context_of(accept, remote=False)) for accept in accepts]
    assert len(written.only().links) == len(headers)
    assert_same(written.only(), by_sdk("batch", SpanKind.INTERNAL, span, end, attributes, links=links, failed=bool(error)))


@given(times, times, st.sampled_from([("", ""), ("DatabaseTimeout", ""), ("40P01", "40P01")]), st.booleans())
def test_a_call_span(start: int, end: int, failure: tuple[str, str], named: bool) -> None:
    """A client's span below the batch, with the database it was sent to and how the call failed."""
    database: dict[str, Any] = {server.SERVER_ADDRESS: "db.internal", server.SERVER_PORT: 6432, db.DB_NAMESPACE: "amo"} if named else {}
    written = Written(start)
    tracing = written.tracing(database=database)
    parent = tracing.batch()
    span = tracing.call(parent)
    written.now = end
    error, sqlstate = failure
    tracing.end_call(span, "accept_v1", error, sqlstate)
    attributes = database | {
        db.DB_SYSTEM_NAME: db.DbSystemNameValues.POSTGRESQL.value,
        db.DB_QUERY_SUMMARY: "SELECT accept_v1",
        db.DB_STORED_PROCEDURE_NAME: "accept_v1",
        db.DB_RESPONSE_STATUS_CODE: sqlstate,
        errors.ERROR_TYPE: error,
    }
    local = context_of(parent, remote=False)
    assert_same(written.only(), by_sdk("SELECT accept_v1", SpanKind.CLIENT, span, end, attributes, parent=local, failed=bool(error)))
    assert written.only().parent_span_id == parent.span_id


@given(traceparents | st.none())
def test_a_span_names_itself_as_the_sdk_would(header: str | None) -> None:
    """Sampled whatever the sender's flags say, and random where the trace id is ours or the sender says so."""
    span = Written().tracing().accept(header, 7)
    IDS.trace_id, IDS.span_id = int.from_bytes(span.trace_id, "big"), int.from_bytes(span.span_id, "big")
    context = W3C.extract({"traceparent": header} if header else {}, Context())
    carrier: dict[str, str] = {}
    W3C.inject(carrier, set_span_in_context(PROVIDER.get_tracer("test").start_span("accept", context), Context()))
    assert span.traceparent == carrier["traceparent"]
    assert span.is_sampled
    assert span.start_ns == 7


def test_ids_differ() -> None:
    """Two spans never share an id, nor two deliveries a trace."""
    tracing = Written().tracing()
    roots = [tracing.accept(None, 0) for _ in range(1000)]
    below = [tracing.accept(PARENT, 0) for _ in range(1000)] + [tracing.call(root) for root in roots]
    assert len({root.trace_id for root in roots}) == 1000
    assert len({span.span_id for span in roots + below}) == 3000
    assert all(any(span.span_id) and any(span.trace_id) for span in roots + below)


NEARLY = st.from_regex(r"[0-9a-g]{2}-[0-9a-fA]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,5})?", fullmatch=True)


@given(traceparents | NEARLY | st.text(max_size=80))
@example("00-" + "0" * 32 + "-00f067aa0ba902b7-01")
@example("00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01")
@example(PARENT + "-more")
@example("ff" + PARENT[2:])
@example("cc" + PARENT[2:])
@example("cc" + PARENT[2:] + "-what the future will be like")
@example("cc" + PARENT[2:] + ".what")
@example("")
def test_a_traceparent_is_read_as_the_api_reads_it(header: str) -> None:
    """Whatever a sender writes, ours and the official parser agree; spaces around it do not reach either."""
    assume(header == header.strip())
    remote = parse_traceparent(header)
    assert (context_of(remote, remote=True) if remote else None) == extracted(header)


@pytest.mark.parametrize(
    "hostile", ["иван@example.com", "Ivan", "ivan", "leads update", "+7 916", "x" * 41, "x" * 5_000_000, "\ud800", "a.b\n"]
)
def test_words_that_are_not_amocrms_are_not_shown(hostile: str) -> None:
    """An authentic body can have anything in place of an entity, an action or an account."""
    written = Written()
    tracing = written.tracing()
    shown = entity_actions([Event(hostile, "add"), Event("leads", hostile), Event("leads", "add")])
    tracing.end_accept(tracing.accept(None, 0), TOKEN_ROUTE, 200, "success", account_id=account_word(hostile + "@"), kinds=shown)
    values = {each.key: each.value for each in written.only().attributes}
    assert [each.string_value for each in values["amo.entity_actions"].array_value.values] == ["other.add", "leads.other", "leads.add"]
    assert values["amo.account_id"].string_value == "other"
    assert len(written.bytes[0]) < 1000


def test_a_megabyte_in_place_of_a_word_is_not_kept() -> None:
    """What is kept of former spans is short, whatever verified senders may write."""
    megabyte = "x" * 1_000_000
    references = sys.getrefcount(megabyte)
    tracing = Written().tracing()
    who, kinds = account_word(megabyte, is_credentials=True), entity_actions([Event(megabyte)])
    tracing.end_accept(tracing.accept(None, 0), TOKEN_ROUTE, 200, "success", account_id=who, kinds=kinds)
    assert sys.getrefcount(megabyte) == references
    assert entity_actions([Event(megabyte + str(n)) for n in range(100)]) == ("other.update",)


def test_kinds_of_events_are_shown_once_and_not_without_end() -> None:
    """In the order of the body."""
    assert entity_actions([]) == ()
    assert entity_actions([Event(), Event("contacts", "add"), Event()]) == ("leads.update", "contacts.add")
    many = entity_actions([Event(entity) for entity in sorted(ENTITIES)])
    assert len(many) == MOST_ENTITY_ACTIONS


class Choosy:
    """Samples by name, and notes what it was asked."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.asked: list[tuple[str, bytes, Remote | None]] = []

    def __call__(self, name: str, trace_id: bytes, parent: Remote | None) -> bool:
        self.asked.append((name, trace_id, parent))
        return name in self.names


@pytest.mark.parametrize(("sampled", "spans"), [((), 0), (("accept",), 1), (("batch",), 2)])
def test_what_is_not_sampled_is_not_exported(sampled: Sequence[str], spans: int) -> None:
    """It still has its ids, for rows and lines, and its flag says so; a call goes with its batch."""
    written = Written()
    sampler = Choosy(*sampled)
    tracing = written.tracing(sampler=sampler)
    accept, batch = tracing.accept(PARENT, 0), tracing.batch()
    call = tracing.call(batch)
    tracing.end_call(call, "accept_v1")
    tracing.end_batch(batch, [accept], 1, 1)
    tracing.end_accept(accept, TOKEN_ROUTE, 200, "success")
    assert len(written.bytes) == spans
    assert [accept.is_sampled, batch.is_sampled, call.is_sampled] == [name in sampled for name in ("accept", "batch", "batch")]
    assert accept.traceparent == f"{PARENT[:36]}{accept.span_id.hex()}-{int('accept' in sampled):02d}"
    assert sampler.asked == [("accept", accept.trace_id, parse_traceparent(PARENT)), ("batch", batch.trace_id, None)]


def test_a_batch_links_only_what_is_exported() -> None:
    """A link to a span that nobody has would lead nowhere."""
    written = Written()
    tracing, deaf = written.tracing(), written.tracing(sampler=Choosy())
    accepts = [tracing.accept(None, 0), deaf.accept(None, 0), tracing.accept(PARENT, 0)]
    tracing.end_batch(tracing.batch(), accepts, 3, 3)
    assert [link.span_id for link in written.only().links] == [accepts[0].span_id, accepts[2].span_id]
