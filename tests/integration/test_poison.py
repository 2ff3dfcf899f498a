"""What nobody should send does not harm what came with it."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, NamedTuple

import pytest

from factories import ACCOUNT, contact, form_body, http_build_query, json_body, lead, lead_v4
from integration.load import FORM, PATIENT, Answer, Post, by_token, send_together, signed
from servers import connect, run_sql, signed_headers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from conftest import StartService

JSON = "application/json"
GOOD = 50


class Poison(NamedTuple):
    """A body that somebody sends all the same, what becomes of it by token (applied, recorded, dead, nothing), and its signed answer."""

    name: str
    becomes: str
    signed_status: int
    body: bytes
    content_type: str = JSON


def raw(fields: str, action: str = "update") -> bytes:
    """Return a JSON body whose one lead has these fields, written as they are."""
    return b'{"leads":{"%s":[{%s}]}}' % (action.encode(), fields.encode())


def forms() -> list[Poison]:
    """Return the poison that only a form can hold, or holds in its own way."""
    good = form_body("leads", "update", lead(id=7001))
    sparse = b"leads[update][99999999][id]=7003&leads[update][99999999][last_modified]=1795000000"
    long_account = http_build_query({"account": {"id": "ж" * 1500}, "leads": {"add": [lead(id=7005)]}})
    account_with_nul = http_build_query({"account": {"id": "a\0b"}, "leads": {"add": [lead(id=7006)]}})
    return [
        Poison("NUL in a form", "applied", 200, form_body("leads", "update", lead(id=7002, name="a\0b")), FORM),
        Poison("bytes that are not UTF-8", "dead", 400, good + b"&leads%5Bupdate%5D%5B0%5D%5Bname%5D=%FF%FE", FORM),
        Poison("an encoded surrogate", "dead", 400, good + b"&leads%5Bupdate%5D%5B0%5D%5Bname%5D=%ED%A0%80", FORM),
        Poison("a deep form", "dead", 400, b"leads" + b"%5Badd%5D" * 10_000 + b"=1", FORM),
        Poison("too many fields", "dead", 400, b"&".join(b"leads[add][0][f%d]=1" % number for number in range(20_001)), FORM),
        Poison("a huge list position", "applied", 200, sparse, FORM),
        Poison("nothing but separators", "nothing", 200, b"&" * 1_000_000, FORM),
        Poison("no event at all", "dead", 400, b"hello=world", FORM),
        Poison("a form that says it is JSON", "dead", 400, form_body("leads", "update", lead(id=7004))),
        Poison("an account of 3,000 bytes", "applied", 400, long_account, FORM),
        Poison("a NUL in the account", "applied", 400, account_with_nul, FORM),
    ]


def texts() -> list[Poison]:
    """Return JSON whose text Postgres cannot hold, or hardly."""
    field = {"field_id": noise(9000), "values": [{"value": 1}]}
    return [
        Poison("NUL", "applied", 200, raw(r'"id":7101,"name":"a\u0000b","k\u0000":1')),
        Poison("a lone surrogate", "applied", 200, raw(r'"id":7102,"name":"a\ud800b","\udfff":["\ud800"]')),
        Poison("NUL in an entity", "recorded", 200, b'{"ta\\u0000sk":{"a\\ud800":[{"id":"x\\u0000"}]}}'),
        Poison("a name of nearly 1 MiB", "applied", 200, json_body("leads", "add", lead_v4(id=7103, name="я" * 520_000))),
        Poison("a field id of 9,000 bytes", "applied", 200, json_body("leads", "add", lead_v4(id=7104, custom_fields_values=[field]))),
        Poison("an id of 3,000 bytes", "dead", 400, raw(f'"id":"{noise(3000)}"')),
        Poison("another entity's id of 3,000 bytes", "recorded", 200, json_body("task", "add", {"id": noise(3000), "updated_at": 1})),
        Poison("an entity's name of 3,000 bytes", "recorded", 200, json_body(noise(3000), noise(3000), {"id": 1, "updated_at": 1})),
        Poison("digits that are no ASCII", "dead", 400, json_body("leads", "add", {"id": "١٢٣"})),
    ]


def numbers() -> list[Poison]:
    """Return JSON with numbers that do not fit."""
    return [
        Poison("NaN", "dead", 400, raw('"id":7201,"price":NaN')),
        Poison("Infinity", "dead", 400, raw('"id":7201,"price":-Infinity')),
        Poison("1e999", "applied", 200, raw('"id":7202,"price":1e999,"updated_at":1e999,"x":-1e999')),
        Poison("1e308", "applied", 200, raw('"id":7203,"price":1e308,"x":1e308,"y":1e-400')),
        Poison("an id of 2^63", "dead", 400, raw(f'"id":{2**63}')),
        Poison("an id of 2^63-1", "applied", 200, raw(f'"id":{2**63 - 1}')),
        Poison("an id of 0", "dead", 400, raw('"id":0')),
        Poison("an id below 0", "dead", 400, raw('"id":-5')),
        Poison("an id with a fraction", "dead", 400, raw('"id":7204.5')),
        Poison("numbers of 2^63", "applied", 200, raw(f'"id":7205,"status_id":{2**63},"pipeline_id":"{2**64}","x":{2**70},"y":{-(2**63)}')),
        Poison("4,300 digits", "applied", 200, raw('"id":7206,"price":{0},"status_id":{0},"updated_at":{0}'.format("9" * 4300))),
        Poison("an id of 5,000 digits", "dead", 400, raw(f'"id":{"9" * 5000}')),
        Poison("date 9999999999", "applied", 200, raw('"id":7207,"updated_at":9999999999,"last_modified":"9999999999"')),
        Poison("a date before all dates", "applied", 200, raw('"id":7208,"updated_at":-99999999999,"last_modified":"0"')),
        Poison("a price of 40 digits", "applied", 200, raw(f'"id":7209,"price":"{"9" * 40}.{"9" * 40}"')),
    ]


def shapes() -> list[Poison]:
    """Return JSON of the wrong types, and more of it than is allowed."""
    everywhere = (
        '"id":7301,"name":{"a":1},"price":[1],"status_id":{},"pipeline_id":true,'
        '"custom_fields":5,"custom_fields_values":[[1],{},{"field_id":{}},7],"tags":null'
    )
    values = '"id":7302,"custom_fields":{"7":{"id":123458,"values":{"value":{"a":[]}}},"8":{"id":[],"values":3}}'
    return [
        Poison("wrong types everywhere", "applied", 200, raw(everywhere)),
        Poison("values of wrong types", "applied", 200, raw(values)),
        Poison("true as id", "dead", 400, raw('"id":true')),
        Poison("null as id", "dead", 400, raw('"id":null')),
        Poison("a list as id", "dead", 400, raw('"id":[7303]')),
        Poison("a number for an item", "dead", 400, b'{"leads":{"add":[5]}}'),
        Poison("a text for the items", "dead", 400, b'{"leads":{"add":"7304"}}'),
        Poison("a number for the actions", "dead", 400, b'{"leads":7305}'),
        Poison("a number for the account", "applied", 200, b'{"account":5,"leads":{"add":[{"id":7306}]}}'),
        Poison("a list", "dead", 400, b'[{"leads":{"add":[{"id":7307}]}}]'),
        Poison("a number", "dead", 400, b"5"),
        Poison("half of it", "dead", 400, raw('"id":7308')[:-2]),
        Poison("10,000 levels", "dead", 400, b'{"leads":{"add":[{"id":7309,"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}]}}"),
        Poison("more than 20,000 fields", "dead", 400, b'{"leads":{"add":[%s]}}' % b",".join(b'{"id":7310}' for _ in range(20_001))),
        Poison("nothing", "nothing", 200, b""),
        Poison("empty lists", "nothing", 200, b'{"leads":{"add":[],"update":{}},"contacts":null}'),
    ]


def noise(length: int) -> str:
    """Return text that does not compress."""
    return random.Random(length).randbytes(length).hex()[:length]  # noqa: S311 - no secret


POISON = forms() + texts() + numbers() + shapes()


def good_posts() -> list[Post]:
    """Return deliveries as they should be, of leads and contacts, in both encodings."""
    by_form = [by_token(form_body("leads", "update", lead(id=number, name=f"good {number}"))) for number in range(1, 21)]
    by_json = [signed(ACCOUNT, json_body("leads", "add", lead_v4(id=number, name=f"good {number}"))) for number in range(21, 41)]
    people = [by_token(form_body("contacts", "update", contact(id=number, name=f"good {number}"))) for number in range(41, GOOD + 1)]
    return by_form + by_json + people


def mixed(good: Sequence[Post], bad: Sequence[Post]) -> list[Post]:
    """Put the bad ones among the good ones."""
    return random.Random(7).sample([*good, *bad], len(good) + len(bad))  # noqa: S311 - no secret


async def require_good_applied(connection: asyncpg.Connection, answers: Sequence[Answer], good: Sequence[Post]) -> None:
    """Require that every good delivery was answered and applied as if it had come alone."""
    of_good = [answer for answer in answers if any(answer.post is post for post in good)]
    assert [(answer.status, answer.document.get("status")) for answer in of_good] == [(200, "success")] * GOOD
    names = "SELECT count(*) FROM (SELECT id, name FROM leads UNION ALL SELECT id, name FROM contacts) c WHERE name = 'good ' || id"
    assert await connection.fetchval(names) == GOOD


async def require_shared_transaction(connection: asyncpg.Connection, good: Sequence[Post], bad: Sequence[Post]) -> None:
    """Require that good and bad were in one batch at all: their deliveries were stored by the same transaction."""
    rows = await connection.fetch("SELECT body, xmin::text AS transaction FROM deliveries")
    transactions: dict[bool, set[str]] = {True: set(), False: set()}
    bodies = {post.body for post in good}
    for row in rows:
        transactions[row["body"] in bodies].add(row["transaction"])
    assert transactions[True] & transactions[False]


async def test_by_token_poison_is_stored_and_answered_200_and_harms_no_neighbour(
    start_service: StartService, pooled_url: str, database_url: str
) -> None:
    """By token nothing but 200, 401, 413 and 503 exists, and every good delivery of the same batch is applied."""
    service = start_service(pooled_url, env=PATIENT)
    good, bad = good_posts(), [by_token(poison.body, content_type=poison.content_type) for poison in POISON]
    too_large = by_token(form_body("leads", "add", lead(id=7999, name="x" * 2**20)))

    answers = await send_together(mixed(good, [*bad, too_large]), service)

    statuses = {answer.post.body: answer.status for answer in answers}
    assert statuses.pop(too_large.body) == 413
    assert {poison.name: statuses[poison.body] for poison in POISON} == {poison.name: 200 for poison in POISON}
    async with connect(database_url) as connection:
        await require_good_applied(connection, answers, good)
        await require_shared_transaction(connection, good, bad)
        assert {poison.name: await _became(connection, poison) for poison in POISON} == {poison.name: poison.becomes for poison in POISON}
    assert "Traceback" not in service.log_path.read_text()


async def test_signed_poison_is_refused_where_it_is_invalid_and_harms_no_neighbour(
    start_service: StartService, pooled_url: str, database_url: str
) -> None:
    """A signed delivery that is invalid is answered 400 with nothing stored, any other is applied."""
    service = start_service(pooled_url, env=PATIENT)
    good = good_posts()
    bad = [Post("/api/webhooks/amo", {"Content-Type": poison.content_type, **signed_headers(ACCOUNT)}, poison.body) for poison in POISON]

    answers = await send_together(mixed(good, bad), service)

    statuses = {answer.post.body: answer.status for answer in answers}
    assert {poison.name: statuses[poison.body] for poison in POISON} == {poison.name: poison.signed_status for poison in POISON}
    async with connect(database_url) as connection:
        await require_good_applied(connection, answers, good)
        await require_shared_transaction(connection, good, bad)
        for poison in POISON:
            assert await _became(connection, poison) == (poison.becomes if poison.signed_status == 200 else "nothing stored"), poison.name
    assert "Traceback" not in service.log_path.read_text()


async def _became(connection: asyncpg.Connection, poison: Poison) -> str:
    """Return the one state or effect of a body's events."""
    delivery = await connection.fetchrow("SELECT account_id, id FROM deliveries WHERE body = $1", poison.body)
    if delivery is None:
        return "nothing stored"
    events = await connection.fetch("SELECT coalesce(effect, state) AS became FROM events WHERE delivery_id = $1", delivery["id"])
    return " and ".join({event["became"] for event in events}) or "nothing"


