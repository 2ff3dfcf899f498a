"""The INFO lines about single deliveries, as users know them: ids only, and at load a sample with a count of the rest."""

from __future__ import annotations

import logging
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
VERBS = {"add": "created", "delete": "deleted", "restore": "restored"}


class Journal:
    """Writes what was accepted and refused, at most so many of each a second."""

    def __init__(self, deliveries_per_second: int) -> None:
        self._accepted = DeliveryLog(log, deliveries_per_second)
        self._refused = DeliveryLog(log, deliveries_per_second, level=logging.WARNING)

    def flush(self) -> None:
        """Write the counts of a second that has passed."""
        self._accepted.flush()
        self._refused.flush()

    def close(self) -> None:
        """Write the counts that are left."""
        self._accepted.close()
        self._refused.close()

    def refused(self, error: RequestError) -> None:
        """Write why a request was refused; the sentence says how to mend it. Sampled, because strangers may send many."""
        if self._refused.admits():
            log.warning("Webhook refused: %s", error, status=error.status, error_type=type(error).__name__)

    def accepted(self, delivery: Delivery, permit: Permit, outcome: Outcome, seconds: float) -> None:
        """Write the lines of one delivery; ``seconds`` from its first byte to its commit."""
        if not self._accepted.admits():
            return
        log.info("Received webhook from amoCRM: %s", outline(delivery.events), delivery_id=delivery.id)
        if permit.signed:
            log.info("Webhook signature verified for account: %s", permit.account_id, delivery_id=delivery.id)
        else:
            log.info("Webhook token verified for account: %s", delivery.account_id, delivery_id=delivery.id)
        unapplied = {problem.path for problem in outcome.problems}
        for event in delivery.events[:MOST_EVENTS] if outcome.processed else ():
            if event.row is not None and event.path not in unapplied:
                kind = "lead" if event.entity == "leads" else str(event.row.values["type"])
                adjective = "New " if event.action == "add" else ""
                sentence = f"{adjective}{kind} {VERBS.get(event.action, 'updated')} from amoCRM"
                log.info("%s: %s", sentence[0].upper() + sentence[1:], event.row.id, delivery_id=delivery.id, event_id=event.id)
        log.info("Webhook processed %d events in %.2fs", outcome.processed, seconds, delivery_id=delivery.id)


def outline(events: list[Event]) -> str:
    """Return entities, actions and ids as amoCRM nests them, nothing else of the body."""
    tree: dict[str, dict[str, list[dict[str, int | str]]]] = {}
    for event in events[:MOST_EVENTS]:
        # What stands where a card's id should be may be anything, a person's name included.
        shown: int | str = event.row.id if event.row else "" if event.error else event.entity_id
        tree.setdefault(event.entity, {}).setdefault(event.action, []).append({"id": shown})
    text = orjson.dumps(tree).decode().replace('":', '": ').replace(',"', ', "').replace("},{", "}, {")
    return text if len(events) <= MOST_EVENTS else f"{text} and {len(events) - MOST_EVENTS} more"
