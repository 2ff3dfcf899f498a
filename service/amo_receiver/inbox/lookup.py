"""What people ask about stored events and cards, and what they ask to be done again; all SQL of those commands.

Every index starts with the account, so a question about all accounts is put to each of them in turn, which ``accounts_of`` finds with
one probe of the primary key each: the largest table is never read from end to end to find a few rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from sqlalchemy import text

from amo_receiver.amocrm.events import changes_card
from amo_receiver.amocrm.fields import integer
from amo_receiver.inbox.merge import FIELD
from amo_receiver.inbox.models import Card, Contact, Lead
from amo_receiver.inbox.states import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncEngine

STATEMENT_TIMEOUT_MS = 60_000
LOCK_TIMEOUT_MS = 5_000
NIL = "00000000-0000-0000-0000-000000000000"
MODELS: dict[str, type[Lead | Contact]] = {"leads": Lead, "contacts": Contact}
"""The tables of the entities that have one."""

EVENT = (
    "e.account_id, e.id::text AS id, e.delivery_id::text AS delivery_id, e.entity, e.action, e.entity_id, e.path, e.state, e.effect, "
    "e.attempts, e.deferrals, e.replays, e.occurred_at, e.received_at, e.available_at, e.processed_at, e.last_error, e.traceparent"
)
DELIVERY = (
    "e.account_id, e.id::text AS id, e.source, e.key_kind, e.key_fingerprint, e.received_at, e.content_type, e.user_agent, e.request_id, "
    "e.traceparent, e.body_bytes, encode(e.body_sha256, 'hex') AS body_sha256, e.events, e.unparsed, e.duplicates, e.last_received_at"
)
EVENTS = """
    WITH RECURSIVE {accounts} SELECT {columns} FROM accounts a CROSS JOIN LATERAL (
        SELECT * FROM events WHERE account_id = a.account_id {condition} ORDER BY events.id DESC LIMIT :most) e
    ORDER BY e.id DESC LIMIT :most"""
# No index has the card's id: read the table once, not once for each account.
EVENTS_OF_CARD = "SELECT {columns} FROM events e WHERE true {condition} ORDER BY e.id DESC LIMIT :most"
NAMED = """
    WITH RECURSIVE {accounts} SELECT {columns} FROM accounts a CROSS JOIN LATERAL (
        SELECT * FROM {table} t WHERE t.account_id = a.account_id AND t.id = ANY(CAST(:ids AS uuid[])) LIMIT :most) e
    ORDER BY e.account_id COLLATE "C", e.id"""
ATTEMPTS = (
    "SELECT number, kind, outcome, started_at, error, traceparent FROM attempts "
    "WHERE account_id = :account_id AND event_id = CAST(:event_id AS uuid) ORDER BY id"
)
CARD = "SELECT version_event::text, versions FROM {entity} WHERE account_id = :account_id AND id = :id"
STATES = "SELECT id::text, state FROM events WHERE account_id = :account_id AND id = ANY(CAST(:ids AS uuid[]))"
OF_STATE = {state: f"AND state = '{state}'" for state in get_args(State)}
AGAIN = """
    UPDATE events e SET state = 'pending', effect = NULL, processed_at = NULL, available_at = now(), attempts = 0, deferrals = 0,
        replays = least(e.replays + 1, 32767)
    FROM chosen c WHERE e.account_id = :account_id AND e.id = c.id RETURNING e.id::text"""
NAMED_AGAIN = """
    WITH chosen AS MATERIALIZED (
        SELECT id FROM events WHERE account_id = :account_id AND id = ANY(CAST(:ids AS uuid[])) AND state <> 'pending'
        ORDER BY id FOR UPDATE
    ) {again}"""
DEAD_AGAIN = """
    WITH chosen AS MATERIALIZED (
        SELECT id FROM events WHERE account_id = :account_id AND id > CAST(:after AS uuid) {condition}
        ORDER BY id LIMIT :most FOR UPDATE
    ) {again}"""
ACCOUNTS_WITH = """
    WITH RECURSIVE {accounts} SELECT a.account_id FROM accounts a
    CROSS JOIN LATERAL (SELECT FROM events WHERE account_id = a.account_id {condition} LIMIT 1) e"""
CUSTOM_FIELDS = """
    WITH RECURSIVE {accounts}
    SELECT a.account_id, f.key AS id, mode() WITHIN GROUP (ORDER BY f.value->>'name') AS name,
           mode() WITHIN GROUP (ORDER BY f.value->>'code') AS code, count(*) AS cards
    FROM accounts a CROSS JOIN LATERAL (
        SELECT custom_fields FROM {entity} t WHERE t.account_id = a.account_id ORDER BY t.id DESC LIMIT :sample) c
    CROSS JOIN LATERAL jsonb_each(c.custom_fields) f
    GROUP BY a.account_id, f.key ORDER BY a.account_id, cards DESC, f.key"""
STATUSES = """
    WITH RECURSIVE {accounts}
    SELECT a.account_id, c.status_id AS id, count(*) AS cards FROM accounts a CROSS JOIN LATERAL (
        SELECT status_id FROM leads t WHERE t.account_id = a.account_id ORDER BY t.id DESC LIMIT :sample) c
    WHERE c.status_id IS NOT NULL GROUP BY a.account_id, c.status_id ORDER BY a.account_id, cards DESC, c.status_id"""
IS_PARSED = """
    SELECT EXISTS (SELECT FROM events WHERE account_id = ANY(CAST(:accounts AS text[]))
                   AND delivery_id = CAST(:delivery_id AS uuid) AND id <> CAST(:but AS uuid))"""

ALL_ACCOUNTS = """accounts AS (
        (SELECT account_id FROM {table} ORDER BY account_id LIMIT 1)
        UNION ALL
        SELECT (SELECT t.account_id FROM {table} t WHERE t.account_id > a.account_id ORDER BY t.account_id LIMIT 1)
        FROM accounts a WHERE a.account_id IS NOT NULL
    )"""
ONE_ACCOUNT = "accounts AS (SELECT CAST(:account_id AS text) AS account_id)"


class Filter(NamedTuple):
    """Which events; None does not matter."""

    account_id: str | None = None
    state: State | None = None
    entity: str | None = None
    entity_id: str | None = None
    delivery_id: UUID | None = None

    def sql(self) -> str:
        """Return the condition on ``events``; the account is no part of it."""
        # The state as a literal: with a parameter the planner could not know that a partial index holds the rows.
        conditions = [OF_STATE[self.state]] if self.state else []
        conditions += [f"AND {name} = :{name}" for name in ("entity", "entity_id", "delivery_id") if getattr(self, name) is not None]
        return " ".join(conditions)

    def parameters(self) -> dict[str, Any]:
        """Return the values that ``sql`` and ``accounts_of`` name."""
        return {name: value for name, value in self._asdict().items() if name != "state" and value is not None}


def accounts_of(table: str, account_id: str | None = None) -> str:
    """Return a common table expression ``accounts`` (WITH RECURSIVE): those with rows in a table, or the one that is given."""
    return ALL_ACCOUNTS.format(table=table) if account_id is None else ONE_ACCOUNT


def columns_set_by(event_id: str, version_event: str, versions: dict[str, Any] | None, columns: Sequence[str]) -> list[str]:
    """Return what of a card an event set and nothing newer has replaced: columns, and custom fields by id."""
    later = versions or {}
    kept = [*columns, "custom_fields"] if version_event == event_id else []
    own = [register for register, version in later.items() if version[1] == event_id]
    return [column for column in kept if column not in later] + [
        f"custom field {register.removeprefix(FIELD)}" if register.startswith(FIELD) else register for register in sorted(own)
    ]


def mapped_columns(entity: str) -> list[str]:
    """Return the columns of a card that events write and that are versioned under their own names."""
    bookkeeping = Card.__annotations__.keys() - {"name", "responsible_user_id"}
    return [column.name for column in MODELS[entity].__table__.columns if column.name not in bookkeeping]


class Lookup:
    """A person's way to the stored events; each question is bounded to a minute."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def events(self, wanted: Filter, most: int) -> list[Any]:
        """Return the newest events, newest first, without their payloads."""
        template = EVENTS_OF_CARD if wanted.entity_id is not None and wanted.account_id is None else EVENTS
        statement = template.format(accounts=accounts_of("events", wanted.account_id), columns=EVENT, condition=wanted.sql())
        return await self._rows(statement, most=most, **wanted.parameters())

    async def events_named(self, ids: Sequence[UUID], account_id: str | None, *, payload: bool = False) -> list[Any]:
        """Return the events with these ids that there are, of whatever account unless it is given."""
        return await self._named("events", EVENT + (", e.payload" if payload else ""), ids, account_id)

    async def delivery(self, event: Any, *, body: bool = False) -> Any:
        """Return an event's delivery, or None once it is pruned."""
        columns = DELIVERY + (", e.body" if body else "")
        # A body with events of several accounts is kept with the account of its first one.
        for account_id in (event.account_id, None):
            found = await self._named("deliveries", columns, [event.delivery_id], account_id)
            if found:
                return found[0]
        return None

    async def attempts(self, event: Any) -> list[Any]:
        """Return an event's written attempts, in order."""
        return await self._rows(ATTEMPTS, account_id=event.account_id, event_id=event.id)

    async def columns_set_by(self, event: Any) -> list[str]:
        """Return what of its card an event set and nothing newer has replaced."""
        card_id = integer(event.entity_id)
        if not changes_card(event.entity, event.action) or card_id is None:
            return []
        rows = await self._rows(CARD.format(entity=event.entity), account_id=event.account_id, id=card_id)
        columns = mapped_columns(event.entity)
        return [name for row in rows for name in columns_set_by(event.id, row.version_event, row.versions, columns)]

    async def states(self, account_id: str, ids: Sequence[str]) -> dict[str, State]:
        """Return the state of each of an account's events; those that are pruned are missing."""
        return {row.id: row.state for row in await self._rows(STATES, account_id=account_id, ids=list(ids))}

    async def replay_named(self, account_id: str, ids: Sequence[str]) -> list[str]:
        """Make an account's processed and dead events pending again and due now; return the ids of those that were."""
        rows = await self._rows(NAMED_AGAIN.format(again=AGAIN), account_id=account_id, ids=list(ids))
        return sorted(row.id for row in rows)

    async def replay_dead(self, account_id: str, entity: str | None, after: str, most: int) -> list[str]:
        """Make an account's next ``most`` dead events behind the id ``after`` pending again; return their ids in order.

        Going on behind the last one ends even where a worker gives the same events up again at once.
        """
        wanted = Filter(account_id, "dead", entity)
        statement = DEAD_AGAIN.format(condition=wanted.sql(), again=AGAIN)
        return sorted(row.id for row in await self._rows(statement, after=after, most=most, **wanted.parameters()))

    async def accounts_with_dead(self, entity: str | None) -> list[str]:
        """Return the accounts that have dead events, in the order in which everybody locks."""
        wanted = Filter(state="dead", entity=entity)
        statement = ACCOUNTS_WITH.format(accounts=accounts_of("events"), condition=wanted.sql())
        return sorted(row.account_id for row in await self._rows(statement, **wanted.parameters()))

    async def custom_fields(self, entity: str, account_id: str | None, sample: int) -> list[Any]:
        """Return account_id, id, name, code and cards (how many have it) of the custom fields in each account's newest cards."""
        table = MODELS[entity].__tablename__
        statement = CUSTOM_FIELDS.format(accounts=accounts_of(table, account_id), entity=table)
        return await self._rows(statement, sample=sample, **Filter(account_id).parameters())

    async def statuses(self, account_id: str | None, sample: int) -> list[Any]:
        """Return account_id, id and cards of the statuses in each account's newest leads."""
        statement = STATUSES.format(accounts=accounts_of("leads", account_id))
        return await self._rows(statement, sample=sample, **Filter(account_id).parameters())

    async def _named(self, table: str, columns: str, ids: Iterable[UUID | str], account_id: str | None) -> list[Any]:
        wanted = sorted({str(each) for each in ids})
        statement = NAMED.format(accounts=accounts_of(table, account_id), columns=columns, table=table)
        return await self._rows(statement, ids=wanted, most=len(wanted), **Filter(account_id).parameters())

    async def _rows(self, statement: str, **parameters: Any) -> list[Any]:
        async with self._engine.begin() as connection:
            await connection.execute(text(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}"))
            await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
            return list(await connection.execute(text(statement), parameters))


async def is_parsed(engine: AsyncEngine, delivery_id: str, accounts: Iterable[str], but: str) -> bool:
    """Return whether a delivery has events in one of these accounts besides the one that stood for its unparsed body."""
    async with engine.connect() as connection:
        found = await connection.scalar(text(IS_PARSED), {"accounts": sorted(accounts), "delivery_id": delivery_id, "but": but})
        return bool(found)
