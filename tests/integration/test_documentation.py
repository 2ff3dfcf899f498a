"""The OpenAPI document: every answer it shows is one that the service really gives, to the request that it shows."""

from __future__ import annotations

import asyncio
import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest_asyncio

from amo_receiver import documentation
from amo_receiver.embedded.folder import free_port
from amo_receiver.inbox.endpoints import PATH
from in_process import NOBODY_LISTENS, TOKEN_PATH, running, settings_for
from servers import connect, signed_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import asyncpg
    from pydantic import BaseModel

ACCOUNT = "32000001"
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
EXAMPLE_TIMESTAMP = "2024-01-01T12:00:00Z"
TOKEN = PATH + "/{token}"
HEALTH, TEST = f"{PATH}/health", f"{PATH}/test"
LARGE = b"x" * 1_048_577
SIGNED, STRANGER = signed_headers(ACCOUNT), signed_headers(ACCOUNT, client="stranger")
LOCKED_LEAD = 777


class Shown(NamedTuple):
    """An answer as documented: where, its status code, and the name of its example."""

    path: str
    status_code: int
    example: str


class Asked(NamedTuple):
    """The request that makes the service give it: of which service, method, real path, headers and body (None: the documented one)."""

    service: str
    method: str
    path: str
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes | None = None


INVALID = b'{"leads":{"add":[{"id":1},{"name":"x"}]}}'
LOCKED = b'{"leads":{"add":[{"id":%d}]},"account":{"id":"%s"}}' % (LOCKED_LEAD, ACCOUNT.encode())
ANSWERS = {
    Shown(PATH, 200, "success"): Asked("running", "POST", PATH, SIGNED),
    Shown(PATH, 200, "partial"): Asked("impatient", "POST", PATH, SIGNED, LOCKED),
    Shown(PATH, 400, "error"): Asked("running", "POST", PATH, SIGNED, INVALID),
    Shown(PATH, 401, "error"): Asked("running", "POST", PATH, STRANGER),
    Shown(PATH, 413, "error"): Asked("running", "POST", PATH, SIGNED, LARGE),
    Shown(PATH, 503, "error"): Asked("without database", "POST", PATH, SIGNED),
    Shown(TOKEN, 200, "success"): Asked("running", "POST", TOKEN_PATH),
    Shown(TOKEN, 200, "partial"): Asked("impatient", "POST", TOKEN_PATH, {}, LOCKED),
    Shown(TOKEN, 401, "error"): Asked("running", "POST", f"{PATH}/wrong"),
    Shown(TOKEN, 413, "error"): Asked("running", "POST", TOKEN_PATH, {}, LARGE),
    Shown(TOKEN, 503, "error"): Asked("without database", "POST", TOKEN_PATH),
    Shown(HEALTH, 200, "healthy"): Asked("running", "GET", HEALTH),
    Shown(HEALTH, 503, "unhealthy"): Asked("without database", "GET", HEALTH),
    Shown(TEST, 200, "success"): Asked("running", "GET", TEST),
    Shown("/livez", 200, "alive"): Asked("running", "GET", "/livez"),
    Shown("/readyz", 200, "ready"): Asked("running", "GET", "/readyz"),
    Shown("/readyz", 503, "not ready"): Asked("without database", "GET", "/readyz"),
}


@pytest_asyncio.fixture
async def services(database_url: str) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """Return clients of three services: one that runs, one that waits for no lock, one without a database."""
    impatient = settings_for(database_url, statement_timeout_ms=50)
    async with (
        running(settings_for(NOBODY_LISTENS)) as without,
        running(impatient) as waiting_for_nothing,
        running(settings_for(database_url)) as client,
    ):
        while (await client.get("/readyz")).status_code != 200 or "not reached yet" in (await without.get("/readyz")).text:
            await asyncio.sleep(0.02)
        yield {"running": client, "impatient": waiting_for_nothing, "without database": without}


@pytest_asyncio.fixture
async def locked_lead(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Hold a lead's row as long as the test takes, so that no event on it can be applied."""
    async with connect(database_url) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "INSERT INTO leads (account_id, id, custom_fields, snapshot_at, version_at, version_event) "
            "VALUES ($1, $2, '{}', '-infinity', '-infinity', gen_random_uuid())",
            ACCOUNT,
            LOCKED_LEAD,
        )
        yield connection
        await transaction.rollback()


async def document_of(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.get("/openapi.json")
    document: dict[str, Any] = response.json()
    return document


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(path, method): operation for path, methods in document["paths"].items() for method, operation in methods.items()}


def shown(document: dict[str, Any]) -> dict[Shown, tuple[dict[str, Any], str]]:
    """Return every example of every documented answer, with the name of its schema."""
    return {
        Shown(path, int(code), name): (example["value"], content["schema"]["$ref"].rpartition("/")[2])
        for (path, _), operation in operations(document).items()
        for code, response in operation["responses"].items()
        for content in [response["content"][JSON]]
        for name, example in content["examples"].items()
    }


