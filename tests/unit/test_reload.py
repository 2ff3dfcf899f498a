"""What changes without a restart: keys and the mapping of fields."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING

import pytest

from amo_receiver.inbox.endpoints import PATH
from factories import json_body
from in_process import check_envelope, running, settings_for, signed, write_keyring
from servers import CLIENT_ID, CLIENT_SECRET, signed_headers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import asyncpg

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so; the test's own time limit ends it."""
    while not await condition():
        await asyncio.sleep(0.02)


async def test_a_new_key_is_accepted_without_a_restart(shared_url: str, account: str, tmp_path: Path) -> None:
    """A keyring file of a higher generation takes effect, its predecessor's secret ends with it, and another source may join."""
    write_keyring(tmp_path / "acme.json", 1, [("client_secret", "first-secret-0123456789")])

    async with running(settings_for(shared_url, amocrm_keyring_dir=tmp_path)) as client:

        async def status(secret: str, name: str = "acme") -> int:
            return (await client.post(PATH, content=b"{}", headers=signed_headers(account, name, secret))).status_code

        assert [await status(secret) for secret in ("first-secret-0123456789", "second-secret-0123456789")] == [200, 401]
        write_keyring(tmp_path / "acme.json", 2, [("client_secret", "second-secret-0123456789")])
        write_keyring(tmp_path / "other.json", 1, [("client_secret", "third-secret-0123456789")], client_id="other")

        async def changed() -> bool:
            return await status("second-secret-0123456789") == 200

        await until(changed)
        assert await status("first-secret-0123456789") == 401
        assert await status("third-secret-0123456789", "other") == 200
        assert await status(CLIENT_SECRET, CLIENT_ID) == 200


async def test_a_new_mapping_is_taken_over_without_a_restart(
    shared_url: str, committed: asyncpg.Connection, account: str, tmp_path: Path
) -> None:
    """What statuses and fields mean changes with the file; a broken file changes nothing."""
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('[leads.status]\n1 = "first"\n')
    numbers = count(1)

    async with running(settings_for(shared_url, mapping_file=mapping, log_file=tmp_path / "app.log")) as client:

        async def word() -> str | None:
            number = next(numbers)
            body = json_body("leads", "update", {"id": number, "status_id": 1})
            check_envelope(await client.post(PATH, content=body, headers=signed(account)), 200, "success")
            found: str | None = await committed.fetchval("SELECT status FROM leads WHERE account_id = $1 AND id = $2", account, number)
            return found

        async def changed() -> bool:
            return await word() == "second"

        async def complained() -> bool:
            return "stays in force" in (tmp_path / "app.log").read_text()

        assert await word() == "first"
        mapping.write_text('[leads.status]\n1 = "second"\n')
        await until(changed)
        mapping.write_text("[leads.status")
        await until(complained)
        assert await word() == "second"
