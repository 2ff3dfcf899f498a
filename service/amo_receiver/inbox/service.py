"""Accept a delivery: verify, parse, store, apply, commit; then answer."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from amo_receiver.amocrm.events import Body, read_body
from amo_receiver.amocrm.form import Limits, decode
from amo_receiver.errors import InvalidBody, Problem, Unauthorized, Unavailable, Unparsable
from amo_receiver.inbox.delivery import (
    Credential,
    Delivery,
    Headers,
    account_of,
    add_events,
    as_unparsed,
    cut_body,
    is_foreign,
    open_delivery,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from amo_receiver.amocrm.fields import Mapping
    from amo_receiver.amocrm.keyring import Keyring, Match
    from amo_receiver.inbox.batch import GroupCommit, Outcome
    from amo_receiver.inbox.quota import UnparsedQuota
    from amo_receiver.settings import Settings
    from amo_receiver.telemetry.spans import OpenSpan

MOST_PARSED_BYTES = 4 * 1024 * 1024
"""Of bodies that are parsed and not yet answered: events take some fifteen times the memory of their body, and a processor's time."""


@dataclass(slots=True)
class Reloadable:
    """What files decide and a reload replaces while the process runs."""

    keyring: Keyring
    mapping: Mapping


@dataclass(frozen=True, slots=True)
class Permit:
    """A verified request: whose key it was, and the account it speaks for (None: its body decides).

    ``signed`` requests are strict: a body that is not usable is refused. On the token path amoCRM itself is calling, which would
    only repeat the same body and count the answer against the hook, so there it is stored as a dead letter.
    """

    match: Match
    account_id: str | None
    signed: bool

    @property
    def credential(self) -> Credential:
        """The key without its secret."""
        return Credential(self.match.source.name, self.match.kind, self.match.fingerprint)


@dataclass(slots=True)
class Arrival:
    """One request on its way: when its first byte came (unix nanoseconds), until when it is to be answered (loop time), its route.

    ``agent`` is what the sender calls itself. The rest is known as it goes on: whose it is, its span (where there is tracing), the
    delivery it makes.
    """

    at_ns: int
    deadline: float
    route: str
    permit: Permit | None = None
    span: OpenSpan | None = None
    delivery: Delivery | None = None
    agent: bytes = b""

    @property
    def received_at(self) -> float:
        """The first byte's time in unix seconds."""
        return self.at_ns / 1e9


class Inbox:
    """Acceptance in one process."""

    def __init__(self, settings: Settings, current: Reloadable, batches: GroupCommit, quota: UnparsedQuota) -> None:
        self.current = current
        self._settings = settings
        self._limits = Limits(settings.max_body_fields, settings.max_body_depth)
        self._batches = batches
        self._quota = quota
        self._requests = 0
        self._bytes = 0
        self._parsed_bytes = 0

    def verify_signed(self, client_uuid: str, signature: str, account_id: str) -> Permit:
        """Return the permit of a signed request, before its body is read; Unauthorized otherwise."""
        match = self.current.keyring.verify_signature(client_uuid, signature, account_id, datetime.now(UTC))
        return Permit(match, match.account_id, signed=True)

    def verify_token(self, token: str) -> Permit:
        """Return the permit of amoCRM's own request, before its body is read; Unauthorized otherwise."""
        match = self.current.keyring.verify_token(token, datetime.now(UTC))
        return Permit(match, match.account_id, signed=False)

    @contextmanager
    def admit(self, size: int) -> Iterator[None]:
        """Hold a place for a request of ``size`` bytes; Unavailable when there is too much in flight."""
        if self._requests >= self._settings.max_in_flight_requests or self._bytes + size > self._settings.max_in_flight_bytes:
            raise Unavailable("Too many requests in flight.", retry_after=1)
        self._requests += 1
        self._bytes += size
        try:
            yield
        finally:
            self._requests -= 1
            self._bytes -= size

    async def accept(self, arrival: Arrival, permit: Permit, headers: Headers, body: bytes) -> Outcome:
        """Return once the delivery and its events are committed; the arrival learns of the delivery."""
        if self._parsed_bytes and self._parsed_bytes + len(body) > MOST_PARSED_BYTES:
            raise Unavailable("Too many events in flight.", retry_after=1)
        self._parsed_bytes += len(body)
        try:
            arrival.delivery = self._open(permit, headers, body, arrival.received_at)
            arrival.delivery.span = arrival.span
            return await self._batches.submit(arrival.delivery, arrival.deadline)
        finally:
            self._parsed_bytes -= len(body)

    def _open(self, permit: Permit, headers: Headers, body: bytes, received_at: float) -> Delivery:
        delivery = open_delivery(permit.account_id or "", received_at, permit.credential, headers, body)
        try:
            parsed = read_body(decode(body, headers.content_type or "", self._limits), received_at)
        except Unparsable as error:
            if permit.signed:
                raise InvalidBody([error.problem]) from error
            return self._keep_unparsed(delivery, error)
        self._check_account(permit, parsed)
        problems = [item.problem for item in parsed.items if item.problem is not None]
        if permit.signed and problems:
            raise InvalidBody(problems)
        add_events(delivery, parsed.items, lambda item: account_of(permit.account_id, parsed, item), self.current.mapping.for_account)
        if not parsed.items:
            delivery.account_id = permit.account_id or parsed.account_id or ""
        return delivery

    def _keep_unparsed(self, delivery: Delivery, error: Unparsable) -> Delivery:
        delivery = as_unparsed(delivery, error.problem)
        if not self._quota.spend(delivery.credential.source, len(delivery.body)):
            cut_body(delivery)
        return delivery

    def _check_account(self, permit: Permit, parsed: Body) -> None:
        """Refuse a body that speaks of another account than its credential; a signed one only where its account block does."""
        if permit.account_id is None:
            return
        if permit.signed:
            if parsed.account_id and parsed.account_id != permit.account_id:
                raise InvalidBody([Problem("account.id", "is not the account of the X-Account-ID header")])
        elif is_foreign(permit.account_id, parsed):
            raise Unauthorized("The body is for another account than its token; put that account's own URL into its webhook settings.")
