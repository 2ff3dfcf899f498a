"""What everything is measured on: Postgres (fsync on), pgbouncer in transaction mode before it, and receivers before that."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

from amo_receiver.embedded import EmbeddedPostgres
from amo_receiver.embedded.folder import free_port
from children import Child
from pooler import PgBouncer
from servers import WEBHOOK_TOKEN, run_sql, service_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack

PATH = f"/api/webhooks/amo/{WEBHOOK_TOKEN}"
SERVE = ("-m", "amo_receiver", "serve", "--host", "127.0.0.1")
UVICORN = ("-m", "uvicorn", "--factory", "--no-access-log", "--no-server-header", "--log-level", "warning")


class Receiver(Child):
    """One program that answers webhooks."""

    def __init__(self, arguments: Sequence[str], folder: Path, db_url: str, settings: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}{PATH}"
        folder.mkdir()
        own = {"PYTHONPATH": str(Path(__file__).parents[1]), "LOG_LEVEL": "WARNING"}
        environment = service_environment(db_url, folder, own | dict(settings or {}))
        super().__init__([sys.executable, *arguments, "--port", str(self.port)], cwd=folder, env=environment, log_path=folder / "log")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()

    def is_ready(self) -> bool:
        """Tell whether it listens."""
        return any(link.laddr.port == self.port for link in psutil.Process(self.pid).net_connections() if link.status == "LISTEN")

    def cpu_seconds(self) -> float:
        """Return the processor time it has used so far."""
        return tree_cpu_seconds(self.pid)

    def resident_mib(self) -> tuple[float, float]:
        """Return how much memory it has, and the most it ever had."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        now, most = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
        return now, most


class Contender(Receiver):
    """An application under uvicorn, with the options that the service gives it."""

    def __init__(self, name: str, factory: str, folder: Path, db_url: str) -> None:
        super().__init__((*UVICORN, factory), folder / name, db_url)


class Stand:
    """The servers, which end with ``stack``."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", options={"max_connections": "100"}))
        run_sql(self.postgres.url(), "CREATE DATABASE template_bench")
        environment = service_environment(self.postgres.url("template_bench"), folder)
        upgrade = [sys.executable, "-m", "amo_receiver", "migrate", "upgrade", "head"]
        subprocess.run(upgrade, env=environment, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        self.pooler = PgBouncer(self.postgres, folder / "pgbouncer", pool_size=10)
        self.pooler.start()
        stack.callback(self.pooler.end)
        self._receivers = 0

    def create_database(self, name: str) -> str:
        """Create an empty database with the schema, and return its direct URL."""
        run_sql(self.postgres.url(), f"CREATE DATABASE {name} TEMPLATE template_bench")
        return self.postgres.url(name)

    def drop_database(self, name: str) -> None:
        """Drop it, so that nobody tidies it up while the next one is measured."""
        run_sql(self.postgres.url(), f"DROP DATABASE {name} WITH (FORCE)")

    def service(self, database: str, settings: Mapping[str, str] | None = None) -> Receiver:
        """Return a process of the service, as it is run."""
        return Receiver(SERVE, self.folder / self._name(), self.pooler.url(database), settings)

    def application(self, factory: str, database: str) -> Contender:
        """Return what the service is compared with."""
        return Contender(self._name(), factory, self.folder, self.pooler.url(database))

    def _name(self) -> str:
        self._receivers += 1
        return f"receiver-{self._receivers}"

    def cpu_seconds(self) -> dict[str, float]:
        """Return the processor time that the servers and the senders that have ended have used so far."""
        senders = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "Postgres": tree_cpu_seconds(self.postgres.pid),
            "pgbouncer": tree_cpu_seconds(self.pooler.pid),
            "wrk": senders.ru_utime + senders.ru_stime,
        }


def tree_cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, its descendants, and those of its children that have ended."""
    root = psutil.Process(pid)
    seconds = sum(root.cpu_times()[:4])
    for child in root.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            seconds += sum(child.cpu_times()[:2])
    return float(seconds)
