"""Notifications on their way: to a webhook and a mail server of this machine, good, bad, silent and absent ones."""

from __future__ import annotations

import json
import logging
import re
import socketserver
import subprocess
import sys
import threading
from collections import deque
from email import message_from_string
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest

from amo_receiver.commands.doctor import settings_findings
from amo_receiver.embedded.folder import free_port
from amo_receiver.embedded.processes import wait_until
from amo_receiver.notify import Kind, Notifier
from amo_receiver.settings import Settings, load_settings
from integration.load import PATIENT, TOKEN_PATH
from servers import run_sql, service_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import StartService

# Apprise imports it wherever there still is one.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

MARK = "MARKEDsecretMARKED"
DEAD, DOWN = Kind.DEAD_LETTERS, Kind.DATABASE_DOWN
PATIENCE_SECONDS = 60.0
LONG_SECONDS = 3600.0


class Receiver:
    """A webhook: takes messages with 200, but first answers what is in ``answers``; none while ``silent`` is not set."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.answers: deque[int] = deque()
        self.silent = threading.Event()
        self.silent.set()
        self._server = _HTTPServer(("127.0.0.1", 0), _Webhook)
        self._server.receiver = self
        self.url = f"json://me:{MARK}@127.0.0.1:{self._server.server_port}/{MARK}?rto={LONG_SECONDS}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.silent.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def texts(self) -> list[str]:
        return [message["message"] for message in self.messages]


class _HTTPServer(ThreadingHTTPServer):
    receiver: Receiver


class _Webhook(BaseHTTPRequestHandler):
    server: _HTTPServer

    def do_POST(self) -> None:
        receiver = self.server.receiver
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        receiver.messages.append(body | {"by": self.headers["User-Agent"]})
        receiver.silent.wait(PATIENCE_SECONDS * 2)
        self.send_response(receiver.answers.popleft() if receiver.answers else 200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it is called by
        """Say nothing."""


class _Mail(socketserver.StreamRequestHandler):
    """Just enough SMTP; the server's ``refuses`` is its answer to a password."""

    def handle(self) -> None:
        server: Any = self.server
        self._say("220 here")
        while line := self.rfile.readline().decode().strip():
            verb = line[:4].upper()
            if verb == "EHLO":
                self._say("250-here\r\n250 AUTH PLAIN LOGIN")
            elif verb == "AUTH":
                self._say(server.refuses or "235 welcome")
            elif verb == "DATA":
                self._say("354 go on")
                server.mails.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                self._say("250 taken")
            else:
                self._say("221 bye" if verb == "QUIT" else "250 ok")

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this machine asked directly, whatever the environment says of the outside."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def mail_server() -> Iterator[Any]:
    server: Any = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Mail)
    server.daemon_threads = True
    server.mails, server.refuses = [], None
    server.url = f"mailto://me:{MARK}@127.0.0.1:{server.server_address[1]}?from=amo@example.com&to=boss@example.com"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def arrived(receiver: Receiver, count: int) -> bool:
    return wait_until(lambda: len(receiver.messages) >= count, PATIENCE_SECONDS)


def told(notifier: Notifier, *sentences: str) -> None:
    """Tell all, and end when they are sent or given up."""
    notifier.start()
    for sentence in sentences:
        notifier.tell(DEAD, sentence)
    notifier.stop(PATIENCE_SECONDS)


# What arrives


