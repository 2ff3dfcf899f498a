"""Notifications: how many, about what, in which words, and that nothing of an address shows."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from amo_receiver.errors import ConfigurationError
from amo_receiver.notify import (
    BUDGET,
    MOST_BAD_ANSWERS,
    UNREACHABLE_SECONDS,
    Conditions,
    Kind,
    Notifier,
    Outbox,
    dead_letters,
    name_of,
    reason,
    send,
    services,
)
from amo_receiver.settings import Settings, check, load_settings
from amo_receiver.telemetry.metrics import ANSWER_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Apprise imports it wherever there still is one.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

SERVICE = Path(__file__).parents[2] / "service"
MARK = "MARKEDsecretMARKED"
BOT = f"tgram://123456789:{MARK}{MARK}/1234"
DEAD, DOWN, BACK = Kind.DEAD_LETTERS, Kind.DATABASE_DOWN, Kind.DATABASE_BACK


# How many


def test_the_first_goes_out_at_once_and_what_follows_is_counted() -> None:
    """Of a kind there is one message an interval; the next one has the newest sentence and the number of the others."""
    outbox = Outbox(900)
    outbox.put(DEAD, "first")
    assert outbox.take(0) == [(DEAD, "first")]
    for number in range(38):
        outbox.put(DEAD, f"number {number}")
    assert outbox.take(899) == []
    assert outbox.take(900) == [(DEAD, "number 37\n… and 37 more since the last message")]
    assert outbox.take(1800) == []
    outbox.put(DEAD, "alone again")
    assert outbox.take(1800) == [(DEAD, "alone again")]


def test_a_sentence_may_be_about_several() -> None:
    """What it is about itself is not counted among the others."""
    outbox = Outbox(900)
    outbox.put(DEAD, "two", 2)
    outbox.put(DEAD, "five", 5)
    outbox.put(DEAD, "three", 3)
    assert outbox.take(0) == [(DEAD, "three\n… and 7 more since the last message")]


def test_kinds_do_not_hold_each_other_up() -> None:
    """An outage is told while dead letters have to wait, and its end while the outage would have to."""
    outbox = Outbox(900)
    outbox.put(DEAD, "dead")
    outbox.take(0)
    outbox.put(DEAD, "another")
    outbox.put(DOWN, "down")
    assert outbox.take(60) == [(DOWN, "down")]
    outbox.put(BACK, "back")
    assert outbox.take(120) == [(BACK, "back")]


def test_what_waits_goes_out_in_the_order_it_happened() -> None:
    """Down after back is down, whichever of the two came first before."""
    outbox = Outbox(900)
    for kind in (DOWN, BACK, DOWN):
        outbox.put(kind, kind)
    assert [kind for kind, _ in outbox.take(0)] == [BACK, DOWN]


def test_at_the_end_nothing_is_kept_back() -> None:
    """Taken early, the count of what waits is told too."""
    outbox = Outbox(900)
    outbox.put(DEAD, "first")
    outbox.take(0)
    outbox.put(DEAD, "second")
    assert outbox.take(1, early=True) == [(DEAD, "second")]
    assert outbox.take(901, early=True) == []


def test_one_knows_how_long_to_wait() -> None:
    """Not at all for the first of a kind, else for the rest of the interval; for ever where there is nothing."""
    outbox = Outbox(900)
    assert outbox.wait_seconds(0) is None
    outbox.put(DEAD, "first")
    assert outbox.wait_seconds(0) == 0
    outbox.take(10)
    assert outbox.wait_seconds(10) is None
    outbox.put(DEAD, "second")
    assert outbox.wait_seconds(110) == 800
    outbox.put(DOWN, "down")
    assert outbox.wait_seconds(110) == 0


@given(st.lists(st.tuples(st.sampled_from(Kind), st.integers(1, 9), st.sampled_from([0, 1, 500, 899, 900])), max_size=60))
def test_nothing_is_lost_and_nothing_comes_too_often(steps: Sequence[tuple[Kind, int, int]]) -> None:
    """Whatever happens when: messages of a kind are an interval apart, and together they are about all there was."""
    outbox, now, sent = Outbox(900), 0, []
    for kind, count, pause in steps:
        outbox.put(kind, str(count), count)
        now += pause
        sent += [(now, *message) for message in outbox.take(now)]
    sent += [(now + 900, *message) for message in outbox.take(now + 900)]
    for kind in Kind:
        times = [at for at, told, _ in sent if told == kind]
        assert all(after - before >= 900 for before, after in pairwise(times))
        told = sum(int(number) for _, about, text in sent if about == kind for number in re.findall(r"^\d+|(?<=… and )\d+", text))
        assert told == sum(count for about, count, _ in steps if about == kind)


# About what


class Told:
    """Takes what a notifier would."""

    def __init__(self) -> None:
        self.messages: list[tuple[Kind, str]] = []

    def __call__(self, kind: Kind, sentence: str) -> None:
        self.messages.append((kind, sentence))

    def kinds(self) -> list[Kind]:
        kinds = [kind for kind, _ in self.messages]
        self.messages.clear()
        return kinds


class World:
    """What the conditions are read from."""

    def __init__(self) -> None:
        self.now, self.bad, self.up = 1000.0, 0, True
        self.told = Told()
        self.conditions = Conditions(self.told, lambda: self.bad, self.answers, lambda: self.now)

    async def answers(self) -> bool:
        return self.up

    async def look(self, *, bad: int = 0, up: bool = True, after: float = 10.0) -> list[Kind]:
        self.bad, self.up = bad, up
        self.now += after
        await self.conditions.look()
        return self.told.kinds()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([0, 49], []),
        ([50], [Kind.BUDGET_HALF]),
        ([80], [Kind.BUDGET_LOW]),
        ([49, 50, 51, 79], [Kind.BUDGET_HALF]),
        ([50, 80, 99, 200], [Kind.BUDGET_HALF, Kind.BUDGET_LOW]),
        ([0, 90], [Kind.BUDGET_LOW]),
        ([90, 60], [Kind.BUDGET_LOW]),
        ([60, 10, 60], [Kind.BUDGET_HALF, Kind.BUDGET_HALF]),
    ],
)
async def test_the_answer_budget_is_told_when_a_level_is_reached(counts: list[int], expected: list[Kind]) -> None:
    """At 50 and 80 of 100 bad answers, each time the count comes up to it, and not again while it stays there or falls."""
    world = World()
    assert [kind for bad in counts for kind in await world.look(bad=bad)] == expected


async def test_the_sentence_about_the_budget_has_both_numbers() -> None:
    """Whoever reads it knows how far it is to the end."""
    world = World()
    world.bad = 83
    await world.conditions.look()
    limit = "over 100 of all processes together make amoCRM switch the webhook off"
    sentence = f"83 answers of this process in the last 2 hours were bad; {limit}. The log says why each was."
    assert world.told.messages == [(Kind.BUDGET_LOW, sentence)]


async def test_an_outage_is_told_after_a_minute_and_so_is_its_end() -> None:
    """Once each, with how long it took."""
    world = World()
    assert await world.look() == []
    assert await world.look(up=False, after=60.0) == []
    assert await world.look(up=False, after=0.1) == [DOWN]
    assert await world.look(up=False, after=3600.0) == []
    assert await world.look() == [BACK]
    assert await world.look() == []
    assert await world.look(up=False, after=61.0) == [DOWN]


async def test_a_short_outage_is_not_told() -> None:
    """Nor is its end, and two short ones do not add up."""
    world = World()
    outages = [await world.look(up=up, after=40.0) for up in (True, False, True, False, True)]
    assert outages == [[]] * 5


async def test_the_sentences_about_the_database_say_how_long() -> None:
    """The time is that since its last answer."""
    world = World()
    world.up = False
    world.now += 75
    await world.conditions.look()
    world.up = True
    world.now += 50
    await world.conditions.look()
    beginnings = [sentence.partition(".")[0] for _, sentence in world.told.messages]
    assert beginnings == ["It has not answered for 75 s", "It answers again, after 125 s"]


def test_the_limit_is_the_one_that_the_metrics_count_down_from() -> None:
    """The levels lie below it."""
    assert MOST_BAD_ANSWERS == ANSWER_LIMIT
    assert max(BUDGET) < ANSWER_LIMIT


def test_a_dead_letter_is_told_by_entity_action_and_error() -> None:
    """Each combination once, with the number of all, an id to look at, and the command to do so with."""
    events = [("leads", "update"), ("contacts", "add"), ("leads", "update"), ("unparsed", "")]
    assert dead_letters(events, "CheckViolationError", "0199a") == (
        "4 × leads.update, contacts.add, unparsed (CheckViolationError), the first is event 0199a. "
        "See them: amo-webhooks events list --state dead"
    )


def test_many_combinations_are_cut_off() -> None:
    """A hostile body has thousands of them."""
    events = [(entity, "add") for entity in ("leads", "task", "talk", "catalogs", "message", "customers", "companies")]
    assert dead_letters(events, "InvalidBody", "1").startswith("7 × leads.add, task.add, talk.add, catalogs.add, message.add, … (")


@pytest.mark.parametrize("word", ["Иван Петров", "+7 900 123-45-67", "ivan@example.com", "ivan", "Leads", "x" * 41, "a\nb", MARK])
def test_words_that_are_not_amocrms_are_not_told(word: str) -> None:
    """In place of an entity or action a stranger may send anything, a name too."""
    sentence = dead_letters([(word, "add"), ("leads", word)], f"Error: {word}", "1")
    assert word not in sentence
    assert sentence.startswith("2 × other.add, leads.other (Error),")


# In which words


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Failed to send JSON POST notification: Unauthorized - Invalid Token., error=401.", "answered 401"),
        ("Failed to send Telegram notification to 1234: error=502.", "answered 502"),
        (f"Socket Exception: (535, b'5.7.8 {MARK}')", "answered 535"),
        ("Socket Exception: [Errno 111] Connection refused", "Connection refused"),
        (f"url: /{MARK} (Caused by X(\"Failed to resolve '{MARK}' ([Errno -2] Name or service not known)\"))", "Name or service not known"),
        (f"host='{MARK}' SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {MARK}", "CERTIFICATE_VERIFY_FAILED"),
        (f"HTTPConnectionPool(host='{MARK}', port=443): Read timed out. (read timeout=4.0)", "timed out"),
        (f"JSON POST URL: http://{MARK}:465/{MARK}?error=12 (cert_verify=True)", "no reason given"),
        (f"Socket Exception: {MARK}", "no reason given"),
    ],
)
def test_of_the_library_s_own_words_only_the_reason_is_shown(line: str, said: str) -> None:
    """They quote addresses, so nothing is taken of them but codes and what the system calls an error."""
    assert reason(["JSON send() completed in 0.00s.", line, "Socket Exception: [Errno 5] Another"]) == (
        said if said != "no reason given" else "Another"
    )
    assert reason([line]) == said


def test_a_service_whose_code_fails_is_one_that_did_not_take_the_message() -> None:
    """The error's type says so: its message quotes anything, and raised it would end the thread."""

    class Broken:
        def notify(self, *_: object, **__: object) -> bool:
            raise RuntimeError(MARK)

    broken: Any = Broken()
    assert send(broken, "subject", "text") == "RuntimeError"


