"""The last match of each key, over all processes and restarts: a rotation ends when nobody uses the old key any more.

A delivery costs one assignment. What the processes know meets in a table that each reads once a minute; a key's row is written when it
lags a minute behind, by whichever process comes first, so that a busy key costs the database one write a minute, however many processes.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
from sqlalchemy import text

from amo_receiver.inbox.effects import iso

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from amo_receiver.amocrm.keyring import Keyring, Match

LAG = timedelta(minutes=1)
READ_SECONDS = 60.0
LOCK_TIMEOUT_MS = 500

# Never later than the database's own time: a clock that runs ahead would otherwise keep a key in use for as long as it is ahead.
WRITE = text("""
    INSERT INTO key_matches AS k (source, kind, fingerprint, matched_at)
    SELECT m.source, m.kind, m.fingerprint, least(m.matched_at, now())
    FROM json_to_recordset(:matches) AS m(source text, kind text, fingerprint text, matched_at timestamptz)
    ON CONFLICT (source, kind, fingerprint) DO UPDATE SET matched_at = excluded.matched_at
    WHERE excluded.matched_at - k.matched_at > make_interval(secs => :lag)""")
READ = text("SELECT source, kind, fingerprint, matched_at FROM key_matches")

KeyName: TypeAlias = tuple[str, str, str]
"""Source, kind and fingerprint."""


class Matches:
    """What this process noted and the table does not know yet, and what it knew when it was last read; of keys that are held only."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock`` is in unix seconds."""
        self._clock = clock
        self._noted: dict[KeyName, int] = {}
        self._stored: dict[KeyName, datetime] = {}
        self._read_at: float | None = None

    def note(self, match: Match, at_ns: int) -> None:
        """Note that a key has authenticated a request which came then (unix nanoseconds)."""
        self._noted[match.source.name, match.kind, match.fingerprint] = at_ns

    def report(self, keyring: Keyring) -> dict[str, Any]:
        """Return the keyring's report with each key's last match, and when the table was read: before that, no match says nothing."""
        sources, latest = keyring.report(), self._stored | self._ahead(timedelta())
        for source in sources:
            for key in source["keys"]:
                last = latest.get((source["source"], key["kind"], key["fingerprint"]))
                key["last_matched_at"] = last and iso(last.timestamp())
        return {"sources": sources, "matches_read_at": None if self._read_at is None else iso(self._read_at)}

    async def exchange(self, engine: AsyncEngine, keyring: Keyring, lag: timedelta = LAG) -> None:
        """Write what lies more than ``lag`` ahead of the table, and read the table if that is due; else leave the database in peace."""
        due = self._ahead(lag)
        # Either way round, because the clock may be set back.
        if not due and self._read_at is not None and abs(self._clock() - self._read_at) < READ_SECONDS:
            return
        async with engine.begin() as connection:
            await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
            if due:
                await connection.execute(WRITE, {"matches": _json(due), "lag": lag.total_seconds()})
            rows = (await connection.execute(READ)).all()
        held = {(source["source"], key["kind"], key["fingerprint"]) for source in keyring.report() for key in source["keys"]}
        self._stored = {key: row.matched_at for row in rows if (key := (row.source, row.kind, row.fingerprint)) in held}
        self._noted = {key: self._noted[key] for key in self._ahead(timedelta()) if key in held}
        self._read_at = self._clock()

    def _ahead(self, lag: timedelta) -> dict[KeyName, datetime]:
        """Return what was noted and lies more than ``lag`` ahead of the table."""
        moments = {key: datetime.fromtimestamp(at_ns / 1e9, UTC) for key, at_ns in self._noted.items()}
        return {key: moment for key, moment in moments.items() if key not in self._stored or moment - self._stored[key] > lag}


def _json(due: dict[KeyName, datetime]) -> str:
    """Return the matches in the order of their keys, in which every process locks them."""
    names = ("source", "kind", "fingerprint", "matched_at")
    return orjson.dumps([dict(zip(names, (*key, moment.isoformat()), strict=True)) for key, moment in sorted(due.items())]).decode()
