"""The INFO lines about single deliveries, as users know them: ids only, and at load a sample with a count of the rest."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import orjson

from amo_receiver.log import DeliveryLog, get_logger

if TYPE_CHECKING:
    from amo_receiver.errors import RequestError
    from amo_receiver.inbox.batch import Outcome
    from amo_receiver.inbox.delivery import Delivery, Event
    from amo_receiver.inbox.service import Permit

log = get_logger(__name__)

MOST_EVENTS = 20
MOST_PROBLEMS = 3
WORD = re.compile(r"[a-z_]{0,40}")
ID = re.compile(r"[0-9]{1,19}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
VERBS = {"add": "created", "delete": "deleted", "restore": "restored"}


class Journal:
    """Writes what was accepted and refused, at most so many of each a second."""

    def __init__(self, deliveries_per_second: int) -> None:
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

    def _kept(self, delivery: Delivery) -> None:
        """Write what is kept as a dead letter, and how many times lie too far ahead to count."""
        if delivery.ahead and self._ahead.admits():
            log.warning("Event times over 10 minutes ahead of ours count as absent", delivery_id=delivery.id, events=delivery.ahead)
        problems = [event.problem for event in delivery.events if event.problem]
        if not problems or not self._dead.admits():
            return
        shown = "; ".join(map(str, problems[:MOST_PROBLEMS]))
        if not delivery.unparsed:
            log.error("Items kept as dead letters: %s", shown, delivery_id=delivery.id, items=len(problems), error_type="InvalidBody")
        elif delivery.body_sha256 is None:
            log.error("Body kept as a dead letter: %s", shown, delivery_id=delivery.id, error_type="Unparsable")
        else:
            sentence = "Body kept as a dead letter, 64 KiB of it, because its source's quota is used up: %s"
            log.error(sentence, shown, delivery_id=delivery.id, bytes=delivery.body_bytes, error_type="UnparsedQuotaExceeded")

    def refused(self, error: RequestError) -> None:
        """Write why a request was refused; the sentence says how to mend it. Sampled, because strangers may send many."""
        if self._refused.admits():
            log.warning("Webhook refused: %s", error, status=error.status, error_type=type(error).__name__)

    def accepted(self, delivery: Delivery, permit: Permit, outcome: Outcome, seconds: float) -> None:
        """Write the lines of one delivery; ``seconds`` from its first byte to its commit."""
        self._kept(delivery)
        if not self._accepted.admits():
            return
        log.info("Received webhook from amoCRM: %s", outline(delivery.events), delivery_id=delivery.id)
        if permit.signed:
            log.info("Webhook signature verified for account: %s", permit.account_id, delivery_id=delivery.id)
        else:
            log.info("Webhook token verified for account: %s", delivery.account_id or "unknown", delivery_id=delivery.id)
        unapplied = {problem.path for problem in outcome.problems}
        for event in delivery.events[:MOST_EVENTS] if outcome.processed else ():
            if event.row is not None and event.path not in unapplied:
                kind = "lead" if event.entity == "leads" else str(event.row.values["type"])
                adjective = "New " if event.action == "add" else ""
                sentence = f"{adjective}{kind} {VERBS.get(event.action, 'updated')} from amoCRM"
                log.info("%s: %s", sentence[0].upper() + sentence[1:], event.row.id, delivery_id=delivery.id, event_id=event.id)
        log.info("Webhook processed %d events in %.2fs", outcome.processed, seconds, delivery_id=delivery.id)


def outline(events: list[Event]) -> str:
    """Return entities, actions and ids as amoCRM nests them, nothing else of the body: a word or id of another shape may be anything."""
    tree: dict[str, dict[str, list[dict[str, int | str]]]] = {}
    for event in events[:MOST_EVENTS]:
        shown: int | str = event.row.id if event.row else event.entity_id if ID.fullmatch(event.entity_id) else ""
        entity, action = (word if WORD.fullmatch(word) else "?" for word in (event.entity, event.action))
        tree.setdefault(entity, {}).setdefault(action, []).append({"id": shown})
    text = orjson.dumps(tree).decode().replace('":', '": ').replace(',"', ', "').replace("},{", "}, {")
    return text if len(events) <= MOST_EVENTS else f"{text} and {len(events) - MOST_EVENTS} more"
