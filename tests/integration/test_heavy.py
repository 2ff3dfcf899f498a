"""Bodies that are as heavy as the limits allow, and what our own code cannot digest: they cost their sender, not their neighbours."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import httpx

from factories import form_body, lead
from integration.load import PATIENT
from servers import WEBHOOK_TOKEN, connect

if TYPE_CHECKING:
    from conftest import StartService

TOKEN_PATH = f"/api/webhooks/amo/{WEBHOOK_TOKEN}"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}
EVENTS, FIELDS = 6_000, 6_000


def many_events(name: str) -> bytes:
    """Return a body of partial updates, each of another lead."""
    return json.dumps({"leads": {"update": [{"id": number + 1, "name": name} for number in range(EVENTS)]}}).encode()


def many_fields(value: str) -> bytes:
    """Return one partial update with as many custom fields as the limits allow."""
    fields = [{"field_id": number, "values": [{"value": value}]} for number in range(FIELDS)]
    return json.dumps({"leads": {"update": [{"id": 999_999, "custom_fields_values": fields}]}}).encode()


async def until_nothing_is_pending(url: str) -> None:
    """Wait for the worker."""
    async with connect(url) as connection, asyncio.timeout(60):
        while await connection.fetchval("SELECT count(*) FROM events WHERE state = 'pending'"):
            await connection.execute("UPDATE events SET available_at = now() WHERE state = 'pending' AND attempts = 1")
            await asyncio.sleep(0.2)


async def test_the_heaviest_bodies_are_stored_and_applied(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """They are committed at once, applied then or by the worker, on existing rows too; a small delivery beside them is answered 200."""
    service = start_service(pooled_url)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, trust_env=False) as client, asyncio.timeout(100):
        for turn in ("first", "second"):
            bodies = [many_events(turn), many_fields(turn), form_body("leads", "update", lead(id=77, name=turn, at=int(time.time())))]
            answers = await asyncio.gather(
                *(client.post(TOKEN_PATH, content=body, headers=FORM if body.startswith(b"account") else JSON) for body in bodies)
            )
            again = [await _repeat(client, body, answer) for body, answer in zip(bodies, answers, strict=True)]
            assert {answer.status_code for answer in again} == {200}
        await until_nothing_is_pending(database_url)
    async with connect(database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM leads WHERE name = 'second'") == EVENTS + 1
        fields = json.loads(await connection.fetchval("SELECT custom_fields FROM leads WHERE id = 999999"))
        assert {field["values"][0]["value"] for field in fields.values()} == {"second"}
        assert len(fields) == FIELDS
        assert await connection.fetchval("SELECT count(*) FROM events WHERE state <> 'processed'") == 0


async def _repeat(client: httpx.AsyncClient, body: bytes, answer: httpx.Response) -> httpx.Response:
    """Send again what was answered 503, as amoCRM does: on a slow machine the budget may pass, but not for ever."""
    while answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        answer = await client.post(TOKEN_PATH, content=body, headers=FORM if body.startswith(b"account") else JSON)
    return answer


async def test_numbers_that_jsonb_writes_differently_harm_no_neighbour(
    start_service: StartService, pooled_url: str, database_url: str
) -> None:
    """A float that comes back from the database as an integer beyond 64 bits is applied on a retry, and gives the same row."""
    service = start_service(pooled_url, env=PATIENT)
    odd: dict[str, Any] = {"id": 1, "name": 1e20, "custom_fields_values": [{"field_id": 5, "values": [{"value": 1e20}]}]}
    body = json.dumps({"leads": {"update": [odd, {"id": 2, "name": "good"}]}}).encode()
    async with httpx.AsyncClient(base_url=service.url, timeout=60, trust_env=False) as client, connect(database_url) as connection:
        assert (await client.post(TOKEN_PATH, content=body, headers=JSON)).json()["status"] == "success"
        rows = "SELECT id, name, custom_fields, version_at, versions FROM leads ORDER BY id"
        before = [tuple(row) for row in await connection.fetch(rows)]
        await connection.execute("DELETE FROM leads")
        await connection.execute(
            "UPDATE events SET state = 'pending', effect = NULL, processed_at = NULL, attempts = 1, available_at = now()"
        )
        await until_nothing_is_pending(database_url)
        assert [tuple(row) for row in await connection.fetch(rows)] == before
        assert before[0][1] == "1e+20"
        assert await connection.fetchval("SELECT count(*) FROM attempts WHERE outcome <> 'applied'") == 0
