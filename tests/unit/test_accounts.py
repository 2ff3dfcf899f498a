"""Whose event it is: what the header, the body, its items and the token say, and what happens where they disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import pytest_asyncio

from amo_receiver.amocrm.keyring import url_token
from amo_receiver.inbox.endpoints import PATH
from factories import digital_pipeline_lead, form_body, http_build_query, json_body, lead, lead_v4
from in_process import FORM, JSON, TOKEN_PATH, check_envelope, fault, running, settings_for, signed, states, write_keyring
from servers import signed_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg
    import httpx

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT = 1_640_995_200
URL_KEY = "url-key-of-the-tests-0123456789"


async def test_a_signed_body_for_another_account(client: httpx.AsyncClient, committed: asyncpg.Connection, account: str) -> None:
    """400 on the signed path where the body's own account is another one; its items' do not count, the header does."""
    body = json_body("leads", "add", lead_v4(), account="999")
    answer = check_envelope(await client.post(PATH, content=body, headers=signed_headers(account)), 400, "error")
    assert answer["errors"] == [fault("account.id", "is not the account of the X-Account-ID header")]
    assert await states(committed, account) == await states(committed, "999") == []
    body = json_body("leads", "add", lead_v4(account_id=999))
    check_envelope(await client.post(PATH, content=body, headers=signed(account, JSON)), 200, "success")
    assert (len(await states(committed, account)), await states(committed, "999")) == (1, [])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_one_account(shared_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an application whose plain token is for account 777, and whose URL key serves 778 and 779."""
    folder = tmp_path_factory.mktemp("keyring")
    write_keyring(folder / "acme.json", 1, [("url_key", URL_KEY)], client_id="", accounts=["778", "779"])
    async with running(settings_for(shared_url, amocrm_account_id="777", amocrm_keyring_dir=folder)) as made:
        yield made


def account_url(account: str) -> str:
    return f"{PATH}/{quote(url_token(URL_KEY.encode(), account), safe='')}"


async def test_a_token_of_one_account(of_one_account: httpx.AsyncClient, committed: asyncpg.Connection) -> None:
    """The account's own body and one that names no account are its; a body for another account is 401 and not stored."""
    for path, account in ((TOKEN_PATH, "777"), (account_url("778"), "778")):
        good = form_body("leads", "update", lead(at=AT, account_id=account), account=account)
        nameless = form_body("leads", "status", digital_pipeline_lead(id=2), account=None)
        for body in (good, nameless):
            check_envelope(await of_one_account.post(path, content=body, headers=FORM), 200, "success")
        assert [entity_id for _, entity_id, *_ in await states(committed, account)] == ["10000001", "2"]
        foreign = [form_body("leads", "update", lead(), account="555"), form_body("leads", "update", lead(account_id=555), account=None)]
        for body in foreign:
            answer = check_envelope(await of_one_account.post(path, content=body, headers=FORM), 401, "error")
            assert "another account" in answer["message"]
    assert await states(committed, "555") == []


async def test_a_token_of_an_account_that_its_source_does_not_serve(of_one_account: httpx.AsyncClient) -> None:
    """The token is right and the account is not listed: 401, and the message says where to add it."""
    answer = check_envelope(await of_one_account.post(account_url("780"), content=b"{}"), 401, "error")
    assert "accounts" in answer["message"]
    check_envelope(await of_one_account.post(account_url("779"), content=b"{}"), 200, "success")


async def test_without_an_account_id_the_plain_token_serves_any(client: httpx.AsyncClient, committed: asyncpg.Connection) -> None:
    """AMOCRM_ACCOUNT_ID unset: each body's own account counts, and one body may even hold items of several."""
    for name in ("any-1", "any-2"):
        body = form_body("leads", "update", lead(at=AT, account_id=None), account=name)
        check_envelope(await client.post(TOKEN_PATH, content=body, headers=FORM), 200, "success")
        assert len(await states(committed, name)) == 1
    mixed = json_body("leads", "update", lead_v4(account_id="any-3"), lead_v4(account_id="any-4"))
    assert check_envelope(await client.post(TOKEN_PATH, content=mixed, headers=JSON), 200, "success")["events_processed"] == 2
    assert [len(await states(committed, name)) for name in ("any-3", "any-4")] == [1, 1]
    assert await committed.fetchval("SELECT account_id FROM deliveries WHERE body = $1", mixed) == "any-3"


@pytest.mark.parametrize(
    ("block", "item", "owner"),
    [
        ({"id": "by-body", "subdomain": "romashka"}, "by-item", "by-body"),
        ({"subdomain": "romashka"}, "by-item", "by-item"),
        ({"subdomain": "romashka"}, None, "subdomain:romashka"),
        ({}, None, ""),
    ],
)
async def test_whose_event_it_is(
    client: httpx.AsyncClient, committed: asyncpg.Connection, block: dict[str, str], item: str | None, owner: str
) -> None:
    """By any-account token: the body's account, else the item's, else the subdomain, else nobody's."""
    mark = f"mark-{owner}"
    body = http_build_query({"task": {"add": [{"id": mark, **({"account_id": item} if item else {})}]}, "account": block})
    check_envelope(await client.post(TOKEN_PATH, content=body, headers=FORM), 200, "success")
    rows = await committed.fetch(
        "SELECT d.account_id, e.account_id FROM events e JOIN deliveries d ON d.id = e.delivery_id WHERE entity_id = $1", mark
    )
    assert [tuple(row) for row in rows] == [(owner, owner)]


async def test_whose_event_it_is_on_the_signed_path(client: httpx.AsyncClient, committed: asyncpg.Connection, account: str) -> None:
    """The header's account, whatever the body leaves out."""
    body = form_body("leads", "update", lead(at=AT, account_id=None), account=None) + b"&account[subdomain]=romashka"
    check_envelope(await client.post(PATH, content=body, headers=signed(account, FORM)), 200, "success")
    assert len(await states(committed, account)) == 1
