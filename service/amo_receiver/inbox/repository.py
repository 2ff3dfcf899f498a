"""All SQL of acceptance and of the worker.

``accept`` and ``settle`` call one database function each: a call is a transaction, two round trips with asyncpg, and nothing has to
be rolled back from here. Every call is bounded: after ``timeout_seconds`` its connection is terminated and the outcome is unknown.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import orjson
from sqlalchemy import text

from amo_receiver.database import DatabaseTimeout, is_temporary, sqlstate
from amo_receiver.inbox.merge import Row, fold, record
from amo_receiver.inbox.states import DEFERRAL_SECONDS, MAX_ATTEMPTS, MAX_DEFERRAL_SECONDS
from amo_receiver.telemetry.current import CURRENT
from amo_receiver.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from amo_receiver.inbox.delivery import Delivery
    from amo_receiver.telemetry.tracing import Tracing


class Known(NamedTuple):
    """An event that was stored before: its first ``of`` and that one's state (of == id: our own earlier try)."""

    of: str
    state: str


class Accepted(NamedTuple):
    """What became of a batch: ``applied`` with everything in the tables, else why not, and the events known before."""

    applied: bool
    known: dict[str, Known]
    sqlstate: str | None
    constraint: str | None


class Settlement(NamedTuple):
    """One pending event with its effect and the attempt it is settled by (None: the first, which leaves no row unless it fails)."""

    account_id: str
    event_id: str
    row: Row | None
    entity: str
    attempt: dict[str, Any] | None = None
    traceparent: str | None = None


ACCEPT = "SELECT accept_v1($1::json, $2::bytea[], $3::json, $4::json, $5::json, $6, $7)::text"
FUNCTIONS = {"accept": "accept_v1", "settle": "settle_v1"}
SETTLE = "SELECT settle_v1($1::json, $2::json, $3::json, $4::json, $5)"

CLAIM = text(f"""
    WITH found AS MATERIALIZED (
        SELECT account_id, id, available_at, attempts >= {MAX_ATTEMPTS} AS is_suspect FROM events
        WHERE state = 'pending' AND available_at <= now() ORDER BY available_at LIMIT :most FOR UPDATE SKIP LOCKED
    ), due AS (
        SELECT account_id, id FROM found WHERE NOT is_suspect
        UNION ALL
        (SELECT account_id, id FROM found WHERE NOT EXISTS (SELECT FROM found WHERE NOT is_suspect) ORDER BY available_at LIMIT 1)
    )
    UPDATE events e SET attempts = attempts + 1, available_at = now() + make_interval(secs => CASE attempts WHEN 0 THEN 5 ELSE 30 END)
    FROM due WHERE e.account_id = due.account_id AND e.id = due.id
    RETURNING e.account_id, e.id::text, e.delivery_id::text, e.entity, e.action, e.entity_id, e.payload, e.occurred_at, e.received_at,
              e.attempts, e.deferrals, e.replays, e.traceparent""")

DELIVERY = text("SELECT * FROM deliveries WHERE account_id = :account_id AND id = CAST(:id AS uuid)")

FAIL = text(f"""
    WITH failed AS (
        SELECT * FROM json_to_recordset(:failures) AS f(account_id text, id uuid, error text, permanent boolean)
    ), locked AS MATERIALIZED (
        SELECT e.account_id, e.id FROM events e JOIN failed f ON e.account_id = f.account_id AND e.id = f.id
        WHERE e.state = 'pending' ORDER BY e.account_id COLLATE "C", e.id FOR UPDATE OF e
    )
    UPDATE events e SET
        state = CASE WHEN f.permanent OR e.attempts >= {MAX_ATTEMPTS} THEN 'dead' ELSE 'pending' END,
        available_at = CASE WHEN f.permanent OR e.attempts >= {MAX_ATTEMPTS} THEN NULL ELSE e.available_at END,
        last_error = f.error
    FROM failed f JOIN locked l ON l.account_id = f.account_id AND l.id = f.id
    WHERE e.account_id = f.account_id AND e.id = f.id
    RETURNING e.id::text, e.state, e.attempts""")

DEFER = text(f"""
    WITH deferred AS (SELECT * FROM json_to_recordset(:failures) AS f(account_id text, id uuid, error text)),
    locked AS MATERIALIZED (
        SELECT e.account_id, e.id FROM events e JOIN deferred f ON e.account_id = f.account_id AND e.id = f.id
        WHERE e.state = 'pending' ORDER BY e.account_id COLLATE "C", e.id FOR UPDATE OF e
    )
    UPDATE events e SET attempts = greatest(e.attempts - 1, 0), deferrals = least(e.deferrals + 1, 32767), last_error = f.error,
        available_at = now() + make_interval(secs => least({DEFERRAL_SECONDS} * 2 ^ least(e.deferrals, 10), {MAX_DEFERRAL_SECONDS}))
    FROM deferred f JOIN locked l ON l.account_id = f.account_id AND l.id = f.id
    WHERE e.account_id = f.account_id AND e.id = f.id
    RETURNING e.id::text, e.state, e.attempts""")

ATTEMPTS = text("""
    INSERT INTO attempts (account_id, event_id, id, number, kind, outcome, started_at, error, traceparent)
    SELECT account_id, event_id, id, number, kind, outcome, started_at, error, traceparent
    FROM json_populate_recordset(NULL::attempts, :attempts)""")


