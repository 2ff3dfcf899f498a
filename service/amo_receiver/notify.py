"""Notifications for whoever has no alerting system: mail, Telegram, a webhook or what else Apprise knows, as NOTIFY_URL says.

A message speaks of numbers, ids, entities, actions and error types, never of what was sent. Of each kind at most one goes out in an
interval; what comes in between is counted, and told when the interval is over. So never more than one message of each kind waits. They
are sent by a thread, with a few seconds for each connection and answer, so the service never waits.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from amo_receiver.amocrm.words import kind_word
from amo_receiver.errors import ConfigurationError
from amo_receiver.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from apprise import Apprise

log = get_logger(__name__)

INTERVAL_SECONDS = 900.0
PAUSES_SECONDS = (5.0, 30.0)
"""Between the tries of one message; after the last it is given up."""
STOP_SECONDS = 3.0
UNREACHABLE_SECONDS = 60.0
"""How long the database may be away before it is told: shorter outages are over before anybody has read of them."""
MOST_BAD_ANSWERS = 100
"""amoCRM switches a hook off when more of its deliveries than these are answered badly within two hours."""
MOST_NAMES = 5

BETWEEN_URLS = re.compile(r"[\s,;]+(?=[a-z0-9]+://)", re.IGNORECASE)
ERROR_TYPE = re.compile(r"\w{1,60}")
REASON = re.compile(r"error=([45]\d\d)\b|\(([45]\d\d), b['\"]|\[Errno -?\d+\] ([A-Z][a-z ]+)|\[SSL: ([A-Z_]+)\]|(timed out)")
"""What of Apprise's lines may be shown: an HTTP or SMTP code, or what the system or OpenSSL calls the error. The rest quotes the URL."""


class Kind(StrEnum):
    """What is told, by the message's subject; each is limited for itself."""

    DEAD_LETTERS = "dead letters"
    BUDGET_HALF = "half of the answer budget is used up"
    BUDGET_LOW = "the answer budget is nearly used up"
    DATABASE_DOWN = "the database is down"
    DATABASE_BACK = "the database is back"


BUDGET = {50: Kind.BUDGET_HALF, 80: Kind.BUDGET_LOW}
"""From how many bad answers of one process on it is told: of several, each has only its part of those that amoCRM counts."""


class Outbox:
    """The messages that wait, and how many occurrences each is about; times are those of one monotonic clock."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._waiting: dict[Kind, tuple[str, int]] = {}
        self._free_at: dict[Kind, float] = {}

    def put(self, kind: Kind, sentence: str, count: int = 1) -> None:
        """Let a sentence wait, in place of one of its kind that does so already."""
        _, before = self._waiting.pop(kind, ("", 0))
        more = f"\n… and {before} more since the last message" if before else ""
        self._waiting[kind] = (sentence + more, before + count)

    def take(self, now: float, *, early: bool = False) -> list[tuple[Kind, str]]:
        """Take the messages whose interval is over, or ``early`` all, in the order of their newest sentences."""
        ripe = [kind for kind in self._waiting if early or self._free_at.get(kind, now) <= now]
        self._free_at |= dict.fromkeys(ripe, now + self._interval_seconds)
        return [(kind, self._waiting.pop(kind)[0]) for kind in ripe]

    def wait_seconds(self, now: float) -> float | None:
        """Return how long until there is something to take; None: until something is put in."""
        return min((max(self._free_at.get(kind, now) - now, 0.0) for kind in self._waiting), default=None)


class Notifier:
    """Tells every address of NOTIFY_URL what happened; without one it does nothing. ConfigurationError: see ``services``."""

    def __init__(self, urls: str, interval_seconds: float = INTERVAL_SECONDS, *, pauses_seconds: Sequence[float] = PAUSES_SECONDS) -> None:
        self._services = services(urls)
        self._pauses_seconds = pauses_seconds
        self._outbox = Outbox(interval_seconds)
        self._changed = threading.Condition()
        self._ending = False
        # A daemon, because an address that does not answer must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True) if self._services else None

    def start(self) -> None:
        """Begin to send."""
        if self._thread:
            self._thread.start()

    def tell(self, kind: Kind, sentence: str, count: int = 1) -> None:
        """Have a sentence sent, which is about ``count`` occurrences; returns at once, from any thread."""
        if self._thread:
            with self._changed:
                self._outbox.put(kind, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {sentence}", count)
                self._changed.notify()

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """Send what waits, in so long at most, and end; blocks."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread and self._thread.ident:
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while messages := self._next():
            for kind, text in messages:
                self._send(kind, text)

    def _next(self) -> list[tuple[Kind, str]]:
        """Return what is to be sent now, after waiting for it; nothing at the end."""
        with self._changed:
            while True:
                now = time.monotonic()
                if (messages := self._outbox.take(now, early=self._ending)) or self._ending:
                    return messages
                self._changed.wait(self._outbox.wait_seconds(now))

    def _send(self, kind: Kind, text: str) -> None:
        """Send a message to all, and again to those that did not take it."""
        problems = undelivered(self._services, kind, text)
        for pause in self._pauses_seconds:
            if not problems or self._ends_within(pause):
                break
            problems = undelivered([service for service, _ in problems], kind, text)
        for service, problem in problems:
            log.error("Notification not sent: %s", kind, service=name_of(service), reason=problem, error_type="NotificationNotSent")

    def _ends_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._ending, seconds)


