"""`migrate upgrade` as a Job runs it: what it did or what stood in its way is left in a file, which holds no data and no secret."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from amo_receiver import schema
from amo_receiver.commands.migration_result import KILLED, reported
from amo_receiver.embedded.folder import free_port
from amo_receiver.errors import CommandError
from amo_receiver.settings import MIGRATIONS_OF_CHECKOUT
from otlp_sink import OtlpSink
from servers import connect, run_sql, service_environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

HEAD = schema.known_revisions(MIGRATIONS_OF_CHECKOUT)[0]
MARK = "Ivanova79161234567"
"""Stands for a literal or a row's value: it must not be found in what leaves."""
MODULE = """
from alembic import op

from concurrently import create_index
from floor import record_floor

revision, down_revision, branch_labels, depends_on = "{revision}", "{before}", None, None


def upgrade() -> None:
    {upgrade}
"""
LEAD = (
    f"INSERT INTO leads (account_id, id, name, custom_fields, snapshot_at, version_at, version_event)"
    f" SELECT '', n, '{MARK}', '{{}}', now(), now(), gen_random_uuid() FROM generate_series(1, 2) n"
)
HOLDING = "BEGIN; SELECT count(*) FROM leads WHERE name = '{}'"
ADD_COLUMN = 'op.execute("ALTER TABLE leads ADD COLUMN later text")'
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def migrations(folder: Path, *upgrades: str) -> Path:
    """Make a later release's migrations: today's, then 9001, 9002 and so on."""
    made = shutil.copytree(MIGRATIONS_OF_CHECKOUT, folder / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    before = HEAD
    for number, upgrade in enumerate(upgrades, 9001):
        (made / "versions" / f"{number}_later.py").write_text(MODULE.format(revision=number, before=before, upgrade=upgrade))
        before = str(number)
    return made


class Job:
    """One run of the command with ``--result``."""

    def __init__(self, url: str, folder: Path, *arguments: str, **env: str) -> None:
        self._path = folder / "termination-log"
        self._command = [sys.executable, "-m", "amo_receiver", "migrate", "upgrade", *arguments, "--result", str(self._path)]
        self._folder = folder
        # The password's own; a name or a number that is in the URL as well may be said.
        self._secret = urlsplit(url).password or "no password"
        of_job = {
            "DB_URL": None,
            "DB_DIRECT_URL": url,
            "AMOCRM_CLIENT_ID": None,
            "AMOCRM_CLIENT_SECRET": None,
            "AMOCRM_WEBHOOK_TOKEN": None,
        }
        self._env = service_environment("", folder, {**of_job, "MIGRATIONS_DIR": str(folder / "migrations"), **env})
        self.output = ""

    async def start(self) -> asyncio.subprocess.Process:
        """Start it."""
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *self._command, cwd=self._folder, env=self._env, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )

    async def ended(self, process: asyncio.subprocess.Process) -> tuple[int | None, dict[str, Any]]:
        """Return its exit code and what it left, in which there is nothing that must not leave."""
        output, _ = await process.communicate()
        self.output += output.decode()
        left = self._path.read_bytes()
        assert len(left) <= 4096
        for text in (left.decode(), self.output):
            assert MARK not in text
            assert self._secret not in text
        result = json.loads(left)
        assert set(result) == {"outcome", "from", "to", "blockers", "error", "temporary"}
        return process.returncode, result

    async def run(self) -> tuple[int | None, dict[str, Any]]:
        """Run it to its end."""
        return await self.ended(await self.start())


def done(outcome: str, before: str, after: str) -> dict[str, Any]:
    """Return the result of a run that ended well."""
    return {"outcome": outcome, "from": before, "to": after, "blockers": [], "error": None, "temporary": False}


def revision(url: str) -> str:
    """Return the database's revision."""
    ((found,),) = run_sql(url, "SELECT version_num FROM alembic_version")
    return str(found)


async def columns(connection: asyncpg.Connection) -> list[str]:
    """Return which of the later columns there are."""
    rows = await connection.fetch("SELECT attname FROM pg_attribute WHERE attrelid = 'leads'::regclass AND attname LIKE 'later%'")
    return sorted(row["attname"] for row in rows)


