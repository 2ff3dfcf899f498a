"""The HTTP contract, to the letter: paths, headers, envelopes, status codes, and what each answer leaves in the database."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from amo_receiver.amocrm.keyring import fingerprint
from amo_receiver.inbox.endpoints import PATH, WebhookEndpoint
from amo_receiver.inbox.journal import Journal
from factories import contact, contact_v4, form_body, http_build_query, json_body, lead, lead_v4
from in_process import (
    ENVELOPE,
    FORM,
    JSON,
    MISSION_BODY,
    NOBODY_LISTENS,
    REFUSED,
    TIMESTAMP,
    TOKEN_PATH,
    check_envelope,
    fault,
    running,
    settings_for,
    signed,
    states,
)
from servers import CLIENT_ID, CLIENT_SECRET, WEBHOOK_TOKEN, signed_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg
    import httpx

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT = 1_640_995_200


# 200


async def test_the_documented_request(client: httpx.AsyncClient, committed: asyncpg.Connection) -> None:
    """The body of the contract, signed, is answered as the contract says, and the lead is in the table."""
    response = await client.post(PATH, content=json.dumps(MISSION_BODY), headers=signed("test-account"))
    answer = check_envelope(response, 200, "success")
    assert {**answer, "timestamp": ""} == {
        "status": "success", "message": "Processed 1 events", "events_processed": 1, "timestamp": "", "errors": None,
    }  # fmt: skip
    row = await committed.fetchrow("SELECT * FROM leads WHERE account_id = 'test-account'")
    assert row is not None
    assert (row["id"], row["name"], row["status_id"], row["status"], row["utm_source"]) == (12345, "Новый лид", 1, "new", "google")
    assert row["crm_updated_at"].timestamp() == 1640995200
    assert await states(committed, "test-account") == [("leads", "12345", "processed", "applied")]


@pytest.mark.parametrize("path", [PATH, TOKEN_PATH])
@pytest.mark.parametrize("encoding", [JSON, FORM, {}], ids=["json", "form", "untold"])
async def test_both_paths_take_both_encodings(
    client: httpx.AsyncClient, committed: asyncpg.Connection, account: str, path: str, encoding: dict[str, str]
) -> None:
    """Lead and contact reach their tables whichever path and encoding the sender uses; untold, the first byte tells."""
    document = {"leads": {"add": [lead_v4(created_at=AT)]}, "contacts": {"update": [contact_v4(updated_at=AT)]}, "account": {"id": account}}
    bodies = [http_build_query(document)] if encoding is FORM else [json.dumps(document).encode()]
    bodies += [http_build_query(document)] if not encoding else []
    for body in bodies:
        headers = signed(account, encoding) if path == PATH else encoding
        answer = check_envelope(await client.post(path, content=body, headers=headers), 200, "success")
        assert (answer["message"], answer["events_processed"], answer["errors"]) == ("Processed 2 events", 2, None)
    assert await committed.fetchval("SELECT name FROM leads WHERE account_id = $1", account) == "Новый лид"
    row = await committed.fetchrow("SELECT name, phone, email, type FROM contacts WHERE account_id = $1", account)
    assert row is not None
    assert tuple(row) == ("Иван Тестовый", "+70000000001", "ivan@example.test", "contact")


@pytest.mark.parametrize("path", [PATH, TOKEN_PATH])
@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"leads":{"add":[],"update":[],"delete":[]},"contacts":{"add":[],"update":[]}}', b"account[subdomain]=x"]
)
async def test_nothing_in_it(client: httpx.AsyncClient, account: str, path: str, body: bytes) -> None:
    """A body without events is a success with 0 of them."""
    answer = check_envelope(await client.post(path, content=body, headers=signed_headers(account) if path == PATH else {}), 200, "success")
    assert (answer["message"], answer["events_processed"], answer["errors"]) == ("Processed 0 events", 0, None)


async def test_every_supported_event(client: httpx.AsyncClient, committed: asyncpg.Connection, account: str) -> None:
    """The five events that the test page names do to the tables what they say."""
    steps = [
        ("leads", "add", lead(at=AT, name="а"), "SELECT name FROM leads", "а"),
        ("leads", "update", lead(at=AT + 1, name="б"), "SELECT name FROM leads", "б"),
        ("leads", "delete", {"id": "10000001"}, "SELECT deleted_at IS NOT NULL FROM leads", True),
        ("contacts", "add", contact(at=AT, name="в"), "SELECT name FROM contacts", "в"),
        ("contacts", "update", contact(at=AT + 1, type="company"), "SELECT type FROM contacts", "company"),
    ]
    named = (await client.get(f"{PATH}/test")).json()["supported_events"]
    assert [f"{entity}.{action}" for entity, action, *_ in steps] == named
    for entity, action, payload, query, value in steps:
        body = form_body(entity, action, {**payload, "account_id": account}, account=account)
        check_envelope(await client.post(TOKEN_PATH, content=body, headers=FORM), 200, "success")
        assert await committed.fetchval(f"{query} WHERE account_id = $1", account) == value


async def test_what_is_recorded_only_is_processed(client: httpx.AsyncClient, committed: asyncpg.Connection, account: str) -> None:
    """Tasks, notes and unknown entities are stored and never an error."""
    document = {"task": {"add": [{"id": 1}]}, "leads": {"note": [{"note": {"element_id": 2}}]}, "новое": {"x": [{"uid": "u"}]}}
    answer = check_envelope(await client.post(PATH, content=json.dumps(document), headers=signed(account)), 200, "success")
    assert answer["events_processed"] == 3
    assert await states(committed, account) == [
        (entity, entity_id, "processed", "recorded") for entity, entity_id in (("task", "1"), ("leads", "2"), ("новое", "u"))
    ]


async def test_a_duplicate_is_processed_and_stored_once(client: httpx.AsyncClient, committed: asyncpg.Connection, account: str) -> None:
    """The same delivery again is the same success; it counts up on the first one."""
    body = form_body("leads", "update", lead(at=AT, account_id=account), account=account)
    for _ in range(3):
        assert check_envelope(await client.post(TOKEN_PATH, content=body, headers=FORM), 200, "success")["events_processed"] == 1
    assert await states(committed, account) == [("leads", "10000001", "processed", "applied")]
    assert [row["duplicates"] for row in await committed.fetch("SELECT duplicates FROM deliveries WHERE account_id = $1", account)] == [2]


async def test_what_is_kept_of_a_delivery(client: httpx.AsyncClient, committed: asyncpg.Connection, account: str) -> None:
    """Raw body, four headers and the fingerprint of the key; the signature is nowhere."""
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    headers = signed(account) | {"User-Agent": "amoCRM-Webhooks/3.0", "X-amoCRM-RequestId": "r-1", "traceparent": trace, "X-Other": "other"}
    body = json_body("leads", "add", lead_v4(created_at=AT))
    check_envelope(await client.post(PATH, content=body, headers=headers), 200, "success")
    row = await committed.fetchrow("SELECT * FROM deliveries WHERE account_id = $1", account)
    assert row is not None
    assert (row["body"], row["body_bytes"], row["events"], row["unparsed"]) == (body, len(body), 1, False)
    assert (row["content_type"], row["user_agent"], row["request_id"], row["traceparent"]) == (
        "application/json",
        "amoCRM-Webhooks/3.0",
        "r-1",
        trace,
    )
    assert (row["source"], row["key_kind"], row["key_fingerprint"]) == ("default", "client_secret", fingerprint(CLIENT_SECRET.encode()))
    assert headers["X-Signature"] not in str(dict(row))
    assert "other" not in str(dict(row))


async def test_a_time_too_far_ahead_orders_nothing(client: httpx.AsyncClient, committed: asyncpg.Connection, account: str) -> None:
    """It is stored without own time, so that the next change wins over it."""
    for name, moment in (("а", 99_999_999_999), ("б", None)):
        body = json_body("leads", "update", {"id": 1, "name": name, **({"updated_at": moment} if moment else {})})
        check_envelope(await client.post(PATH, content=body, headers=signed(account)), 200, "success")
    assert [row[0] for row in await committed.fetch("SELECT occurred_at FROM events WHERE account_id = $1", account)] == [None, None]
    assert await committed.fetchval("SELECT name FROM leads WHERE account_id = $1", account) == "б"


# 400, and what the token path makes of the same bodies


NO_OBJECT, NO_LIST = fault("leads.add[0]", "is not an object"), fault("contacts.update", "is not a list of objects")
INVALID: list[tuple[bytes, dict[str, str], list[dict[str, str]]]] = [
    (b'{"leads":{"add":[{"id":1},{"name":"x"}]}}', JSON, [fault("leads.add[1].id", "is missing")]),
    (b'{"leads":{"add":[{"id":"x"}]}}', JSON, [fault("leads.add[0].id", "is not a positive 64-bit integer")]),
    (b'{"leads":{"add":[1]},"contacts":{"update":{"id":1}}}', JSON, [NO_OBJECT, NO_LIST]),
    (b'{"leads":', JSON, [fault("", "not JSON: error at character 9")]),
    (b"[]", JSON, [fault("", "not a JSON object")]),
    (b'{"leads":NaN}', JSON, [fault("", "not JSON: NaN and Infinity are no numbers")]),
    (b'{"x":1}', JSON, [fault("", "no entity[action][n] in it")]),
    (b"hello=world", FORM, [fault("", "no entity[action][n] in it")]),
    (b"leads[add][0][name]=%FF", FORM, [fault("", "not UTF-8")]),
    (b"leads[add][0][id]=0", FORM, [fault("leads.add[0].id", "is not a positive 64-bit integer")]),
    (b'{"a":' * 20 + b"1" + b"}" * 20, JSON, [fault("", "nested deeper than 16 levels")]),
    (b"&".join(b"a=1" for _ in range(20_001)), FORM, [fault("", "more than 20000 fields")]),
]
invalid_bodies = pytest.mark.parametrize(
    ("body", "encoding", "errors"), INVALID, ids=[f"{errors[0]['path']} {errors[0]['message']}" for _, _, errors in INVALID]
)


@invalid_bodies
async def test_invalid_data_signed(
    client: httpx.AsyncClient,
    committed: asyncpg.Connection,
    account: str,
    body: bytes,
    encoding: dict[str, str],
    errors: list[dict[str, str]],
) -> None:
    """400 with each problem and its path, in the message too, and nothing is stored."""
    answer = check_envelope(await client.post(PATH, content=body, headers=signed(account, encoding)), 400, "error")
    assert answer["errors"] == errors
    assert answer["message"] == "Invalid data: " + "; ".join(f"{each['path']}: {each['message']}".removeprefix(": ") for each in errors)
    assert await committed.fetchval("SELECT count(*) FROM deliveries WHERE account_id = $1", account) == 0
    assert await states(committed, account) == []


async def test_one_bad_item_of_ten_signed(client: httpx.AsyncClient, committed: asyncpg.Connection, account: str) -> None:
    """Signed, a body is taken whole or not at all."""
    items = [lead_v4(id=number, created_at=AT) for number in range(1, 10)] + [lead_v4(id=None)]
    answer = check_envelope(await client.post(PATH, content=json_body("leads", "add", *items), headers=signed(account)), 400, "error")
    assert answer["errors"] == [fault("leads.add[9].id", "is missing")]
    assert await states(committed, account) == []


async def test_the_answer_to_many_problems_is_bounded(client: httpx.AsyncClient, account: str) -> None:
    """The message names three of them, errors a hundred."""
    answer = check_envelope(await client.post(PATH, content=json_body("leads", "add", *[{}] * 500), headers=signed(account)), 400, "error")
    assert answer["errors"] == [fault(f"leads.add[{number}].id", "is missing") for number in range(100)]
    assert answer["message"] == "Invalid data: " + "; ".join(f"leads.add[{number}].id: is missing" for number in range(3))


@invalid_bodies
async def test_invalid_data_from_amocrm_itself(
    client: httpx.AsyncClient, committed: asyncpg.Connection, body: bytes, encoding: dict[str, str], errors: list[dict[str, str]]
) -> None:
    """The token path never answers 4xx to an authentic body: it is stored, its bad events dead, and the answer is partial."""
    before = await committed.fetchval("SELECT count(*) FROM events WHERE account_id = '' AND state = 'dead'")
    answer = check_envelope(await client.post(TOKEN_PATH, content=body, headers=encoding), 200, "partial")
    assert [each["message"].rpartition(": ")[2] for each in answer["errors"]] == [each["message"].rpartition(": ")[2] for each in errors]
    assert answer["message"] == f"Processed {answer['events_processed']} events"
    assert await committed.fetchval("SELECT count(*) FROM events WHERE account_id = '' AND state = 'dead'") == before + len(errors)
    assert await committed.fetchval("SELECT count(*) FROM deliveries WHERE body = $1", body) == 1


async def test_one_bad_item_of_ten_from_amocrm_itself(client: httpx.AsyncClient, committed: asyncpg.Connection, account: str) -> None:
    """Nine are applied, the tenth is dead."""
    items = [lead(id=number, at=AT, account_id=None) for number in range(1, 10)] + [lead(id="x", at=AT, account_id=None)]
    answer = check_envelope(
        await client.post(TOKEN_PATH, content=form_body("leads", "update", *items, account=account), headers=FORM), 200, "partial"
    )
    assert (answer["message"], answer["events_processed"]) == ("Processed 9 events", 9)
    assert [each["path"] for each in answer["errors"]] == ["leads.update[9].id"]
    assert "is not a positive 64-bit integer" in answer["errors"][0]["message"]
    assert [state for _, _, state, _ in await states(committed, account)] == ["processed"] * 9 + ["dead"]
    assert await committed.fetchval("SELECT count(*) FROM leads WHERE account_id = $1", account) == 9


async def test_the_same_unparsable_body_again(client: httpx.AsyncClient, committed: asyncpg.Connection) -> None:
    """Identical bodies are one dead letter with a counter, shown as entity unparsed."""
    body = b"nonsense=" + b"x" * 50
    answers = [check_envelope(await client.post(TOKEN_PATH, content=body, headers=FORM), 200, "partial") for _ in range(2)]
    assert {json.dumps(answer["errors"]) for answer in answers} == {json.dumps([fault("", "no entity[action][n] in it")])}
    rows = await committed.fetch("SELECT * FROM deliveries JOIN events e ON e.delivery_id = deliveries.id WHERE body = $1", body)
    assert [(row["duplicates"], row["unparsed"], row["entity"], row["state"]) for row in rows] == [(1, True, "unparsed", "dead")]


# 401


@pytest.mark.parametrize(("headers", "path", "hint"), REFUSED)
async def test_strangers(client: httpx.AsyncClient, headers: dict[str, str], path: str, hint: str) -> None:
    """401 with a message that says how to mend it, whatever is missing; never 422."""
    answer = check_envelope(await client.post(path, content=json.dumps(MISSION_BODY), headers=headers), 401, "error")
    assert hint in answer["message"]
    assert answer["errors"] is None
    assert not any(secret in answer["message"] for secret in (CLIENT_SECRET, WEBHOOK_TOKEN, CLIENT_ID))


async def test_amocrm_with_the_wrong_url_is_told_the_right_one(client: httpx.AsyncClient) -> None:
    """On the bare path without headers the message says that amoCRM needs the URL with the token."""
    message = check_envelope(await client.post(PATH, content=b"x"), 401, "error")["message"]
    assert f"{PATH}/<token>" in message
    assert all(name in message for name in ("X-Client-UUID", "X-Signature", "X-Account-ID"))


@pytest.mark.parametrize("path", [PATH, f"{PATH}/wrong"])
async def test_a_stranger_s_body_is_never_read(client: httpx.AsyncClient, path: str) -> None:
    """Strangers cost nothing: 401 comes before the first byte of the body is asked for, and before its size matters."""
    asked = []

    async def endless() -> AsyncIterator[bytes]:
        asked.append(1)
        yield b"x"

    check_envelope(await client.post(path, content=endless(), headers={"Content-Length": str(2**40)}), 401, "error")
    assert asked == []


async def test_text_accounts_and_upper_case_signatures(client: httpx.AsyncClient, committed: asyncpg.Connection) -> None:
    """X-Account-ID is text, need not be numeric nor ASCII; the hex digits' case does not count."""
    account = "Компания №1"
    headers = {name.encode(): value.encode() for name, value in signed_headers(account).items()}
    headers[b"X-Signature"] = headers[b"X-Signature"].upper()
    check_envelope(await client.post(PATH, content=json_body("leads", "add", lead_v4(created_at=AT)), headers=headers), 200, "success")
    assert len(await states(committed, account)) == 1


