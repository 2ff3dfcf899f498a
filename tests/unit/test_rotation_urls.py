"""How URL keys are rotated: account by account, as people move them in amoCRM."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from rotations import (
    DAY,
    HOUR,
    NOW,
    REF,
    URL,
    Scene,
    current,
    following,
    reasons,
    reports,
    ring,
    shown,
    url_rings,
)

if TYPE_CHECKING:
    from amo_operator.evidence import Decision, Wanted
    from amo_operator.keyring import Keyring


def test_a_url_in_use_stays_until_a_person_has_moved_amocrm() -> None:
    """However long that takes; the person is told, and by traffic on the new URL it shows that it is done."""
    keyring, _ = url_rings()
    old = {"one": NOW - DAY}
    held = Scene(URL, keyring, {"reports": reports(keyring, matched=old)}).decide()
    assert held.keyring is keyring
    assert held.action is not None
    assert "amoCRM" in held.action
    moved = Scene(URL, keyring, {"reports": reports(keyring, matched=old | {"two": NOW})}).decide()
    assert reasons(moved) == ["OverlapStarted"]
    assert moved.action is None


def by_account(keyring: Keyring, wanted: Wanted = URL, *, now: datetime = NOW, **accounts: dict[str, timedelta]) -> Decision:
    """Decide when each account used each URL so long ago."""
    ago = {secret: {account: NOW - length for account, length in each.items()} for secret, each in accounts.items()}
    return Scene(wanted, keyring, {"reports": reports(keyring, accounts=ago), "now": now}).decide()


BOTH = replace(URL, accounts=("1", "2"))


def test_a_url_stays_until_the_last_account_has_moved() -> None:
    """Another account's traffic on the new URL says nothing of one that has news every few hours only."""
    keyring = replace(url_rings()[0], accounts=("1", "2"))
    old = {"1": 7 * HOUR, "2": 6 * HOUR}
    for late in (by_account(keyring, BOTH, one=old, two={"1": HOUR}), by_account(keyring, BOTH, one=old, two={"1": HOUR, "2": 6.5 * HOUR})):
        assert late.keyring is keyring
        assert late.action is not None
        assert "URL of account 2, " in late.action
    moved = by_account(keyring, BOTH, one=old, two={"1": HOUR, "2": 5 * HOUR})
    assert (reasons(moved), moved.action) == (["OverlapStarted"], None)


def test_quiet_is_no_proof_for_an_account_that_went_back() -> None:
    """Though all had moved once: at first it is only not retired, after the quiet period its end is taken back."""
    keyring = replace(url_rings()[1], accounts=("1", "2"))
    quiet = {"one": {"1": 9 * DAY, "2": 9 * DAY}, "two": {"1": HOUR, "2": 2 * DAY}}
    assert reasons(by_account(keyring, BOTH, **quiet)) == ["Retired"]
    back = by_account(keyring, BOTH, one={"2": 2 * HOUR}, two={"1": HOUR, "2": 2.5 * HOUR})
    assert back.keyring is keyring
    assert back.waits is not None
    assert back.waits.reason == "PreviousInUse"
    held = by_account(keyring, BOTH, one={"2": 2 * HOUR}, two={"1": HOUR, "2": 4 * HOUR})
    assert reasons(held) == ["OverlapHeld"]


def test_an_account_that_uses_both_urls_has_until_the_end() -> None:
    """One of its hooks was moved, another not: the person is told, and nothing is written to and fro."""
    _, keyring = url_rings()
    for one, two in ((timedelta(), HOUR / 2), (HOUR / 2, timedelta())):
        both = by_account(keyring, one={"77": one}, two={"77": two})
        assert both.keyring is keyring
        assert both.action is not None
        assert "account 77" in both.action
    assert reasons(by_account(keyring, now=NOW + DAY, one={"77": -DAY}, two={"77": -DAY})) == ["Retired"]


def test_an_account_that_may_not_send_any_more_is_not_waited_for() -> None:
    """A person takes it out of the list when it is gone from amoCRM."""
    keyring = url_rings()[0]
    assert reasons(by_account(keyring, one={"77": DAY, "gone": DAY}, two={"77": HOUR})) == ["OverlapStarted"]


