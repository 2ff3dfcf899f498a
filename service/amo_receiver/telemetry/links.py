"""Between the two kinds of spans and what is stored of them: a traceparent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import Link, SpanContext, TraceFlags

from amo_receiver.telemetry.spans import OpenSpan, Remote, parse_traceparent

if TYPE_CHECKING:
    from opentelemetry.trace import Span


def span_context(remote: Remote) -> SpanContext:
    """Return somebody else's span as the API knows it."""
    trace_id, span_id = int.from_bytes(remote.trace_id, "big"), int.from_bytes(remote.span_id, "big")
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(remote.flags))


def links_to(*traceparents: str | None) -> list[Link]:
    """Return links to stored traceparents, for ``start_span``; what is none is left out."""
    remotes = (parse_traceparent(traceparent) for traceparent in traceparents if traceparent)
    return [Link(span_context(remote)) for remote in remotes if remote]


def open_span(span: Span) -> OpenSpan | None:
    """Return a span of the SDK as a parent for hot ones, with the traceparent to store; None where tracing is off."""
    context = span.get_span_context()
    if not context.is_valid:
        return None
    trace_id, span_id = context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")
    return OpenSpan(trace_id, span_id, b"", False, context.trace_flags, 0)


def traceparent_of(span: Span) -> str | None:
    """Return what is stored of a span of the SDK; None where tracing is off."""
    opened = open_span(span)
    return opened.traceparent if opened else None
