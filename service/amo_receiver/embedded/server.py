"""Start and stop an embedded Postgres.

A server that was left behind by a program that was killed is stopped at the next start; one that was started by hand is refused.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from amo_receiver.embedded.folder import PORTS, DataFolder
from amo_receiver.embedded.processes import command_line, end, reason, run_as, spawn_as, unreachable_part, wait_until
from amo_receiver.embedded.programs import SHARED_FOLDER, create_folder, installed_programs, major_version, unprivileged_account
from amo_receiver.errors import CommandError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

    from amo_receiver.embedded.processes import Account, StopMode

SUPERUSER = "postgres"
# Shown in the arguments of the server, by which a later start knows it for ours.
OWN_ARGUMENT = "--cluster_name=amo-webhooks"
# What a statement failed of, and its text, hold personal data: only what the server does by itself is logged.
QUIET = {"log_min_messages": "log", "log_min_error_statement": "panic", "log_error_verbosity": "terse"}
SETTINGS = {"listen_addresses": "127.0.0.1", **QUIET}
MAX_SOCKET_PATH_BYTES = 103
RECOVERY_TIMEOUT_S = 600.0
RETRY_TIMEOUT_S = 30.0
BUILTIN_LOCALES_SINCE = 17
STATUS_LINE = 7
# The port was taken since it was looked at, or backends of a killed postmaster are still ending.
PASSING = re.compile(r"could not create any TCP/IP sockets|still in use")


def default_data_dir() -> Path:
    """Name the folder for data when nobody names one; for root one that the user of Postgres can reach."""
    if os.geteuid() == 0:
        return SHARED_FOLDER
    configured = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".local" / "share") / "amo-webhooks"


class EmbeddedPostgres:
    """A Postgres on 127.0.0.1 that keeps its data in ``data_dir``; ``options`` are settings of the server."""

    def __init__(self, data_dir: Path, *, bin_dir: Path | None = None, options: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self._folder = DataFolder(self.data_dir)
        self._bin_dir = bin_dir
        self._options = options or {}
        self._account: Account | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._process is None:
            raise CommandError(f"The Postgres of {self.data_dir} is not started.")
        return self._process.pid

    @property
    def bin_dir(self) -> Path:
        """The folder of the programs; those of the package if none was named."""
        if self._bin_dir is None:
            self._bin_dir = installed_programs(self._account or unprivileged_account())
        return self._bin_dir

    @property
    def socket_dir(self) -> Path | None:
        """The folder of the Unix socket; none if its path is longer than systems allow."""
        fits = len(os.fsencode(self._folder.cluster / f".s.PGSQL.{PORTS.stop}")) <= MAX_SOCKET_PATH_BYTES
        return self._folder.cluster if fits else None

    def url(self, database: str = SUPERUSER) -> str:
        """Return the URL of a database, for the superuser; it stays valid while Postgres is stopped and started again."""
        if not self._port:
            raise CommandError(f"The Postgres of {self.data_dir} was not started.")
        return f"postgresql://{SUPERUSER}:{self._folder.password()}@127.0.0.1:{self._port}/{quote(database, safe='')}"

    def start(self) -> None:
        """Start Postgres unless it runs, in an empty folder after initialising it; return when it accepts connections."""
        if self._process is not None and self._process.poll() is None:
            return
        try:
            self._start()
        except OSError as error:
            self.stop("immediate")
            raise CommandError(f"Postgres cannot be run in {self.data_dir}: {error.strerror} ({error.filename}).") from error
        except BaseException:
            self.stop("immediate")
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """End Postgres, harder when it does not heed; the folder is free for another program afterwards."""
        process = self._process
        if process is not None:
            end(process.pid, lambda: process.poll() is not None, mode)
        self._process = None
        self._folder.unlock()

    def _start(self) -> None:
        self._account = self._folder.owner() or unprivileged_account()
        self._require_reachable(self.data_dir, "choose another --data-dir")
        self._folder.require_own_or_empty()
        self._require_reachable(self.bin_dir, "let everybody enter it")
        major = major_version(self.bin_dir, self._account)
        create_folder(self.data_dir, 0o755 if self._account else 0o700)
        self._folder.lock()
        if self._folder.cluster.exists():
            self._require_made_by(major)
            self._folder.password()
            self._settle_predecessor()
        else:
            self._initialise(major)
        self._launch()

    def _require_reachable(self, folder: Path, advice: str) -> None:
        part = unreachable_part(folder, self._account) if self._account else ""
        if part:
            raise CommandError(f"Postgres runs as the user {self._account}, who may not enter {part}: {advice}.")

    def _require_made_by(self, major: int) -> None:
        made_by = (self._folder.cluster / "PG_VERSION").read_text().strip()
        if made_by != str(major):
            raise CommandError(f"{self.data_dir} was made by Postgres {made_by} and this is Postgres {major}: choose another --data-dir.")

    def _settle_predecessor(self) -> None:
        """Stop the server of a program that was killed, and forget one whose process id another program has by now."""
        pid = self._folder.recorded_pid()
        command = command_line(pid) if pid else []
        if pid and self._serves(command):
            if OWN_ARGUMENT not in command:
                raise self._folder.served("which was started by hand")
            end(pid, lambda: not self._serves(command_line(pid)), "fast")
        elif command and Path(command[0]).name in {"postgres", "postmaster"}:
            return  # perhaps ours all the same, by a relative path: Postgres itself decides
        elif command or not pid:
            (self._folder.cluster / "postmaster.pid").unlink(missing_ok=True)
        for left_over in self._folder.cluster.glob(".s.PGSQL.*"):
            left_over.unlink(missing_ok=True)

    def _serves(self, command: list[str]) -> bool:
        return f" -D {self._folder.cluster} " in " ".join([*command, ""])

    def _initialise(self, major: int) -> None:
        """Create the cluster under another name first: a start that is killed half-way leaves nothing to mend."""
        fresh, password = self._folder.prepare(self._account)
        options = [f"--username={SUPERUSER}", f"--pwfile={password}", "--auth=scram-sha-256", "--encoding=UTF8"]
        # Not each system has this locale; later versions bring it along.
        builtin = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        locale = builtin if major >= BUILTIN_LOCALES_SINCE else ["--locale=C.UTF-8"]
        done = run_as(self._account, [str(self.bin_dir / "initdb"), "-D", str(fresh), *options, *locale])
        if done.returncode:
            raise CommandError(f"Postgres could not initialise {self.data_dir}: {reason(done.stdout)}.")
        fresh.rename(self._folder.cluster)

    def _launch(self) -> None:
        deadline = time.monotonic() + RETRY_TIMEOUT_S
        while why := self._spawn():
            if not PASSING.search(why) or time.monotonic() > deadline:
                raise CommandError(f"Postgres did not start in {self.data_dir}: {why}.")
        self._folder.keep_port(self._port)

    def _spawn(self) -> str | None:
        """Start the postmaster once; return why it ended, or None when it accepts connections."""
        self._port = self._folder.choose_port()
        process = self._process = spawn_as(self._account, self._command(), self._folder.log_path)
        wait_until(lambda: self._accepts(process) or process.poll() is not None, RECOVERY_TIMEOUT_S)
        return None if self._accepts(process) else reason(self._folder.log_path.read_text(errors="replace"))

    def _command(self) -> list[str]:
        quoted = '"{}"'.format(str(self.socket_dir).replace('"', '""'))  # it is a list, which a comma would divide
        settings = SETTINGS | {"port": str(self._port), "unix_socket_directories": quoted if self.socket_dir else ""}
        arguments = [f"--{name}={value}" for name, value in (settings | dict(self._options)).items()]
        return [str(self.bin_dir / "postgres"), "-D", str(self._folder.cluster), OWN_ARGUMENT, *arguments]

    def _accepts(self, process: subprocess.Popen[bytes]) -> bool:
        lines = self._folder.postmaster_lines()
        return len(lines) > STATUS_LINE and lines[0] == str(process.pid) and lines[STATUS_LINE].strip() == "ready"
