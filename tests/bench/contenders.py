"""What the service is measured against, each under the same server with the same options.

``empty`` is what FastAPI itself costs; ``per_request`` is the usual way to write such a receiver: the same verification and parsing,
then one SQLAlchemy transaction per request; ``single_insert`` stores the raw body with one INSERT and does nothing else.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
from fastapi import FastAPI, Request
from sqlalchemy import LargeBinary, bindparam, text

from amo_receiver.app import create_app
from amo_receiver.database import connect_arguments
from amo_receiver.inbox.batch import GroupCommit, Outcome
from amo_receiver.inbox.endpoints import envelope
from amo_receiver.inbox.merge import record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amo_receiver.inbox.delivery import Delivery

PATH = "/api/webhooks/amo/{token}"
RAW_TABLE = "CREATE TABLE IF NOT EXISTS raw_bodies (id bigserial PRIMARY KEY, body bytea NOT NULL)"

DELIVERY = text(
    "INSERT INTO deliveries (account_id, id, source, key_kind, key_fingerprint, received_at, body, body_bytes, events, last_received_at) "
    "VALUES (:account_id, CAST(:id AS uuid), :source, :key_kind, :key_fingerprint, CAST(CAST(:received_at AS text) AS timestamptz), :body, "
    ":body_bytes, :events, now())"
).bindparams(bindparam("body", type_=LargeBinary))
EVENT = text(
    "INSERT INTO events (account_id, id, delivery_id, entity, action, entity_id, path, payload, occurred_at, received_at, dedup, state, "
    "effect, attempts, processed_at) SELECT account_id, id, delivery_id, entity, action, entity_id, path, payload, occurred_at, "
    "received_at, dedup, state, effect, 1, now() FROM json_populate_recordset(NULL::events, CAST(:event AS json)) ON CONFLICT DO NOTHING"
)
CARD = text("SELECT upsert_cards_v1(CAST(:leads AS json), '[]')")


def empty() -> FastAPI:
    """Return an application whose route reads the body and answers the envelope."""
    app = FastAPI()

    @app.post(PATH)
    async def webhook(token: str, request: Request) -> dict[str, Any]:
        await request.body()
        return envelope("success", "Processed 1 events", 1)

    return app


class TransactionPerRequest(GroupCommit):
    """The same acceptance without batches: a transaction of its own for each delivery."""

    async def submit(self, delivery: Delivery, deadline: float) -> Outcome:  # noqa: ARG002
        """Store and apply one delivery."""
        async with self._repository.engine.begin() as connection:
            await connection.execute(DELIVERY, {**delivery.record(), "body": delivery.body})
            for event in delivery.events:
                await connection.execute(EVENT, {"event": orjson.dumps([event.record(delivery)]).decode()})
                if event.row is not None:
                    await connection.execute(CARD, {"leads": orjson.dumps([record(event.row)]).decode()})
        return Outcome(len(delivery.events), [])


def per_request() -> FastAPI:
    """Return the service with one SQLAlchemy transaction per request."""
    app = create_app()
    service = app.state.service
    service.inbox._batches = TransactionPerRequest(service.repository)
    return app


def single_insert() -> FastAPI:
    """Return an application that stores each raw body with one INSERT."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        arguments = connect_arguments(os.environ["DB_URL"])
        async with asyncpg.create_pool(**arguments, min_size=10, max_size=10, reset=_keep) as pool:
            await pool.execute(RAW_TABLE)
            app.state.pool = pool
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post(PATH)
    async def webhook(token: str, request: Request) -> dict[str, Any]:
        body = await request.body()
        await app.state.pool.execute("INSERT INTO raw_bodies (body) VALUES ($1)", body)
        return envelope("success", "Processed 1 events", 1)

    return app


async def _keep(_: asyncpg.Connection) -> None:
    """Leave the connection as it is: nothing was set on it."""
