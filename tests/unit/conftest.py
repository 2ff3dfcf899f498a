"""The application in the tests' own process, one for each module, and a group commit on a database of pretence."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from amo_receiver.inbox.batch import GroupCommit
from fake_repository import FakeRepository
from in_process import running, settings_for
from servers import connect, run_sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import asyncpg
    import httpx

    from amo_receiver.embedded import EmbeddedPostgres

_accounts = (f"account-{number}" for number in count(1))
_names = (f"shared_{number}" for number in count(1))


@pytest.fixture
def account() -> str:
    """Return an account that no other test uses, so that tests can share a database."""
    return next(_accounts)


@pytest.fixture(scope="module")
def shared_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """Return the URL of a migrated database that the tests of a module share."""
    name = next(_names)
    run_sql(postgres.url(), f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres.url(name)
    run_sql(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(shared_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the application with default settings: the plain token serves any account."""
    async with running(settings_for(shared_url)) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def committed(shared_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Return a second connection, which sees what is committed."""
    async with connect(shared_url) as connection:
        yield connection


@pytest.fixture
async def repository() -> FakeRepository:
    return FakeRepository()


@pytest_asyncio.fixture
async def batches(repository: FakeRepository) -> AsyncIterator[GroupCommit]:
    """Return a group commit that runs."""
    made = GroupCommit(repository)  # type: ignore[arg-type]
    made.start()
    yield made
    repository.release()
    await made.stop()
