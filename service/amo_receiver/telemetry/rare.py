"""The SDK's part: who we are, what is sampled, and every span that is not written as bytes (attempts, replays, commands)."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from amo_receiver.telemetry.exporter import Envelope, Exporter, OtlpCollector, encode_span
from amo_receiver.telemetry.links import span_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Tracer

    from amo_receiver.telemetry.exporter import Limits
    from amo_receiver.telemetry.spans import Remote
    from amo_receiver.telemetry.tracing import Sampler

DISTRIBUTION, PACKAGE = "amo-webhooks", "amo_receiver"


class EncodeAtEnd(SpanProcessor):
    """Puts each span that ends onto the queue of the hot ones: one thread, one bound and one count for all."""

    def __init__(self, export: Callable[[bytes], object]) -> None:
        self._export = export

    def on_end(self, span: ReadableSpan) -> None:
        """Export a sampled span."""
        if span.context is not None and span.context.trace_flags.sampled:
            self._export(encode_span(span))


def resource() -> Resource:
    """Return who we are: the environment's word (``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``) counts before ours."""
    own = {SERVICE_NAME: DISTRIBUTION, SERVICE_VERSION: version(DISTRIBUTION)}
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})


def provider(of: Resource) -> TracerProvider:
    """Return a private provider. Without ``OTEL_TRACES_SAMPLER`` everything is sampled: a sender's ``-00`` does not switch us off."""
    # Never a global one: FastAPI and every instrumented library would begin to make spans of their own.
    sampler = None if os.environ.get(OTEL_TRACES_SAMPLER) else ALWAYS_ON
    return TracerProvider(sampler=sampler, resource=of)


def hot_sampler(of: TracerProvider) -> Sampler | None:
    """Return the provider's decision for spans that it does not make; None where it is always yes."""
    sampler = of.sampler
    if sampler is ALWAYS_ON:
        return None

    def is_sampled(name: str, trace_id: bytes, parent: Remote | None) -> bool:
        context = set_span_in_context(NonRecordingSpan(span_context(parent)), Context()) if parent else Context()
        return sampler.should_sample(context, int.from_bytes(trace_id, "big"), name).decision is Decision.RECORD_AND_SAMPLE

    return is_sampled


def build(limits: Limits) -> tuple[Exporter, Tracer, Sampler | None]:
    """Return the exporter, the tracer for rare spans, and the sampler of the hot ones; nothing runs yet."""
    own = provider(resource())
    exporter = Exporter(Envelope(own.resource, InstrumentationScope(PACKAGE, version(DISTRIBUTION))), OtlpCollector(), limits)
    own.add_span_processor(EncodeAtEnd(exporter.add))
    return exporter, own.get_tracer(PACKAGE, version(DISTRIBUTION)), hot_sampler(own)
