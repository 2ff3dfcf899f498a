"""What happens in the CRM during a siege, without end, and what must be in the tables afterwards."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from integration.cards import Change, Stored, differences, fold, read_cards
from integration.load import Post, post_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import asyncpg

ACCOUNTS = ("32000001", "32000002", "test-account")
HOT_CARDS = range(1, 31)
OTHERS = range(1001, 3001)
AHEAD_SECONDS = 600
KINDS = {"full": 40, "partial": 25, "undated": 15, "delete": 6, "delete undated": 4, "restore": 6, "restore undated": 4}
STORED = """
    SELECT e.id, e.account_id, e.occurred_at, e.received_at, e.state, e.last_error, (e.payload->>'serial')::int AS serial, t.*
    FROM events e CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE outcome = 'applied') AS applied,
               string_agg(concat_ws(' ', to_char(started_at, 'HH24:MI:SS'), kind, number, outcome, error), ', ' ORDER BY id) AS attempts
        FROM attempts a WHERE a.account_id = e.account_id AND a.event_id = e.id) t
    WHERE e.payload ? 'serial'"""


class Story:
    """Endless deliveries about the same cards; the same seed tells the same, except for the time of day."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self.changes: dict[int, Change] = {}

    def next(self) -> Post:
        """Return the next delivery: one to four changes of one account."""
        account = self._random.choice(ACCOUNTS)
        count = self._random.choice((1, 1, 1, 2, 4))
        return post_of([self._happen(account) for _ in range(count)], form=self._random.random() < 0.7)

    def _happen(self, account: str) -> Change:
        pick = self._random
        kind = pick.choices(list(KINDS), list(KINDS.values()))[0]
        entity = pick.choice(("leads", "leads", "contacts"))
        card = pick.choice(HOT_CARDS) if pick.random() < 0.5 else pick.choice(OTHERS)
        # Few distinct times, so that many events tie.
        at = None if "undated" in kind else int(time.time()) // 20 * 20 - pick.randrange(0, 120, 20)
        action = kind.partition(" ")[0] if kind.startswith(("delete", "restore")) else pick.choice(("add", "update", "status"))
        columns, fields = ({}, {}) if action == "delete" else self._contents(entity)
        change = Change(len(self.changes) + 1, account, entity, action, card, at, kind in ("full", "restore"), columns, fields)
        self.changes[change.serial] = change
        return change

    def _contents(self, entity: str) -> tuple[dict[str, Any], dict[int, str | None]]:
        pick = self._random
        columns: dict[str, Any] = {"name": f"Квартира {len(self.changes)}", "responsible_user_id": pick.randrange(500)}
        fields: dict[int, str | None] = {700001: pick.choice(("google", None)), 700002: str(pick.randrange(9))}
        if entity == "leads":
            columns |= {"status_id": pick.choice((1, 2, 142, None)), "price": pick.choice((4500000, "12.50", None))}
            fields |= {123458: pick.choice(("yandex", None)), 123463: pick.choice(("990000.5", None))}
        else:
            fields |= {123456: pick.choice(("+70000000001", None))}
        return {key: columns[key] for key in columns if pick.random() < 0.6}, {key: fields[key] for key in fields if pick.random() < 0.6}


class Ending:
    """What the tables hold when everything is over, compared with what was told and what was acknowledged."""

    def __init__(self, events: list[Any], story: Story) -> None:
        self._events = events
        self._story = story
        self._received: dict[int, list[datetime]] = {}
        for event in events:
            self._received.setdefault(event["serial"], []).append(event["received_at"])
        self.serials = set(self._received)

    @classmethod
    async def read(cls, connection: asyncpg.Connection, story: Story) -> Ending:
        """Read the events."""
        return cls(await connection.fetch(STORED), story)

    def lost(self, posts: Iterable[Post]) -> set[int]:
        """Return what of these deliveries is not stored."""
        return {serial for post in posts for serial in post.serials} - self.serials

    def described(self, acknowledged: Iterable[Post]) -> str:
        """Return in one phrase how many changes there are, and how they came here."""
        known = {serial for post in acknowledged for serial in post.serials}
        late = sum(event["applied"] for event in self._events)
        return (
            f"{len(self._story.changes)} changes told, {len(self.serials)} stored, {len(self.serials - known)} of them never acknowledged; "
            f"{len(self._events)} events, {late} of them applied by a worker"
        )

    def received_at(self, post: Post) -> list[float]:
        """Return when a delivery's events were received, in unix seconds by the clock of the service that stored them."""
        return [moment.timestamp() for serial in post.serials for moment in self._received.get(serial, ())]

    def require_each_applied_once(self, at_once: Iterable[Post]) -> None:
        """Require that no event is pending, dead, applied twice, or, if it has a time, stored twice.

        ``at_once`` are the deliveries whose first try was answered that everything is applied: no worker may have applied them again.
        """
        open_ones = [event for event in self._events if event["state"] != "processed"]
        assert not open_ones, f"{len(open_ones)} not processed:\n" + "\n".join(f"{event}" for event in open_ones[:5])
        applied = {serial for post in at_once for serial in post.serials}
        twice = [event for event in self._events if event["applied"] + (event["serial"] in applied) > 1]
        assert not twice, f"{len(twice)} applied twice:\n" + "\n".join(f"{event}" for event in twice[:5])
        dated = [(event["serial"], event["occurred_at"]) for event in self._events if event["occurred_at"]]
        assert len(dated) == len(set(dated)), f"{len(dated) - len(set(dated))} stored twice"

    async def require_rows_of(self, connection: asyncpg.Connection) -> None:
        """Require that leads and contacts are what the stored events make of an empty table, by the rules alone."""
        expected = fold((self._as_received(event), Stored(event["id"], event["received_at"])) for event in self._events)
        wrong = differences(await read_cards(connection), expected)
        assert not wrong, f"{len(wrong)} of {len(expected)} cards are wrong, such as\n" + "\n".join(wrong[:3])

    def _as_received(self, event: Any) -> Change:
        """Return a change as a process with that clock had to take it: a time too far ahead counts as none."""
        change = self._story.changes[event["serial"]]
        ahead = change.at is not None and change.at > event["received_at"].timestamp() + AHEAD_SECONDS
        taken = replace(change, at=None) if ahead else change
        stored_at = None if event["occurred_at"] is None else int(event["occurred_at"].timestamp())
        assert stored_at == taken.at, f"event {event['id']} of serial {change.serial}"
        return taken
