"""Attempts after the first: take due events, apply them, and say what became of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from amo_receiver.amocrm.events import read_body
from amo_receiver.amocrm.form import Limits, decode
from amo_receiver.errors import Unparsable
from amo_receiver.inbox.batch import attempt_record
from amo_receiver.inbox.delivery import UNPARSED, Credential, Delivery, Headers, add_events
from amo_receiver.inbox.effects import row_of
from amo_receiver.inbox.repository import Settlement
from amo_receiver.inbox.settling import Failure, settle
from amo_receiver.inbox.states import MAX_ATTEMPTS
from amo_receiver.log import get_logger

if TYPE_CHECKING:
    from amo_receiver.amocrm.events import Body, Item
    from amo_receiver.inbox.repository import Repository
    from amo_receiver.inbox.service import Reloadable

log = get_logger(__name__)

SETTLE_SECONDS = 20.0


class Rejected(Failure):
    """The event itself can never be applied; ``reason`` names what is wrong without quoting it."""

    def __init__(self, reason: str) -> None:
        Exception.__init__(self, reason)
        self.sqlstate = None
        self.temporary = False


class Retry:
    """The worker's attempts."""

    def __init__(self, repository: Repository, current: Reloadable, limits: Limits, most: int) -> None:
        self._repository = repository
        self._current = current
        self._limits = limits
        self._most = most

    async def run_due(self) -> int:
        """Make one attempt of each due event, ``most`` at once, and return how many there were."""
        due = await self._repository.claim(self._most)
        settlements: list[Settlement] = []
        outcomes: dict[str, Failure | None] = {}
        for event in due:
            try:
                settlements.append(await self._prepare(event))
            except Rejected as rejected:
                outcomes[event.id] = rejected
            except Exception as error:  # noqa: BLE001 - one event's trouble is not the others'
                outcomes[event.id] = Failure(error)
        deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
        outcomes |= await settle(self._repository, settlements, deadline)
        await self._note(due, outcomes)
        return len(due)

    async def _prepare(self, event: Any) -> Settlement:
        if event.attempts > MAX_ATTEMPTS:
            raise Rejected("the process died during each attempt")
        attempt = attempt_record(event.account_id, event.id, event.attempts, _kind(event), None, _now())
        if event.entity == UNPARSED:
            await self._parse_again(event)
            return Settlement(event.account_id, event.id, None, UNPARSED, attempt)
        try:
            row = row_of(event.id, event.account_id, event.entity, event.action, event.entity_id, event.payload, _iso(event.occurred_at),
                         _iso(event.received_at) or "", self._current.mapping.for_account(event.account_id))  # fmt: skip
        except ValueError as error:
            raise Rejected(str(error)) from error
        return Settlement(event.account_id, event.id, row, event.entity, attempt)

    async def _parse_again(self, event: Any) -> None:
        stored = await self._repository.delivery(event.account_id, event.delivery_id)
        if stored is None or stored.body_sha256 is not None:
            raise Rejected("its body is no longer kept whole")
        try:
            parsed = read_body(decode(stored.body, stored.content_type or "", self._limits), stored.received_at.timestamp())
        except Unparsable as error:
            raise Rejected(str(error.problem)) from error
        credential = Credential(stored.source, stored.key_kind, stored.key_fingerprint)
        delivery = Delivery(event.delivery_id, event.account_id, _iso(stored.received_at) or "", credential,
                            Headers(stored.content_type, stored.user_agent, stored.request_id, stored.traceparent),
                            stored.body, body_bytes=len(stored.body))  # fmt: skip
        add_events(delivery, parsed.items, lambda item: _account(event.account_id, parsed, item), self._current.mapping.for_account)
        delivery.account_id = event.account_id
        await self._repository.accept([delivery])

    async def _note(self, due: list[Any], outcomes: dict[str, Failure | None]) -> None:
        noted: dict[bool, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {True: ([], []), False: ([], [])}
        for event in due:
            failure = outcomes.get(event.id)
            if event.id not in outcomes or failure is None:
                continue
            failures, attempts = noted[failure.temporary]
            failures.append(
                {"account_id": event.account_id, "id": event.id, "error": str(failure), "permanent": isinstance(failure, Rejected)}
            )
            attempts.append(attempt_record(event.account_id, event.id, event.attempts, _kind(event), failure, _now()))
        states: dict[str, tuple[str, int]] = {}
        if noted[False][0]:
            states |= await self._repository.fail(*noted[False])
        if noted[True][0]:
            states |= await self._repository.defer(*noted[True])
        for event in due:
            _log(event, outcomes.get(event.id), states.get(event.id))


def _account(account_id: str, body: Body, item: Item) -> str:
    return account_id or body.account_id or item.account_id or (f"subdomain:{body.subdomain}" if body.subdomain else "")


def _kind(event: Any) -> str:
    return "replay" if event.replays and event.attempts == 1 else "retry"


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _log(event: Any, failure: Failure | None, noted: tuple[str, int] | None) -> None:
    fields = {"event_id": event.id, "delivery_id": event.delivery_id, "attempt": event.attempts}
    name = f"{event.entity}.{event.action}".rstrip(".")
    if failure is None:
        log.info("Event applied on retry: %s", name, **fields)
    elif noted and noted[0] == "dead":
        log.error("Event given up on: %s", name, **fields, reason=str(failure), error_type="DeadLetter")
    else:
        log.warning("Event not applied, tried again later: %s", name, **fields, reason=str(failure))