class Conditions:
    """What nobody calls out and must be looked at: the answer budget, and whether the database answers."""

    def __init__(
        self,
        tell: Callable[[Kind, str], None],
        bad_answers: Callable[[], int],
        database_answers: Callable[[], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._bad_answers = bad_answers
        self._database_answers = database_answers
        self._clock = clock
        self._level = 0
        self._answered_at = clock()
        self._down = False

    async def look(self) -> None:
        """Tell what has changed since the last look; ``bad_answers`` counts those of the last two hours."""
        self._judge_budget(self._bad_answers())
        self._judge_database(answers=await self._database_answers())

    def _judge_budget(self, bad: int) -> None:
        level = max((level for level in BUDGET if bad >= level), default=0)
        if level > self._level:
            limit = f"over {MOST_BAD_ANSWERS} of all processes together make amoCRM switch the webhook off"
            self._tell(BUDGET[level], f"{bad} answers of this process in the last 2 hours were bad; {limit}. The log says why each was.")
        self._level = level

    def _judge_database(self, *, answers: bool) -> None:
        away = self._clock() - self._answered_at
        if answers:
            if self._down:
                self._tell(Kind.DATABASE_BACK, f"It answers again, after {away:.0f} s. Webhooks are accepted.")
            self._answered_at += away
            self._down = False
        elif away > UNREACHABLE_SECONDS and not self._down:
            self._down = True
            meanwhile = "Webhooks are answered 503, and amoCRM repeats them for a while"
            self._tell(Kind.DATABASE_DOWN, f"It has not answered for {away:.0f} s. {meanwhile}.")


def dead_letters(events: Iterable[tuple[str, str]], error_type: str, first_id: str) -> str:
    """Return the sentence about events (entity, action) that were given up on; a word that is not amoCRM's is not shown."""
    kinds = [kind_word(*event) for event in events]
    names = list(dict.fromkeys(kinds))
    shown = ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
    reason = error_type if ERROR_TYPE.fullmatch(error_type) else "Error"
    return f"{len(kinds)} × {shown} ({reason}), the first is event {first_id}. See them: amo-webhooks events list --state dead"


def services(urls: str) -> list[Apprise]:
    """Return what sends to each of the addresses.

    :raises ConfigurationError: Apprise does not know one; named by its number, for it is a secret.
    """
    if not urls:
        return []
    for library in ("apprise", "urllib3"):
        logging.getLogger(library).propagate = False  # their lines quote addresses
    logging.getLogger("apprise").setLevel(logging.DEBUG)  # for ``reason``
    from apprise import Apprise, AppriseAsset  # noqa: PLC0415 - most of a second and 26 MB, for those only who want it

    # Without a time limit of its own Apprise sends in our thread, and not in a pool that would keep the process alive.
    asset = AppriseAsset(app_id="amo-webhooks", service_timeout=0)
    addresses = BETWEEN_URLS.split(urls.strip(" \t\r\n,;"))
    found = [Apprise(asset=asset) for _ in addresses]
    unknown = [str(number) for number, (service, url) in enumerate(zip(found, addresses, strict=True), 1) if not service.add(url)]
    if unknown:
        raise ConfigurationError(f"NOTIFY_URL: {', '.join(unknown)} of {len(addresses)} is no address that Apprise knows")
    return found


def name_of(service: Apprise) -> str:
    """Return what Apprise calls the service of an address."""
    return ", ".join(str(each.service_name) for each in service)


def undelivered(to: Iterable[Apprise], subject: str, text: str) -> list[tuple[Apprise, str]]:
    """Send a message to each, and return those that did not take it, with the reason."""
    return [(service, problem) for service in to if (problem := send(service, subject, text)) is not None]


def send(service: Apprise, subject: str, text: str) -> str | None:
    """Return None once the service has taken the message, else why not, in words that have nothing of the address."""
    title = f"amo-webhooks on {socket.gethostname()}: {subject}"
    try:
        result = service.notify(text, title=title, body_format="text", log_level=logging.DEBUG)
    except Exception as error:  # noqa: BLE001 - a service's code is other people's
        return type(error).__name__
    return None if result else reason(entry.message for entry in result.logs())


def reason(lines: Iterable[str]) -> str:
    """Return why a message was not taken, out of Apprise's lines."""
    for line in lines:
        if found := REASON.search(line):
            return f"answered {found[found.lastindex]}" if found.lastindex in (1, 2) else str(found[found.lastindex or 0])
    return "no reason given"