def test_more_accounts_than_pods_list_retire_a_key_at_its_end_only() -> None:
    """Its end is set when all that are listed have moved; an account that is not listed with the new URL may be among its others."""
    waiting, running = (replace(keyring, accounts=None) for keyring in url_rings())
    anybody = replace(URL, accounts=None)
    assert by_account(waiting, anybody, one={"1": DAY, "*": DAY}, two={"2": HOUR}).keyring is waiting
    crowd = {"one": {"1": 2 * DAY, "*": 2 * DAY}, "two": {"2": HOUR, "*": HOUR}}
    assert reasons(by_account(waiting, anybody, **crowd)) == ["OverlapStarted"]
    held = by_account(running, anybody, **crowd)
    assert held.keyring is running
    assert held.waits is not None
    assert held.waits.reason == "Overlap"
    assert reasons(by_account(running, anybody, now=NOW + DAY, **crowd)) == ["Retired"]


def test_a_person_is_told_of_a_few_late_accounts_and_their_number() -> None:
    """A status has bounds, and so have names that somebody else chose."""
    keyring = replace(url_rings()[0], accounts=None)
    late = {f"{number:03}" + "x" * 100: DAY for number in range(40)} | {"*": DAY}
    action = by_account(keyring, replace(URL, accounts=None), one=late).action
    assert action is not None
    named = ", ".join(f"{number:03}" + "x" * 61 for number in range(5))
    assert f"accounts {named}, 35 more, others that are not listed" in action


def test_a_url_that_was_never_used_goes_like_any_other_key() -> None:
    """But that must be proven: a pod that does not answer may know better."""
    keyring, _ = url_rings()
    assert reasons(Scene(URL, keyring).decide()) == ["OverlapStarted"]
    silent = reports(keyring, "a", matched={"two": NOW}) + reports(keyring, "b", problem="it does not answer")
    assert Scene(URL, keyring, {"reports": silent}).decide().keyring is keyring
    assert Scene(URL, keyring, {"reports": None}).decide().keyring is keyring
    assert Scene(URL, keyring, {"credentials": {"url_key": "one"}}).decide().keyring is keyring


def test_a_url_that_is_used_for_the_first_time_late_is_held_again() -> None:
    """Somebody entered it from an old note: it stays until amoCRM is moved."""
    _, keyring = url_rings()
    decision = Scene(URL, keyring, {"reports": reports(keyring, matched={"one": NOW})}).decide()
    assert reasons(decision) == ["OverlapHeld"]
    assert decision.keyring is not None
    assert decision.keyring.of("url_key", "previous")[0].not_after is None


def test_a_pod_that_does_not_answer_may_have_seen_the_new_url_in_use() -> None:
    """Nothing is held before all have been asked."""
    _, keyring = url_rings()
    answered = reports(keyring, "a", matched={"one": NOW}) + reports(keyring, "b", problem="it does not answer")
    assert Scene(URL, keyring, {"reports": answered}).decide().keyring is keyring


def test_without_accounts_the_person_is_asked_for_them() -> None:
    """There is no URL without an account."""
    keyring = replace(url_rings()[0], accounts=None)
    decision = Scene(replace(URL, accounts=None), keyring, {"reports": reports(keyring, matched={"one": NOW})}).decide()
    assert decision.action is not None
    assert "spec.accounts" in decision.action


def test_a_kind_taken_out_of_the_spec_leaves_with_its_overlap_and_may_come_back() -> None:
    """A slip in a manifest must not cut amoCRM off, and its repair must not rotate anything."""
    keyring = ring(following("two", "url_key"), current("one", "url_key"), current("s"), accounts=("77",))
    wanted = replace(REF, accounts=("77",))
    lost = Scene(wanted, keyring, {"input_secret": "s", "steady": False}).decide()
    assert shown(lost.keyring) == [("previous", "one"), ("previous", "two"), ("current", "s")]
    assert lost.keyring is not None
    assert {key.not_after for key in lost.keyring.of("url_key", "previous")} == {NOW + 7 * DAY}
    back = Scene(replace(wanted, rotate_every={"url_key": 90 * DAY}), lost.keyring, {"input_secret": "s", "steady": False}).decide()
    assert ("current", "one") in shown(back.keyring)
    assert back.keyring is not None
    assert back.keyring.one("url_key", "current") == current("one", "url_key")