# Where to


class Lines(logging.Handler):
    """Keeps what reaches the process's own handlers; pytest's also hears loggers that pass nothing on."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(level)
    root.removeHandler(handler)


@pytest.mark.parametrize("between", [" ", ",", ", ", ";", "\n", " ,\n "])
def test_several_addresses_are_separated_as_apprise_does(between: str) -> None:
    """A comma inside an address is a part of it."""
    urls = between.join(["Syslog://", "mailto://me:pw@example.com?to=a@example.com,b@example.com", BOT, "JSON://example.com"])
    assert [name_of(service) for service in services(f" {urls}\n")] == ["Syslog", "E-Mail", "Telegram", "JSON"]


@pytest.mark.parametrize(
    ("urls", "numbers"),
    [
        (MARK, "1 of 1"),
        ("  ", "1 of 1"),
        (f"nonsense://{MARK}", "1 of 1"),
        (f"tgram://{MARK}/1", "1 of 1"),
        (f"syslog://, nonsense://{MARK} {BOT}, json://:{MARK}:", "2, 4 of 4"),
    ],
)
def test_an_address_that_is_none_is_named_by_its_number(urls: str, numbers: str, lines: Lines) -> None:
    """At start, in an error that has nothing of it, and no line of the library's own is written."""
    with pytest.raises(ConfigurationError) as raised:
        Notifier(urls)
    assert str(raised.value) == f"NOTIFY_URL: {numbers} is no address that Apprise knows"
    assert lines.said == []


