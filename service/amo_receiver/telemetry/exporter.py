"""Encoded spans on their way out: a bounded queue, and a thread that posts what is in it every second.

A collector that is down, slow or refusing costs the service nothing but the bounded queue: what does not fit is dropped and counted.
Posting (compression, TLS, headers, time limit, repetition) is that of the official exporter, which takes bytes nowhere in its public
interface; the tests go through it to a server that behaves badly, so a version that posts otherwise is noticed.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from amo_receiver.log import get_logger
from amo_receiver.telemetry.spans import SPAN, sized

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

log = get_logger(__name__)

RESOURCE_SPANS, SCOPE_SPANS = b"\x0a", b"\x12"
REJECTED_QUIET_SECONDS = 60.0
"""For how long nothing more is said of spans that a taken request lost."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait or be under way, and how much goes into one request."""

    delay_seconds: float = 1.0
    queue_spans: int = 65_536
    queue_bytes: int = 16 * 1024 * 1024
    request_spans: int = 4_096
    request_bytes: int = 2 * 1024 * 1024


class Envelope:
    """What stands around the spans of a request: who sends them."""

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        nobody = ReadableSpan("", SpanContext(1, 1, is_remote=False), resource=resource, instrumentation_scope=scope)
        (of_resource,) = encode_spans([nobody]).resource_spans
        (of_scope,) = of_resource.scope_spans
        of_scope.ClearField("spans")
        self._scope = of_scope.SerializeToString()
        of_resource.ClearField("scope_spans")
        self._resource = of_resource.SerializeToString()

    def wrap(self, spans: bytes) -> bytes:
        """Return an ExportTraceServiceRequest with these spans, each of which begins with its tag."""
        return sized(RESOURCE_SPANS, self._resource + sized(SCOPE_SPANS, self._scope + spans))


def encode_span(span: ReadableSpan) -> bytes:
    """Encode a span of the SDK, without the messages of exceptions: those of a database or a parser quote personal data."""
    encoded = encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]
    encoded.status.message = ""
    for event in encoded.events:
        kept = [each for each in event.attributes if each.key not in ("exception.message", "exception.stacktrace")]
        del event.attributes[:]
        event.attributes.extend(kept)
    return sized(SPAN, encoded.SerializeToString())


class Reply(NamedTuple):
    """Why a request was not taken, empty if it was; and how many of its spans were rejected all the same."""

    trouble: str = ""
    rejected: int = 0


class Collector(Protocol):
    """Where requests are posted."""

    def post(self, request: bytes) -> Reply:
        """Post a request, and return what became of it."""

    def close(self) -> None:
        """End a post that waits for its repetition, and the connection."""


class OtlpCollector:
    """The collector that the standard variables ``OTEL_EXPORTER_OTLP_*`` describe."""

    def __init__(self) -> None:
        self._client = OTLPSpanExporter()._client  # noqa: SLF001 - see the module's docstring
        # A hook, because the client says only that a request was taken, not what the answer's body says of single spans.
        self._client._transport._session.hooks["response"].append(self._keep)  # type: ignore[attr-defined]  # noqa: SLF001
        self._answer = b""
        # Its lines would come with every attempt, and repeat what the other side answered.
        logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.CRITICAL)

    def post(self, request: bytes) -> Reply:
        """Post a request, repeated as OTLP asks for within ``OTEL_EXPORTER_OTLP_TIMEOUT``."""
        result = self._client.export(request)
        if not result.success:
            return Reply(f"HTTP {result.status_code}" if result.status_code else type(result.error).__name__)
        try:
            return Reply(rejected=ExportTraceServiceResponse.FromString(self._answer).partial_success.rejected_spans)
        except Exception:  # noqa: BLE001 - of protobuf's own kind: what answered was a proxy
            return Reply()

    def _keep(self, response: Any, *_: Any, **__: Any) -> None:
        self._answer = response.content

    def close(self) -> None:
        """Let go."""
        self._client.shutdown()


class Exporter:
    """The queue and its thread. What was added is exported, dropped, or still waiting."""

    def __init__(self, envelope: Envelope, collector: Collector, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.exported = 0
        self.dropped = 0
        self._envelope = envelope
        self._collector = collector
        self._limits = limits
        self._clock = clock
        self._spans: deque[bytes] = deque()
        self._count = self._bytes = 0  # waiting and under way
        self._lock = threading.Lock()
        self._closed = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="span-export", daemon=True)
        self._trouble = ""
        self._rejected_told = -math.inf

    def add(self, span: bytes) -> None:
        """Queue an encoded span, or drop it where there is no room; never waits."""
        with self._lock:
            if self._closed or self._count >= self._limits.queue_spans or self._bytes + len(span) > self._limits.queue_bytes:
                self.dropped += 1
                return
            self._count += 1
            self._bytes += len(span)
            self._spans.append(span)

    @property
    def waiting(self) -> int:
        """How many spans wait or are under way."""
        return self._count

    def start(self) -> None:
        """Begin to export."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Export what waits, for so long at most, and drop the rest; blocks, so call it in a thread beside the event loop."""
        with self._lock:
            self._closed = True
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        while spans := self._take():
            self._settle(spans, len(spans))
        self._collector.close()

    def _run(self) -> None:
        while not self._stopping.wait(self._limits.delay_seconds):
            self._export()
        self._export()

    def _export(self) -> None:
        """Post what waits now; what comes meanwhile waits for the next time, or there would be a request for every few spans."""
        left = len(self._spans)
        while left > 0 and (spans := self._take()):
            left -= len(spans)
            reply = self._post(b"".join(spans))
            rejected = len(spans) if reply.trouble else min(max(reply.rejected, 0), len(spans))
            self._settle(spans, rejected)
            self._tell(reply.trouble)
            if rejected and not reply.trouble:
                self._tell_rejected(rejected)

    def _post(self, spans: bytes) -> Reply:
        try:
            return self._collector.post(self._envelope.wrap(spans))
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on
            return Reply(type(error).__name__)

    def _take(self) -> list[bytes]:
        """Take the spans of the next request off the queue."""
        taken: list[bytes] = []
        size = 0
        with self._lock:
            while self._spans and len(taken) < self._limits.request_spans and size < self._limits.request_bytes:
                taken.append(self._spans.popleft())
                size += len(taken[-1])
        return taken

    def _settle(self, spans: list[bytes], rejected: int) -> None:
        with self._lock:
            self._count -= len(spans)
            self._bytes -= sum(map(len, spans))
            self.exported += len(spans) - rejected
            self.dropped += rejected

    def _tell(self, trouble: str) -> None:
        """Say so when exporting begins or ceases to fail, not each time that it does."""
        if trouble and trouble != self._trouble:
            log.warning("Spans are not exported", reason=trouble, dropped=self.dropped)
        elif self._trouble and not trouble:
            log.info("Spans are exported again", dropped=self.dropped)
        self._trouble = trouble

    def _tell_rejected(self, rejected: int) -> None:
        """Say that a request was taken without some of its spans, once a minute: it may happen time and again."""
        if self._clock() - self._rejected_told >= REJECTED_QUIET_SECONDS:
            log.warning("The collector rejected some spans (partial success)", rejected=rejected, dropped=self.dropped)
            self._rejected_told = self._clock()
