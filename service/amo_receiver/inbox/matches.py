"""The last match of each key, over all processes and restarts: a rotation ends when nobody uses the old key any more.

The URLs of one key are entered account by account, so its matches are kept by account. A delivery costs one assignment. What the
processes know meets in a table that each reads once a minute; a row is written when it lags a minute behind, by whichever process comes
first, so that a busy key costs the database one write a minute for each account, however many processes.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
from sqlalchemy import text

from amo_receiver.inbox.effects import iso

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.ext.asyncio import AsyncEngine

    from amo_receiver.amocrm.keyring import Keyring, Match

LAG = timedelta(minutes=1)
READ_SECONDS = 60.0
LOCK_TIMEOUT_MS = 500
MOST_ACCOUNTS = 200
"""How many accounts are known of one key; its other ones are one, ``OTHERS``, so that memory, table and report stay small."""
NO_ACCOUNT, OTHERS = "", "*"

# Never later than the database's own time: a clock that runs ahead would otherwise keep a key in use for as long as it is ahead.
WRITE = text("""
    INSERT INTO key_matches AS k (account_id, source, kind, fingerprint, matched_at)
    SELECT m.account_id, m.source, m.kind, m.fingerprint, least(m.matched_at, now())
    FROM json_to_recordset(:matches) AS m(account_id text, source text, kind text, fingerprint text, matched_at timestamptz)
    ON CONFLICT (account_id, source, kind, fingerprint) DO UPDATE SET matched_at = excluded.matched_at
    WHERE excluded.matched_at - k.matched_at > make_interval(secs => :lag)""")
READ = text("""
    SELECT account_id, source, kind, fingerprint, matched_at FROM key_matches
    WHERE fingerprint = ANY(CAST(:held AS text[])) ORDER BY matched_at DESC""")

KeyName: TypeAlias = tuple[str, str, str]
"""Source, kind and fingerprint."""


class Matches:
    """What this process noted and the table does not know yet, and what it knew when it was last read; of keys that are held only."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock`` is in unix seconds."""
        self._clock = clock
        self._noted: dict[KeyName, dict[str, int]] = {}
        self._stored: dict[KeyName, dict[str, datetime]] = {}
        self._read_at: float | None = None

    def note(self, match: Match, at_ns: int) -> None:
        """Note that a key has authenticated a request which came then (unix nanoseconds)."""
        key = (match.source.name, match.kind, match.fingerprint)
        account = (match.account_id or NO_ACCOUNT) if match.kind == "url_key" else NO_ACCOUNT
        noted = self._noted.setdefault(key, {})
        noted[account if account in noted else _name(account, noted, self._stored.get(key, {}))] = at_ns

    def report(self, keyring: Keyring) -> dict[str, Any]:
        """Return the keyring's report with each key's last match, the moment, and when the table was read: before that, none says nothing.

        Of a URL key each account's last match; ``accounts_complete`` false means that it has more accounts than are listed.
        """
        sources, ahead = keyring.report(), self._ahead(timedelta())
        for source in sources:
            for key in source["keys"]:
                name = (source["source"], key["kind"], key["fingerprint"])
                latest = self._stored.get(name, {}) | ahead.get(name, {})
                key["last_matched_at"] = iso(max(latest.values()).timestamp()) if latest else None
                if key["kind"] == "url_key":
                    key["accounts"] = {account: iso(at.timestamp()) for account, at in latest.items() if account != OTHERS}
                    key["accounts_complete"] = OTHERS not in latest
        read_at = None if self._read_at is None else iso(self._read_at)
        return {"sources": sources, "matches_read_at": read_at, "reported_at": iso(self._clock())}

    async def exchange(self, engine: AsyncEngine, keyring: Keyring, lag: timedelta = LAG) -> None:
        """Write what lies more than ``lag`` ahead of the table, and read the table if that is due; else leave the database in peace."""
        due = self._ahead(lag)
        # Either way round, because the clock may be set back.
        if not due and self._read_at is not None and abs(self._clock() - self._read_at) < READ_SECONDS:
            return
        held = {(source["source"], key["kind"], key["fingerprint"]) for source in keyring.report() for key in source["keys"]}
        async with engine.begin() as connection:
            await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
            if due:
                await connection.execute(WRITE, {"matches": _json(due), "lag": lag.total_seconds()})
            rows = (await connection.execute(READ, {"held": sorted({name for _, _, name in held})})).all()
        self._stored = _latest_accounts(rows, held)
        self._noted = {key: _bounded(noted, self._stored.get(key, {})) for key, noted in self._noted.items() if key in held}
        self._noted = {key: {account: self._noted[key][account] for account in ahead} for key, ahead in self._ahead(timedelta()).items()}
        self._read_at = self._clock()

    def _ahead(self, lag: timedelta) -> dict[KeyName, dict[str, datetime]]:
        """Return what was noted and lies more than ``lag`` ahead of the table."""
        found: dict[KeyName, dict[str, datetime]] = {}
        for key, noted in self._noted.items():
            stored = self._stored.get(key, {})
            moments = {account: datetime.fromtimestamp(at_ns / 1e9, UTC) for account, at_ns in noted.items()}
            if ahead := {account: at for account, at in moments.items() if account not in stored or at - stored[account] > lag}:
                found[key] = ahead
        return found


def _name(account: str, noted: Mapping[str, int], stored: Mapping[str, datetime]) -> str:
    """Return under which name an account that was not noted yet is known."""
    return account if account in stored or len((noted.keys() | stored) - {OTHERS}) < MOST_ACCOUNTS else OTHERS


def _bounded(noted: Mapping[str, int], stored: Mapping[str, datetime]) -> dict[str, int]:
    """Count what was noted of accounts for which there is no room any more, because other processes knew more of them, to the others."""
    bounded: dict[str, int] = {}
    for account, at_ns in noted.items():
        name = _name(account, bounded, stored)
        bounded[name] = max(at_ns, bounded.get(name, 0))
    return bounded


def _latest_accounts(rows: Any, held: set[KeyName]) -> dict[KeyName, dict[str, datetime]]:
    """Sort the table's rows, latest first, by key; what several processes wrote together beyond the bound goes to the others."""
    stored: dict[KeyName, dict[str, datetime]] = {}
    for row in rows:
        key = (row.source, row.kind, row.fingerprint)
        if key in held:
            known = stored.setdefault(key, {})
            account = row.account_id if len(known.keys() - {OTHERS}) < MOST_ACCOUNTS else OTHERS
            known.setdefault(account, row.matched_at)
    return stored


def _json(due: Mapping[KeyName, Mapping[str, datetime]]) -> str:
    """Return the matches in the order of their keys, in which every process locks them."""
    names = ("account_id", "source", "kind", "fingerprint", "matched_at")
    found = sorted((account, *key, at.isoformat()) for key, accounts in due.items() for account, at in accounts.items())
    return orjson.dumps([dict(zip(names, each, strict=True)) for each in found]).decode()
