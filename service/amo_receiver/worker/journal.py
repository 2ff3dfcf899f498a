"""What is told of the worker's attempts: log lines, counts, a span for each, and a notification of those given up on."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode

from amo_receiver.amocrm.words import kind_word
from amo_receiver.log import get_logger
from amo_receiver.notify import Kind, Notifier, dead_letters
from amo_receiver.telemetry.current import log_fields, under
from amo_receiver.telemetry.links import links_to, open_span
from amo_receiver.telemetry.metrics import Metrics
from amo_receiver.telemetry.setup import Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from amo_receiver.inbox.delivery import Event
    from amo_receiver.inbox.repository import Accepted
    from amo_receiver.inbox.settling import Failure

log = get_logger(__name__)


def kind_of(event: Any) -> str:
    """Return what a claimed event's attempt is: a replay if a person has just asked for it, else a retry."""
    return "replay" if event.replays and event.attempts == 1 else "retry"


class AttemptJournal:
    """Tells of attempts; by default only the log."""

    def __init__(self, telemetry: Telemetry | None = None, metrics: Metrics | None = None, notifier: Notifier | None = None) -> None:
        self._telemetry = telemetry or Telemetry()
        self._metrics = metrics or Metrics()
        self._notifier = notifier or Notifier("")

    @contextmanager
    def attempts(self, due: list[Any]) -> Iterator[dict[str, Span]]:
        """Hold a span for each event while they are attempted, and one that is linked with them for the database calls they share."""
        tracing = self._telemetry.tracing
        spans = {event.id: self._begin(event) for event in due}
        batch = tracing.batch() if tracing else None
        error_type = ""
        try:
            with under(batch):
                yield spans
        except Exception as error:
            error_type = type(error).__name__
            raise
        finally:
            for span in spans.values():
                span.end()
            if tracing and batch:
                opened = [each for span in spans.values() if (each := open_span(span))]
                tracing.end_batch(batch, opened, len({event.delivery_id for event in due}), len(due), error_type)

    def _begin(self, event: Any) -> Span:
        """Begin an attempt's span: a trace of its own, days later perhaps, that links back to the acceptance."""
        attributes = {
            "messaging.system": "amocrm",
            "messaging.operation.name": kind_of(event),
            "messaging.operation.type": "process",
            "messaging.message.id": event.delivery_id,
            "amo.event_id": event.id,
            "amo.attempt": event.attempts,
        }
        links = links_to(event.traceparent)
        return self._telemetry.tracer.start_span(kind_of(event), Context(), SpanKind.CONSUMER, attributes=attributes, links=links)

    def parsed(self, event: Any, found: list[Event], accepted: Accepted) -> None:
        """Count the events that an unparsed body turned out to hold; those that could not be applied at once have their attempts yet."""
        pending = () if accepted.applied else [each.id for each in found]
        duplicates = {event_id for event_id, known in accepted.known.items() if known.of != event_id}
        self._metrics.stored(found, pending, duplicates, kind_of(event))

    def ended(
        self,
        due: list[Any],
        outcomes: Mapping[str, Failure | None],
        noted: Mapping[str, tuple[str, int]],
        spans: Mapping[str, Span],
    ) -> None:
        """Tell what became of each event; ``noted``: the state and attempts of those that failed."""
        dead = []
        for event in due:
            failure, (state, _) = outcomes[event.id], noted.get(event.id, ("", 0))
            outcome = "applied" if failure is None else "deferred" if failure.temporary else "failed"
            self._metrics.attempted(event, kind_of(event), outcome, is_dead=state == "dead")
            _end(spans[event.id], outcome, failure)
            _write(event, failure, state, spans[event.id])
            if failure and state == "dead":
                dead.append((event, failure))
        if dead:
            event, failure = dead[0]
            error_type = failure.sqlstate or type(failure).__name__
            sentence = dead_letters([(each.entity, each.action) for each, _ in dead], error_type, event.id)
            self._notifier.tell(Kind.DEAD_LETTERS, sentence, len(dead))


def _end(span: Span, outcome: str, failure: Failure | None) -> None:
    span.set_attribute("amo.outcome", outcome)
    if failure is not None:
        span.set_attribute("error.type", failure.sqlstate or type(failure).__name__)
        span.set_status(StatusCode.ERROR, str(failure))


def _write(event: Any, failure: Failure | None, state: str, span: Span) -> None:
    fields: dict[str, Any] = {"event_id": event.id, "delivery_id": event.delivery_id, "attempt": event.attempts}
    fields |= log_fields(open_span(span))
    if failure is not None and failure.bug is not None:
        fields["exc_info"] = failure.bug
    name = kind_word(event.entity, event.action)
    if failure is None:
        log.info("Event applied on retry: %s", name, **fields)
    elif state == "dead":
        log.error("Event given up on: %s", name, **fields, reason=str(failure), error_type="DeadLetter")
    else:
        log.warning("Event not applied, tried again later: %s", name, **fields, reason=str(failure))
