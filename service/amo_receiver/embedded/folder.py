"""What lies in the folder of an embedded Postgres.

::

    <data_dir>/cluster        the database itself; it belongs to the user that Postgres runs as
    <data_dir>/password       of the superuser, readable by that user only
    <data_dir>/port           taken again at the next start, so that the URL stays the same
    <data_dir>/lock           held while a program serves the folder; the kernel frees it when that program is killed
    <data_dir>/postgres.log   of the last start
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from amo_receiver.embedded.processes import Account
from amo_receiver.errors import CommandError

if TYPE_CHECKING:
    from pathlib import Path

# Below the ports that systems give to outgoing connections: one of those must not cost us the port of the URL.
PORTS = range(20_000, 32_000)
OWN_FILES = {"lock", "password", "port", "postgres.log", "cluster.new"}


class DataFolder:
    """The files of one embedded Postgres, and the right to serve them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cluster = path / "cluster"
        self.log_path = path / "postgres.log"
        self._lock: int | None = None

    def owner(self) -> Account | None:
        """Return whom root gave the data to: another user would be chosen since one named postgres was created."""
        if os.geteuid() != 0 or not self.cluster.exists():
            return None
        status = self.cluster.stat()
        return Account(status.st_uid, status.st_gid) if status.st_uid else None

    def require_own_or_empty(self) -> None:
        """Raise when something else lies in the folder."""
        if not self.path.exists() or self.cluster.exists():
            return
        # The programs that root copied lie beside the data when both are in the default folder.
        if any(entry.name not in OWN_FILES and "postgres-" not in entry.name for entry in self.path.iterdir()):
            raise CommandError(f"{self.path} is not empty and holds no data of ours: choose an empty or a new folder as --data-dir.")

    def lock(self) -> None:
        """Take the right to serve the folder, unless this object has it already."""
        if self._lock is not None:
            return
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 20).decode()
            os.close(lock)
            raise self.served(f"which process {owner} started") from None
        self._lock = lock
        os.truncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)

    def unlock(self) -> None:
        """Give the right back."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def served(self, by_whom: str) -> CommandError:
        """Say that the folder is in use, and by which processes."""
        return CommandError(
            f"{self.path} is already served by the Postgres process {self.recorded_pid()}, {by_whom}: "
            "stop that one or choose another --data-dir."
        )

    def recorded_pid(self) -> int | None:
        """Return the process id that the last postmaster wrote down; it need not live."""
        first = (self.postmaster_lines() or [""])[0].strip()
        return int(first) if first.isdecimal() else None

    def postmaster_lines(self) -> list[str]:
        """Read what the last postmaster wrote down of itself: process id, folder, ..., its status in the eighth line."""
        with suppress(OSError):
            return (self.cluster / "postmaster.pid").read_text().splitlines()
        return []

    def prepare(self, account: Account | None) -> tuple[Path, Path]:
        """Create a folder for a new cluster, and its password; return both, for that user alone."""
        fresh, password = self.path / "cluster.new", self.path / "password"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        password.touch(mode=0o600)
        password.write_text(secrets.token_hex(24))
        if account:
            os.chown(fresh, *account)
            os.chown(password, *account)
        return fresh, password

    def password(self) -> str:
        """Read the superuser's password."""
        try:
            return (self.path / "password").read_text().strip()
        except FileNotFoundError:
            raise CommandError(f"{self.path / 'password'} is missing and the data cannot be opened without: put it back.") from None

    def choose_port(self) -> int:
        """Return the port of the last time, or another one when that is taken."""
        with suppress(OSError, ValueError):
            kept = int((self.path / "port").read_text())
            if _is_free(kept):
                return kept
        return free_port()

    def keep_port(self, port: int) -> None:
        """Write the port down for the next time."""
        (self.path / "port").write_text(str(port))


def free_port() -> int:
    """Choose a port of 127.0.0.1 that nobody listens on."""
    while not _is_free(port := secrets.choice(PORTS)):
        pass
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError, OverflowError):
            probe.bind(("127.0.0.1", port))
            return True
    return False
