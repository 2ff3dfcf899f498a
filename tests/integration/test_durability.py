"""A 2xx means committed: nobody sees one before everybody sees the rows."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

from amo_receiver.embedded.folder import free_port
from factories import ACCOUNT, contact, form_body, json_body, lead, lead_v4
from integration.load import PATIENT, Line, Post, by_token, open_connection, read_answer, send, signed
from servers import connect, run_sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import StartService

GATE = 4711
"""Key of the advisory lock at which a commit waits."""
DEFERRED = (
    "CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {statement}; RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_commit()",
)


def at_commit(url: str, table: str, statement: str) -> None:
    """Let the database do something in the commit of a transaction that inserted into a table, after all of its statements."""
    run_sql(url, *(sql.format(table=table, statement=statement) for sql in DEFERRED))


async def waits_at_the_gate(connection: asyncpg.Connection) -> None:
    """Return when a transaction waits for the advisory lock."""
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted"
    async with asyncio.timeout(20):
        while not await connection.fetchval(waiting, GATE):
            await asyncio.sleep(0.02)


async def visible(connection: asyncpg.Connection, card: int) -> tuple[int, int, int]:
    """Count what another connection sees of one lead: deliveries, events, leads."""
    row = await connection.fetchrow(
        """SELECT (SELECT count(*) FROM deliveries d JOIN events e ON e.delivery_id = d.id WHERE e.entity_id = $1::text),
                  (SELECT count(*) FROM events WHERE entity_id = $1::text AND state = 'processed'),
                  (SELECT count(*) FROM leads WHERE id = $1::bigint)""",
        str(card),
    )
    return tuple(row)


async def test_no_byte_is_sent_while_the_commit_is_under_way(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """As long as the commit waits, nothing of the answer arrives, though the service answers others; then rows and answer are there."""
    at_commit(database_url, "leads", f"PERFORM pg_advisory_xact_lock({GATE})")
    service = start_service(pooled_url, env=PATIENT)
    async with connect(database_url) as gate, connect(database_url) as other:
        await gate.execute("SELECT pg_advisory_lock($1)", GATE)
        reader, writer = await open_connection(service.url)
        writer.write(by_token(form_body("leads", "add", lead(id=11))).request())
        first_byte = asyncio.create_task(reader.readexactly(1))
        await waits_at_the_gate(other)

        line = Line(service.url)
        for _ in range(20):  # whatever the service had to send, it has sent by then
            assert (await line.post(Post("/api/webhooks/amo", {}, b""))).status == 401
        line.close()
        assert not first_byte.done()
        assert await visible(other, 11) == (0, 0, 0)

        await gate.execute("SELECT pg_advisory_unlock($1)", GATE)
        assert await first_byte == b"H"
        assert await visible(other, 11) == (1, 1, 1)
        assert await reader.readuntil(b"\r\n") == b"TTP/1.1 200 OK\r\n"
        writer.close()


async def test_another_connection_sees_the_rows_when_the_first_byte_arrives(
    start_service: StartService, pooled_url: str, database_url: str
) -> None:
    """Under load, whoever gets the first byte of a 200 finds delivery, event and lead, on both paths."""
    service = start_service(pooled_url, env=PATIENT)
    seen = []
    async with asyncpg.create_pool(database_url, min_size=8, max_size=8) as pool, asyncio.TaskGroup() as group:

        async def look(line: int) -> None:
            reader, writer = await open_connection(service.url)
            with closing(writer):
                for card in range(line, 320, 32):
                    body = form_body("leads", "add", lead(id=card + 1)), json_body("leads", "add", lead_v4(id=card + 1))
                    async with pool.acquire() as connection:
                        writer.write((by_token(body[0]) if card % 2 else signed(ACCOUNT, body[1])).request())
                        first_byte = await reader.readexactly(1)
                        seen.append(await visible(connection, card + 1))
                    rest = asyncio.StreamReader()
                    rest.feed_data(first_byte + await reader.readuntil(b"}"))
                    assert (await read_answer(rest))[0] == 200

        for line in range(32):
            group.create_task(look(line))
    assert seen == [(1, 1, 1)] * 320


async def test_a_commit_that_fails_is_never_acknowledged(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """Where the commit itself fails, however late, the answer is 503 and the sender comes again."""
    at_commit(database_url, "events", "RAISE EXCEPTION 'no' USING ERRCODE = NEW.account_id")
    service = start_service(pooled_url)

    for state in ("53100", "40001", "XX000"):
        bodies = [form_body("leads", "add", lead(id=number, account_id=state), account=state) for number in range(1, 20)]
        assert {answer.status for answer in await send(map(by_token, bodies), service.url)} == {503}

    async with connect(database_url) as connection:
        assert await connection.fetchval("SELECT (SELECT count(*) FROM deliveries) + (SELECT count(*) FROM events)") == 0


@dataclass
class Wire:
    """A wire to the database that can be cut: the next answer of ``accept_v1`` ends it, after the commit and before anybody hears of it."""

    port: int
    cuts: int = 0
    commits: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        with closing(writer), closing(back), suppress(OSError):
            onward = asyncio.create_task(self._copy(reader, back))
            self._tasks.add(onward)
            await self._bring(there, writer)
            onward.cancel()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)

    async def _bring(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = b""
        while data := await reader.read(65536):
            heard = (heard + data)[-4096:]
            if b'"known"' in heard:  # what accept_v1 returns
                self.commits += 1
                if self.cuts:
                    while not heard.endswith(b"Z\0\0\0\5I"):  # ready for the next query: the transaction is committed
                        heard += await reader.read(65536)
                    self.cuts -= 1
                    return
                heard = b""
            writer.write(data)


@asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[tuple[Wire, str]]:
    """Yield a wire to a database with the URL of its near end."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    wire, near = Wire(port), free_port()
    async with await asyncio.start_server(wire.carry, "127.0.0.1", near):
        yield wire, url.replace(f":{port}/", f":{near}/")


async def test_a_commit_whose_answer_is_lost_counts_once(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """The second try finds its own rows by their ids; where it cannot, the answer is 503 and the repeated delivery finds its first copy."""
    async with wire_to(pooled_url) as (wire, url):
        service = await asyncio.to_thread(start_service, url, env=PATIENT)
        wire.cuts = 1
        undated = lead_v4(id=12, created_at=None)
        bodies = [signed(ACCOUNT, json_body("leads", "update", undated)), by_token(form_body("contacts", "update", contact(id=12)))]

        answers = await send(bodies, service.url, connections=1)

        assert wire.cuts == 0
        assert wire.commits == 3
        assert [(answer.status, answer.document["events_processed"]) for answer in answers] == [(200, 1)] * 2

        wire.cuts = 2  # the second try's answer is lost, too
        answers = await send([by_token(form_body("leads", "update", lead(id=13)))], service.url, connections=1, tries=3)

        assert wire.cuts == 0
        assert [answer.status for answer in answers] == [503, 200]
        assert answers[1].document["events_processed"] == 1
        await asyncio.to_thread(service.end)
    async with connect(database_url) as connection:
        deliveries = await connection.fetch("SELECT duplicates, events FROM deliveries ORDER BY received_at")
        assert [tuple(row) for row in deliveries] == [(0, 1), (0, 1), (1, 1)]
        assert await connection.fetchval("SELECT count(*) FROM events WHERE state = 'processed'") == 3
        assert await connection.fetchval("SELECT count(*) FROM leads") == 2