def check_against(model: type[BaseModel], answer: Any) -> None:
    """Check an answer against a documented model: its types exactly, and no field that is not named there."""
    assert answer.keys() == model.model_fields.keys()
    model.model_validate(answer, strict=True)


async def ask(client: httpx.AsyncClient, asked: Asked, examples: dict[str, bytes]) -> list[httpx.Response]:
    """Make the request, with each documented body where the test has none of its own."""
    if asked.method == "GET":
        return [await client.get(asked.path)]
    bodies = {JSON: asked.body} if asked.body is not None else examples
    answers = []
    for kind, body in bodies.items():
        answer = await client.post(asked.path, content=body, headers={**asked.headers, "Content-Type": kind})
        while asked.service == "impatient" and answer.status_code == 503:  # on a busy machine it may be: come again
            answer = await client.post(asked.path, content=body, headers={**asked.headers, "Content-Type": kind})
        answers.append(answer)
    return answers


def request_examples(operation: dict[str, Any]) -> dict[str, bytes]:
    content = operation["requestBody"]["content"]
    return {JSON: json.dumps(content[JSON]["example"]).encode(), FORM: content[FORM]["example"].encode()}


async def test_each_documented_answer_is_a_real_one(services: dict[str, httpx.AsyncClient], locked_lead: asyncpg.Connection) -> None:
    """Asked as documented, the service gives the documented status code, body (but for the time) and headers, in that schema."""
    document = await document_of(services["running"])
    documented = shown(document)
    assert documented.keys() == ANSWERS.keys()
    for key, (example, model_name) in documented.items():
        asked = ANSWERS[key]
        operation = document["paths"][key.path][asked.method.lower()]
        examples = request_examples(operation) if asked.method == "POST" else {}
        for response in await ask(services[asked.service], asked, examples):
            assert response.status_code == key.status_code, (key, response.text)
            answer = response.json()
            check_against(getattr(documentation, model_name), answer)
            assert {**answer, **({"timestamp": EXAMPLE_TIMESTAMP} if "timestamp" in answer else {})} == example, key
            assert list(answer) == list(example), key
            for header in operation["responses"][str(key.status_code)].get("headers", {}):
                assert response.headers[header].isdigit()


async def test_every_status_code_of_the_webhook_paths_is_documented(services: dict[str, httpx.AsyncClient]) -> None:
    """On the signed path 200, 400, 401, 413 and 503; on the token path no 400, because amoCRM is never told that its body is bad."""
    paths = (await document_of(services["running"]))["paths"]
    assert list(paths[PATH]["post"]["responses"]) == ["200", "400", "401", "413", "503"]
    assert list(paths[TOKEN]["post"]["responses"]) == ["200", "401", "413", "503"]
    assert paths[PATH]["post"]["responses"]["503"]["headers"].keys() == {"Retry-After"}


async def test_the_document_as_a_whole(services: dict[str, httpx.AsyncClient]) -> None:
    """Contact, security, unique operations, and no reference that leads nowhere."""
    client = services["running"]
    document = await document_of(client)
    assert document["info"]["contact"]["email"] == "support@asia-deals.com"
    assert list(document["paths"]) == [PATH, TOKEN, HEALTH, TEST, "/livez", "/readyz"]
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(set(ids)) == len(ids)
    assert [parameter["name"] for parameter in document["paths"][TOKEN]["post"]["parameters"]] == ["token"]
    schemes = document["components"]["securitySchemes"]
    (required,) = document["paths"][PATH]["post"]["security"]
    assert required.keys() == schemes.keys() == {scheme["name"] for scheme in schemes.values()} == SIGNED.keys()
    references = set(_references(document))
    assert references == {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "/openapi.json" in page.text


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [node["$ref"]] if "$ref" in node else [found for child in node.values() for found in _references(child)]
    return [found for child in node for found in _references(child)] if isinstance(node, list) else []


async def test_with_a_management_port_the_probes_are_there_and_not_documented() -> None:
    """The public port has neither the pages nor their documentation; the management port has the pages."""
    port = free_port()
    async with running(settings_for(NOBODY_LISTENS, management_port=port, management_host="127.0.0.1")) as client:
        assert list((await document_of(client))["paths"]) == [PATH, TOKEN, HEALTH, TEST]
        assert [(await client.get(path)).status_code for path in ("/livez", "/readyz", "/keyring")] == [404] * 3
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as probe:
            await until_it_answers(probe)
            assert [(await probe.get(path)).status_code for path in ("/livez", "/readyz", "/keyring", TEST)] == [200, 503, 200, 404]


async def until_it_answers(client: httpx.AsyncClient) -> None:
    while True:
        try:
            await client.get("/livez")
        except httpx.ConnectError:
            await asyncio.sleep(0.02)
        else:
            return
