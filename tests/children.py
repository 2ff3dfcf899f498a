"""Start programs for the tests, and end them even when the tests themselves are killed."""

from __future__ import annotations

import ctypes
import fcntl
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from amo_receiver.embedded.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from amo_receiver.embedded.processes import Account

READY_TIMEOUT_S = 30.0
END_TIMEOUT_S = 30.0
LOG_TAIL_BYTES = 8_000

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
# The kernel ends a child with the thread that started it, so this thread lives as long as the tests.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")

WATCHDOG = """
import os, pathlib, shutil, signal, sys, time
folder = pathlib.Path(sys.argv[1])
sys.stdin.read()
for pid_file in folder.rglob("postmaster.pid"):
    try:
        pid = int(pid_file.read_text().splitlines()[0])
        os.kill(pid, signal.SIGQUIT)
        for _ in range(1000):
            os.kill(pid, 0)
            time.sleep(0.01)
    except (OSError, ValueError, IndexError):
        pass
shutil.rmtree(folder, ignore_errors=True)
"""


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait for others that test at the same time: a package is installed by one of them."""
    with Path(tempfile.gettempdir(), "amo-webhooks-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def guarded_folder() -> Iterator[Path]:
    """Yield a folder that every user can enter; it and each Postgres with data in it are gone afterwards, even after ``kill -9``."""
    folder = Path(tempfile.mkdtemp(prefix="amo-webhooks-tests-", dir="/tmp")).resolve()
    folder.chmod(0o755)
    watchdog = subprocess.Popen([sys.executable, "-c", WATCHDOG, str(folder)], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield folder
    finally:
        watchdog.communicate()


def _die_with_the_tests() -> None:
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """A program under test: can be started again after it ended, with the same address and log."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log_path: Path, account: Account | None = None
    ) -> None:
        self.command = list(command)
        self.cwd = cwd
        self.env = dict(env)
        self.log_path = log_path
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The operating system's process of the last start."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        """The process id of the last start."""
        return self.process.pid

    @property
    def log(self) -> str:
        """The end of what the program wrote."""
        return self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

    def is_ready(self) -> bool:
        """Tell whether the program answers; one that cannot be asked is ready at once."""
        return True

    def start(self) -> Self:
        """Start the program and return when it is ready; fail with its log otherwise."""
        self._process = process = _starter.submit(self._spawn).result()
        answers = wait_until(lambda: process.poll() is not None or self.is_ready(), READY_TIMEOUT_S)
        if process.poll() is not None or not answers:
            self.end()
            raise AssertionError(f"{' '.join(self.command)} is not ready (exit code {process.returncode}):\n{self.log}")
        return self

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._account.uid if self._account else None,
                group=self._account.gid if self._account else None,
                extra_groups=() if self._account else None,
                start_new_session=True,
                preexec_fn=_die_with_the_tests,  # noqa: PLW1509 - it calls nothing that another thread may have locked
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process lives."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End the process with SIGKILL, at once."""
        self.send(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """Ask the process to end; ``wait`` tells when it has."""
        self.send(signal.SIGTERM)

    def pause(self) -> None:
        """Stop the process in its tracks (SIGSTOP)."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self.send(signal.SIGCONT)

    def wait(self, timeout_s: float = READY_TIMEOUT_S) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """End the process, gently first; nothing if it has ended."""
        self.resume()
        self.terminate()
        try:
            self.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