async def test_a_message_says_where_when_and_what(receiver: Receiver) -> None:
    """Its subject has the machine and the kind, its text the time and the sentence; it comes in this program's name."""
    notifier = Notifier(receiver.url)
    notifier.start()
    notifier.tell(DEAD, "3 × leads.update")
    assert arrived(receiver, 1)
    notifier.stop()
    assert len(receiver.messages) == 1
    assert receiver.messages[0]["by"] == "amo-webhooks"
    assert re.fullmatch(r"amo-webhooks on \S+: dead letters", receiver.messages[0]["title"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: 3 × leads\.update", receiver.texts[0])


def test_what_comes_within_the_interval_is_told_with_its_number_at_the_end(receiver: Receiver) -> None:
    """One message for the first, and at the latest when the service stops one for the others; another kind comes at once."""
    notifier = Notifier(receiver.url, LONG_SECONDS)
    notifier.start()
    notifier.tell(DEAD, "first")
    assert arrived(receiver, 1)
    for number in range(1, 39):
        notifier.tell(DEAD, f"number {number}")
    notifier.tell(DOWN, "down")
    assert arrived(receiver, 2)
    assert receiver.texts[1].endswith("UTC: down")
    notifier.stop(PATIENCE_SECONDS)
    assert len(receiver.texts) == 3
    assert receiver.texts[2].endswith("UTC: number 38\n… and 37 more since the last message")


def test_when_the_interval_is_over_the_others_are_told(receiver: Receiver) -> None:
    """Without anything new having to happen."""
    notifier = Notifier(receiver.url, 1.0)
    notifier.start()
    notifier.tell(DEAD, "first")
    assert arrived(receiver, 1)
    for number in range(4):
        notifier.tell(DEAD, f"number {number}")

    def counted() -> int:
        return len(receiver.texts) + sum(int(number) for text in receiver.texts for number in re.findall(r"and (\d+) more", text))

    assert wait_until(lambda: counted() == 5, PATIENCE_SECONDS)
    notifier.stop()
    assert counted() == 5


def test_a_mail_is_sent(mail_server: Any) -> None:
    """With the kind in its subject, and a text that is no markup."""
    told(Notifier(mail_server.url), "one <b> & two\nlines")
    [mail] = (message_from_string(each, policy=default) for each in mail_server.mails)
    assert mail["To"] == "boss@example.com"
    assert re.fullmatch(r"amo-webhooks on \S+: dead letters", mail["Subject"])
    assert mail.get_content_type() == "text/plain"
    assert mail.get_content().partition(" UTC: ")[2].splitlines() == ["one <b> & two", "lines"]


# What goes wrong


def test_who_did_not_take_a_message_gets_it_again(receiver: Receiver) -> None:
    """And only he: the other address, which did, is not told twice."""
    with Receiver() as other:
        receiver.answers.extend([500, 503])
        notifier = Notifier(f"{receiver.url}, {other.url}", pauses_seconds=(0.001, 0.001))
        notifier.start()
        notifier.tell(DEAD, "once")
        assert arrived(receiver, 3)
        notifier.stop(PATIENCE_SECONDS)
        assert len(receiver.texts) == 3
        assert len(set(receiver.texts)) == 1
        assert len(other.texts) == 1


def test_a_message_that_nobody_takes_is_given_up_and_logged_without_the_address(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """After the third try, as an ERROR that names the service and the answer; the next message is tried again."""
    receiver.answers.extend([401] * 3)
    notifier = Notifier(receiver.url, pauses_seconds=(0.001, 0.001))
    notifier.start()
    with caplog.at_level(logging.DEBUG, "amo_receiver"):
        notifier.tell(DEAD, "lost")
        assert arrived(receiver, 3)
        notifier.tell(DOWN, "taken")
        assert arrived(receiver, 4)
        notifier.stop(PATIENCE_SECONDS)
    [record] = [record for record in caplog.records if record.name.startswith("amo_receiver")]
    assert (record.levelname, record.getMessage()) == ("ERROR", "Notification not sent: dead letters")
    fields: Any = record.__dict__["fields"]
    assert fields == {"service": "JSON", "reason": "answered 401", "error_type": "NotificationNotSent"}
    assert [text.partition("UTC: ")[2] for text in receiver.texts] == ["lost"] * 3 + ["taken"]


def test_at_the_end_a_message_is_tried_once(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever stops the service does not wait for the pauses between the tries, and the log says what was lost."""
    receiver.answers.append(500)
    told(Notifier(receiver.url, pauses_seconds=(LONG_SECONDS,)), "one")
    assert len(receiver.messages) == 1
    assert reasons(caplog) == ["answered 500"]


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    records: list[Any] = [record for record in caplog.records if record.name == "amo_receiver.notify"]
    assert not any(MARK in f"{record.getMessage()}{record.fields}" for record in records)
    return [record.fields["reason"] for record in records]


def test_a_password_that_is_refused_does_not_show(mail_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The mail server's code does, so that somebody can mend it."""
    mail_server.refuses = f"535 5.7.8 {MARK} is wrong"
    told(Notifier(mail_server.url), "one")
    assert mail_server.mails == []
    assert reasons(caplog) == ["answered 535"]


def test_an_address_where_nobody_listens_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """In the words of the system."""
    told(Notifier(f"json://127.0.0.1:{free_port()}/{MARK}"), "one")
    assert reasons(caplog) == ["Connection refused"]


async def test_nobody_waits_for_an_address_that_is_silent(receiver: Receiver) -> None:
    """Telling and stopping return while it still owes its answer, and what piles up is one message of each kind."""
    receiver.silent.clear()
    notifier = Notifier(receiver.url)
    notifier.start()
    notifier.tell(DEAD, "first")
    assert arrived(receiver, 1)
    for number in range(10_000):
        notifier.tell(DEAD, f"number {number}")
    notifier.stop(0.01)
    assert len(receiver.messages) == 1
    receiver.silent.set()
    assert arrived(receiver, 2)
    assert receiver.texts[1].endswith("UTC: number 9999\n… and 9999 more since the last message")


def test_a_silent_address_does_not_keep_the_process_alive(receiver: Receiver, tmp_path: Path) -> None:
    """It ends although the address never answers, and would be waited for."""
    receiver.silent.clear()
    program = (
        "import sys; from amo_receiver.notify import Kind, Notifier\n"
        "notifier = Notifier(sys.argv[1]); notifier.start(); notifier.tell(Kind.DEAD_LETTERS, 'x')\n"
        "sys.stdin.readline(); notifier.stop(0.01); print('ended')"
    )
    command = [sys.executable, "-c", program, receiver.url]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert arrived(receiver, 1)
        assert process.communicate("\n", timeout=PATIENCE_SECONDS)[0] == "ended\n"
    assert not receiver.silent.is_set()


# In a service


def test_a_service_tells_of_a_body_that_it_cannot_read(receiver: Receiver, start_service: StartService, database_url: str) -> None:
    """By the event's kind, its error and its id; nothing of the body or the address shows, in the log neither."""
    service = start_service(database_url, env=PATIENT | {"NOTIFY_URL": receiver.url, "LOG_LEVEL": "DEBUG"})
    body = f"leads[add][0][name]={MARK}&leads[add][0][id]=" + "[" * 40
    answer = httpx.post(service.url + TOKEN_PATH, content=body.encode() + b"\xff", trust_env=False, timeout=PATIENCE_SECONDS)
    assert answer.json()["status"] == "partial"
    assert arrived(receiver, 1)
    [row] = run_sql(database_url, "SELECT id::text FROM events WHERE state = 'dead'")
    sentence = f"1 × unparsed (Unparsable), the first is event {row['id']}. See them: amo-webhooks events list --state dead"
    assert receiver.texts[0].partition(" UTC: ")[2] == sentence
    assert MARK not in repr(receiver.messages)
    service.end()
    assert MARK not in service.log


def test_a_service_ends_although_the_address_is_silent(receiver: Receiver, start_service: StartService, database_url: str) -> None:
    """What waits is tried for a few seconds at most."""
    service = start_service(database_url, env=PATIENT | {"NOTIFY_URL": receiver.url})
    receiver.silent.clear()
    for body in (b"\xff", b"\xfe"):
        httpx.post(service.url + TOKEN_PATH, content=body, trust_env=False, timeout=PATIENCE_SECONDS)
    assert arrived(receiver, 1)
    service.end()
    assert not receiver.silent.is_set()
    assert service.process.returncode == 0


# What a person is told


def run(folder: Path, *arguments: str, url: str | None) -> subprocess.CompletedProcess[str]:
    environment = service_environment("", folder, {"NOTIFY_URL": url})
    command = [sys.executable, "-m", "amo_receiver", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert MARK not in done.stdout + done.stderr
    return done


def test_the_command_sends_a_test_message_to_each_address(receiver: Receiver, tmp_path: Path) -> None:
    """What became of each is a line of a table; the exit code is 0 only if all have taken it."""
    done = run(tmp_path, "notify", url=f"{receiver.url} syslog://")
    assert done.returncode == 0, done
    assert [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()[3:5]] == [["1", "JSON", "sent"], ["2", "Syslog", "sent"]]
    assert receiver.texts == ["This is a test: dead letters, a spent answer budget and a database that is down would be told here."]
    receiver.answers.append(403)
    done = run(tmp_path, "notify", url=f"syslog:// {receiver.url}")
    assert done.returncode == 1
    assert re.search(r"1 +Syslog +sent +\n +2 +JSON +answered 403 ", done.stdout)


@pytest.mark.parametrize(
    ("url", "said"),
    [(None, "NOTIFY_URL is not set: it says where to"), (f"syslog://;no://{MARK}", "NOTIFY_URL: 2 of 2 is no address that Apprise knows")],
)
def test_the_command_needs_addresses(url: str | None, said: str, tmp_path: Path) -> None:
    """Without any, or with one that is none, it ends with the exit code of a configuration that is wrong."""
    done = run(tmp_path, "notify", url=url)
    assert done.returncode == 2
    assert done.stderr.startswith(f"amo-webhooks: {said}")


@pytest.mark.parametrize(
    ("url", "finding"),
    [
        ("", None),
        (f"syslog://, json://{MARK}", ("notifications", "ok", "They go to Syslog, JSON.")),
        (f"tgram://{MARK}", ("settings", "problem", "NOTIFY_URL: 1 of 1 is no address that Apprise knows.")),
    ],
)
def test_doctor_judges_the_addresses_by_their_form(
    url: str, finding: tuple[str, str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends nothing; which services they are shows, and nothing else of them."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    settings = load_settings(True, db_url="postgresql://a:b@c/d", notify_url=url)
    found = [(each.part, each.state, each.sentence) for each in settings_findings(settings, True)]
    assert [each for each in found if "Complete" not in each[2]] == ([finding] if finding else [])
