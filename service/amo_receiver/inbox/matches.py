"""The last match of each key, over all processes and restarts: a rotation ends when nobody uses the old key any more.

The URLs of one key are entered account by account, so its matches are kept by account. A delivery costs one assignment. What the
processes know meets in a table: once a minute each writes what lies ahead of it and reads what the others wrote. What one of them has just
written the others leave for the next minute, so that a busy key costs the database one write a minute for each account.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
from sqlalchemy import text

from amo_receiver.inbox.effects import iso

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy.ext.asyncio import AsyncEngine

    from amo_receiver.amocrm.keyring import Keyring, Match

READ_SECONDS = 60.0
LAG = timedelta(seconds=50)
"""How far a match must lie ahead of the table's to be written: less than the time between two looks, or each other one would be skipped."""
LOCK_TIMEOUT_MS = 500
MOST_ACCOUNTS = 200
"""How many accounts are known of one key; its other ones are one, ``OTHERS``, so that memory, table and report stay small."""
NO_ACCOUNT, OTHERS = "", "*"
MICROSECOND = timedelta(microseconds=1)

# Never later than the database's own time: a clock that runs ahead would otherwise keep a key in use for as long as it is ahead.
WRITE = text("""
    INSERT INTO key_matches AS k (account_id, source, kind, fingerprint, matched_at)
    SELECT m.account_id, m.source, m.kind, m.fingerprint, least(m.matched_at, now())
    FROM json_to_recordset(:matches) AS m(account_id text, source text, kind text, fingerprint text, matched_at timestamptz)
    ON CONFLICT (account_id, source, kind, fingerprint) DO UPDATE SET matched_at = excluded.matched_at
    WHERE excluded.matched_at - k.matched_at > make_interval(secs => :lag)""")
READ = text("""
    SELECT account_id, source, kind, fingerprint, (extract(epoch FROM matched_at) * 1000000)::bigint FROM key_matches
    WHERE fingerprint = ANY(CAST(:held AS text[])) ORDER BY matched_at DESC""")

KeyName: TypeAlias = tuple[str, str, str]
"""Source, kind and fingerprint."""
Moments: TypeAlias = dict[str, int]
"""When each account of a key matched last, in unix microseconds, as the database keeps them."""


class Matches:
    """What this process knows, and what the table knew when it was last read; of keys that are held only."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock`` is in unix seconds."""
        self._clock = clock
        self._latest: dict[KeyName, Moments] = {}
        self._stored: dict[KeyName, Moments] = {}
        self._read_at: float | None = None

    def note(self, match: Match, at_ns: int) -> None:
        """Note that a key has authenticated a request which came then (unix nanoseconds)."""
        account = (match.account_id or NO_ACCOUNT) if match.kind == "url_key" else NO_ACCOUNT
        key = (match.source.name, match.kind, match.fingerprint)
        known = self._latest.setdefault(key, {})
        name = _name(account, known)
        known[name] = max((at_ns + 500) // 1000, self._stored.get(key, {}).get(name, 0))

    def report(self, keyring: Keyring, *, with_accounts: bool) -> dict[str, Any]:
        """Return the keyring's report with each key's last match, the moment, and when the table was read: before that, none says nothing.

        While a source has several URL keys also each account's last match, which says who has moved from one to the other;
        ``accounts_complete`` false means that a key has more accounts than are listed.
        """
        sources = keyring.report()
        for source in sources:
            is_listed = with_accounts and sum(key["kind"] == "url_key" for key in source["keys"]) > 1
            for key in source["keys"]:
                latest = self._latest.get((source["source"], key["kind"], key["fingerprint"]), {})
                key["last_matched_at"] = iso(max(latest.values()) / 1e6) if latest else None
                if is_listed and key["kind"] == "url_key":
                    key["accounts"] = {account: iso(at / 1e6) for account, at in latest.items() if account != OTHERS}
                    key["accounts_complete"] = OTHERS not in latest
        read_at = None if self._read_at is None else iso(self._read_at)
        return {"sources": sources, "matches_read_at": read_at, "reported_at": iso(self._clock())}

    async def exchange(self, engine: AsyncEngine, keyring: Keyring, lag: timedelta = LAG) -> None:
        """Once a minute, and at the end, which allows no ``lag``: write what lies ahead of the table, and read it."""
        # Either way round, because the clock may be set back.
        if lag and self._read_at is not None and abs(self._clock() - self._read_at) < READ_SECONDS:
            return
        due = self._ahead(lag)
        held = {(source["source"], key["kind"], key["fingerprint"]) for source in keyring.report() for key in source["keys"]}
        async with engine.begin() as connection:
            await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
            if due:
                await connection.execute(WRITE, {"matches": _json(due), "lag": lag.total_seconds()})
            rows = (await connection.execute(READ, {"held": sorted({name for _, _, name in held})})).all()
        stored, noted = _stored(rows, held), self._ahead(timedelta())
        self._stored = stored
        self._latest = {key: _joined(stored.get(key, {}), noted.get(key, {})) for key in held & (stored.keys() | noted.keys())}
        self._read_at = self._clock()

    def _ahead(self, lag: timedelta) -> dict[KeyName, Moments]:
        """Return what was noted and lies more than ``lag`` ahead of the table."""
        found, most = {}, lag // MICROSECOND
        for key, latest in self._latest.items():
            stored = self._stored.get(key, {})
            if ahead := {account: at for account, at in latest.items() if account not in stored or at - stored[account] > most}:
                found[key] = ahead
        return found


def _name(account: str, known: Mapping[str, int]) -> str:
    """Return under which name an account is known or will be: in constant time, each delivery asks."""
    return account if account in known or len(known) - (OTHERS in known) < MOST_ACCOUNTS else OTHERS


def _joined(stored: Mapping[str, int], noted: Mapping[str, int]) -> Moments:
    """Add what was noted; accounts for which there is no room any more, because other processes knew more of them, are others."""
    joined = dict(stored)
    for account, at in noted.items():
        name = _name(account, joined)
        joined[name] = max(at, joined.get(name, 0))
    return joined


def _stored(rows: Iterable[Any], held: set[KeyName]) -> dict[KeyName, Moments]:
    """Sort the table's rows, latest first, by key; what several processes wrote together beyond the bound goes to the others."""
    stored: dict[KeyName, Moments] = {}
    for account, source, kind, name, at in rows:
        if (key := (source, kind, name)) in held:
            known = stored.setdefault(key, {})
            known.setdefault(_name(account, known), at)
    return stored


def _json(due: Mapping[KeyName, Mapping[str, int]]) -> str:
    """Return the matches in the order of their keys, in which every process locks them."""
    names = ("account_id", "source", "kind", "fingerprint", "matched_at")
    found = sorted((account, *key, iso(at / 1e6)) for key, accounts in due.items() for account, at in accounts.items())
    return orjson.dumps([dict(zip(names, each, strict=True)) for each in found]).decode()
