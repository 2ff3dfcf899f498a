"""What a process knows of its keys' last matches by itself, and what becomes of that without a database."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from amo_receiver.amocrm.keyring import Key, Keyring, Match, Source
from amo_receiver.inbox.matches import MOST_ACCOUNTS, Matches

AT = 1_795_341_600.25
SHOWN = "2026-11-22T10:00:00.250000Z"
OLD, NEW = Key("url_key", b"old", "previous"), Key("url_key", b"new")
ACME = Source("acme", "acme", 7, None, (OLD, NEW))
KEYRING = Keyring.build(None, {"acme": ACME}, "plain", None)


class Outage:
    """An engine whose database is away; it counts who asks."""

    asked = 0

    def begin(self) -> Any:
        self.asked += 1
        raise ConnectionRefusedError


def match(key: Key, source: Source = ACME, account: str | None = None) -> Match:
    return Match(source, key.fingerprint, key.kind, account)


def ns(seconds: float) -> int:
    return int(seconds * 1e9)


def last_matches(matches: Matches, keyring: Keyring = KEYRING) -> list[str | None]:
    """Return what the report says of each key, in the keyring's order."""
    return [key["last_matched_at"] for source in matches.report(keyring, with_accounts=True)["sources"] for key in source["keys"]]


def test_the_report_names_each_keys_last_match() -> None:
    """The plain token's too; a key that never matched has none, and before the table was read that says nothing."""
    matches = Matches()
    assert matches.report(KEYRING, with_accounts=True)["matches_read_at"] is None
    assert last_matches(matches) == [None, None, None]
    matches.note(match(OLD), ns(AT - 5))
    matches.note(match(OLD), ns(AT))
    token = KEYRING.verify_token("plain", None)  # type: ignore[arg-type]
    matches.note(token, ns(AT + 1))
    assert last_matches(matches) == [SHOWN, None, SHOWN.replace("00.25", "01.25")]


def test_the_report_names_each_account_of_a_url_key() -> None:
    """Until there are too many of them: those that are known go on, and it says that there are others."""
    matches = Matches(lambda: AT)
    for number in range(MOST_ACCOUNTS):
        matches.note(match(OLD, account=str(number)), ns(AT - 1))
    [old, new], [token] = (source["keys"] for source in matches.report(KEYRING, with_accounts=True)["sources"])
    assert (len(old["accounts"]), old["accounts_complete"]) == (MOST_ACCOUNTS, True)
    assert (new["accounts"], new["accounts_complete"], "accounts" in token) == ({}, True, False)
    matches.note(match(OLD, account="one too many"), ns(AT))
    matches.note(match(OLD, account="7"), ns(AT))
    report = matches.report(KEYRING, with_accounts=True)
    old = report["sources"][0]["keys"][0]
    assert (len(old["accounts"]), old["accounts_complete"]) == (MOST_ACCOUNTS, False)
    assert (old["accounts"]["7"], old["accounts"]["8"] < SHOWN, old["last_matched_at"]) == (SHOWN, True, SHOWN)
    assert report["reported_at"] == SHOWN


@pytest.mark.parametrize(
    ("keys", "with_accounts", "is_listed"),
    [((OLD, NEW), True, True), ((NEW,), True, False), ((OLD, NEW), False, False), ((NEW, Key("client_secret", b"c")), True, False)],
)
def test_accounts_are_listed_while_they_move(keys: tuple[Key, ...], with_accounts: bool, is_listed: bool) -> None:
    """From one URL key of a source to another: before and after, nobody asks who has which, and a stranger never learns it."""
    matches = Matches()
    matches.note(match(NEW, account="31337"), ns(AT))
    report = matches.report(Keyring((replace(ACME, keys=keys),)), with_accounts=with_accounts)
    found = [key for key in report["sources"][0]["keys"] if key["kind"] == "url_key"]
    assert [{"accounts", "accounts_complete"} <= key.keys() for key in found] == [is_listed] * len(found)
    assert ("31337" in json.dumps(report)) is is_listed
    assert found[-1]["last_matched_at"] == SHOWN


def test_a_client_secret_is_of_no_single_account() -> None:
    """Its signatures name an account, but the sender is one."""
    matches, signing = Matches(), Key("client_secret", b"signing")
    source = Source("acme", "acme", 7, None, (signing,))
    for account in ("1", "2"):
        matches.note(match(signing, source, account), ns(AT))
    (key,) = matches.report(Keyring((source,)), with_accounts=True)["sources"][0]["keys"]
    assert (key["last_matched_at"], "accounts" in key) == (SHOWN, False)


def test_sources_with_the_same_secret_are_told_apart() -> None:
    """A fingerprint alone does not name a key."""
    twin = Source("twin", "twin", 1, None, (OLD,))
    matches = Matches()
    matches.note(match(OLD, twin), ns(AT))
    assert last_matches(matches, Keyring.build(None, {"acme": ACME, "twin": twin}, None, None)) == [None, None, SHOWN]


async def test_without_a_database_nothing_is_forgotten() -> None:
    """Its trouble is the caller's to log; what was noted is still reported, and tried again at the next call."""
    outage, matches = Outage(), Matches()
    matches.note(match(NEW), ns(AT))
    for times in (1, 2):
        with pytest.raises(ConnectionRefusedError):
            await matches.exchange(outage, KEYRING)  # type: ignore[arg-type]
        assert (outage.asked, last_matches(matches)) == (times, [None, SHOWN, None])
    assert matches.report(KEYRING, with_accounts=True)["matches_read_at"] is None
