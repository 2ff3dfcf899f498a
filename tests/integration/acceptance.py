"""Put deliveries into the database as the service does, without its HTTP, and retry them as a worker does, without its clock."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from amo_receiver.amocrm.events import read_body
from amo_receiver.amocrm.fields import Mapping
from amo_receiver.amocrm.form import Limits, decode
from amo_receiver.amocrm.keyring import Keyring
from amo_receiver.database import create_engine
from amo_receiver.errors import Problem
from amo_receiver.inbox.batch import GroupCommit
from amo_receiver.inbox.delivery import Credential, Headers, add_events, as_unparsed, open_delivery
from amo_receiver.inbox.repository import Repository
from amo_receiver.inbox.service import Reloadable
from amo_receiver.worker.retry import Retry
from factories import ACCOUNT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from amo_receiver.inbox.batch import Outcome
    from amo_receiver.inbox.delivery import Delivery

MAPPING = Mapping.parse((files("amo_receiver") / "mapping.toml").read_text("utf-8"))
CURRENT = Reloadable(Keyring.build(None, {}, None, None), MAPPING)
CREDENTIAL = Credential("default", "token", "abcdef012345")


@asynccontextmanager
async def opened(url: str, *, lock_timeout_ms: int = 50) -> AsyncIterator[Repository]:
    """Open a repository that does not wait long for a lock."""
    engine = create_engine(url, pool_size=4)
    try:
        yield Repository(engine, timeout_seconds=10, lock_timeout_ms=lock_timeout_ms)
    finally:
        await engine.dispose()


def delivered(body: bytes, account: str = ACCOUNT) -> Delivery:
    """Return a delivery of this body, parsed."""
    received_at = time.time()
    delivery = open_delivery(account, received_at, CREDENTIAL, Headers(user_agent="amoCRM-Webhooks/3.0"), body)
    parsed = read_body(decode(body, ""), received_at)
    add_events(delivery, parsed.items, lambda item: account or parsed.account_id or item.account_id or "", MAPPING.for_account)
    return delivery


def unparsed(body: bytes, account: str = ACCOUNT) -> Delivery:
    """Return a delivery whose body could not be parsed when it came."""
    return as_unparsed(open_delivery(account, time.time(), CREDENTIAL, Headers(), body), Problem("", "too new for us"))


async def accept(repository: Repository, *deliveries: Delivery) -> list[Outcome]:
    """Accept deliveries in one batch, as the service does."""
    batches = GroupCommit(repository)
    deadline = asyncio.get_running_loop().time() + 30
    waiting = [asyncio.ensure_future(batches.submit(delivery, deadline)) for delivery in deliveries]
    await asyncio.sleep(0)
    batches.start()
    try:
        return await asyncio.gather(*waiting)
    finally:
        await batches.stop()


async def accept_at(url: str, *deliveries: Delivery) -> list[Outcome]:
    """Accept deliveries in one batch, over a connection of their own."""
    async with opened(url) as repository:
        return await accept(repository, *deliveries)


def retrying(repository: Repository, current: Any = CURRENT, **options: Any) -> Retry:
    """Return a worker's attempts."""
    return Retry(repository, current, Limits(), options.pop("most", 50), **options)


async def make_pending(connection: asyncpg.Connection, attempts: int = 1) -> None:
    """Turn every event into one that is due, and of which so many attempts were made."""
    await connection.execute(
        "UPDATE events SET state = 'pending', effect = NULL, processed_at = NULL, available_at = now(), attempts = $1", attempts
    )


async def make_due(connection: asyncpg.Connection) -> None:
    """Let the time pass after which pending events are due again."""
    await connection.execute("UPDATE events SET available_at = now() WHERE state = 'pending'")


async def attempt(repository: Repository, connection: asyncpg.Connection, **options: Any) -> int:
    """Let the next attempt of every pending event be due, and make it."""
    await make_due(connection)
    return await retrying(repository, **options).run_due()