REFUSAL = """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'a name to be kept secret'
        USING ERRCODE = '{state}', CONSTRAINT = 'no_such', DETAIL = 'a detail to be kept secret';
END $$"""


def refuse(url: str, table: str, condition: str, state: str) -> None:
    """Let the database refuse some rows."""
    trigger = f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse()"
    run_sql(url, REFUSAL.format(state=state), trigger)


async def test_a_lead_that_the_database_refuses_stays_pending_alone(
    start_service: StartService, pooled_url: str, database_url: str
) -> None:
    """All others of its batch are applied and answered as a success; it, and a copy of it, are answered 200 as partial."""
    refuse(database_url, "leads", "NEW.id = 666", "23514")
    service = start_service(pooled_url, env=PATIENT | {"WORKER_ENABLED": "false"})
    refused = by_token(form_body("leads", "update", lead(id=666), lead(id=667, name="its neighbour in the body")))
    good, bad = good_posts(), [refused, refused]

    answers = await send_together(mixed(good, bad), service)

    of_bad = [answer for answer in answers if answer.post is refused]
    assert [(answer.status, answer.document["status"]) for answer in of_bad] == [(200, "partial")] * 2
    # whichever is second may come before its neighbour in the first is applied
    first = max(of_bad, key=lambda answer: answer.document["events_processed"])
    assert (first.document["events_processed"], [problem["path"] for problem in first.document["errors"]]) == (1, ["leads.update[0]"])
    async with connect(database_url) as connection:
        await require_good_applied(connection, answers, good)
        await require_shared_transaction(connection, good, bad)
        assert await connection.fetchval("SELECT name FROM leads WHERE id = 667") == "its neighbour in the body"
        pending = await connection.fetch("SELECT entity_id, attempts, last_error FROM events WHERE state <> 'processed'")
        assert [tuple(row) for row in pending] == [("666", 1, "CheckViolationError 23514 no_such")]
        assert await connection.fetchval("SELECT count(*) FROM attempts WHERE kind = 'accept' AND outcome = 'failed'") == 1
    assert "secret" not in service.log_path.read_text() + json.dumps([answer.document for answer in of_bad])


