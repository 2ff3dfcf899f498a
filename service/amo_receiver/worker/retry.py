"""Attempts after the first: take due events, apply them, and say what became of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from amo_receiver.amocrm.events import read_body, storable
from amo_receiver.amocrm.form import Limits, decode
from amo_receiver.database import DatabaseTimeout
from amo_receiver.errors import Unparsable
from amo_receiver.inbox.delivery import UNPARSED, Credential, Delivery, Headers, account_of, add_events, is_foreign
from amo_receiver.inbox.effects import row_of
from amo_receiver.inbox.lookup import is_parsed
from amo_receiver.inbox.repository import Settlement
from amo_receiver.inbox.settling import Failure, attempt_record, settle
from amo_receiver.inbox.states import MAX_CLAIMS
from amo_receiver.telemetry.links import traceparent_of
from amo_receiver.worker.journal import AttemptJournal, kind_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from amo_receiver.inbox.merge import Row
    from amo_receiver.inbox.repository import Repository
    from amo_receiver.inbox.service import Reloadable

RUN_SECONDS = 4.0
"""How long the events of one claim may take together: less than until they are due again. What is left over then is given back."""


class Rejected(Failure):
    """The event itself can never be applied; ``reason`` names what is wrong without quoting it."""

    def __init__(self, reason: str) -> None:
        Exception.__init__(self, reason)
        self.sqlstate = None
        self.temporary = False


class Stumbled(Failure):
    """Our code fails on this event: that counts, or it would be tried for ever."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.temporary = False
        self.bug = error


class Notes(NamedTuple):
    """Failures and attempts that are to be written down together."""

    failures: list[dict[str, Any]]
    attempts: list[dict[str, Any]]


class Retry:
    """The worker's attempts."""

    def __init__(
        self,
        repository: Repository,
        current: Reloadable,
        limits: Limits,
        most: int,
        *,
        run_seconds: float = RUN_SECONDS,
        journal: AttemptJournal | None = None,
    ) -> None:
        self._repository = repository
        self._journal = journal or AttemptJournal()
        self._current = current
        self._limits = limits
        self._most = most
        self._run_seconds = run_seconds
        self._owed = Notes([], [])

    async def run_due(self) -> int:
        """Make one attempt of each due event, ``most`` at once, and return how many there were."""
        await self._give_back()
        due = await self._repository.claim(self._most)
        if not due:
            return 0
        with self._journal.attempts(due) as spans:
            await self._attempt(due, spans)
        return len(due)

    async def _attempt(self, due: list[Any], spans: dict[str, Span]) -> None:
        started_at = datetime.now(UTC).isoformat()
        deadline = asyncio.get_running_loop().time() + self._run_seconds
        settlements: list[Settlement] = []
        outcomes: dict[str, Failure | None] = {}
        for event in due:
            try:
                settlements.append(await self._prepare(event, started_at, deadline, spans[event.id]))
            except Failure as failure:
                outcomes[event.id] = failure
            except Exception as error:  # noqa: BLE001 - one event's trouble is not the others'
                outcomes[event.id] = Failure(error)
        outcomes |= await settle(self._repository, settlements, deadline)
        for settlement in settlements:
            outcomes.setdefault(settlement.event_id, Failure(DatabaseTimeout()))
        await self._note(due, outcomes, started_at, spans)

    async def _prepare(self, event: Any, started_at: str, deadline: float, span: Span) -> Settlement:
        if event.attempts > MAX_CLAIMS:
            raise Rejected("the process died during each attempt")
        if asyncio.get_running_loop().time() >= deadline:
            raise DatabaseTimeout
        row = None
        if event.entity == UNPARSED:
            await self._parse_again(event)
        else:
            row = self._row(event)
        attempt = attempt_record(event.account_id, event.id, event.attempts, kind_of(event), None, started_at, traceparent_of(span))
        return Settlement(event.account_id, event.id, row, event.entity, attempt)

    def _row(self, event: Any) -> Row | None:
        try:
            return row_of(event.id, event.account_id, event.entity, event.action, event.entity_id, storable(event.payload)[0],
                          _iso(event.occurred_at), _iso(event.received_at) or "",
                          self._current.mapping.for_account(event.account_id))  # fmt: skip
        except ValueError as error:
            raise Rejected(str(error)) from error
        except Exception as error:
            raise Stumbled(error) from error

    async def _parse_again(self, event: Any) -> None:
        """Store and apply the events of an unparsed body, if it can be parsed by now."""
        stored = await self._repository.delivery(event.account_id, event.delivery_id)
        if stored is None or stored.body_sha256 is not None:
            raise Rejected("its body is no longer kept whole")
        delivery = self._parsed(event, stored)
        # An earlier attempt may have stored them and ended before it could say so; undated events are never duplicates.
        if await is_parsed(self._repository.engine, delivery.id, {each.account_id for each in delivery.events}, event.id):
            return
        self._journal.parsed(event, delivery.events, await self._repository.accept([delivery]))

    def _parsed(self, event: Any, stored: Any) -> Delivery:
        credential = Credential(stored.source, stored.key_kind, stored.key_fingerprint)
        delivery = Delivery(event.delivery_id, event.account_id, _iso(stored.received_at) or "", credential,
                            Headers(stored.content_type, stored.user_agent, stored.request_id, stored.traceparent),
                            stored.body, body_bytes=len(stored.body))  # fmt: skip
        try:
            parsed = read_body(decode(stored.body, stored.content_type or "", self._limits), stored.received_at.timestamp())
            add_events(delivery, parsed.items, lambda item: account_of(event.account_id, parsed, item), self._current.mapping.for_account)
        except Unparsable as error:
            raise Rejected(str(error.problem)) from error
        except Exception as error:
            raise Stumbled(error) from error
        if event.account_id and is_foreign(event.account_id, parsed):
            raise Rejected("its body is for another account than its token")
        return delivery

    async def _note(self, due: list[Any], outcomes: dict[str, Failure | None], started_at: str, spans: dict[str, Span]) -> None:
        failed = Notes([], [])
        for event in due:
            failure = outcomes[event.id]
            if failure is not None:
                permanent = isinstance(failure, Rejected)
                notes = self._owed if failure.temporary else failed
                notes.failures.append({"account_id": event.account_id, "id": event.id, "error": str(failure), "permanent": permanent})
                notes.attempts.append(
                    attempt_record(
                        event.account_id, event.id, event.attempts, kind_of(event), failure, started_at, traceparent_of(spans[event.id])
                    )
                )
        states: dict[str, tuple[str, int]] = {}
        try:
            if failed.failures:
                states |= await self._repository.fail(*failed)
            states |= await self._give_back()
        finally:  # what was attempted is told where it cannot be written down, too
            self._journal.ended(due, outcomes, states, spans)

    async def _give_back(self) -> dict[str, tuple[str, int]]:
        """Give back the attempts that the database's trouble cost; where it lasts, before the next claim, or each would count after all."""
        owed = self._owed
        if not owed.failures:
            return {}
        try:
            states = await self._repository.defer(*owed)
        except Exception as error:
            if not Failure(error).temporary:
                self._owed = Notes([], [])
            raise
        self._owed = Notes([], [])
        return states


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
