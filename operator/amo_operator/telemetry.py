"""A trace of each reconcile that changes something; one that only compares leaves none. Sent where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Reconcile:
    """The span of one reconcile, begun in hindsight when the first thing is to be changed."""

    def __init__(self, tracing: Tracing, kind: str, name: str) -> None:
        self._tracing = tracing
        self._begun_ns = time.time_ns()
        self._attributes = {"k8s.resource.kind": kind, "k8s.resource.name": name}
        self._span: Span | None = None

    def span(self) -> Span:
        """Return the span; from now on it will be sent."""
        if self._span is None:
            name = f"reconcile {self._attributes['k8s.resource.kind']}"
            self._span = self._tracing.tracer.start_span(name, start_time=self._begun_ns, attributes=self._attributes)
        return self._span

    def end(self, error: BaseException | None) -> None:
        """End the span, if there is one or an error makes one."""
        if error is not None:
            self.span().set_attribute("error.type", type(error).__name__)
            self.span().set_status(StatusCode.ERROR)
        if self._span is not None:
            self._span.end()


CURRENT: ContextVar[Reconcile | None] = ContextVar("reconcile", default=None)


class Tracing:
    """The SDK's tracer, with an exporter only where the environment names a collector."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        own = {SERVICE_NAME: "amo-operator", SERVICE_VERSION: version("amo-webhooks")}
        # Never the global one: instrumented libraries would begin to make spans of their own.
        self._provider = TracerProvider(resource=Resource.create({**own, **OTELResourceDetector().detect().attributes}))
        if processor is None and any(os.environ.get(name) for name in ENDPOINTS):
            processor = BatchSpanProcessor(OTLPSpanExporter())
        if processor is not None:
            self._provider.add_span_processor(processor)
        self.tracer = self._provider.get_tracer("amo_operator")

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    @contextmanager
    def reconcile(self, kind: str, name: str) -> Iterator[None]:
        """Trace what is changed inside."""
        current = Reconcile(self, kind, name)
        token, failure = CURRENT.set(current), None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            CURRENT.reset(token)
            current.end(failure)

    @contextmanager
    def change(self, what: str) -> Iterator[None]:
        """Trace one write, named by verb and resource."""
        current = CURRENT.get()
        if current is None:
            yield
            return
        parent = set_span_in_context(current.span())
        # The error's own text is not told: it may quote the object that was refused.
        with self.tracer.start_as_current_span(
            what, parent, kind=SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise

    def traceparent(self) -> str | None:
        """Return the current reconcile's trace for whoever carries on."""
        current, carrier = CURRENT.get(), dict[str, str]()
        if current is not None:
            TraceContextTextMapPropagator().inject(carrier, set_span_in_context(current.span()))
        return carrier.get("traceparent")
