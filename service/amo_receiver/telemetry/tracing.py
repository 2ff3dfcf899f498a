"""The three spans that every delivery costs: accept, the batch that carried it, and the batch's call of the database."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Protocol

from amo_receiver.telemetry.spans import (
    RANDOM_TRACE_ID,
    SAMPLED,
    OpenSpan,
    accept_shape,
    accept_span,
    batch_shape,
    batch_span,
    call_shape,
    call_span,
    encode_attributes,
    parse_traceparent,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from amo_receiver.telemetry.spans import Remote


class Sampler(Protocol):
    """Decides about a span that is not the child of one of ours."""

    def __call__(self, name: str, trace_id: bytes, parent: Remote | None) -> bool:
        """Tell whether the span is to be exported."""


class Tracing:
    """Begins and ends the hot spans, and hands those that are sampled to ``export``; times are unix nanoseconds."""

    def __init__(
        self,
        export: Callable[[bytes], object],
        *,
        sampler: Sampler | None = None,
        database: Mapping[str, str | int] | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """``sampler`` None samples everything; ``database`` are the attributes that name it (``server.address``, ``db.namespace``)."""
        self._export = export
        self._sampler = sampler
        self._database = encode_attributes(database or {})
        self._clock = clock
        self._bits = random.Random().getrandbits  # noqa: S311 - ids are to be unique, not secret

    def accept(self, traceparent: str | None, start_ns: int) -> OpenSpan:
        """Begin a delivery's span, below ``traceparent`` if that is one; give it only what a verified sender sent."""
        return self._begin("accept", traceparent, start_ns)

    def batch(self) -> OpenSpan:
        """Begin a group commit's span."""
        return self._begin("batch", None, self._clock())

    def call(self, parent: OpenSpan) -> OpenSpan:
        """Begin the span of a database call below ``parent``."""
        span_id = self._bits(64).to_bytes(8, "big")
        return OpenSpan(parent.trace_id, span_id, parent.span_id, False, parent.flags, self._clock())

    def end_accept(
        self,
        span: OpenSpan,
        route: str,
        status: int | None,
        outcome: str,
        *,
        delivery_id: str = "",
        account_id: str = "",
        kinds: tuple[str, ...] = (),
        events: int = 0,
        key_kind: str = "",
        key_fingerprint: str = "",
    ) -> None:
        """End a delivery's span.

        ``outcome``: success, partial or the error's type; ``account_id``: see ``account_word``; ``kinds``: see ``entity_actions``.
        """
        if span.flags & SAMPLED:
            shape = accept_shape(route, status, outcome, kinds, events, key_kind, key_fingerprint)
            self._export(accept_span(span, self._clock(), delivery_id, account_id, shape))

    def end_batch(self, span: OpenSpan, accepts: Iterable[OpenSpan], deliveries: int, events: int, error_type: str = "") -> None:
        """End a group commit's span; ``error_type`` where nothing of it was stored."""
        if span.flags & SAMPLED:
            self._export(batch_span(span, self._clock(), accepts, batch_shape(deliveries, events, error_type)))

    def end_call(self, span: OpenSpan, function: str, error_type: str = "", sqlstate: str = "") -> None:
        """End the span of a call of ``function``."""
        if span.flags & SAMPLED:
            self._export(call_span(span, self._clock(), call_shape(function, error_type, sqlstate, self._database)))

    def _begin(self, name: str, traceparent: str | None, start_ns: int) -> OpenSpan:
        parent = parse_traceparent(traceparent) if traceparent else None
        if parent is None:
            ids = self._bits(192).to_bytes(24, "big")
            span = OpenSpan(ids[:16], ids[16:], b"", False, SAMPLED | RANDOM_TRACE_ID, start_ns)
        else:
            flags = SAMPLED | parent.flags & RANDOM_TRACE_ID
            span = OpenSpan(parent.trace_id, self._bits(64).to_bytes(8, "big"), parent.span_id, True, flags, start_ns)
        if self._sampler is None or self._sampler(name, span.trace_id, parent):
            return span
        return span._replace(flags=span.flags & ~SAMPLED)
