"""The schema: who may change it, when code runs on it, and whether it is what the models say."""

from __future__ import annotations

import asyncio
import shutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from amo_receiver.database import create_engine
from amo_receiver.embedded.folder import free_port
from amo_receiver.inbox.models import Base
from amo_receiver.schema import known_revisions
from amo_receiver.settings import MIGRATIONS_OF_CHECKOUT
from servers import ServiceProcess, connect, run_sql, service_environment, signed_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from amo_receiver.embedded import EmbeddedPostgres
    from conftest import StartService

KEYED = ("deliveries", "events", "attempts", "leads", "contacts", "tokens", "key_matches")
OTHERS = {
    "alembic_version": "Alembic's own: one row, the revision",
    "schema_floor": "one row for the whole database: the oldest revision whose code still runs",
}
HEAD = known_revisions(MIGRATIONS_OF_CHECKOUT)[0]
LATER = """
from alembic import op

from concurrently import create_index

revision, down_revision, branch_labels, depends_on = "0900", "{head}", None, None


def upgrade() -> None:
    {upgrade}
"""
ADD_COLUMN = 'op.execute("ALTER TABLE leads ADD COLUMN later text")'
CREATE_INDEX = 'create_index("leads_name", "CREATE INDEX CONCURRENTLY leads_name ON leads (name)")'


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """Return the URL of a database that nobody has migrated."""
    name = f"empty_{uuid4().hex[:8]}"
    run_sql(postgres.url(), f"CREATE DATABASE {name}")
    yield postgres.url(name)
    run_sql(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def later_migrations(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that makes a later release's migrations: today's and one more."""

    def copy(upgrade: str) -> str:
        folder = shutil.copytree(MIGRATIONS_OF_CHECKOUT, tmp_path / "later", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "0900_later.py").write_text(LATER.format(head=HEAD, upgrade=upgrade))
        return str(folder)

    return copy


async def start_migrate(url: str, cwd: Path | str, *arguments: str, **env: str) -> asyncio.subprocess.Process:
    """Start ``migrate``."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "amo_receiver", "migrate", *arguments),
        cwd=cwd,
        env=service_environment(url, Path(cwd), {"DB_DIRECT_URL": url, **env}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Return exit code and output of a command."""
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def migrate(url: str, cwd: Path | str, *arguments: str, **env: str) -> tuple[int | None, str]:
    """Run ``migrate`` and return its exit code and output."""
    return await ended(await start_migrate(url, cwd, *arguments, **env))


async def test_four_at_once_upgrade_an_empty_database(empty_url: str, tmp_path: Path) -> None:
    """Each of them succeeds, whatever directory it runs in, and the migrations are applied once."""
    runs = [await start_migrate(empty_url, folder, "upgrade", "head") for folder in ("/", tmp_path, "/tmp", tmp_path)]

    for code, output in await asyncio.gather(*map(ended, runs)):
        assert code == 0, output
        assert output.endswith(f"The database is at {HEAD}.\n")
    assert [tuple(row) for row in run_sql(empty_url, "SELECT version_num FROM alembic_version")] == [(HEAD,)]
    code, output = await migrate(empty_url, "/", "current")
    assert (code, output) == (0, f"The database is at {HEAD}, this release brings {HEAD}: it fits.\n")


async def test_through_a_pooler_nothing_is_migrated(pooled_url: str, database_url: str, tmp_path: Path) -> None:
    """The command refuses in one sentence that names the setting to change."""
    run_sql(database_url, "DROP TABLE tokens", "DELETE FROM alembic_version")

    code, output = await migrate(pooled_url, tmp_path, "upgrade", "head")

    assert code == 2
    assert output.count("\n") == 1
    assert "DB_DIRECT_URL" in output
    assert run_sql(database_url, "SELECT version_num FROM alembic_version") == []


async def test_a_later_schema_is_left_alone(database_url: str, tmp_path: Path) -> None:
    """A release does not touch a database that a later one has migrated, and says so."""
    run_sql(database_url, "UPDATE alembic_version SET version_num = '0999'")

    code, output = await migrate(database_url, tmp_path, "upgrade", "head")

    assert code == 0, output
    assert f"later than this release's {HEAD}" in output
    assert [tuple(row) for row in run_sql(database_url, "SELECT version_num FROM alembic_version")] == [("0999",)]


async def test_ready_on_a_later_schema_whose_floor_is_known(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """Old code keeps running after an expanding migration, with or without a floor that it knows."""
    run_sql(database_url, "UPDATE alembic_version SET version_num = '0999'")
    start_service(pooled_url)
    run_sql(database_url, "INSERT INTO schema_floor VALUES ('0001')")
    start_service(pooled_url)


async def test_not_ready_on_a_later_schema_whose_floor_is_unknown(pooled_url: str, database_url: str, tmp_path: Path) -> None:
    """After a contracting migration the code that it left behind takes no requests."""
    run_sql(database_url, "UPDATE alembic_version SET version_num = '0999'", "INSERT INTO schema_floor VALUES ('0998')")
    async with unready_service(pooled_url, tmp_path) as service:
        assert "the schema is at 0999" in await obstacle(service)
        run_sql(database_url, "UPDATE schema_floor SET revision = '0001'")
        await ready(service)


async def test_not_ready_on_an_older_schema_until_it_is_migrated(
    pooled_url: str, database_url: str, tmp_path: Path, later_migrations: Callable[[str], str]
) -> None:
    """A release waits for its migrations, says which command is missing, and needs no restart."""
    folder = later_migrations(ADD_COLUMN)
    async with unready_service(pooled_url, tmp_path, MIGRATIONS_DIR=folder) as service:
        assert "run `amo-webhooks migrate upgrade head`" in await obstacle(service)
        code, output = await migrate(database_url, tmp_path, "upgrade", "head", MIGRATIONS_DIR=folder)
        assert code == 0, output
        await ready(service)


async def test_not_ready_without_a_schema(empty_url: str, tmp_path: Path) -> None:
    """A service may start before its database is migrated."""
    async with unready_service(empty_url, tmp_path) as service:
        assert "the schema" in await obstacle(service)
        code, output = await migrate(empty_url, tmp_path, "upgrade", "head")
        assert code == 0, output
        await ready(service)


class UnreadyService(ServiceProcess):
    """A service that is started for what it says before it is ready."""

    def is_ready(self) -> bool:
        """Take it as it is."""
        return True


@asynccontextmanager
async def unready_service(url: str, folder: Path, **env: str) -> AsyncIterator[ServiceProcess]:
    """Start a service that cannot be ready yet."""
    arguments = ["serve", "--host", "127.0.0.1", "--port", str(port := free_port())]
    service = UnreadyService(arguments, folder=folder / "unready", env=service_environment(url, folder, env), port=port)
    try:
        yield service.start()
    finally:
        await asyncio.to_thread(service.end)


async def obstacle(service: ServiceProcess) -> str:
    """Return why the service is not ready, once it has looked at the schema."""
    async with asyncio.timeout(20), httpx.AsyncClient() as client:
        while True:
            try:
                answer = await client.get(f"{service.url}/readyz")
            except httpx.TransportError:  # not up yet
                answer = None
            if answer and "the schema" in (said := str(answer.json()["obstacles"])):
                assert answer.status_code == 503
                return said
            await asyncio.sleep(0.05)


async def ready(service: ServiceProcess) -> None:
    """Return when the service is ready."""
    async with asyncio.timeout(20), httpx.AsyncClient() as client:
        while (await client.get(f"{service.url}/readyz")).status_code != 200:
            await asyncio.sleep(0.05)


async def test_a_lock_in_the_way_is_waited_for_in_short_tries(
    database_url: str, tmp_path: Path, later_migrations: Callable[[str], str]
) -> None:
    """The command tries again after a pause in which nobody queues behind it, and names who is in the way until they are gone."""
    async with connect(database_url) as holder:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("SELECT count(*) FROM leads")
        run = await start_migrate(database_url, tmp_path, "upgrade", "head", MIGRATIONS_DIR=later_migrations(ADD_COLUMN))
        assert run.stdout is not None
        tries = [(await run.stdout.readline()).decode() for _ in range(2)]
        await transaction.rollback()

        assert [f"(try {number} of 20)" in line for number, line in enumerate(tries, 1)] == [True, True], tries
        assert all(f"pid {holder.get_server_pid()} (idle in transaction" in line for line in tries)
        pauses = [float(line.partition("again in ")[2].partition(" s")[0]) for line in tries]
        assert pauses[1] > pauses[0]
        code, output = await ended(run)
    assert code == 0, output
    assert output.endswith("The database is at 0900.\n")


async def test_an_index_left_invalid_is_built_again(database_url: str, tmp_path: Path, later_migrations: Callable[[str], str]) -> None:
    """CREATE INDEX CONCURRENTLY that was interrupted is repeated."""
    run_sql(database_url, *(f"INSERT INTO leads (account_id, id, name, custom_fields, snapshot_at, version_at, version_event) VALUES"
                            f" ('', {number}, 'same', '{{}}', now(), now(), gen_random_uuid())" for number in (1, 2)))  # fmt: skip
    async with connect(database_url) as connection:
        with pytest.raises(Exception, match="could not create unique index"):
            await connection.execute("CREATE UNIQUE INDEX CONCURRENTLY leads_name ON leads (name)")
        assert await indexes(connection) == [(False, True)]
        folder = later_migrations(CREATE_INDEX)
        code, output = await migrate(database_url, tmp_path, "upgrade", "head", MIGRATIONS_DIR=folder)
        assert code == 0, output
        assert await indexes(connection) == [(True, False)]


async def test_a_concurrent_index_waits_longer_than_other_locks(
    database_url: str, tmp_path: Path, later_migrations: Callable[[str], str]
) -> None:
    """What it waits for queues nobody, so it is never given up; a second run is not waited for; an index that is there stays."""
    async with connect(database_url) as holder, connect(database_url) as connection:
        transaction = holder.transaction(isolation="repeatable_read")
        await transaction.start()
        await holder.execute("SELECT count(*) FROM leads")
        run = await start_migrate(database_url, tmp_path, "upgrade", "head", MIGRATIONS_DIR=later_migrations(CREATE_INDEX))
        async with asyncio.timeout(20):
            while not await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'virtualxid'"
                " AND now() - query_start > interval '700 ms'"
            ):
                await asyncio.sleep(0.05)
            second = await start_migrate(database_url, tmp_path, "upgrade", "head", MIGRATIONS_DIR=str(tmp_path / "later"))
            assert second.stdout is not None
            assert await second.stdout.readline() == b"Another migration run is under way; waiting for it.\n"
            await transaction.rollback()
            assert [await ended(one) for one in (run, second)] == [(0, "The database is at 0900.\n")] * 2
        assert await indexes(connection) == [(True, False)]
        before = await connection.fetchval("SELECT 'leads_name'::regclass::oid")
        await connection.execute("UPDATE alembic_version SET version_num = $1", HEAD)
        assert (await migrate(database_url, tmp_path, "upgrade", "head", MIGRATIONS_DIR=str(tmp_path / "later")))[0] == 0
        assert await connection.fetchval("SELECT 'leads_name'::regclass::oid") == before


async def indexes(connection: Any) -> list[tuple[bool, bool]]:
    """Return validity and uniqueness of the index that the later release makes."""
    rows = await connection.fetch("SELECT indisvalid, indisunique FROM pg_index WHERE indexrelid = to_regclass('leads_name')")
    return [tuple(row) for row in rows]


async def test_drift_of_tables_and_indexes(database_url: str) -> None:
    """Alembic finds nothing that the migrations would still have to do to make the models."""
    engine = create_engine(database_url, pool_size=1)
    async with engine.connect() as connection:
        context = {"compare_type": True, "compare_server_default": True}
        found = await connection.run_sync(lambda sync: compare_metadata(MigrationContext.configure(sync, opts=context), Base.metadata))
    await engine.dispose()
    assert found == []


CATALOG = {
    "columns": "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
    " WHERE table_schema = 'public' AND table_name <> 'alembic_version'",
    "constraints": "SELECT conrelid::regclass::text, CASE contype WHEN 'p' THEN '' ELSE conname END, pg_get_constraintdef(oid)"
    " FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'"
    " AND conrelid IS DISTINCT FROM to_regclass('alembic_version')",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
}


async def test_drift_of_what_alembic_does_not_compare(database_url: str, empty_url: str) -> None:
    """Columns, constraints and indexes, their conditions included, are in the database's own words what the models would make."""
    engine = create_engine(empty_url, pool_size=1)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()
    for kind, query in CATALOG.items():
        migrated, modelled = ({tuple(row) for row in run_sql(url, query)} for url in (database_url, empty_url))
        assert migrated == modelled, kind


async def test_what_older_code_uses_stays_as_it_was(empty_url: str, tmp_path: Path) -> None:
    """Each migration after the first only adds: every table, constraint, index and function of before is there unchanged."""
    queries = CATALOG | {"functions": "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"}
    found: dict[str, set[tuple[Any, ...]]] = {kind: set() for kind in queries}
    for revision in reversed(known_revisions(MIGRATIONS_OF_CHECKOUT)):
        code, output = await migrate(empty_url, tmp_path, "upgrade", revision)
        assert code == 0, output
        before, found = found, {kind: {tuple(row) for row in run_sql(empty_url, query)} for kind, query in queries.items()}
        assert {kind: before[kind] - found[kind] for kind in queries} == {kind: set() for kind in queries}, revision
    assert found["functions"]


async def test_code_of_the_revision_before_is_ready_on_this_one(start_service: StartService, pooled_url: str, tmp_path: Path) -> None:
    """A release that brings one migration less takes requests on today's schema."""
    folder = shutil.copytree(MIGRATIONS_OF_CHECKOUT, tmp_path / "older", ignore=shutil.ignore_patterns("__pycache__", f"{HEAD}_*"))
    assert HEAD not in known_revisions(folder)
    service = start_service(pooled_url, env={"MIGRATIONS_DIR": str(folder)})
    answer = httpx.post(f"{service.url}/api/webhooks/amo", content=b"{}", headers=signed_headers("1"))
    assert answer.status_code == 200, answer.text


async def test_every_key_starts_with_the_account(database_url: str) -> None:
    """The tables can be distributed by account; those that cannot are listed with their reason."""
    keys = run_sql(
        database_url,
        "SELECT indrelid::regclass::text, indexrelid::regclass::text, attname FROM pg_index i"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
        " JOIN pg_class c ON c.oid = i.indrelid AND c.relnamespace = 'public'::regnamespace WHERE i.indisunique OR i.indisprimary",
    )
    tables = {row[0] for row in run_sql(database_url, "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")}
    assert tables == {*KEYED, *OTHERS}
    assert {table for table, _, _ in keys} == tables
    assert {(table, column) for table, _, column in keys if table in KEYED} == {(table, "account_id") for table in KEYED}
