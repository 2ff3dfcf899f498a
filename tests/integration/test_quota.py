"""What a sender can make the database hold: no more unparsable bytes than its source's quota, and never the secret it showed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import httpx

from amo_receiver.amocrm.keyring import url_token
from amo_receiver.database import create_engine
from amo_receiver.inbox.delivery import CUT_BODY_BYTES
from amo_receiver.inbox.quota import UnparsedQuota
from factories import contact, form_body
from in_process import FORM, JSON, PATH, TOKEN_PATH, write_keyring
from integration.load import PATIENCE_SECONDS, PATIENT
from servers import CLIENT_SECRET, WEBHOOK_TOKEN, connect, run_sql, signed_headers

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartService
    from servers import ServiceProcess

QUOTA_BYTES = 100_000
BODY_BYTES = 80_000
"""One of them fits in the quota, two do not."""
URL_KEY, OTHER_SECRET = "url-key-of-the-other-source-0123456789", "secret-of-the-other-source-0123456789"
OTHER_TOKEN = url_token(URL_KEY.encode(), "32000002")
OTHER_PATH = f"{PATH}/{OTHER_TOKEN}"
KEPT = "SELECT body, body_bytes, body_sha256, events FROM deliveries WHERE unparsed AND source = '{source}' ORDER BY id"
COLUMNS = """
    SELECT table_name, column_name, data_type
    FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
    WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"""


def start(start_service: StartService, url: str, folder: Path) -> ServiceProcess:
    """Start a service with a small quota, the environment's source and another one."""
    keyring = folder / "keyring"
    keyring.mkdir()
    write_keyring(keyring / "other.json", 1, [("url_key", URL_KEY), ("client_secret", OTHER_SECRET)], client_id="other-uuid")
    settings = {"UNPARSED_QUOTA_BYTES": str(QUOTA_BYTES), "AMOCRM_KEYRING_DIR": str(keyring)}
    return start_service(url, args=["--no-worker"], env=PATIENT | settings)


def junk(number: int) -> bytes:
    """Return a body in which there is no event, unlike any other."""
    return f"junk{number}=".encode().ljust(BODY_BYTES, b"x")


def test_a_source_beyond_its_quota_has_its_bodies_cut(
    start_service: StartService, pooled_url: str, database_url: str, tmp_path: Path
) -> None:
    """What is past it is kept as 64 KiB and a hash, with an ERROR and still a 200; another source has a quota of its own."""
    service = start(start_service, pooled_url, tmp_path)
    bodies = [junk(number) for number in range(6)]
    with httpx.Client(base_url=service.url, timeout=PATIENCE_SECONDS, headers=FORM) as client:
        answers = [client.post(TOKEN_PATH, content=body).json() for body in bodies]
        assert [(answer["status"], answer["events_processed"]) for answer in answers] == [("partial", 0)] * len(bodies)
        assert client.post(TOKEN_PATH, content=form_body("contacts", "add", contact())).json()["status"] == "success"
        assert client.post(OTHER_PATH, content=junk(99)).json()["status"] == "partial"

    rows = run_sql(database_url, KEPT.format(source="default"))
    whole = [row["body_sha256"] is None for row in rows].count(True)
    # A second one is whole where the first came while the process was asking the database for the first time what is used.
    assert whole in {1, 2}
    assert [row["body"] for row in rows] == [*bodies[:whole], *(body[:CUT_BODY_BYTES] for body in bodies[whole:])]
    assert [row["body_sha256"] for row in rows[whole:]] == [hashlib.sha256(body).digest() for body in bodies[whole:]]
    assert {(row["body_bytes"], row["events"]) for row in rows} == {(BODY_BYTES, 1)}
    assert [(row["body"], row["body_sha256"]) for row in run_sql(database_url, KEPT.format(source="other"))] == [(junk(99), None)]
    errors = [line for line in service.log_path.read_text().splitlines() if "ERROR" in line and line.endswith("UnparsedQuotaExceeded")]
    assert len(errors) == len(bodies) - whole


async def test_what_other_processes_keep_counts(start_service: StartService, pooled_url: str, database_url: str, tmp_path: Path) -> None:
    """A process that asks the database knows what is used: the last byte of the quota is given, one more is not."""
    service = start(start_service, pooled_url, tmp_path)
    async with httpx.AsyncClient(base_url=service.url, timeout=PATIENCE_SECONDS, headers=FORM) as client:
        assert (await client.post(OTHER_PATH, content=junk(1))).status_code == 200
    quota, engine = UnparsedQuota(QUOTA_BYTES), create_engine(database_url)
    await quota.refresh(engine)
    await engine.dispose()
    left = QUOTA_BYTES - BODY_BYTES
    assert not quota.spend("other", left + 1)
    assert quota.spend("other", left)
    assert not quota.spend("other", 1)
    assert quota.spend("default", QUOTA_BYTES)


async def test_no_secret_is_in_the_database(start_service: StartService, pooled_url: str, database_url: str, tmp_path: Path) -> None:
    """After deliveries by each kind of key, good and not, no column of any table holds a key, or a token or signature made with it."""
    service = start(start_service, pooled_url, tmp_path)
    ours, others = signed_headers("32000001"), signed_headers("32000002", "other-uuid", OTHER_SECRET)
    paths = [(TOKEN_PATH, {}), (PATH, ours), (OTHER_PATH, {}), (PATH, others)]
    person = contact(name="Marked", account_id=None)
    bodies = [
        b"name=Marked&junk",
        form_body("leads", "add", {"id": "Marked"}, account=None),
        form_body("contacts", "add", person, account=None),
    ]
    async with httpx.AsyncClient(base_url=service.url, timeout=PATIENCE_SECONDS) as client:
        said = [(await client.post(path, content=body, headers=FORM | headers)).status_code for path, headers in paths for body in bodies]
        assert said == [200, 200, 200, 400, 400, 200] * 2
        assert (await client.post(PATH, content=b'{"contacts":{"delete":[{"id":1}]}}', headers=JSON | ours)).status_code == 200
    service.terminate()
    service.end()  # what it knew of its keys' use is written now

    secrets = [CLIENT_SECRET, WEBHOOK_TOKEN, OTHER_SECRET, URL_KEY, OTHER_TOKEN, ours["X-Signature"], others["X-Signature"]]
    found = {text: await columns_with(database_url, text) for text in ("Marked", "client_secret", *secrets)}
    assert {"deliveries.body", "events.payload", "contacts.name"} <= found.pop("Marked"), "the search itself finds nothing"
    assert {"deliveries.key_kind", "key_matches.kind"} <= found.pop("client_secret")
    assert found == {secret: set() for secret in secrets}


async def columns_with(url: str, text: str) -> set[str]:
    """Return the columns of our tables in which a text is anywhere, whatever their type."""
    found = set()
    async with connect(url) as connection:
        for table, column, kind in await connection.fetch(COLUMNS):
            value = column if kind == "bytea" else f"convert_to({column}::text, 'UTF8')"
            if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table} WHERE position($1::bytea IN {value}) > 0)", text.encode()):
                found.add(f"{table}.{column}")
    return found
