"""The span that a task works under: the database calls that it makes are below it, and its log lines name it."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from structlog.contextvars import bound_contextvars

if TYPE_CHECKING:
    from collections.abc import Iterator

    from amo_receiver.telemetry.spans import OpenSpan

CURRENT: ContextVar[OpenSpan | None] = ContextVar("span", default=None)


@contextmanager
def under(span: OpenSpan | None) -> Iterator[None]:
    """Work under a span; None: as before."""
    if span is None:
        yield
        return
    before = CURRENT.set(span)
    try:
        with bound_contextvars(**log_fields(span)):
            yield
    finally:
        CURRENT.reset(before)


def log_fields(span: OpenSpan | None) -> dict[str, str]:
    """Return what a log line says of a span."""
    return {"trace_id": span.trace_id.hex(), "span_id": span.span_id.hex()} if span else {}