# 413, slashes, other methods and paths


@pytest.mark.parametrize("path", [PATH, TOKEN_PATH])
@pytest.mark.parametrize("told", [True, False], ids=["declared", "chunked"])
async def test_a_body_that_is_too_large(client: httpx.AsyncClient, account: str, path: str, told: bool) -> None:
    """Beyond max_body_bytes 413, whether or not its size is declared; exactly that many are taken."""
    limit = 1_048_576

    async def chunks(size: int) -> AsyncIterator[bytes]:
        for begin in range(0, size, 65_536):
            yield b" " * min(65_536, size - begin)

    def content(size: int) -> Any:
        return b" " * size if told else chunks(size)

    headers = signed_headers(account) if path == PATH else {}
    answer = check_envelope(await client.post(path, content=content(limit + 1), headers=headers), 413, "error")
    assert answer["message"] == f"The body has more than {limit} bytes."
    check_envelope(await client.post(path, content=content(limit), headers=headers), 200, "success")


async def test_no_more_of_a_large_body_is_read_than_it_takes(client: httpx.AsyncClient) -> None:
    """Nothing of one that declares its size, and of one that does not, the chunk that is too much is the last."""
    asked: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            asked.append(1)
            assert len(asked) < 100
            yield b" " * 65_536

    check_envelope(await client.post(TOKEN_PATH, content=endless(), headers={"Content-Length": str(2**21)}), 413, "error")
    assert asked == []
    check_envelope(await client.post(TOKEN_PATH, content=endless()), 413, "error")
    assert len(asked) == 17