def test_lines_of_the_libraries_go_nowhere(lines: Lines) -> None:
    """Apprise's and those of what it sends with, whatever their level: they have whole URLs in them."""
    services("syslog://")
    for name in ("apprise", "apprise.plugins", "urllib3", "urllib3.connectionpool"):
        logging.getLogger(name).critical("Failed to parse headers (url=%s)", MARK)
    logging.getLogger("amo_receiver").critical("heard")
    assert lines.said == ["heard"]


def test_without_an_address_nothing_is_loaded_and_nothing_happens(tmp_path: Path) -> None:
    """The library costs memory and time, which only those pay who use it."""
    program = (
        "import sys, threading; from amo_receiver.notify import Kind, Notifier; notifier = Notifier('')\n"
        "notifier.start(); notifier.tell(Kind.DEAD_LETTERS, 'x'); notifier.stop()\n"
        "print('apprise' in sys.modules, threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False 1\n"


def test_one_that_was_never_started_can_be_stopped() -> None:
    """A start that failed halfway ends like any other."""
    notifier = Notifier("syslog://")
    notifier.tell(DEAD, "x")
    notifier.stop()


# What is written about it


@pytest.mark.parametrize(("page", "heading"), [("README.md", "Notifications"), ("README.ru.md", "Уведомления")])
def test_the_pages_list_what_is_told(page: str, heading: str) -> None:
    """A row for each kind, by its subject, in the order of the code, with the numbers from which on it is told."""
    section = (SERVICE / page).read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `([^`]+)` \|(.*)", section, flags=re.MULTILINE))
    assert list(rows) == list(Kind)
    assert all(str(level) in rows[kind] for level, kind in BUDGET.items())
    assert str(MOST_BAD_ANSWERS) in rows[Kind.BUDGET_HALF]
    assert f" {UNREACHABLE_SECONDS:.0f} " in rows[DOWN]


# The settings


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("bare")
def test_the_addresses_are_a_secret_and_no_weak_one() -> None:
    """They never show; a short one is not taken for a short password, and a line break behind it does no harm."""
    strong = {"db_url": "postgresql://a:b@c/d", "amocrm_client_id": "c", "amocrm_client_secret": "Zr8-kQ2vX9_mT4bL7wPd"}
    assert check(load_settings(**strong, notify_url="syslog://\n"), dev=False) == []
    assert MARK not in repr(load_settings(**strong, notify_url=BOT))
    assert not load_settings().notify_url


@pytest.mark.usefixtures("bare")
def test_the_interval_is_a_quarter_of_an_hour_unless_set() -> None:
    """From a second to a day."""
    assert load_settings().notify_interval_seconds == 900
    assert [load_settings(notify_interval_seconds=value).notify_interval_seconds for value in (1, 86_400)] == [1, 86_400]
    for value in (0, 86_401):
        with pytest.raises((ConfigurationError, ValidationError), match="NOTIFY_INTERVAL_SECONDS"):
            load_settings(notify_interval_seconds=value)
