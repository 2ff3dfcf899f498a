"""A real pooler before the Postgres of the tests."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from amo_receiver.embedded import EmbeddedPostgres, unprivileged_account
from amo_receiver.embedded.folder import free_port
from children import Child, one_at_a_time

if TYPE_CHECKING:
    from collections.abc import Mapping


class PgBouncer(Child):
    """A real pooler in transaction mode before a Postgres; ``settings`` go into its [pgbouncer] section."""

    def __init__(self, postgres: EmbeddedPostgres, folder: Path, *, pool_size: int = 3, settings: Mapping[str, str] | None = None) -> None:
        program = pgbouncer_program()
        self.port = free_port()
        self._postgres = postgres
        self._write(folder, self._settings(program, folder, pool_size) | dict(settings or {}))
        command = [program, str(folder / "pgbouncer.ini")]
        super().__init__(command, cwd=Path("/"), env={"PATH": os.defpath}, log_path=folder / "log", account=unprivileged_account())

    def url(self, database: str) -> str:
        """Return the URL of a database of this Postgres, through the pooler."""
        return re.sub(r"@127\.0\.0\.1:\d+/", f"@127.0.0.1:{self.port}/", self._postgres.url(database))

    def stop(self) -> None:
        """End the pooler as an orchestrator should (SIGINT): running transactions end first."""
        self.send(signal.SIGINT)
        self.wait()

    def restart(self) -> None:
        """Stop and start, at the same address."""
        self.stop()
        self.start()

    def is_ready(self) -> bool:
        """Tell whether somebody listens on its port."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True
        return False

    def _settings(self, program: str, folder: Path, pool_size: int) -> dict[str, str]:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"PgBouncer (\d+)\.(\d+)", said)
        assert version is not None, said
        knows_prepared_statements = (int(version[1]), int(version[2])) >= (1, 21)
        return {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(folder / "userlist.txt"),
            "pool_mode": "transaction",
            "default_pool_size": str(pool_size),
            "max_client_conn": "2000",
            "server_login_retry": "1",
            "query_wait_timeout": "1",
            "ignore_startup_parameters": "extra_float_digits",
            "log_connections": "0",
            "log_disconnections": "0",
            **({"max_prepared_statements": "0"} if knows_prepared_statements else {}),
        }

    def _write(self, folder: Path, settings: Mapping[str, str]) -> None:
        """Write the configuration into a new folder that belongs to the pooler's user: it refuses to run as root."""
        server = re.search(r"//(.+):(.+)@127\.0\.0\.1:(\d+)/", self._postgres.url())
        assert server is not None
        user, password, port = server.groups()
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        folder.mkdir(mode=0o700)
        (folder / "pgbouncer.ini").write_text(f"[databases]\n* = host=127.0.0.1 port={port}\n\n[pgbouncer]\n{lines}")
        (folder / "userlist.txt").write_text(f'"{user}" "{password}"\n')
        account = unprivileged_account()
        if account:
            for path in (folder, *folder.iterdir()):
                os.chown(path, *account)


def pgbouncer_program() -> str:
    """Find the pooler's program, after installing Debian's package if there is none and we may."""
    found = _find_pgbouncer()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with one_at_a_time():
            if _find_pgbouncer() is None:
                _install_pgbouncer()
        found = _find_pgbouncer()
    if found is None:
        pytest.fail("The tests need the program pgbouncer: install it, on Debian as root with apt-get install pgbouncer.", pytrace=False)
    return found


def _find_pgbouncer() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


def _install_pgbouncer() -> None:
    before = _running_poolers()
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "pgbouncer"]
    if subprocess.run(install, env=environment, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "update", "-q"], env=environment, capture_output=True, check=False)
        subprocess.run(install, env=environment, capture_output=True, check=False)
    if _running_poolers() - before:  # the package starts a daemon, with a configuration of its own
        subprocess.run(["service", "pgbouncer", "stop"], capture_output=True, check=False)
    for pid in _running_poolers() - before:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _running_poolers() -> set[int]:
    running = set()
    for name in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if name.read_text().strip() == "pgbouncer":
                running.add(int(name.parent.name))
    return running
