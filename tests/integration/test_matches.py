"""The last match of each key over processes, restarts and outages, on a real database."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import event

from amo_receiver.amocrm.keyring import Key, Keyring, Match, Source, fingerprint
from amo_receiver.app import MATCHES_SECONDS
from amo_receiver.database import create_engine
from amo_receiver.embedded.folder import free_port
from amo_receiver.inbox.matches import LAG, MOST_ACCOUNTS, OTHERS, READ_SECONDS, Matches
from amo_receiver.worker.maintenance import UNUSED_KEY_DAYS, prune
from in_process import JSON, NOBODY_LISTENS, PATH, TOKEN_PATH, running, settings_for, write_keyring
from servers import CLIENT_SECRET, WEBHOOK_TOKEN, connect, run_sql, signed_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from conftest import StartService
    from servers import ServiceProcess

OLD, NEW = Key("url_key", b"old", "previous"), Key("url_key", b"new")
ACME = Source("acme", "acme", 7, None, (OLD, NEW))
KEYRING = Keyring((ACME,))
TABLE = "SELECT account_id, source, kind, fingerprint, matched_at FROM key_matches ORDER BY fingerprint, account_id"
WRITTEN = (
    "CREATE TABLE written (number bigserial PRIMARY KEY, matched_at timestamptz)",
    """CREATE FUNCTION note_written() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO written (matched_at) VALUES (NEW.matched_at);
        RETURN NULL;
    END $$""",
    "CREATE TRIGGER written AFTER INSERT OR UPDATE ON key_matches FOR EACH ROW EXECUTE FUNCTION note_written()",
)
"""Keeps every write of the table."""


class Clock:
    """A clock that stands until it is set, an hour ago at first."""

    def __init__(self) -> None:
        self.now = float(int(datetime.now(UTC).timestamp()) - 3600)

    def __call__(self) -> float:
        return self.now

    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)


class Process:
    """What one process has: its own memory and its own connections, whose reads of the table are counted."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self.clock, self.engine, self.matches, self.calls = clock, engine, Matches(clock), 0
        event.listen(engine.sync_engine, "before_cursor_execute", self._count)

    def _count(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.calls += statement.lstrip().startswith("SELECT account_id")

    def match(self, key: Key, seconds_ago: float = 0, account: str | None = None) -> None:
        self.matches.note(Match(ACME, key.fingerprint, key.kind, account), int((self.clock.now - seconds_ago) * 1e9))

    async def exchange(self, keyring: Keyring = KEYRING, **options: Any) -> None:
        await self.matches.exchange(self.engine, keyring, **options)

    def shown(self, keyring: Keyring = KEYRING) -> dict[str, datetime | None]:
        """Return what the report says of each key."""
        keys = [key for source in self.matches.report(keyring, with_accounts=True)["sources"] for key in source["keys"]]
        return {key["fingerprint"]: at and datetime.fromisoformat(at) for key in keys for at in [key["last_matched_at"]]}

    def accounts(self, key: Key) -> tuple[dict[str, datetime], bool]:
        """Return what the report says of each account of a key, and whether these are all."""
        keys = self.matches.report(KEYRING, with_accounts=True)["sources"][0]["keys"]
        [found] = [each for each in keys if each["fingerprint"] == key.fingerprint]
        return {account: datetime.fromisoformat(at) for account, at in found["accounts"].items()}, found["accounts_complete"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def processes(url: str, clock: Clock, count: int = 2) -> AsyncIterator[list[Process]]:
    """Open the connections of so many processes."""
    engines = [create_engine(url, pool_size=1) for _ in range(count)]
    try:
        yield [Process(engine, clock) for engine in engines]
    finally:
        for engine in engines:
            await engine.dispose()


async def test_busy_processes_write_a_key_once_a_minute_together(pooled_url: str, database_url: str, clock: Clock) -> None:
    """However their minutes lie; who is killed at any instant takes at most what came since another one wrote, and since its own look."""
    run_sql(database_url, *WRITTEN)
    chance, lost = random.Random(1), timedelta()  # noqa: S311 - the same every time
    async with processes(pooled_url, clock, 3) as running_processes, connect(database_url) as connection:
        for look in range(120):
            clock.now += MATCHES_SECONDS
            for process in running_processes:
                process.match(NEW, chance.uniform(0, MATCHES_SECONDS))
            stored = await connection.fetchval("SELECT max(matched_at) FROM key_matches")
            lost = max(lost, clock.moment() - stored) if stored else lost
            begun = running_processes[: 1 + look // 4]
            await asyncio.gather(*(process.exchange() for process in chance.sample(begun, len(begun))))
        written = [row["matched_at"] for row in await connection.fetch("SELECT matched_at FROM written ORDER BY number")]
    assert 8 <= len(written) <= 12, "ten minutes have passed"
    assert all(later - earlier > LAG for earlier, later in pairwise(written))
    assert lost <= LAG + timedelta(seconds=READ_SECONDS + 2 * MATCHES_SECONDS)


async def test_a_process_without_matches_reads_once_a_minute(database_url: str, clock: Clock) -> None:
    """It learns what the others wrote, and asks nothing in between."""
    async with processes(database_url, clock) as (busy, idle):
        for second in range(0, 301, 5):
            if second == 100:
                busy.match(OLD)
                await busy.exchange()
            await idle.exchange()
            clock.now += 5
    assert idle.calls == 1 + 300 // READ_SECONDS
    assert idle.shown() == busy.shown() == {OLD.fingerprint: busy.shown()[OLD.fingerprint], NEW.fingerprint: None}
    assert busy.shown()[OLD.fingerprint] is not None


async def test_many_busy_accounts_are_written_together(database_url: str, clock: Clock) -> None:
    """One exchange a minute, however their minutes lie: each of them would otherwise have the whole table read."""
    async with processes(database_url, clock, 1) as (process,):
        for look in range(60):
            for number in range(12):
                if look >= number:
                    process.match(OLD, 0, str(number))
            await process.exchange()
            clock.now += MATCHES_SECONDS
        assert process.calls == 60 * MATCHES_SECONDS // READ_SECONDS
        known = {row["account_id"]: row["matched_at"] for row in run_sql(database_url, TABLE)}
    assert len(known) == 12
    assert all(clock.moment() - at <= timedelta(seconds=READ_SECONDS) for at in known.values())


async def test_the_report_is_the_later_of_memory_and_table(database_url: str, clock: Clock) -> None:
    """Whichever of the two knows more; when the table was read stands beside it."""
    async with processes(database_url, clock) as (here, there):
        there.match(OLD)
        there.match(NEW, 30)
        await there.exchange()
        here.match(OLD, 30)
        here.match(NEW, 20)
        await here.exchange()
        assert here.shown() == {OLD.fingerprint: clock.moment(), NEW.fingerprint: clock.moment() - timedelta(seconds=20)}
        assert datetime.fromisoformat(here.matches.report(KEYRING, with_accounts=True)["matches_read_at"]) == clock.moment()
        assert there.shown()[NEW.fingerprint] == clock.moment() - timedelta(seconds=30)


async def test_at_the_end_everything_is_written(database_url: str, clock: Clock) -> None:
    """Also what lies less than a minute ahead of the table; never something older than what is there."""
    async with processes(database_url, clock) as (first, second):
        first.match(OLD, 50)
        await first.exchange()
        second.match(OLD, 40)
        await second.exchange(lag=timedelta())
        first.match(OLD, 45)
        await first.exchange(lag=timedelta())
    rows = run_sql(database_url, TABLE)
    assert [tuple(row) for row in rows] == [("", "acme", "url_key", OLD.fingerprint, clock.moment() - timedelta(seconds=40))]


async def test_each_account_of_a_url_key_is_known(database_url: str, clock: Clock) -> None:
    """To every process, each once a minute in the table; the key's own last match is the latest of them."""
    run_sql(database_url, *WRITTEN)
    async with processes(database_url, clock) as (here, there):
        for _ in range(24):
            here.match(OLD, 5, "1")
            here.match(OLD, 3, "2")
            await here.exchange()
            clock.now += MATCHES_SECONDS
        clock.now -= MATCHES_SECONDS
        there.match(OLD, 1, "3")
        await there.exchange()
        moments = {account: clock.moment() - timedelta(seconds=ago) for account, ago in (("1", 5), ("2", 3), ("3", 1))}
        assert here.accounts(OLD) == ({account: moments[account] for account in "12"}, True)
        known, is_complete = there.accounts(OLD)
        assert is_complete
        assert known.keys() == moments.keys()
        assert all(moments[account] - at <= timedelta(seconds=READ_SECONDS) for account, at in known.items())
        assert there.shown()[OLD.fingerprint] == moments["3"]
        assert there.accounts(NEW) == ({}, True)
    assert [row[0] for row in run_sql(database_url, "SELECT count(*) FROM written")] == [5]


async def test_a_crowd_of_accounts_is_bounded(database_url: str, clock: Clock) -> None:
    """In memory, in the table and in the report, which says that there are more; what the crowd beyond does counts for all of it."""
    async with processes(database_url, clock) as (here, there):
        for number in range(3 * MOST_ACCOUNTS):
            here.match(OLD, 60, f"here-{number}")
            there.match(OLD, 30, f"there-{number}")
        for _ in range(2):
            await asyncio.gather(here.exchange(lag=timedelta()), there.exchange(lag=timedelta()))
            clock.now += READ_SECONDS
        here.match(OLD, 0, "another")
        for process in (here, there):
            accounts, is_complete = process.accounts(OLD)
            assert (len(accounts), is_complete) == (MOST_ACCOUNTS, False)
        assert here.shown()[OLD.fingerprint] == clock.moment()
        assert "another" not in here.accounts(OLD)[0]
    assert len(run_sql(database_url, TABLE)) == 2 * MOST_ACCOUNTS + 1
    assert OTHERS in {row["account_id"] for row in run_sql(database_url, TABLE)}


async def test_keys_that_are_no_longer_held_are_forgotten_once_written(database_url: str, clock: Clock) -> None:
    """The memory is as large as the keyring, however many keys have come and gone."""
    without_old = Keyring((Source("acme", "acme", 8, None, (NEW,)),))
    async with processes(database_url, clock, 1) as (process,):
        process.match(OLD)
        process.match(NEW)
        await process.exchange(without_old)
        assert process.shown() == {OLD.fingerprint: None, NEW.fingerprint: clock.moment()}
    assert {row["fingerprint"] for row in run_sql(database_url, TABLE)} == {OLD.fingerprint, NEW.fingerprint}


async def test_a_clock_ahead_puts_nothing_later_than_now_into_the_table(database_url: str, clock: Clock) -> None:
    """A key would otherwise count as used for as long as the clock was ahead."""
    clock.now += 2 * 3600
    async with processes(database_url, clock, 1) as (process,):
        process.match(NEW)
        await process.exchange()
    assert [row[0] for row in run_sql(database_url, "SELECT matched_at <= clock_timestamp() FROM key_matches")] == [True]


async def test_what_could_not_be_written_is_written_later(database_url: str, clock: Clock) -> None:
    """An outage costs no match, and no more than a later write."""
    async with processes(database_url, clock, 1) as (process,):
        process.match(NEW)
        run_sql(database_url, "ALTER TABLE key_matches RENAME TO elsewhere")
        with pytest.raises(Exception, match="key_matches"):
            await process.exchange()
        run_sql(database_url, "ALTER TABLE elsewhere RENAME TO key_matches")
        await process.exchange()
    assert [row["matched_at"] for row in run_sql(database_url, TABLE)] == [clock.moment()]


async def test_keys_unused_for_long_are_pruned(database_url: str, clock: Clock) -> None:
    """By the same run that prunes events; the others stay."""
    async with processes(database_url, clock, 1) as (process,):
        process.match(OLD, 60)
        process.match(NEW)
        await process.exchange()
        await prune(process.engine, 30, 90, now=clock.moment() + timedelta(days=UNUSED_KEY_DAYS, seconds=-1))
    assert [row["fingerprint"] for row in run_sql(database_url, TABLE)] == [NEW.fingerprint]


# The service


def post(service: ServiceProcess, **headers: str) -> int:
    """Send an empty delivery: signed, or to the plain token."""
    return httpx.post(f"{service.url}{PATH if headers else TOKEN_PATH}", content=b"{}", headers=JSON | headers).status_code


def reported(service: ServiceProcess, secret: str) -> datetime | None:
    """Return when a key matched last, by a service's report."""
    sources = httpx.get(f"{service.url}/keyring").json()["sources"]
    [at] = [key["last_matched_at"] for each in sources for key in each["keys"] if key["fingerprint"] == fingerprint(secret.encode())]
    return at and datetime.fromisoformat(at)


async def stored(url: str, secret: str) -> datetime | None:
    async with connect(url) as connection:
        found: datetime | None = await connection.fetchval(
            "SELECT matched_at FROM key_matches WHERE fingerprint = $1", fingerprint(secret.encode())
        )
    return found


async def test_last_matches_survive_restarts(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """Told to end, a service loses nothing, and the next one reports the same; killed, it loses what the table did not have yet."""
    began = datetime.now(UTC)
    service = start_service(pooled_url)
    assert (reported(service, WEBHOOK_TOKEN), reported(service, CLIENT_SECRET)) == (None, None)
    assert [post(service), post(service, **signed_headers("1"))] == [200, 200]
    first = reported(service, WEBHOOK_TOKEN), reported(service, CLIENT_SECRET)
    assert first[0] is not None
    assert began < first[0] < datetime.now(UTC)
    service.terminate()
    assert await asyncio.to_thread(service.wait) == 0
    assert (await stored(database_url, WEBHOOK_TOKEN), await stored(database_url, CLIENT_SECRET)) == first
    service = start_service(pooled_url)
    await until_reported(service, WEBHOOK_TOKEN, first[0])
    assert post(service) == 200
    last = reported(service, WEBHOOK_TOKEN)
    assert last is not None
    assert last > first[0]
    service.kill()
    service = start_service(pooled_url)
    await until_reported(service, WEBHOOK_TOKEN, first[0])


async def until_reported(service: ServiceProcess, secret: str, at: datetime) -> None:
    """Wait until a new process has read the table."""
    async with asyncio.timeout(30):
        while reported(service, secret) != at:
            await asyncio.sleep(0.05)


async def test_senders_learn_nothing_of_trouble_with_the_table(database_url: str) -> None:
    """Deliveries are accepted and the report goes on, when the table is not there at all."""
    run_sql(database_url, "DROP TABLE key_matches")
    async with running(settings_for(database_url)) as client:
        for _ in range(3):
            assert (await client.post(TOKEN_PATH, content=b"{}", headers=JSON)).status_code == 200
        report = (await client.get("/keyring")).json()
    assert report["matches_read_at"] is None
    assert [key["last_matched_at"] is None for source in report["sources"] for key in source["keys"]] == [True, False]


@pytest.mark.parametrize("is_private", [False, True])
async def test_a_stranger_learns_of_no_account(tmp_path: Path, is_private: bool) -> None:
    """While URLs are moved /keyring lists who still uses which: on a port of its own only, never where the public one has the page too."""
    write_keyring(tmp_path / "acme", 1, [("url_key", "old"), ("url_key", "new")])
    port, host = free_port(), "127.0.0.1"
    settings = settings_for(NOBODY_LISTENS, management_port=port if is_private else None, management_host=host, amocrm_keyring_dir=tmp_path)
    async with running(settings) as client, httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as private:
        page = private if is_private else client
        async with asyncio.timeout(30):
            while not await answers(page):
                await asyncio.sleep(0.02)
        sources = {each["source"]: each for each in (await page.get("/keyring")).json()["sources"]}
    keys = sources["acme"]["keys"]
    assert [key["kind"] for key in keys] == ["url_key"] * 2
    assert [key.keys() >= {"accounts", "accounts_complete"} for key in keys] == [is_private] * 2


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        await client.get("/livez")
    except httpx.ConnectError:
        return False
    return True
