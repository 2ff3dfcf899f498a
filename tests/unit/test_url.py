"""`url`: what it prints is what the service accepts."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

from amo_receiver.amocrm.keyring import LONGEST_ACCOUNT_CHARS, fingerprint
from amo_receiver.commands import app
from amo_receiver.errors import ConfigurationError
from amo_receiver.inbox.endpoints import PATH
from amo_receiver.settings import load_settings
from amo_receiver.watch import KeyringDirectory, load_keyring

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

NOW = datetime.now(UTC)
TOKEN = "a-plain-token+of/the-tests"


def key(secret: str, state: str = "current", kind: str = "url_key", hours: float | None = None) -> dict[str, object]:
    """Return a key of a file, which is accepted for so many hours from now on, or for ever."""
    end = hours and (NOW + timedelta(hours=hours)).isoformat()
    return {"kind": kind, "secret": secret, "state": state, "not_before": None, "not_after": end}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a keyring folder that the settings name, with no other credentials."""
    monkeypatch.chdir(tmp_path)
    for name in ("AMOCRM_CLIENT_ID", "AMOCRM_CLIENT_SECRET", "AMOCRM_WEBHOOK_TOKEN", "AMOCRM_ACCOUNT_ID"):
        monkeypatch.delenv(name, raising=False)
    made = tmp_path / "keyring"
    made.mkdir()
    monkeypatch.setenv("AMOCRM_KEYRING_DIR", str(made))
    return made


def write(folder: Path, name: str, accounts: list[str] | None, *keys: dict[str, object]) -> None:
    (folder / name).write_text(json.dumps({"version": 1, "generation": 1, "client_id": name, "accounts": accounts, "keys": keys}))


def url(account: str) -> Result:
    return CliRunner().invoke(app, ["url", "--", account])


def test_each_current_key_that_serves_the_account_has_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path, source and fingerprint; neither the former nor the next key, nor another account's, nor one that has expired."""
    monkeypatch.setenv("AMOCRM_WEBHOOK_TOKEN", TOKEN)
    write(
        folder, "acme", ["77", "a/b"], key("old", "previous"), key("mine", hours=1), key("new", "next"), key("signs", kind="client_secret")
    )
    write(folder, "any", None, key("anyones"))
    write(folder, "other", ["78"], key("others"))
    write(folder, "over", None, key("expired", hours=-1))
    keyring_folder = KeyringDirectory(folder)
    keyring_folder.load()
    keyring = load_keyring(load_settings(), keyring_folder)
    for account in ("77", "a/b"):
        done = url(account)
        assert done.exit_code == 0
        lines = [line.split(" ") for line in done.stdout.splitlines()]
        wanted = [("acme", b"mine"), ("any", b"anyones"), ("default", TOKEN.encode())]
        assert [line[1:] for line in lines] == [[source, fingerprint(secret)] for source, secret in wanted]
        for path, source, name in lines:
            beginning, _, token = path.rpartition("/")
            assert beginning == PATH
            match = keyring.verify_token(unquote(token), NOW)
            assert (match.source.name, match.fingerprint, match.account_id) == (source, name, None if source == "default" else account)


def test_the_plain_tokens_account_alone_has_its_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token for one account is not shown for another; no folder is needed."""
    monkeypatch.delenv("AMOCRM_KEYRING_DIR")
    monkeypatch.setenv("AMOCRM_WEBHOOK_TOKEN", "plain")
    monkeypatch.setenv("AMOCRM_ACCOUNT_ID", "77")
    assert url("77").stdout == f"{PATH}/plain default {fingerprint(b'plain')}\n"
    assert isinstance(url("78").exception, ConfigurationError)


@pytest.mark.parametrize("account", ["78", "", "7" * (LONGEST_ACCOUNT_CHARS + 1)])
def test_without_a_key_the_error_says_what_it_takes(folder: Path, account: str) -> None:
    """In one sentence with the settings' names, and without a secret; an account that no token may name has none either."""
    write(folder, "acme", ["77"], key("a-secret-of-acme"))
    if account != "78":
        write(folder, "any", None, key("a-secret-of-any"))
    done = url(account)
    assert isinstance(done.exception, ConfigurationError)
    assert done.stdout == ""
    for word in ("url_key", "AMOCRM_KEYRING_DIR", "AMOCRM_WEBHOOK_TOKEN", "AMOCRM_ACCOUNT_ID"):
        assert word in str(done.exception)
    assert "a-secret" not in str(done.exception)