@asynccontextmanager
async def holding(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Hold a lock on a table until the end, with a literal in the statement that took it."""
    async with connect(url) as holder:
        await holder.execute(HOLDING.format(MARK))
        yield holder


async def test_what_is_missing_is_applied_and_then_nothing(database_url: str, tmp_path: Path) -> None:
    """The result names the revisions before and after; a second run finds nothing to do, for an older target either."""
    migrations(tmp_path, ADD_COLUMN, 'op.execute("ALTER TABLE leads ADD COLUMN later_too text")')

    assert await Job(database_url, tmp_path, "9001").run() == (0, done("Upgraded", HEAD, "9001"))
    assert await Job(database_url, tmp_path).run() == (0, done("Upgraded", "9001", "9002"))
    assert await Job(database_url, tmp_path, "head").run() == (0, done("Unchanged", "9002", "9002"))
    assert await Job(database_url, tmp_path, "9001").run() == (0, done("Unchanged", "9002", "9002"))
    async with connect(database_url) as connection:
        assert await columns(connection) == ["later", "later_too"]


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (
            "CREATE UNIQUE INDEX leads_name ON leads (name)",
            r'23505: could not create unique index "leads_name"',
        ),
        ("ALTER TABLE leads ALTER name TYPE int USING name::int", r"22P02: invalid input syntax for type integer: …"),
        ("DO $$ BEGIN RAISE EXCEPTION 'duplicate %', (SELECT max(name) FROM leads); END $$", r"P0001: RaiseError"),
        (f"SELECT 'a' '{MARK}'", r"42601: syntax error at or near …"),
        ("ALTER TABLE lead ADD x int", r'42P01: relation "lead" does not exist'),
    ],
)
async def test_a_failed_revision_is_taken_back(database_url: str, tmp_path: Path, statement: str, error: str) -> None:
    """Those before it stay; of the server's message its first line is left, without values; another try would not help."""
    run_sql(database_url, LEAD)
    migrations(tmp_path, ADD_COLUMN, f'op.execute("ALTER TABLE leads ADD COLUMN later_too text"); op.execute("""{statement}""")')
    job = Job(database_url, tmp_path)

    code, result = await job.run()

    assert (code, result) == (1, done("Failed", HEAD, "9001") | {"error": error})
    assert job.output == f"amo-webhooks: {error}\n"
    assert revision(database_url) == "9001"
    async with connect(database_url) as connection:
        assert await columns(connection) == ["later"]


async def test_who_held_the_lock_is_forgotten_when_it_was_got(database_url: str, tmp_path: Path) -> None:
    """While it waits the command says who is in the way; in the result of a success nobody is."""
    migrations(tmp_path, ADD_COLUMN)
    job = Job(database_url, tmp_path, "--lock-timeout", "100ms")
    async with holding(database_url) as holder:
        process = await job.start()
        assert process.stdout is not None
        job.output = (await process.stdout.readline()).decode()
        assert f"pid {holder.get_server_pid()} (idle in transaction, " in job.output
    assert await job.ended(process) == (0, done("Upgraded", HEAD, "9001"))


async def test_ended_while_it_waits_for_a_lock(database_url: str, tmp_path: Path) -> None:
    """A Job that is past its deadline leaves who was in the way, and may be tried again."""
    migrations(tmp_path, ADD_COLUMN)
    job = Job(database_url, tmp_path)
    async with holding(database_url) as holder:
        process = await job.start()
        assert process.stdout is not None
        job.output = (await process.stdout.readline()).decode()
        process.send_signal(signal.SIGTERM)
        code, result = await job.ended(process)

        (blocker,) = result.pop("blockers")
        assert (code, result["outcome"], result["to"], result["temporary"]) == (1, "Failed", HEAD, True)
        assert "SIGTERM" in result["error"]
        assert (blocker["pid"], blocker["state"]) == (holder.get_server_pid(), "idle in transaction")
        assert blocker["age_seconds"] >= 0
        assert blocker["query"] == schema.fingerprint(HOLDING.format("another"), None)
    assert revision(database_url) == HEAD


@pytest.mark.parametrize("tries", [schema.LOCK_TRIES, 3])
async def test_blocked_after_the_last_try(database_url: str, tmp_path: Path, tries: int) -> None:
    """As many tries as asked for with longer and longer pauses; then the result holds who is in the way."""
    folder, path, run = migrations(tmp_path, ADD_COLUMN), tmp_path / "result", schema.Run()
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async with holding(database_url) as holder:
        with pytest.raises(CommandError, match=f"No lock after {tries} tries"), reported(run, path):
            await schema.upgrade(database_url, folder, "head", lambda _: None, lock_timeout_ms=100, lock_tries=tries, run=run, pause=pause)
        result = json.loads(path.read_text())
        assert MARK not in path.read_text()
        assert (result["outcome"], result["from"], result["to"], result["temporary"]) == ("Blocked", HEAD, HEAD, True)
        assert [(each["pid"], each["state"]) for each in result["blockers"]] == [(holder.get_server_pid(), "idle in transaction")]
    assert len(pauses) == tries - 1
    assert pauses == sorted(pauses)
    assert (pauses[-1] == schema.LONGEST_PAUSE_SECONDS) == (tries == schema.LOCK_TRIES)


async def test_a_query_that_postgres_numbers_is_named_by_its_number(database_url: str, tmp_path: Path) -> None:
    """Where compute_query_id is on, the fingerprint is the one that pg_stat_statements shows, in hex."""
    folder, run = migrations(tmp_path, ADD_COLUMN), schema.Run()

    async def pause(_: float) -> None:
        raise CommandError("enough")

    async with connect(database_url) as holder:
        await holder.execute("SET compute_query_id = on")
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("SELECT count(*) FROM leads")
        with pytest.raises(CommandError, match="enough"):
            await schema.upgrade(database_url, folder, "head", lambda _: None, lock_timeout_ms=100, run=run, pause=pause)
        ((query_id,),) = run_sql(database_url, f"SELECT query_id FROM pg_stat_activity WHERE pid = {holder.get_server_pid()}")
    assert [each.query for each in run.blockers] == [f"{query_id % 2**64:016x}"]


@pytest.mark.parametrize(
    ("floor", "target", "code", "outcome"),
    [
        (None, "head", 0, "SchemaIsLater"),
        (HEAD, "9999", 0, "SchemaIsLater"),
        ("9998", "head", 1, "Incompatible"),
        (HEAD, "9998", 1, "Incompatible"),
    ],
)
async def test_a_later_schema_is_left_alone(
    database_url: str, tmp_path: Path, floor: str | None, target: str, code: int, outcome: str
) -> None:
    """It is enough for this release unless its floor or the target is unknown here; nothing runs in either case."""
    migrations(tmp_path, ADD_COLUMN)
    run_sql(
        database_url, "UPDATE alembic_version SET version_num = '9999'", *([f"INSERT INTO schema_floor VALUES ('{floor}')"] * bool(floor))
    )

    ended, result = await Job(database_url, tmp_path, target).run()

    assert (ended, bool(result.pop("error"))) == (code, code == 1)
    assert result == {"outcome": outcome, "from": "9999", "to": "9999", "blockers": [], "temporary": False}
    assert revision(database_url) == "9999"
    async with connect(database_url) as connection:
        assert await columns(connection) == []


@pytest.mark.parametrize("target", ["9002", "+1", "x" * 9_000])
async def test_a_target_that_is_no_revision_is_refused(database_url: str, tmp_path: Path, target: str) -> None:
    """In one sentence that names the newest one; nothing runs."""
    migrations(tmp_path, ADD_COLUMN)
    code, result = await Job(database_url, tmp_path, target).run()
    assert (code, result["outcome"], result["to"]) == (1, "Incompatible", HEAD)
    assert "goes up to 9001" in result["error"]
    assert revision(database_url) == HEAD


async def test_a_contract_migration_shuts_out_what_is_older_than_its_floor(database_url: str, tmp_path: Path) -> None:
    """The floor is recorded with the migration: a release that knows it still runs, one that does not is Incompatible."""
    (tmp_path / "new").mkdir()
    migrations(tmp_path / "new", ADD_COLUMN, 'record_floor("9001"); record_floor("9001")', "record_floor('901')")
    assert await Job(database_url, tmp_path / "new", "9002").run() == (0, done("Upgraded", HEAD, "9002"))
    assert [tuple(row) for row in run_sql(database_url, "SELECT revision FROM schema_floor")] == [("9001",)]

    code, result = await Job(database_url, tmp_path / "new", "9003").run()
    assert (code, result["outcome"], result["to"]) == (1, "Failed", "9002"), "a floor that no code knows"

    for name, upgrades, outcome in (("middle", [ADD_COLUMN], "SchemaIsLater"), ("old", [], "Incompatible")):
        (tmp_path / name).mkdir()
        migrations(tmp_path / name, *upgrades)
        code, result = await Job(database_url, tmp_path / name).run()
        assert (code, result["outcome"]) == (outcome == "Incompatible", outcome)


async def test_an_index_that_a_failed_run_left_invalid_is_built_again(database_url: str, tmp_path: Path) -> None:
    """CREATE UNIQUE INDEX CONCURRENTLY finds duplicates, which the result does not quote; once they are gone the next run is well."""
    run_sql(database_url, LEAD)
    migrations(tmp_path, 'create_index("leads_name", "CREATE UNIQUE INDEX CONCURRENTLY leads_name ON leads (name)")')
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'leads_name'::regclass"

    error = '23505: could not create unique index "leads_name"'
    assert await Job(database_url, tmp_path).run() == (1, done("Failed", HEAD, HEAD) | {"error": error})
    assert [tuple(row) for row in run_sql(database_url, valid)] == [(False,)]
    run_sql(database_url, "DELETE FROM leads WHERE id = 2")
    assert await Job(database_url, tmp_path).run() == (0, done("Upgraded", HEAD, "9001"))
    assert [tuple(row) for row in run_sql(database_url, valid)] == [(True,)]


async def test_a_pooler_is_refused(pooled_url: str, database_url: str, tmp_path: Path) -> None:
    """The result says which setting leads to it."""
    migrations(tmp_path, ADD_COLUMN)
    code, result = await Job(pooled_url, tmp_path).run()
    assert (code, result["outcome"], result["from"], result["temporary"]) == (2, "Failed", None, True)
    assert "DB_DIRECT_URL leads to a pooler" in result["error"]
    assert revision(database_url) == HEAD


@pytest.mark.parametrize(
    ("url", "arguments", "code", "error"),
    [
        ("postgresql://amo:{mark}@127.0.0.1:{free}/amo", (), 1, "ConnectionRefusedError"),
        ("postgresql://{user}:{mark}@{place}", (), 1, "28P01: password authentication failed for user"),
        ("postgresql://amo:{mark}/x@127.0.0.1/amo", (), 2, "percent-encode"),
        ("mysql://amo:{mark}@127.0.0.1/amo", (), 2, "must start with postgresql://"),
        ("", (), 2, "DB_DIRECT_URL (or DB_URL) is not set"),
        ("postgresql://amo:{mark}@127.0.0.1/amo", ("--lock-timeout", "6s"), 2, "from 100ms to 5s"),
    ],
)
async def test_without_a_connection_there_is_a_result_too(
    database_url: str, tmp_path: Path, url: str, arguments: tuple[str, ...], code: int, error: str
) -> None:
    """It says what to correct, without the password, and that the same image may be tried again."""
    migrations(tmp_path)
    parts = urlsplit(database_url)
    wrong = url.format(mark=MARK, free=free_port(), user=parts.username, place=f"127.0.0.1:{parts.port}{parts.path}")
    ended, result = await Job(wrong, tmp_path, *arguments).run()
    assert (ended, result["outcome"], result["from"], result["to"], result["temporary"]) == (code, "Failed", None, None, True)
    assert error in result["error"]


@pytest.mark.parametrize(("number", "code", "says"), [(signal.SIGTERM, 1, "SIGTERM"), (signal.SIGKILL, -9, KILLED)])
async def test_ended_while_a_statement_runs(database_url: str, tmp_path: Path, number: int, code: int, says: str) -> None:
    """Told to end it cancels the statement and leaves a result; even killed it left one at its beginning."""
    migrations(tmp_path, f'op.execute("ALTER TABLE leads ADD COLUMN later text"); op.execute("SELECT pg_sleep(600), \'{MARK}\'")')
    running = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_sleep(600)%'"
    job = Job(database_url, tmp_path)
    async with connect(database_url) as connection, asyncio.timeout(60):
        process = await job.start()
        while not await connection.fetchval(running):
            await asyncio.sleep(0.02)
        process.send_signal(number)
        ended, result = await job.ended(process)
        assert (ended, result["outcome"], result["temporary"]) == (code, "Failed", True)
        assert says in result["error"]
        if number == signal.SIGTERM:
            assert (result["from"], result["to"]) == (HEAD, HEAD)
            while await connection.fetchval(running):
                await asyncio.sleep(0.02)
            assert await columns(connection) == []


async def test_a_result_that_cannot_be_written_stops_before_anything_runs(database_url: str, tmp_path: Path) -> None:
    """Whoever reads the result would be told nothing of what was done."""
    folder, run = migrations(tmp_path, ADD_COLUMN), schema.Run()
    with pytest.raises(Exception, match="cannot be written"), reported(run, tmp_path / "no" / "folder"):
        await schema.upgrade(database_url, folder, "head", lambda _: None, run=run)
    assert revision(database_url) == HEAD


def below(spans: list[Span], parent: Span) -> list[Span]:
    """Return a span's children in order."""
    return sorted((span for span in spans if span.parent_span_id == parent.span_id), key=lambda span: span.start_time_unix_nano)


@pytest.mark.parametrize(
    ("traceparent", "continued"), [(f"00-{TRACE}-{PARENT}-00", True), (f"00-{TRACE}-{'0' * 16}-01", False), ("?", False)]
)
async def test_the_trace_goes_on_into_each_statement(database_url: str, tmp_path: Path, traceparent: str, continued: bool) -> None:
    """Below the caller's span are the command's, each revision's and each statement's, the failed one marked; no literal is in them."""
    migrations(tmp_path, f"{ADD_COLUMN}; op.execute(\"UPDATE leads SET name = '{MARK}'\")", f"op.execute(\"SELECT '{MARK}'::int\")")
    with OtlpSink() as sink:
        code, _ = await Job(database_url, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, TRACEPARENT=traceparent).run()
        spans = sink.spans
    assert code == 1
    assert MARK.encode() not in b"".join(received.body for received in sink.received)
    (command,) = (span for span in spans if span.name == "amo-webhooks migrate")
    assert {span.trace_id for span in spans} == {command.trace_id}
    assert ((command.trace_id.hex(), command.parent_span_id.hex()) == (TRACE, PARENT)) == continued
    assert bool(command.parent_span_id) == continued
    well, badly = below(spans, command)
    assert [(span.name, span.status.code) for span in (well, badly)] == [("migrate 9001", 0), ("migrate 9002", 2)]
    statements = below(spans, well)
    assert [span.name for span in statements if "alembic_version" not in span.name and span.name != "SELECT"] == [
        "ALTER TABLE leads",
        "UPDATE leads",
    ]
    attributes = {
        each.key: each.value.string_value for each in statements[[span.name for span in statements].index("ALTER TABLE leads")].attributes
    }
    assert {key: attributes[key] for key in ("db.system.name", "db.operation.name", "db.query.summary")} == {
        "db.system.name": "postgresql",
        "db.operation.name": "ALTER TABLE",
        "db.query.summary": "ALTER TABLE leads",
    }
    assert {span.kind for span in statements} == {command.SPAN_KIND_CLIENT}
    failed = below(spans, badly)[-1]
    assert (failed.name, failed.status.code) == ("SELECT", 2)
    assert {each.key: each.value.string_value for each in failed.attributes}["db.response.status_code"] == "22P02"