@pytest.mark.parametrize("path", [f"{PATH}/", f"{TOKEN_PATH}/"])
async def test_a_trailing_slash_is_no_redirect(client: httpx.AsyncClient, account: str, path: str) -> None:
    """A redirect would count as a bad answer with amoCRM: both forms are the same address."""
    headers = signed_headers(account) if path == f"{PATH}/" else {}
    check_envelope(await client.post(path, content=b"{}", headers=headers, follow_redirects=False), 200, "success")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", [PATH, TOKEN_PATH])
async def test_other_methods(client: httpx.AsyncClient, method: str, path: str) -> None:
    """Webhook paths take POST only, and say so in the envelope."""
    response = await client.request(method, path)
    answer = check_envelope(response, 405, "error")
    assert response.headers["allow"] == "POST"
    assert (answer["message"], answer["errors"]) == ("Method Not Allowed", None)


@pytest.mark.parametrize("path", ["/", "/api", "/api/webhooks", "/api/webhooks/amoeba", "/redoc"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_other_paths(client: httpx.AsyncClient, method: str, path: str) -> None:
    """404 in the envelope, and no redirect."""
    assert check_envelope(await client.request(method, path), 404, "error")["message"] == "Not Found"


# Pages


async def test_the_health_page(client: httpx.AsyncClient) -> None:
    """With a database that answers: healthy, in the documented shape."""
    response = await client.get(f"{PATH}/health")
    assert response.status_code == 200
    page = response.json()
    assert list(page) == ["status", "timestamp", "database", "webhook_endpoint"]
    assert TIMESTAMP.fullmatch(page.pop("timestamp"))
    assert page == {"status": "healthy", "database": "connected", "webhook_endpoint": "active"}


async def test_the_test_page(client: httpx.AsyncClient) -> None:
    """That this is the right address, and what it takes, in the documented shape."""
    response = await client.get(f"{PATH}/test")
    page = response.json()
    assert list(page) == ["status", "message", "timestamp", "endpoint", "supported_events"]
    assert TIMESTAMP.fullmatch(page.pop("timestamp"))
    assert (response.status_code, page) == (200, {
        "status": "success",
        "message": "Webhook endpoint is working",
        "endpoint": "/api/webhooks/amo",
        "supported_events": ["leads.add", "leads.update", "leads.delete", "contacts.add", "contacts.update"],
    })  # fmt: skip


async def test_the_pages_for_probes(client: httpx.AsyncClient) -> None:
    """Alive at once, ready as soon as the schema was seen and a key is loaded; the keyring shows fingerprints only."""
    assert (await client.get("/livez")).json() == {"status": "alive"}
    while (await client.get("/readyz")).status_code != 200:
        await asyncio.sleep(0.02)
    assert (await client.get("/readyz")).json() == {"status": "ready", "obstacles": []}
    report = (await client.get("/keyring")).text
    assert fingerprint(CLIENT_SECRET.encode()) in report
    assert CLIENT_SECRET not in report
    assert WEBHOOK_TOKEN not in report


async def test_the_documentation_can_be_switched_off(client: httpx.AsyncClient) -> None:
    """/docs and the document behind it are there by default, and 404 with DOCS_ENABLED=false."""
    assert [(await client.get(path)).status_code for path in ("/docs", "/openapi.json")] == [200, 200]
    async with running(settings_for(NOBODY_LISTENS, docs_enabled=False)) as bare:
        for path in ("/docs", "/openapi.json"):
            check_envelope(await bare.get(path), 404, "error")
        assert (await bare.get(f"{PATH}/test")).status_code == 200


# 503 and 500


async def test_without_a_database(account: str) -> None:
    """Webhooks are answered 503 and to come again, the health page says why, and strangers and nonsense are told as ever."""
    async with running(settings_for(NOBODY_LISTENS)) as client:
        for path, headers in ((PATH, signed(account)), (TOKEN_PATH, JSON)):
            response = await client.post(path, content=json.dumps(MISSION_BODY), headers=headers)
            answer = check_envelope(response, 503, "error")
            assert (answer["message"], response.headers["retry-after"]) == ("The database is not available.", "5")
        page = await client.get(f"{PATH}/health")
        assert (page.status_code, page.json()["status"], page.json()["database"]) == (503, "unhealthy", "disconnected")
        assert page.json()["webhook_endpoint"] == "active"
        check_envelope(await client.post(PATH, content=b"{}"), 401, "error")
        check_envelope(await client.post(PATH, content=b"x", headers=signed(account)), 400, "error")
        assert (await client.get("/livez")).status_code == 200
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")


class SlowBody:
    """A body that arrives when the test says so."""

    def __init__(self, body: bytes) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body[:1]
        self.begun.set()
        await self.go_on.wait()
        yield self._body[1:]


@pytest.mark.parametrize(
    "limits", [{"max_in_flight_requests": 1}, {"max_in_flight_bytes": 1024, "max_body_bytes": 1024}], ids=["requests", "bytes"]
)
async def test_too_much_in_flight(shared_url: str, account: str, limits: dict[str, int]) -> None:
    """Beyond the requests or bytes in flight 503 at once; the place is free again once the first is answered."""
    async with running(settings_for(shared_url, **limits)) as client:
        slow = SlowBody(b"{}")
        first = asyncio.create_task(client.post(PATH, content=slow, headers=signed(account)))
        await slow.begun.wait()
        response = await client.post(TOKEN_PATH, content=b"{}")
        assert check_envelope(response, 503, "error")["message"] == "Too many requests in flight."
        assert response.headers["retry-after"] == "1"
        check_envelope(await client.post(f"{PATH}/wrong", content=b"{}"), 401, "error")
        slow.go_on.set()
        check_envelope(await first, 200, "success")
        check_envelope(await client.post(TOKEN_PATH, content=b"{}"), 200, "success")


async def test_refused_requests_give_their_place_back(shared_url: str, account: str) -> None:
    """Neither 400 nor 413 nor 401 leaves anything in flight."""
    async with running(settings_for(shared_url, max_in_flight_requests=1, max_body_bytes=1024)) as client:
        for _ in range(2):
            check_envelope(await client.post(PATH, content=b"x", headers=signed(account)), 400, "error")
            check_envelope(await client.post(PATH, content=b"x" * 1025, headers=signed(account)), 413, "error")
            check_envelope(await client.post(PATH, content=b"x"), 401, "error")
        check_envelope(await client.post(PATH, content=b"{}", headers=signed(account)), 200, "success")


async def test_a_body_that_does_not_arrive_in_time(shared_url: str, account: str) -> None:
    """The budget runs from the first byte: a sender that stalls is answered 503 and holds no place."""
    async with running(settings_for(shared_url, answer_budget_ms=100)) as client:
        response = await client.post(PATH, content=SlowBody(b"{}"), headers=signed(account))
        assert check_envelope(response, 503, "error")["message"] == "The body did not arrive in time."
        assert response.headers["retry-after"] == "5"


def scope_of(path: str, headers: dict[str, str]) -> dict[str, Any]:
    """Return what a server hands to an application for a POST."""
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": path, "headers": raw, "query_string": b"", "root_path": ""}


async def call(application: Any, scope: dict[str, Any], *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Call an ASGI application with these messages of the server, and return what it sends."""
    incoming, sent = list(messages), []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await application(scope, receive, send)
    return sent


async def test_a_sender_that_is_gone_is_not_answered(client: httpx.AsyncClient, committed: asyncpg.Connection, account: str) -> None:
    """A connection closed before the body was complete leaves neither an answer nor half a delivery."""
    application = client._transport.app  # type: ignore[attr-defined]
    for messages in (
        [{"type": "http.disconnect"}],
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}],
    ):
        assert await call(application, scope_of(PATH, signed(account)), *messages) == []
    assert await committed.fetchval("SELECT count(*) FROM deliveries WHERE account_id = $1", account) == 0


class BrokenInbox:
    """An inbox with a bug."""

    def verify_token(self, token: str) -> Any:
        raise ZeroDivisionError(token)


async def test_a_bug_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """500 in the envelope, without a word of what went wrong; the log has the error's type."""
    endpoint = WebhookEndpoint(BrokenInbox(), Journal(0), settings_for(NOBODY_LISTENS))  # type: ignore[arg-type]
    start, body = await call(endpoint, scope_of(f"{PATH}/secret-token", {}))
    answer = json.loads(body["body"])
    assert (start["status"], list(answer), answer["status"]) == (500, ENVELOPE, "error")
    assert answer["message"] == "Internal error; please report it."
    assert [vars(record)["fields"]["error_type"] for record in caplog.records] == ["ZeroDivisionError"]
