"""What pgbouncer is configured with: taken out of the DSN, and understood by a real pgbouncer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from amo_receiver.database import connect_arguments
from amo_receiver.embedded import unprivileged_account
from amo_receiver.embedded.folder import free_port
from amo_receiver.settings import load_settings
from chart.rendering import CHART, FULLNAME, one, rendered
from children import Child
from pooler import pgbouncer_program
from servers import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SCRIPT = CHART / "files" / "pooling.py"
PASSWORD = 'p"ä \\%@:/1'
QUOTED = "p%22%C3%A4%20%5C%25%40%3A%2F1"


def written(url: str, settings: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script as the init container does."""
    (folder / "settings.ini").write_text(settings)
    command = [sys.executable, str(SCRIPT), str(folder / "settings.ini"), str(folder)]
    return subprocess.run(command, env={"DB_URL": url}, capture_output=True, text=True, check=False)


def settings_of_the_chart() -> str:
    """Return pgbouncer's settings as the chart renders them."""
    return str(one(rendered(), "ConfigMap", f"{FULLNAME}-pgbouncer")["data"]["settings.ini"])


def test_the_dsn_is_taken_apart(tmp_path: Path) -> None:
    """Percent signs, quotes, TLS and all; no other user of the machine reads it."""
    url = f"postgresql://amo:{QUOTED}@DB.example.com/crm?sslmode=verify-full&sslrootcert=/ca.pem&application_name=x"
    done = written(url, "pool_mode = transaction\n", tmp_path)
    assert done.returncode == 0, done.stderr
    ini = (tmp_path / "pgbouncer.ini").read_text().splitlines()
    assert ini == [
        "[databases]",
        "* = host=db.example.com port=5432",
        "",
        "[pgbouncer]",
        f"auth_file = {tmp_path}/userlist.txt",
        "server_tls_sslmode = verify-full",
        "server_tls_ca_file = /ca.pem",
        "pool_mode = transaction",
    ]
    escaped = PASSWORD.replace('"', '""')
    assert (tmp_path / "userlist.txt").read_text() == f'"amo" "{escaped}"\n'
    assert {(tmp_path / name).stat().st_mode & 0o007 for name in ("pgbouncer.ini", "userlist.txt")} == {0}


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://a:secret@one,two:5432/d", "several hosts"),
        ("postgresql://secret@/d", "no host"),
        ("postgresql://host/secret", "no user"),
    ],
)
def test_what_pgbouncer_cannot_do_is_said(url: str, sentence: str, tmp_path: Path) -> None:
    """In a sentence without the DSN, and nothing is written."""
    done = written(url, "", tmp_path)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "secret" not in done.stderr
    assert not (tmp_path / "pgbouncer.ini").exists()


class Pooler(Child):
    """pgbouncer as the chart configures it, on another port."""

    def __init__(self, url: str, folder: Path) -> None:
        self.port = free_port()
        settings = settings_of_the_chart().replace("listen_port = 6432", f"listen_port = {self.port}")
        done = written(url, settings, folder)
        assert done.returncode == 0, done.stderr
        account = unprivileged_account()
        if account:
            for path in (folder, *folder.iterdir()):
                os.chown(path, *account)
        command = [pgbouncer_program(), str(folder / "pgbouncer.ini")]
        super().__init__(command, cwd=Path("/"), env={"PATH": os.defpath}, log_path=folder / "log", account=account)

    def is_ready(self) -> bool:
        """Tell whether somebody listens on its port."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True
        return False


@pytest.fixture
async def role(database_url: str) -> AsyncIterator[str]:
    """Return the URL of the database for a user with a password full of what has a meaning in URLs and configurations."""
    async with connect(database_url) as admin:
        await admin.execute(f"CREATE ROLE pooled LOGIN PASSWORD '{PASSWORD}'")
        yield f"postgresql://pooled:{QUOTED}@{database_url.rpartition('@')[2]}"
        await admin.execute("DROP ROLE pooled")


async def test_the_service_reaches_its_database_through_it(role: str, server_folder: Path) -> None:
    """By DB_URL and DB_POOLER alone, with the settings that the chart renders."""
    folder = server_folder / "chart-pooler"
    folder.mkdir(mode=0o755)
    pooler = Pooler(role, folder).start()
    try:
        pooled = load_settings(db_url=role, db_pooler=f"127.0.0.1:{pooler.port}").pooled_url
        connection = await asyncpg.connect(**connect_arguments(pooled))
        seen = await connection.fetchrow("SELECT current_user, current_database()")
        await connection.close()
    finally:
        pooler.kill()
    assert list(seen) == ["pooled", role.rpartition("/")[2]]
