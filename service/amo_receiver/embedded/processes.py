"""Run, watch and end processes of Postgres, as another user when the caller is root."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

StopMode = Literal["smart", "fast", "immediate"]

SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
STOP_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 10.0
POLL_S = 0.02
# Nothing is inherited: PGPORT, PGDATA or a foreign LD_LIBRARY_PATH would lead the programs astray.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class Account(NamedTuple):
    """A user of the operating system."""

    uid: int
    gid: int

    def __str__(self) -> str:
        with suppress(KeyError):
            return pwd.getpwuid(self.uid).pw_name
        return str(self.uid)


def run_as(account: Account | None, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end as this user, or as the caller; its standard error is in ``stdout`` too."""
    return subprocess.run(
        command,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=() if account else None,
        cwd="/",
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def spawn_as(account: Account | None, command: list[str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start a server as this user, or as the caller; what it says is the whole content of the log."""
    log_path.unlink(missing_ok=True)  # what is left of a killed server still writes into the old one
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            command,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=() if account else None,
            start_new_session=True,  # the Ctrl-C of a terminal ends the program first, which then stops its server
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    finally:
        os.close(log)


def unreachable_part(folder: Path, account: Account) -> str:
    """Return the first part of the path that exists and that this user cannot enter, or nothing; only that user can tell."""
    existing = [str(path) for path in reversed((folder, *folder.parents)) if path.exists()]
    script = 'for folder; do cd -- "$folder" 2>/dev/null || { printf %s "$folder"; exit; }; done'
    return run_as(account, ["/bin/sh", "-c", script, "sh", *existing]).stdout


def command_line(pid: int) -> list[str]:
    """Return the arguments of a living process; nothing for one that is gone or a zombie."""
    if Path("/proc/self/cmdline").exists():
        with suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        return []
    return run_as(None, ["ps", "-o", "args=", "-p", str(pid)]).stdout.split()


def reason(output: str) -> str:
    """Return the line of a program's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it said nothing"]
    telling = [line for line in lines if re.search(r"FATAL:|PANIC:|error:", line)] or lines
    return re.sub(r"^.*?(FATAL|PANIC|error):\s*", "", telling[-1]).rstrip(".")


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until the condition holds; False when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def end(pid: int, gone: Callable[[], bool], mode: StopMode) -> None:
    """Signal a postmaster, harder each time its patience is over; never a process that has the same id later."""
    for number, patience_s in ((SIGNALS[mode], STOP_TIMEOUT_S), (signal.SIGQUIT, KILL_TIMEOUT_S), (signal.SIGKILL, KILL_TIMEOUT_S)):
        if gone():
            return
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        wait_until(gone, patience_s)
