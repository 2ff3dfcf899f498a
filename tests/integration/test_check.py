"""``amo-webhooks check``: the verdict is right, no real card is touched, no secret is shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from amo_receiver.amocrm.keyring import url_token
from amo_receiver.commands.check import ACCOUNT, IDS, Signer, UrlToken, credentials
from amo_receiver.embedded.folder import free_port
from amo_receiver.errors import ConfigurationError
from amo_receiver.settings import Settings, load_settings
from servers import CLIENT_ID, CLIENT_SECRET, WEBHOOK_TOKEN, Services, connect, run_sql, service_environment, signed_headers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from amo_receiver.embedded import EmbeddedPostgres
    from conftest import StartService

KEY = "url-key-of-the-tests-0123456789"
DATABASE = "test_check"
NO_CREDENTIALS = dict.fromkeys(("AMOCRM_CLIENT_ID", "AMOCRM_CLIENT_SECRET", "AMOCRM_WEBHOOK_TOKEN"))


@pytest.fixture(scope="module")
def database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    run_sql(postgres.url(), f"CREATE DATABASE {DATABASE} TEMPLATE {template}")
    yield postgres.url(DATABASE)
    run_sql(postgres.url(), f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.fixture(scope="module")
def url(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a running service."""
    services = Services(tmp_path_factory.mktemp("check"))
    yield services.serve(database_url).url
    services.end()


