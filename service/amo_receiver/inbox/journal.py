"""What is told of single deliveries: log lines as users know them (ids only, at load a sample with a count of the rest), counts, spans."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

import orjson

from amo_receiver.amocrm.words import account_word, action_word, entity_word
from amo_receiver.inbox.matches import Matches
from amo_receiver.log import DeliveryLog, get_logger
from amo_receiver.notify import Kind, Notifier, dead_letters
from amo_receiver.telemetry.current import log_fields
from amo_receiver.telemetry.metrics import Metrics
from amo_receiver.telemetry.spans import entity_actions

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_receiver.errors import RequestError
    from amo_receiver.inbox.batch import Outcome
    from amo_receiver.inbox.delivery import Delivery, Event, Headers
    from amo_receiver.inbox.service import Arrival, Permit
    from amo_receiver.telemetry.tracing import Tracing

log = get_logger(__name__)

AMOCRM = b"amoCRM-Web"
"""How the agents of amoCRM and Kommo have called themselves since 2016; anybody can, but those who scan the internet do not."""
MOST_EVENTS = 20
MOST_PROBLEMS = 3
ID = re.compile(r"[0-9]{1,19}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
VERBS = {"add": "created", "delete": "deleted", "restore": "restored"}


class Journal:
    """Writes what was accepted and refused, at most so many lines of each a second, counts it, and ends each verified request's span."""

    def __init__(
        self,
        deliveries_per_second: int,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
        notifier: Notifier | None = None,
        matches: Matches | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tracing = tracing
        self._metrics = metrics or Metrics()
        self._notifier = notifier or Notifier("")
        self._matches = matches or Matches()
        self._clock = clock
        self._accepted = DeliveryLog(log, deliveries_per_second)
        self._refused = DeliveryLog(log, deliveries_per_second, level=logging.WARNING)
        self._ahead = DeliveryLog(log, deliveries_per_second, level=logging.WARNING)
        self._dead = DeliveryLog(log, deliveries_per_second, level=logging.ERROR)

    def flush(self) -> None:
        """Write the counts of a second that has passed."""
        for lines in (self._accepted, self._refused, self._ahead, self._dead):
            lines.flush()

    def close(self) -> None:
        """Write the counts that are left."""
        for lines in (self._accepted, self._refused, self._ahead, self._dead):
            lines.close()

    def verified(self, arrival: Arrival, headers: Headers) -> None:
        """Begin its span, below the sender's where it names one; from here on ``headers`` names ours, which is stored."""
        if arrival.permit:
            match = arrival.permit.match
            self._metrics.matched(match.kind, match.fingerprint)
            self._matches.note(match, arrival.at_ns)
        if self._tracing:
            arrival.span = self._tracing.accept(headers.traceparent, arrival.at_ns)
            headers.traceparent = arrival.span.traceparent

    def refused(self, arrival: Arrival, error: RequestError) -> None:
        """Write why a request was refused; the sentence says how to mend it. Sampled, because strangers may send many."""
        name = type(error).__name__
        if self._refused.admits():
            log.warning("Webhook refused: %s", error, status=error.status, error_type=name, **_ids(arrival))
        self._end(arrival, error.status, name)

    def failed(self, arrival: Arrival, error: Exception) -> None:
        """Write down a bug."""
        log.error("Bug while accepting a webhook", exc_info=error, error_type=type(error).__name__, **_ids(arrival))
        self._end(arrival, 500, type(error).__name__)

    def abandoned(self, arrival: Arrival) -> None:
        """Tell of a verified sender that hung up before its body was complete; nobody is left to be answered."""
        if self._refused.admits():
            log.warning("The sender hung up before its body was complete", error_type="ClientGone", **_ids(arrival))
        self._end(arrival, None, "ClientGone")

    def accepted(self, arrival: Arrival, outcome: Outcome) -> None:
        """Write the lines of one delivery."""
        if arrival.delivery is not None and arrival.permit is not None:
            self._write(arrival.delivery, arrival.permit, outcome, self._clock() - arrival.received_at)
        self._end(arrival, 200, "partial" if outcome.problems else "success")

    def _end(self, arrival: Arrival, status: int | None, outcome: str) -> None:
        stranger = arrival.permit is None and not arrival.agent.startswith(AMOCRM)
        self._metrics.answered(arrival.route, status, outcome, self._clock() - arrival.received_at, stranger=stranger)
        span, permit, delivery = arrival.span, arrival.permit, arrival.delivery
        if self._tracing is None or span is None or permit is None:
            return
        self._tracing.end_accept(
            span,
            arrival.route,
            status,
            outcome,
            delivery_id=delivery.id if delivery else "",
            account_id=_account(permit, delivery),
            kinds=entity_actions(delivery.events) if delivery else (),
            events=len(delivery.events) if delivery else 0,
            key_kind=permit.match.kind,
            key_fingerprint=permit.match.fingerprint,
        )

    def _write_dead(self, delivery: Delivery, ids: dict[str, str]) -> None:
        """Write what is kept as a dead letter, and how many times lie too far ahead to count."""
        if delivery.ahead and self._ahead.admits():
            log.warning("Event times over 10 minutes ahead of ours count as absent", **ids, events=delivery.ahead)
        dead = [event for event in delivery.events if event.problem]
        if not dead:
            return
        names = [(event.entity, event.action) for event in dead]
        self._notifier.tell(
            Kind.DEAD_LETTERS, dead_letters(names, "Unparsable" if delivery.unparsed else "InvalidBody", dead[0].id), len(dead)
        )
        if not self._dead.admits():
            return
        problems = [event.problem for event in dead]
        shown = "; ".join(map(str, problems[:MOST_PROBLEMS]))
        if not delivery.unparsed:
            log.error("Items kept as dead letters: %s", shown, **ids, items=len(problems), error_type="InvalidBody")
        elif delivery.body_sha256 is None:
            log.error("Body kept as a dead letter: %s", shown, **ids, error_type="Unparsable")
        else:
            sentence = "Body kept as a dead letter, 64 KiB of it, because its source's quota is used up: %s"
            log.error(sentence, shown, **ids, bytes=delivery.body_bytes, error_type="UnparsedQuotaExceeded")

    def _write(self, delivery: Delivery, permit: Permit, outcome: Outcome, seconds: float) -> None:
        ids = {"delivery_id": delivery.id, **log_fields(delivery.span)}
        self._write_dead(delivery, ids)
        if not self._accepted.admits():
            return
        log.info("Received webhook from amoCRM: %s", outline(delivery.events), **ids)
        credential = "signature" if permit.signed else "token"
        log.info("Webhook %s verified for account: %s", credential, _account(permit, delivery) or "unknown", **ids)
        unapplied = {problem.path for problem in outcome.problems}
        for event in delivery.events[:MOST_EVENTS] if outcome.processed else ():
            if event.row is not None and event.path not in unapplied:
                kind = "lead" if event.entity == "leads" else str(event.row.values["type"])
                adjective = "New " if event.action == "add" else ""
                sentence = f"{adjective}{kind} {VERBS.get(event.action, 'updated')} from amoCRM"
                log.info("%s: %s", sentence[0].upper() + sentence[1:], event.row.id, **ids, event_id=event.id)
        log.info("Webhook processed %d events in %.2fs", outcome.processed, seconds, **ids)


def _ids(arrival: Arrival) -> dict[str, str]:
    """Return what finds a request again: its trace, and its delivery once it has one. It may be stored where a 503 says unknown."""
    delivery = {"delivery_id": arrival.delivery.id} if arrival.delivery else {}
    return {**delivery, **log_fields(arrival.span)}


def _account(permit: Permit, delivery: Delivery | None) -> str:
    """Return whose delivery it is, as it may be shown: what its credential says, or else its body."""
    if permit.account_id:
        return account_word(permit.account_id, is_credentials=True)
    return account_word(delivery.account_id) if delivery else ""


def outline(events: list[Event]) -> str:
    """Return entities, actions and ids as amoCRM nests them, nothing else of the body: other words and ids may be anything."""
    tree: dict[str, dict[str, list[dict[str, int | str]]]] = {}
    for event in events[:MOST_EVENTS]:
        shown: int | str = event.row.id if event.row else event.entity_id if ID.fullmatch(event.entity_id) else ""
        tree.setdefault(entity_word(event.entity), {}).setdefault(action_word(event.action), []).append({"id": shown})
    text = orjson.dumps(tree).decode().replace('":', '": ').replace(',"', ', "').replace("},{", "}, {")
    return text if len(events) <= MOST_EVENTS else f"{text} and {len(events) - MOST_EVENTS} more"