@pytest.mark.parametrize("state", ["22000", "54000"])
async def test_a_delivery_that_the_database_refuses_is_kept_as_a_raw_body_with_a_dead_event(
    start_service: StartService, pooled_url: str, database_url: str, state: str
) -> None:
    """The others of its batch are applied as if it had not been there."""
    refuse(database_url, "events", "NEW.entity = 'gift'", state)
    service = start_service(pooled_url, env=PATIENT | {"WORKER_ENABLED": "false"})
    bad = [by_token(form_body("gift", "add", {"id": number})) for number in range(3)]
    good = good_posts()

    answers = await send_together(mixed(good, bad), service)

    assert {answer.status for answer in answers if answer.post in bad} == {200}
    async with connect(database_url) as connection:
        await require_good_applied(connection, answers, good)
        dead = await connection.fetch(
            "SELECT d.body, d.unparsed, e.entity, e.state, e.last_error"
            " FROM deliveries d JOIN events e ON e.delivery_id = d.id WHERE e.effect IS NULL"
        )
        assert sorted(row["body"] for row in dead) == sorted(post.body for post in bad)
        assert {(row["unparsed"], row["entity"], row["state"]) for row in dead} == {(True, "unparsed", "dead")}
        assert all(state in row["last_error"] and "secret" not in row["last_error"] for row in dead)
    assert "secret" not in service.log_path.read_text()