def check(folder: Path, *arguments: str, env: Mapping[str, str | None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "amo_receiver", "check", *arguments]
    environment = service_environment("", folder, env)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    for secret in (CLIENT_SECRET, WEBHOOK_TOKEN, KEY, signed_headers(ACCOUNT)["X-Signature"]):
        assert secret not in done.stdout + done.stderr
    return done


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return what the table's last column says, by check."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    return {row[0]: row[-1] for row in cells if len(row) == 5 and row[0] != "check"}


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("amo-webhooks: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


async def test_a_service_that_keeps_its_contract_passes(url: str, database_url: str, tmp_path: Path) -> None:
    """Every check is ok, past any proxy; afterwards there are two cards of impossible ids, deleted, in an account of their own."""
    done = check(tmp_path, url, env={"http_proxy": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"})
    assert done.returncode == 0, done
    assert done.stdout.endswith("All 11 checks passed.\n")
    assert rows(done) == dict.fromkeys(
        ("health page", "test page", "leads.add", "leads.update", "leads.delete", "contacts.add", "contacts.update", "contacts.delete",
         "form on the token URL", "wrong signature", "invalid data"), "ok"
    )  # fmt: skip
    async with connect(database_url) as connection:
        cards = "SELECT account_id, id, deleted_at IS NOT NULL FROM {}"
        assert [tuple(row) for row in await connection.fetch(cards.format("leads"))] == [(ACCOUNT, IDS["leads"], True)]
        assert [tuple(row) for row in await connection.fetch(cards.format("contacts"))] == [(ACCOUNT, IDS["contacts"], True)]
        kinds = await connection.fetch("SELECT key_kind, content_type, count(*) FROM deliveries GROUP BY 1, 2 ORDER BY 1")
        assert [tuple(row) for row in kinds] == [
            ("client_secret", "application/json", 6),
            ("token", "application/x-www-form-urlencoded", 1),
        ]


def test_a_wrong_secret_fails(url: str, tmp_path: Path) -> None:
    """What needs the secret has FAILED, once with the reason; the rest is ok and the exit code is 1."""
    done = check(tmp_path, f"{url}/api/webhooks/amo", env={"AMOCRM_CLIENT_SECRET": "another-secret-0123456789"})
    assert done.returncode == 1
    assert {name for name, mark in rows(done).items() if mark == "ok"} == {
        "health page",
        "test page",
        "form on the token URL",
        "wrong signature",
    }
    assert done.stdout.count("X-Signature matches no active key") == 1
    assert done.stdout.endswith("7 of 11 checks FAILED.\n")
    assert "another-secret" not in done.stdout


def test_what_nothing_is_known_for_is_not_asked(url: str, tmp_path: Path) -> None:
    """With a token alone the signed checks are skipped, and the verdict says so."""
    done = check(tmp_path, url.removeprefix("http://"), env=NO_CREDENTIALS | {"AMOCRM_WEBHOOK_TOKEN": WEBHOOK_TOKEN})
    assert done.returncode == 0
    assert "no client id and secret are known" in done.stdout
    assert done.stdout.endswith("All 4 checks passed; 7 not asked for want of credentials.\n")


def test_nobody_there_is_one_sentence(tmp_path: Path) -> None:
    """A refused connection and an address that is none are a sentence and exit code 1."""
    port = free_port()
    assert f"Nothing answers at http://127.0.0.1:{port} " in refusal(check(tmp_path, f"http://user:MARK@127.0.0.1:{port}"))
    assert "MARK" not in refusal(check(tmp_path, f"http://user:MARK@127.0.0.1:{port}"))
    assert "The URL is not one of a service" in refusal(check(tmp_path, "ftp://127.0.0.1"))


class Echo(BaseHTTPRequestHandler):
    """Answers 200 with the request in it, as a page for debugging does."""

    def do_POST(self) -> None:
        said = f"{self.path} {dict(self.headers)} \x1b[31m"
        answer = json.dumps({"status": "success", "events_processed": 0, "message": said}).encode()
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST  # noqa: N815 - the same

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def echo() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_of_somebody_else_fails_and_makes_no_secret_show(tmp_path: Path) -> None:
    """A status of 200 is not enough, and what such a server echoes is shown without secrets and without control characters."""
    with echo() as address:
        done = check(tmp_path, address)
    assert done.returncode == 1
    assert done.stdout.endswith("11 of 11 checks FAILED.\n")
    assert "/api/webhooks/amo/***" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_keys_of_the_folder_are_used(start_service: StartService, database_url: str, tmp_path: Path) -> None:
    """With a keyring folder alone, a source of one account is checked with its own keys, for its own account."""
    folder = tmp_path / "keyring"
    folder.mkdir()
    (folder / "acme.json").write_text(json.dumps(keyring_file(["32000009"])))
    env = NO_CREDENTIALS | {"AMOCRM_KEYRING_DIR": str(folder)}
    done = check(tmp_path, start_service(database_url, env=env).url, env=env)
    assert done.returncode == 0, done
    assert done.stdout.endswith("All 11 checks passed.\n")


def keyring_file(accounts: list[str] | None) -> dict[str, object]:
    keys = [
        {"kind": "client_secret", "secret": "too-old", "state": "previous", "not_after": "2020-01-01T00:00:00Z"},
        {"kind": "client_secret", "secret": CLIENT_SECRET, "state": "current"},
        {"kind": "url_key", "secret": KEY, "state": "current"},
    ]
    return {"version": 1, "generation": 1, "client_id": "acme-client", "accounts": accounts, "keys": keys}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start in an empty directory with none of the variables set."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("bare")
def test_without_any_credentials_it_is_dev() -> None:
    """Where nothing is configured, the credentials are those that `dev` has."""
    assert credentials(load_settings(), "", "", "", "") == (Signer("test-uuid", "test-secret", ACCOUNT), UrlToken("test-token", ACCOUNT))


@pytest.mark.usefixtures("bare")
def test_options_come_first() -> None:
    """An option replaces its setting, and the account of a derived token is the one inside it."""
    settings = load_settings(
        amocrm_client_id=CLIENT_ID, amocrm_client_secret=CLIENT_SECRET, amocrm_webhook_token=WEBHOOK_TOKEN, amocrm_account_id="31"
    )
    assert credentials(settings, "", "", "", "") == (Signer(CLIENT_ID, CLIENT_SECRET, ACCOUNT), UrlToken(WEBHOOK_TOKEN, "31"))
    assert credentials(settings, "", "other", "", "32") == (Signer(CLIENT_ID, "other", "32"), UrlToken(WEBHOOK_TOKEN, "32"))
    derived = url_token(KEY.encode(), "33")
    assert credentials(settings, "me", "other", derived, "32") == (Signer("me", "other", "32"), UrlToken(derived, "33"))
    with pytest.raises(ConfigurationError, match="go together"):
        credentials(settings, "me", "", "", "")


@pytest.mark.usefixtures("bare")
def test_an_expired_key_is_passed_over(tmp_path: Path) -> None:
    """Of a source for any account, the active keys are taken, for the account of the checks."""
    (tmp_path / "acme").write_text(json.dumps(keyring_file(None)))
    signer, caller = credentials(load_settings(amocrm_keyring_dir=tmp_path), "", "", "", "")
    assert signer == Signer("acme-client", CLIENT_SECRET, ACCOUNT)
    assert caller == UrlToken(url_token(KEY.encode(), ACCOUNT), ACCOUNT)