class Repository:
    """Acceptance's and the worker's way to the database."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        timeout_seconds: float = 1.0,
        lock_timeout_ms: int = 800,
        tracing: Tracing | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.engine = engine
        self._tracing = tracing
        self._metrics = metrics or Metrics()
        self._timeout = timeout_seconds
        self._lock_timeout_ms = lock_timeout_ms

    async def accept(self, deliveries: Sequence[Delivery], *, apply: bool = True) -> Accepted:
        """Store and apply a batch in one transaction; committed when this returns. Without ``apply`` its events are left pending."""
        events = [(event, delivery) for delivery in deliveries for event in delivery.events]
        leads, contacts = _cards((event.entity, event.row) for event, _ in events if apply)
        answer = await self._call(
            "accept",
            ACCEPT,
            _json([delivery.record() for delivery in deliveries]),
            [delivery.body for delivery in deliveries],
            _json([event.record(delivery) for event, delivery in events]),
            leads,
            contacts,
            apply,
            self._lock_timeout_ms,
        )
        result = orjson.loads(answer)
        known = {entry["id"]: Known(entry["of"], entry["state"]) for entry in result["known"] or ()}
        return Accepted(result["applied"], known, result["sqlstate"], result["constraint"])

    async def settle(self, settlements: Sequence[Settlement], lock_timeout_ms: int | None = None) -> None:
        """Apply pending events and mark them processed, in one transaction; an event that is processed already changes nothing."""
        leads, contacts = _cards((each.entity, each.row) for each in settlements)
        events = [
            {"account_id": each.account_id, "id": each.event_id, "effect": "applied" if each.row else "recorded"} for each in settlements
        ]
        attempts = [each.attempt for each in settlements if each.attempt]
        await self._call("settle", SETTLE, _json(events), leads, contacts, _json(attempts), lock_timeout_ms or self._lock_timeout_ms)

    async def claim(self, most: int) -> list[Any]:
        """Begin an attempt of at most ``most`` due events: counted and due again later, committed before anything is applied.

        A suspect (``states.MAX_CLAIMS``) comes alone, after those that are none.
        """
        async with self._transaction("claim") as connection:
            return list(await connection.execute(CLAIM, {"most": most}))

    async def delivery(self, account_id: str, delivery_id: str) -> Any:
        """Return a delivery's row, or None."""
        async with self.engine.connect() as connection:
            return (await connection.execute(DELIVERY, {"account_id": account_id, "id": delivery_id})).one_or_none()

    async def fail(self, failures: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> dict[str, tuple[str, int]]:
        """Note failed attempts (account_id, id, error, permanent); return event id → (state, attempts) of those still pending before."""
        return await self._note("fail", FAIL, failures, attempts)

    async def defer(self, failures: list[dict[str, Any]], attempts: list[dict[str, Any]]) -> dict[str, tuple[str, int]]:
        """Give attempts back (account_id, id, error): the trouble was the database's."""
        return await self._note("defer", DEFER, failures, attempts)

    async def _note(
        self, name: str, statement: Any, failures: list[dict[str, Any]], attempts: list[dict[str, Any]]
    ) -> dict[str, tuple[str, int]]:
        async with self._transaction(name) as connection:
            rows = await connection.execute(statement, {"failures": _json(failures)})
            await connection.execute(ATTEMPTS, {"attempts": _json(attempts)})
            return {row[0]: (row[1], row[2]) for row in rows}

    @asynccontextmanager
    async def _transaction(self, name: str) -> AsyncIterator[Any]:
        with self._metrics.call(name):
            async with self.engine.begin() as connection:
                await connection.execute(text(f"SET LOCAL lock_timeout = {self._lock_timeout_ms}"))
                await connection.execute(text(f"SET LOCAL statement_timeout = {self._lock_timeout_ms * 5}"))
                yield connection

    async def _call(self, name: str, statement: str, *arguments: Any) -> Any:
        """Call a database function, measured, and in a span below the current one."""
        parent = CURRENT.get()
        with self._metrics.call(name):
            if self._tracing is None or parent is None:
                return await self._execute(statement, *arguments)
            span = self._tracing.call(parent)
            try:
                result = await self._execute(statement, *arguments)
            except BaseException as error:
                self._tracing.end_call(span, FUNCTIONS[name], type(error).__name__, sqlstate(error) or "")
                raise
            self._tracing.end_call(span, FUNCTIONS[name])
            return result

    async def _execute(self, statement: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout):
                connection, driver = await self._connect()
        except TimeoutError:
            raise DatabaseTimeout from None
        try:
            try:
                return await _bounded(driver.fetchval(statement, *arguments), self._timeout)
            except BaseException as error:
                if is_temporary(error) or not isinstance(error, asyncpg.PostgresError):  # else the connection is as it was
                    driver.terminate()
                    await connection.invalidate()
                raise
        finally:
            await connection.close()

    async def _connect(self) -> tuple[AsyncConnection, Any]:
        """Return a connection and its driver's; one that the pooler or the server has closed meanwhile is replaced."""
        while True:
            connection = await self.engine.connect()
            driver: Any = (await connection.get_raw_connection()).driver_connection
            if not driver.is_closed():
                return connection, driver
            await connection.invalidate()
            await connection.close()


async def _bounded(call: Coroutine[Any, Any, Any], timeout_seconds: float) -> Any:
    """Wait for a call without ever waiting for its cancellation, which would hang as long as the call itself."""
    task = asyncio.ensure_future(call)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.wait({task}, timeout=timeout_seconds)
    if not task.done():
        raise DatabaseTimeout
    return task.result()


def _cards(rows: Any) -> tuple[str, str]:
    """Return the folded rows of leads and of contacts as JSON, each sorted by key."""
    cards: dict[str, list[Row]] = {"leads": [], "contacts": []}
    for entity, row in rows:
        if row is not None:
            cards[entity].append(row)
    return tuple(_json([record(row) for row in fold(cards[entity])]) for entity in ("leads", "contacts"))  # type: ignore[return-value]


def _json(records: Any) -> str:
    return orjson.dumps(records).decode()
