"""`check`: ask a running service everything its contract promises, and say what it answered.

What it sends is about cards that cannot be real: ids from 9·10^18 on, and an account of its own wherever the key is for any account.
Both cards end deleted.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, quote_plus

import httpx
import typer
from rich.console import Console

from amo_receiver.amocrm.keyring import URL_MAC_CHARS, url_token
from amo_receiver.commands.language import errors_spoken, speaking
from amo_receiver.commands.tables import NOTHING, print_table, printable
from amo_receiver.errors import CommandError, ConfigurationError
from amo_receiver.health import SUPPORTED_EVENTS
from amo_receiver.inbox.endpoints import PATH
from amo_receiver.settings import load_settings
from amo_receiver.watch import KeyringDirectory, load_keyring

if TYPE_CHECKING:
    from amo_receiver.amocrm.keyring import Key, KeyKind, Source
    from amo_receiver.commands.language import Speak
    from amo_receiver.settings import Settings

ACCOUNT = "amo-webhooks-check"
IDS = {"leads": 9_000_000_000_000_000_001, "contacts": 9_000_000_000_000_000_002}
TIMEOUT_SECONDS = 10.0
MOST_CHARACTERS_SHOWN = 300
OWN_TIMES = {"add": "created_at", "update": "updated_at"}
WRONG = "-and-something-else"


@dataclass(frozen=True)
class Signer:
    """Who signs, and for which account."""

    client_id: str
    secret: str = field(repr=False)
    account: str


@dataclass(frozen=True)
class UrlToken:
    """The secret of the token path, and the account it is for."""

    token: str = field(repr=False)
    account: str


@dataclass(frozen=True)
class Question:
    """One request, and the answer that the contract promises; without ``path`` it cannot be asked, for the reason ``skipped``."""

    name: str
    status: int
    answer: dict[str, Any]
    path: str = field(default="", repr=False)
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    body: str | None = None
    skipped: str = ""


@dataclass(frozen=True)
class Result:
    """What came back, and what to say about it; ``passed`` is None for a question that was not asked."""

    question: Question
    got: str
    milliseconds: float | None
    passed: bool | None
    remark: str = ""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("check")(check)


def check(
    url: Annotated[str, typer.Argument(help="Address of the service.")] = "http://127.0.0.1:8000",
    client_id: Annotated[str, typer.Option(help="Default: AMOCRM_CLIENT_ID.")] = "",
    client_secret: Annotated[str, typer.Option(help="Default: AMOCRM_CLIENT_SECRET; others can read arguments, so prefer that.")] = "",
    token: Annotated[str, typer.Option(help="Default: AMOCRM_WEBHOOK_TOKEN; others can read arguments, so prefer that.")] = "",
    account: Annotated[str, typer.Option(help=f"Account to send for. Default: {ACCOUNT}, or the one that the key is for.")] = "",
) -> None:
    """Test a running service: pages, a signed webhook of each supported event, the token URL, refusals.

    Credentials come from the environment, .env and the keyring, as the service's do; where there are none, they are those of `dev`.
    The ids sent are beyond those of amoCRM (9000000000000000001 ...), and both cards end deleted.

    Example: amo-webhooks check http://127.0.0.1:8000
    """
    speak = speaking(os.environ)
    with errors_spoken(speak):
        signer, caller = credentials(load_settings(), client_id, client_secret, token, account)
        asked = questions(signer, caller, int(time.time()))
        secrets = ([signer.secret] if signer else []) + ([caller.token, quote(caller.token, safe="")] if caller else [])
        with _client(url) as client, Console(stderr=True).status(speak("Asking ...")):
            results = [_ask(client, question, secrets) for question in asked]
    print_table([speak(heading) for heading in ("check", "expected", "got", "ms", "ok")], (_row(result, speak) for result in results))
    for line in (*remarks(results, speak), speak(verdict(results))):
        typer.echo(line)
    if any(result.passed is False for result in results):
        raise typer.Exit(1)


def signed_headers(client_id: str, secret: str, account: str) -> dict[str, str]:
    """Return the headers by which the signed path knows a sender."""
    signature = hmac.new(secret.encode(), f"{client_id}|{account}".encode(), hashlib.sha256).hexdigest()
    return {"X-Client-UUID": client_id, "X-Account-ID": account, "X-Signature": signature}


def credentials(settings: Settings, client_id: str, client_secret: str, token: str, account: str) -> tuple[Signer | None, UrlToken | None]:
    """Choose whom to be: as the options say, else by the first active keys of the settings; None where nothing is known."""
    given = client_id or client_secret or token
    if not (given or settings.amocrm_client_id or settings.amocrm_webhook_token or settings.amocrm_keyring_dir):
        settings = load_settings(dev=True)
    sources = _sources(settings)
    signer = _signer(sources, client_id, client_secret, account)
    plain = token or settings.amocrm_webhook_token.get_secret_value()
    if plain:
        return signer, UrlToken(plain, _account_in(plain) or account or settings.amocrm_account_id or ACCOUNT)
    for source, key in _active(sources, "url_key"):
        own = account or _account_of(source)
        return signer, UrlToken(url_token(key.secret, own), own)
    return signer, None


def _sources(settings: Settings) -> tuple[Source, ...]:
    directory = KeyringDirectory(settings.amocrm_keyring_dir) if settings.amocrm_keyring_dir else None
    if directory:
        directory.load()
    return load_keyring(settings, directory).sources


def _active(sources: tuple[Source, ...], kind: KeyKind) -> list[tuple[Source, Key]]:
    now = datetime.now(UTC)
    return [(source, key) for source in sources for key in source.keys if key.kind == kind and key.active(now)]


def _signer(sources: tuple[Source, ...], client_id: str, secret: str, account: str) -> Signer | None:
    candidates = [held for held in _active(sources, "client_secret") if client_id in ("", held[0].client_id)]
    if candidates:
        source, key = candidates[0]
        return Signer(source.client_id, secret or key.secret.decode(), account or _account_of(source))
    if bool(client_id) != bool(secret):
        raise ConfigurationError("--client-id and --client-secret go together: give both, or set their variables.")
    return Signer(client_id, secret, account or ACCOUNT) if secret else None


def _account_of(source: Source) -> str:
    return ACCOUNT if source.serves(ACCOUNT) else min(source.accounts or {ACCOUNT})


def _account_in(token: str) -> str:
    """Return the account that a derived token is for."""
    account, _, mac = token.rpartition(".")
    return account if len(mac) == URL_MAC_CHARS else ""


def questions(signer: Signer | None, caller: UrlToken | None, now: int) -> list[Question]:
    """List what is asked, in order."""
    return [
        Question("health page", 200, {"status": "healthy"}, PATH + "/health", "GET"),
        Question("test page", 200, {"status": "success", "endpoint": PATH}, PATH + "/test", "GET"),
        *(_signed(name, signer, json.dumps(_document(name, now)), 200, "success") for name in SUPPORTED_EVENTS),
        _signed("contacts.delete", signer, json.dumps(_document("contacts.delete", now)), 200, "success"),
        _form(caller),
        _forged(signer),
        _signed("invalid data", signer, json.dumps({"leads": {"add": [{"name": ACCOUNT}]}}), 400, "error"),
    ]


def _document(name: str, now: int) -> dict[str, Any]:
    entity, action = name.split(".")
    item: dict[str, Any] = {"id": IDS[entity]}
    if action in OWN_TIMES:
        item |= {"name": ACCOUNT, OWN_TIMES[action]: now}
    return {entity: {action: [item]}}


def _signed(name: str, signer: Signer | None, body: str, status: int, answer: str) -> Question:
    promise = {"status": answer, "events_processed": int(status == httpx.codes.OK)}
    if signer is None:
        return Question(name, status, promise, skipped="no client id and secret are known")
    headers = {"Content-Type": "application/json"} | signed_headers(signer.client_id, signer.secret, signer.account)
    return Question(name, status, promise, PATH, headers=headers, body=body)


def _form(caller: UrlToken | None) -> Question:
    """Send what amoCRM sends; a delete, because a token may be for a real account only and a tombstone is seen by nobody there."""
    name, promise = "form on the token URL", {"status": "success", "events_processed": 1}
    if caller is None:
        return Question(name, 200, promise, skipped="no token is known")
    item = {"id": IDS["leads"], "status_id": 1, "pipeline_id": 1}
    fields = {f"leads[delete][0][{key}]": value for key, value in item.items()} | {"account[id]": caller.account}
    body = "&".join(f"{quote_plus(key)}={quote_plus(str(value))}" for key, value in fields.items())
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return Question(name, 200, promise, f"{PATH}/{quote(caller.token, safe='')}", headers=headers, body=body)


def _forged(signer: Signer | None) -> Question:
    client_id, secret = (signer.client_id, signer.secret) if signer else (ACCOUNT, ACCOUNT)
    headers = {"Content-Type": "application/json"} | signed_headers(client_id, secret + WRONG, ACCOUNT)
    return Question("wrong signature", 401, {"status": "error"}, PATH, headers=headers, body="{}")


def _client(url: str) -> httpx.Client:
    base = url if "://" in url else f"http://{url}"
    try:
        parsed = httpx.URL(base.rstrip("/").removesuffix(PATH))
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise CommandError("The URL is not one of a service: it looks like http://127.0.0.1:8000.")
    # A proxy of the environment would look for a loopback address on its own machine.
    loopback = parsed.host in ("localhost", "::1") or parsed.host.startswith("127.")
    return httpx.Client(base_url=parsed, timeout=TIMEOUT_SECONDS, trust_env=not loopback)


def _ask(client: httpx.Client, question: Question, secrets: list[str]) -> Result:
    if not question.path:
        return Result(question, "not asked", None, None, question.skipped)
    began = time.perf_counter()
    headers = [(name.encode(), value.encode()) for name, value in question.headers.items()]
    try:
        response = client.request(question.method, question.path, headers=headers, content=question.body)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        at = client.base_url.copy_with(username=None, password=None)
        raise CommandError(f"Nothing answers at {at} ({error}): start the service, or name the right address.") from error
    except httpx.HTTPError as error:
        return Result(question, "no answer", (time.perf_counter() - began) * 1000, False, type(error).__name__)
    milliseconds = (time.perf_counter() - began) * 1000
    document = _json(response)
    passed = response.status_code == question.status and question.answer.items() <= document.items()
    got, remark = (_hidden(text, [*secrets, question.headers.get("X-Signature")]) for text in _said(response, document))
    return Result(question, got, milliseconds, passed, "" if passed else remark)


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _promise(question: Question) -> str:
    return f"{question.status} {question.answer['status']}"


def _said(response: httpx.Response, document: dict[str, Any]) -> tuple[str, str]:
    """Return an answer in two words, and its message."""
    otherwise = "its database is out of reach" if document.get("database") == "disconnected" else "it is no answer of this service"
    return f"{response.status_code} {document.get('status', NOTHING)}", str(document.get("message", otherwise))


def _hidden(text: str, secrets: list[str | None]) -> str:
    """Take out what a server that is none of ours may have echoed of the request."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text[:MOST_CHARACTERS_SHOWN]


def remarks(results: list[Result], speak: Speak) -> list[str]:
    """Return each distinct remark once, after the names of the checks it is about."""
    names: dict[str, list[str]] = {}
    for result in results:
        if result.remark:
            names.setdefault(speak(printable(result.remark)).removesuffix("."), []).append(speak(result.question.name))
    return [f"{', '.join(about)}: {remark}." for remark, about in names.items()]


def _row(result: Result, speak: Speak) -> tuple[object, ...]:
    took = None if result.milliseconds is None else f"{result.milliseconds:.0f}"
    mark = {True: "ok", False: "FAILED", None: "skipped"}[result.passed]
    return (speak(result.question.name), _promise(result.question), speak(result.got), took, speak(mark))


def verdict(results: list[Result]) -> str:
    """Sum the table up in one line."""
    failed, skipped = ([result for result in results if result.passed is outcome] for outcome in (False, None))
    beside = f"; {len(skipped)} not asked for want of credentials" if skipped else ""
    if failed:
        return f"{len(failed)} of {len(results) - len(skipped)} checks FAILED{beside}."
    return f"All {len(results) - len(skipped)} checks passed{beside}."