async def test_what_cannot_be_stored_in_any_form_is_answered_503_alone(
    start_service: StartService, pooled_url: str, database_url: str
) -> None:
    """Where even the raw body is refused, its sender is to come again, and no neighbour is."""
    refuse(database_url, "events", "NEW.account_id = '666'", "23514")
    service = start_service(pooled_url, env=PATIENT)
    bad = [by_token(form_body("leads", "update", lead(id=number, account_id="666"), account="666")) for number in range(70, 74)]
    good = good_posts()

    answers = await send_together(mixed(good, bad), service)

    assert {answer.status for answer in answers if answer.post in bad} == {503}
    async with connect(database_url) as connection:
        await require_good_applied(connection, answers, good)
        assert await connection.fetchval("SELECT count(*) FROM deliveries WHERE account_id = '666'") == 0


async def test_an_account_of_3000_bytes_harms_no_neighbour(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """A signed account id that no index can hold is refused or stored, and the others of its batch are applied."""
    service = start_service(pooled_url, env=PATIENT)
    bad = [signed(noise(3000 + number), json_body("leads", "add", lead_v4())) for number in range(3)]
    good = good_posts()

    answers = await send_together(mixed(good, bad), service)

    assert {answer.status for answer in answers if answer.post in bad} <= {200, 400, 401}
    async with connect(database_url) as connection:
        await require_good_applied(connection, answers, good)
