"""Start this project's own programs for the tests, and talk to them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

import asyncpg

from amo_receiver.embedded.folder import free_port
from children import Child

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

CLIENT_ID = "test-uuid"
CLIENT_SECRET = "test-secret-of-the-tests-0123456789"
WEBHOOK_TOKEN = "test-token-of-the-tests-0123456789"


def signed_headers(account: str, client: str = CLIENT_ID, secret: str = CLIENT_SECRET) -> dict[str, str]:
    """Return the headers by which the signed path knows a sender."""
    signature = hmac.new(secret.encode(), f"{client}|{account}".encode(), hashlib.sha256).hexdigest()
    return {"X-Client-UUID": client, "X-Account-ID": account, "X-Signature": signature}


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection that works through the pooler too."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        yield connection
    finally:
        await connection.close()


def run_sql(url: str, *statements: str) -> list[asyncpg.Record]:
    """Execute statements, each in a transaction of its own, also while an event loop runs; return the rows of the last one."""

    async def execute() -> list[asyncpg.Record]:
        async with connect(url) as connection:
            rows: list[asyncpg.Record] = []
            for statement in statements:
                rows = await connection.fetch(statement)
            return rows

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, execute()).result()


class ServiceProcess(Child):
    """A process of this project: ``serve`` with its ``url``, or ``work``, which has none."""

    def __init__(self, arguments: Sequence[str], *, folder: Path, env: Mapping[str, str], port: int | None = None) -> None:
        folder.mkdir()
        self.url = f"http://127.0.0.1:{port}" if port else ""
        self._ready_port = int(arguments[arguments.index("--management-port") + 1]) if "--management-port" in arguments else port
        command = [sys.executable, "-m", "amo_receiver", *arguments]
        super().__init__(command, cwd=folder, env=env, log_path=folder.with_suffix(".log"))

    def is_ready(self) -> bool:
        """Ask /readyz, on the management port if the arguments name one."""
        if self._ready_port is None:
            return True
        connection = http.client.HTTPConnection("127.0.0.1", self._ready_port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()


def service_environment(db_url: str, folder: Path, env: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Build a whole environment: nothing of the caller's own settings reaches a program under test; None takes a default away."""
    environment: dict[str, str | None] = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "AMOCRM_CLIENT_ID": CLIENT_ID,
        "AMOCRM_CLIENT_SECRET": CLIENT_SECRET,
        "AMOCRM_WEBHOOK_TOKEN": WEBHOOK_TOKEN,
        "DB_URL": db_url,
    }
    environment.update(env or {})
    return {name: value for name, value in environment.items() if value is not None}


class Services:
    """Start services and workers for one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[ServiceProcess] = []

    def serve(
        self, db_url: str, *, args: Sequence[str] = (), env: Mapping[str, str | None] | None = None, port: int | None = None
    ) -> ServiceProcess:
        """Start a service and return when it is ready."""
        port = port or free_port()
        return self._start(["serve", "--host", "127.0.0.1", "--port", str(port), *args], db_url, env, port)

    def work(self, db_url: str, *, args: Sequence[str] = (), env: Mapping[str, str | None] | None = None) -> ServiceProcess:
        """Start a worker; it is known to be ready only if ``args`` name a ``--management-port``."""
        return self._start(["work", *args], db_url, env, None)

    def _start(self, arguments: Sequence[str], db_url: str, env: Mapping[str, str | None] | None, port: int | None) -> ServiceProcess:
        folder = self._folder / f"{arguments[0]}-{len(self._started) + 1}"
        service = ServiceProcess(arguments, folder=folder, env=service_environment(db_url, folder, env), port=port)
        self._started.append(service)
        service.start()
        return service

    def end(self) -> None:
        """End all that still run; their logs are shown if the test failed."""
        for service in self._started:
            with suppress(AssertionError):
                service.resume()
                service.terminate()
        for service in self._started:
            with suppress(AssertionError):
                service.end()
                print(f"--- {' '.join(service.command[1:])}, exit code {service.process.returncode}\n{service.log}")  # noqa: T201
