"""The senders, what they were answered, and what the database has of it."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from children import Child
from e2e.cluster import ENTER, INGRESS
from factories import ACCOUNT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from e2e.cluster import Cluster

TESTS = Path(__file__).parents[1]
FIRST = 1_000_000_000
NUMBERS = 1_000_000
"""For each sender: their first one tells them apart."""
LATE_S = 2.0
"""What is under way when a window closes is answered within this time, or it counts in no window but in the balance of all."""
STORED = f"""
    SELECT e.entity_id, count(*), count(*) FILTER (WHERE e.state <> 'processed'),
           bool_and(e.effect IS DISTINCT FROM 'applied'
                    OR EXISTS (SELECT FROM leads l WHERE l.account_id = e.account_id AND l.id = e.entity_id::bigint)
                    OR EXISTS (SELECT FROM contacts c WHERE c.account_id = e.account_id AND c.id = e.entity_id::bigint))
    FROM events e WHERE e.account_id = '{ACCOUNT}' AND e.entity_id BETWEEN '{FIRST}' AND '1999999999' AND length(e.entity_id) = 10
    AND e.received_at >= to_timestamp({{since}}) GROUP BY 1"""
PENDING = "SELECT count(*) FROM events WHERE state = 'pending'"


class Answer(NamedTuple):
    """One line of the senders' ledger; status 0 where no answer came."""

    number: int
    entity: str
    at: float
    seconds: float
    status: int

    @property
    def is_good(self) -> bool:
        """Tell whether it acknowledges."""
        return 200 <= self.status < 300


@dataclass
class Window:
    """What was sent from ``began`` to ``ended``, and what became of it."""

    fault: str
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    lost: int = 0
    twice: int = 0
    note: str = ""

    @property
    def bad(self) -> list[Answer]:
        """The answers that do not acknowledge."""
        return [each for each in self.answers if not each.is_good]

    @property
    def statuses(self) -> Mapping[int, int]:
        """How often each bad status came; 0 is no answer."""
        found = [each.status for each in self.bad]
        return {status: found.count(status) for status in sorted(set(found))}

    @property
    def recovery_s(self) -> float:
        """From the first bad answer to the last one."""
        return max((each.at + each.seconds for each in self.bad), default=0.0) - min((each.at for each in self.bad), default=0.0)

    def row(self) -> tuple[str, ...]:
        """Return it as a line of the table."""
        statuses = ", ".join(f"{number} × {status or 'no answer'}" for status, number in self.statuses.items())
        return (
            self.fault,
            str(len(self.answers)),
            f"{len(self.bad)} ({statuses})" if self.bad else "0",
            str(self.lost),
            str(self.twice),
            f"{self.recovery_s:.1f}" if self.began else "",
            self.note,
        )


class Traffic:
    """Senders in the cluster's network, and their common ledger."""

    def __init__(self, cluster: Cluster, folder: Path, first: int = FIRST) -> None:
        self.windows: list[Window] = []
        self._cluster = cluster
        self._folder = folder
        self._next = first
        self._senders: list[Child] = []

    def whole(self, fault: str) -> Window:
        """Return the balance of everything that was ever sent, also between the windows and later than they wait."""
        window = Window(fault, began=0.0, answers=self.answers())
        self.windows.append(window)
        self.balance(window)
        return window

    def know(self, client_id: str, client_secret: str, url: str) -> None:
        """Tell the senders what to sign with and where to send forms; they look before each request."""
        document = json.dumps({"client_id": client_id, "client_secret": client_secret, "url": url})
        fresh = self._folder / "credentials.new"
        fresh.write_text(document, encoding="utf-8")
        fresh.replace(self._folder / "credentials.json")

    def start(self, *options: str) -> Child:
        """Start a sender."""
        first, self._next = self._next, self._next + NUMBERS
        command = [*ENTER, sys.executable, "-m", "e2e.sender", str(self._folder), INGRESS, "--first", str(first), *options]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(TESTS), "LANG": "C.UTF-8"}
        sender = Child(command, cwd=self._folder, env=environment, log_path=self._folder / f"sender-{first}.log")
        self._senders.append(sender)
        return sender.start()

    def end(self) -> None:
        """End all senders."""
        for sender in self._senders:
            sender.end()

    def answers(self, since: float = 0.0, until: float = float("inf")) -> list[Answer]:
        """Return what was sent in that time."""
        path = self._folder / "answers.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = (Answer(**json.loads(line)) for line in lines if line.endswith("}"))
        return [each for each in found if since <= each.at < until]

    @contextmanager
    def window(self, fault: str) -> Iterator[Window]:
        """Note what is sent while the block runs; at its end everything acknowledged must be in the database, once."""
        window = Window(fault)
        self.windows.append(window)
        try:
            yield window
        finally:
            window.ended = time.time()
            time.sleep(LATE_S)
            window.answers = self.answers(window.began, window.ended)
        self.balance(window)

    def _is_settled(self) -> bool:
        try:
            return self._cluster.query(PENDING) == [[0]]
        except AssertionError:  # a pooler may take a second longer than another one to know that the database is back
            return False

    def balance(self, window: Window) -> None:
        """Count what was acknowledged and is not stored and applied, and what is there twice."""
        self._cluster.until(self._is_settled, "nothing is pending any more")
        stored = {int(row[0]): row[1:] for row in self._cluster.query(STORED.format(since=window.began - 60))}
        good = [each.number for each in window.answers if each.is_good]
        window.lost = sum(number not in stored or stored[number][1] > 0 or not stored[number][2] for number in good)
        window.twice = sum(number in stored and stored[number][0] > 1 for number in (each.number for each in window.answers))
