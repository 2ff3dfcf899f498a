"""The rotation, case by case: what is decided from what, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from amo_operator.evidence import CLOCK_TOLERANCE
from amo_operator.keyring import LONG_AGO, MOST_REVOKED, Key, Retired, fingerprint
from rotations import (
    DAY,
    GENERATED,
    HOUR,
    NOW,
    REF,
    URL,
    Scene,
    current,
    following,
    previous,
    reasons,
    reports,
    ring,
    shown,
    url_rings,
)

if TYPE_CHECKING:
    from amo_operator.evidence import Wanted

# --- a person's secret


def test_the_first_input_is_current_at_once() -> None:
    """There is nobody whom a next key could wait for; an editor's line break is not part of the secret."""
    decision = Scene(REF, None, {"problem": "missing", "input_secret": "one\n"}).decide()
    assert shown(decision.keyring) == [("current", "one")]
    assert decision.keyring is not None
    assert decision.keyring.generation == 1
    assert reasons(decision) == ["KeyringCreated", "Promoted"]


def test_a_new_input_is_next_and_current_after_the_proof() -> None:
    """Accepted at once beside the old one, promoted later; the old one stays for its overlap."""
    scene = Scene(REF, ring(current("one", age=DAY)), {"input_secret": "two"})
    first = scene.decide()
    assert shown(first.keyring) == [("next", "two"), ("current", "one")]
    assert first.keyring is not None
    assert first.keyring.generation == 8
    assert first.waits is not None
    assert first.waits.reason == "PodsBehind"
    second = scene.decide(keyring=first.keyring)
    assert shown(second.keyring) == [("current", "two"), ("previous", "one")]
    assert second.keyring is not None
    assert second.keyring.of("client_secret", "previous")[0] == previous("one")
    assert second.next_rotation is None


@pytest.mark.parametrize(
    ("observed", "reason"),
    [
        ({"reports": None}, "PodsNotAsked"),
        ({"reports": ()}, "NoPods"),
        ({"steady": False}, "PodsChanging"),
        ({"reports": reports(ring(), "a", problem="it does not answer")}, "PodsBehind"),
        ({"reports": reports(ring(following("two"), current("one")), "a") + reports(ring(), "old", generation=6)}, "PodsBehind"),
        ({"reports": reports(ring(current("one")), "a")}, "PodsBehind"),
        ({"reports": reports(ring(following("two"), current("one"), current("three", "url_key")), "a")}, "PodsBehind"),
    ],
)
def test_a_next_key_waits_for_every_pod(observed: dict[str, Any], reason: str) -> None:
    """Not asked, none, changing, silent, an older generation, the same generation with other keys: none of it is a proof."""
    keyring = ring(following("two"), current("one"))
    decision = Scene(REF, keyring, {"input_secret": "two"} | observed).decide()
    assert decision.keyring is keyring
    assert decision.waits is not None
    assert decision.waits.reason == reason


def test_pods_that_are_behind_are_named() -> None:
    """With what they have, three at most."""
    keyring = ring(current("one"))
    decision = Scene(REF, keyring, {"input_secret": "one", "reports": reports(keyring, *"abcde", generation=6)}).decide()
    named = "; ".join(f"{pod}: it has generation 6, not 7" for pod in "abc")
    assert decision.waits is not None
    assert decision.waits.message == f"Not every pod has generation 7: {named}; and 2 more."


def test_an_input_that_changes_during_a_rotation_keeps_all_of_them_accepted() -> None:
    """The next one that was superseded may be in use already: it is a previous one, with its overlap."""
    decision = Scene(REF, ring(following("two"), current("one")), {"input_secret": "three"}).decide()
    assert shown(decision.keyring) == [("next", "three"), ("previous", "two"), ("current", "one")]


def test_an_input_that_returns_to_the_current_one_takes_the_next_one_back() -> None:
    """Or the mistake would be promoted."""
    decision = Scene(REF, ring(following("mistake"), current("one")), {"input_secret": "one"}).decide()
    assert shown(decision.keyring) == [("previous", "mistake"), ("current", "one")]


def test_an_input_that_returns_to_a_previous_one_saves_it() -> None:
    """Also in the moment in which it would be retired; it proves itself like any other."""
    keyring = ring(current("two", age=8 * DAY), previous("one", age=8 * DAY))
    scene = Scene(REF, keyring, {"input_secret": "one"})
    first = scene.decide()
    assert shown(first.keyring) == [("next", "one"), ("current", "two")]
    assert first.keyring is not None
    assert first.keyring.one("client_secret", "next") == following("one")
    assert shown(scene.decide(keyring=first.keyring).keyring) == [("current", "one"), ("previous", "two")]


@pytest.mark.parametrize(("secret", "reason"), [(None, "SecretMissing"), (" \n", "SecretMissing"), ("a\0b", "SecretUnusable")])
def test_an_input_that_is_missing_or_no_secret_changes_nothing(secret: str | None, reason: str) -> None:
    """A person has to write one; what is accepted stays accepted."""
    keyring = ring(current("one"))
    decision = Scene(REF, keyring, {"input_secret": secret}).decide()
    assert decision.keyring is keyring
    assert decision.waits is not None
    assert (decision.waits.reason, decision.stalled) == (reason, None)
    assert decision.action


@pytest.mark.parametrize("where", ["keyring", "status", "spec"])
def test_a_retired_input_is_never_accepted_again(where: str) -> None:
    """Whoever remembers that it is retired: stalled until a person regenerates it; the rest goes on."""
    gone = Retired("client_secret", fingerprint("zero"), "retired", NOW)
    keyring = ring(following("two"), current("one"), retired=(gone,) if where == "keyring" else ())
    wanted = replace(REF, revoke=frozenset({gone.fingerprint})) if where == "spec" else REF
    decision = Scene(wanted, keyring, {"input_secret": "zero", "known_retired": (gone,) if where == "status" else ()}).decide()
    assert shown(decision.keyring) == [("current", "two"), ("previous", "one")]
    assert decision.stalled is not None
    assert decision.stalled.reason == "InputRetired"
    assert gone.fingerprint in decision.stalled.message
    assert decision.action is not None
    assert decision.action.startswith("Regenerate")


# --- keys made here


def test_a_generated_key_is_current_at_once_and_rotates_when_it_is_due() -> None:
    """After rotateEvery, not a moment earlier."""
    scene = Scene(GENERATED, ring(current("one", age=90 * DAY - HOUR)))
    early = scene.decide()
    assert early.keyring is scene.keyring
    assert early.next_rotation == early.wake_at == NOW + HOUR
    due = scene.decide(now=NOW + HOUR)
    assert shown(due.keyring) == [("next", "new-1"), ("current", "one")]
    assert due.next_rotation is None
    first = Scene(GENERATED, None, {"problem": "missing", "rotate_request": "a"}).decide()
    assert shown(first.keyring) == [("current", "new-1")]
    assert first.keyring is not None
    assert first.keyring.rotated_for == (("client_secret", "a"),)


def test_a_request_rotates_once() -> None:
    """A text that was carried out is not carried out again, another one is."""
    scene = Scene(GENERATED, ring(current("one"), rotated_for=(("client_secret", "a"),)))
    assert scene.decide(rotate_request="a").keyring is scene.keyring
    decision = scene.decide(rotate_request="b")
    assert shown(decision.keyring) == [("next", "new-1"), ("current", "one")]
    assert decision.keyring is not None
    assert decision.keyring.rotated_for == (("client_secret", "b"),)


@pytest.mark.parametrize("other", [following("two"), previous("zero")])
def test_a_request_during_a_rotation_is_met_by_it(other: Key) -> None:
    """A rotation is under way until its previous key is retired."""
    decision = Scene(GENERATED, ring(other, current("one", age=91 * DAY)), {"rotate_request": "b", "steady": False}).decide()
    assert reasons(decision) == ["RequestCollapsed"]
    assert decision.keyring is not None
    assert decision.keyring.rotated_for == (("client_secret", "b"),)
    assert not decision.keyring.one("client_secret", "next") or other.state == "next"


def test_the_overlap_runs_from_when_the_sender_was_told() -> None:
    """The operator may die between document and credentials, for longer than any overlap."""
    scene = Scene(GENERATED, ring(following("two"), current("one")))
    promoted = scene.decide()
    assert shown(promoted.keyring) == [("current", "two"), ("previous", "one")]
    assert promoted.keyring is not None
    assert promoted.keyring.of("client_secret", "previous")[0].not_after is None
    untold = scene.decide(keyring=promoted.keyring, now=NOW + 30 * DAY, credentials={"client_secret": "one"})
    assert untold.keyring is promoted.keyring
    assert untold.waits is not None
    assert untold.waits.reason == "SenderNotSwitched"
    told = scene.decide(keyring=promoted.keyring, now=NOW + 30 * DAY)
    assert told.keyring is not None
    assert reasons(told) == ["OverlapStarted"]
    assert told.keyring.of("client_secret", "previous") == (Key("client_secret", "one", "previous", NOW + 30 * DAY, NOW + 37 * DAY),)


# --- retiring


@pytest.mark.parametrize(
    ("age", "matched", "observed", "reason"),
    [
        (24 * HOUR, None, {}, None),
        (24 * HOUR, HOUR, {}, None),
        (24 * HOUR - timedelta(seconds=1), None, {}, "Overlap"),
        (25 * HOUR, HOUR - timedelta(seconds=1), {}, "PreviousInUse"),
        (25 * HOUR, -HOUR, {}, "PreviousInUse"),
        (-HOUR, None, {}, "Overlap"),
        (25 * HOUR, None, {"steady": False}, "Retiring"),
        (7 * DAY - timedelta(seconds=1), None, {"reports": None}, "Retiring"),
        (7 * DAY, timedelta(), {}, None),
        (7 * DAY, timedelta(), {"reports": None}, None),
    ],
)
def test_a_previous_key_is_retired_when_its_overlap_is_over_and_it_is_quiet(
    age: timedelta, matched: timedelta | None, observed: dict[str, Any], reason: str | None
) -> None:
    """At the latest at its not_after, whoever uses it; a clock that went back only keeps it longer."""
    keyring = ring(current("two", age=age), previous("one", age=age))
    used = {"one": NOW - matched} if matched is not None else {}
    decision = Scene(REF, keyring, {"input_secret": "two", "reports": reports(keyring, matched=used)} | observed).decide()
    if reason is None:
        assert decision.keyring is not None
        assert shown(decision.keyring) == [("current", "two")]
        assert decision.keyring.retired == (Retired("client_secret", fingerprint("one"), "retired", NOW),)
    else:
        assert decision.keyring is keyring
        assert decision.waits is not None
        assert decision.waits.reason == reason


def test_a_pod_that_does_not_know_of_matches_proves_no_quiet() -> None:
    """One that has just started, or whose database is away, cannot tell whether a key is used; at its not_after it goes all the same."""
    keyring = ring(current("two", age=2 * DAY), previous("one", age=2 * DAY))
    told = reports(keyring)
    mixed = (told[0], replace(told[1], knows_matches=False))
    held = Scene(REF, keyring, {"input_secret": "two", "reports": mixed}).decide()
    assert held.keyring is keyring
    assert held.waits is not None
    assert held.waits.reason == "Retiring"
    later = Scene(REF, keyring, {"input_secret": "two", "reports": mixed, "now": NOW + 5 * DAY}).decide()
    assert shown(later.keyring) == [("current", "two")]
    urls, _ = url_rings()
    assert Scene(URL, urls, {"reports": tuple(replace(each, knows_matches=False) for each in reports(urls))}).decide().keyring is urls


def test_by_a_clock_that_no_pod_agrees_with_nothing_ends() -> None:
    """Not even at a not_after, which the pods obey by their own clocks; one pod that agrees is enough."""
    waiting = ring(current("two", age=8 * DAY), Key("client_secret", "zero", "previous", NOW), previous("one", age=8 * DAY))
    pods = reports(waiting)
    others = tuple(replace(each, reported_at=NOW - 2 * CLOCK_TOLERANCE) for each in pods)
    held = Scene(REF, waiting, {"input_secret": "two", "reports": others}).decide()
    assert held.keyring is waiting
    assert held.waits is not None
    assert (held.waits.reason, "clock" in held.waits.message) == ("Retiring", True)
    agreed = (others[0], replace(pods[1], reported_at=NOW - CLOCK_TOLERANCE))
    assert reasons(Scene(REF, waiting, {"input_secret": "two", "reports": agreed}).decide()) == ["OverlapStarted", "Retired"]


def test_it_is_known_when_to_look_again() -> None:
    """The nearest of: the overlap, the quiet period, the end of a previous key, the next rotation."""
    keyring = ring(current("two", age=HOUR), previous("one", age=HOUR))
    scene = Scene(GENERATED, keyring)
    assert scene.decide().wake_at == NOW + 23 * HOUR
    used = {"one": NOW - HOUR / 2}
    assert scene.decide(reports=reports(keyring, matched=used)).wake_at == NOW + HOUR / 2
    keyring = ring(current("two", age=2 * DAY), previous("one", age=2 * DAY))
    assert Scene(GENERATED, keyring, {"reports": None}).decide().wake_at == NOW + 5 * DAY


def test_the_latest_match_counts_whichever_pod_saw_it() -> None:
    """One pod may have seen nothing for days."""
    keyring = ring(current("two", age=2 * DAY), previous("one", age=2 * DAY))
    seen = reports(keyring, "a", matched={"one": NOW - DAY}) + reports(keyring, "b", matched={"one": NOW})
    assert Scene(REF, keyring, {"input_secret": "two", "reports": seen}).decide().keyring is keyring


def test_a_person_is_asked_to_switch_a_sender_that_goes_on_with_the_previous_key() -> None:
    """Not before it used it after it was told, and no longer once it uses the current one."""
    keyring = ring(current("two", age=HOUR), previous("one", age=HOUR))

    def action(**matched: datetime) -> str | None:
        return Scene(REF, keyring, {"input_secret": "two", "reports": reports(keyring, matched=matched)}).decide().action

    assert action(one=NOW - 2 * HOUR) is action(one=NOW - HOUR / 2, two=NOW) is None
    asked = action(one=NOW)
    assert asked is not None
    assert fingerprint("two") in asked


# --- revoking and pausing


@pytest.mark.parametrize("paused", [False, True])
def test_a_revoked_key_leaves_at_once_whatever_its_state(paused: bool) -> None:
    """Also while paused: the next one takes over, and where there is none a generated one is made."""
    gone = {name: fingerprint(name) for name in ("one", "two", "zero")}
    keyring = ring(following("two"), current("one"), previous("zero"))
    observed, numbers = {"input_secret": "two", "steady": False}, count(1)

    def after(*names: str, wanted: Wanted = GENERATED) -> list[tuple[str, str]]:
        revoke = frozenset(gone[name] for name in names)
        decision = Scene(replace(wanted, revoke=revoke, paused=paused), keyring, observed, numbers).decide()
        assert decision.keyring is not None
        assert {each.fingerprint for each in decision.keyring.retired if each.reason == "revoked"} == revoke
        return shown(decision.keyring)

    assert after("one") == after("one", wanted=REF) == [("current", "two"), ("previous", "zero")]
    assert after("two") == after("two", wanted=REF) == [("current", "one"), ("previous", "zero")]
    assert after("zero") == [("next", "two"), ("current", "one")]
    assert after("one", "two") == [("current", "new-1"), ("previous", "zero")]
    assert after("one", "two", "zero", wanted=REF) == []
    keyring = ring(current("one"), following("two"), previous("zero"))
    assert after("one", "two") == [("current", "new-2"), ("previous", "zero")]


@pytest.mark.parametrize("paused", [False, True])
def test_a_revoked_key_that_is_not_there_is_noted(paused: bool) -> None:
    """It may come back with a backup when the spec does not name it any more; a long list does not crowd out what was retired."""
    keyring = ring(current("one"), retired=(Retired("client_secret", "0" * 12, "retired", NOW),))
    wanted = replace(GENERATED, revoke=frozenset(f"{number:012x}" for number in range(1, MOST_REVOKED + 1)), paused=paused)
    decision = Scene(wanted, keyring).decide()
    assert decision.keyring is not None
    assert {each.fingerprint for each in decision.keyring.retired if each.reason == "revoked"} == wanted.revoke
    assert keyring.retired[0] in decision.keyring.retired
    assert decision.keyring.keys == keyring.keys


def test_a_list_of_revoked_keys_is_noted_at_once_however_many_there_were_before() -> None:
    """Those of it that were noted longest ago do not make room for the others, or each round would note what the one before has lost."""
    noted = tuple(Retired("url_key", f"{number:012x}", "revoked", NOW + timedelta(seconds=number)) for number in range(MOST_REVOKED))
    keyring = ring(current("one"), retired=noted)
    named = frozenset(f"{number:012x}" for number in (*range(5), *range(MOST_REVOKED, 2 * MOST_REVOKED - 5)))
    scene = Scene(replace(GENERATED, revoke=named), keyring, {"now": NOW + timedelta(days=1)})
    decision = scene.decide()
    assert decision.keyring is not None
    assert {each.fingerprint for each in decision.keyring.retired} == named
    assert {each.kind for each in decision.keyring.retired if each.fingerprint in {one.fingerprint for one in noted}} == {"url_key"}
    assert Scene(scene.wanted, decision.keyring, scene.observed).decide().changes == ()


def test_a_revoked_input_leaves_a_person_to_act() -> None:
    """What the person has written is refused from now on, although nothing else is there."""
    wanted = replace(REF, revoke=frozenset({fingerprint("one")}))
    decision = Scene(wanted, ring(current("one")), {"input_secret": "one"}).decide()
    assert shown(decision.keyring) == []
    assert decision.stalled is not None
    assert decision.stalled.reason == "InputRetired"


def test_while_paused_nothing_else_happens() -> None:
    """No supply, promotion, retirement, rotation or change of accounts."""
    keyring = ring(following("two"), current("one", age=91 * DAY), previous("zero", age=8 * DAY))
    for wanted in (GENERATED, REF):
        paused = replace(wanted, paused=True, accounts=("77",), client_id="other")
        decision = Scene(paused, keyring, {"input_secret": "three", "rotate_request": "b"}).decide()
        assert decision.keyring is keyring
        assert decision.waits is not None
        assert (decision.waits.reason, decision.next_rotation, decision.wake_at) == ("Paused", None, None)


def test_accounts_and_client_id_are_taken_over_once() -> None:
    """Their order says nothing."""
    scene = Scene(replace(REF, accounts=("9", "8"), client_id="other"), ring(current("one")), {"input_secret": "one"})
    decision = scene.decide()
    assert decision.keyring == replace(ring(current("one")), generation=8, accounts=("8", "9"), client_id="other")
    unsorted = replace(decision.keyring, accounts=("9", "8"))
    assert scene.decide(keyring=unsorted).keyring is unsorted


# --- keyrings that were lost or came back


def test_a_lost_keyring_is_rebuilt_from_input_and_credentials() -> None:
    """With what senders use; above every generation that was seen, without what had left, and without a new rotation."""
    told = {"client_secret": "one", "url_key": "u", "generation": "9"}
    gone = Retired("client_secret", fingerprint("zero"), "retired", NOW)
    observed = {"problem": "corrupt", "credentials": told, "floor": 8, "known_retired": (gone,), "rotate_request": "a"}
    both = replace(GENERATED, rotate_every={"client_secret": 90 * DAY, "url_key": 90 * DAY})
    rebuilt = Scene(both, None, observed).decide()
    assert shown(rebuilt.keyring) == [("current", "u"), ("current", "one")]
    assert rebuilt.keyring is not None
    assert (rebuilt.keyring.generation, rebuilt.keyring.retired) == (10, (gone,))
    assert dict(rebuilt.keyring.rotated_for) == {"client_secret": "a", "url_key": "a"}
    assert reasons(rebuilt)[0] == "KeyringRebuilt"
    assert "corrupt" in rebuilt.changes[0].message
    referenced = Scene(
        replace(both, client_secret="ref", rotate_every={"url_key": 90 * DAY}), None, observed | {"input_secret": "s"}
    ).decide()
    assert shown(referenced.keyring) == [("current", "s"), ("current", "u")]


def test_credentials_that_were_revoked_do_not_come_back() -> None:
    """The operator may have died before it wrote the new ones, and then lost the keyring."""
    for wanted, known in (
        (GENERATED, (Retired("client_secret", fingerprint("one"), "revoked", NOW),)),
        (replace(GENERATED, revoke=frozenset({fingerprint("one")})), ()),
    ):
        observed = {"problem": "missing", "credentials": {"client_secret": "one"}, "known_retired": known}
        assert shown(Scene(wanted, None, observed).decide().keyring) == [("current", "new-1")]


@pytest.mark.parametrize("secret", [None, "zero"])
def test_a_lost_keyring_waits_for_a_good_input(secret: str | None) -> None:
    """Pods keep the last good keyring, which has what amoCRM signs with: a document without it would cut amoCRM off."""
    wanted = replace(REF, rotate_every={"url_key": 90 * DAY})
    gone = Retired("client_secret", fingerprint("zero"), "retired", NOW)
    decision = Scene(wanted, None, {"problem": "corrupt", "input_secret": secret, "floor": 3, "known_retired": (gone,)}).decide()
    assert decision.keyring is None
    assert decision.changes == ()
    assert decision.action


def test_a_lost_keyring_does_not_save_a_revoked_input() -> None:
    """Pods that kept the last good keyring must hear of it."""
    wanted = replace(REF, revoke=frozenset({fingerprint("one")}))
    decision = Scene(wanted, None, {"problem": "missing", "input_secret": "one", "floor": 3}).decide()
    assert decision.keyring is not None
    assert (decision.keyring.generation, decision.keyring.keys) == (4, ())


def test_a_lost_keyring_stays_lost_while_paused() -> None:
    """And the person is told."""
    decision = Scene(replace(GENERATED, paused=True), None, {"problem": "missing", "credentials": {"client_secret": "one"}}).decide()
    assert decision.keyring is None
    assert decision.action is not None
    assert "paused" in decision.action


def test_a_revoked_key_that_pods_go_on_with_is_named() -> None:
    """Nothing can be taken out of a keyring that is lost."""
    keyring = ring(current("one"), previous("two"))
    wanted = replace(GENERATED, revoke=frozenset({fingerprint("two"), "0" * 12}), paused=True)
    decision = Scene(wanted, None, {"problem": "missing", "reports": reports(keyring)}).decide()
    assert decision.action is not None
    assert f"Pods still accept {fingerprint('two')}, although revoked" in decision.action


def test_credentials_alone_bring_nothing_back() -> None:
    """Whoever may write them could have a key of his own accepted: by a higher generation, or when the keyring is lost."""
    keyring = ring(current("one", "url_key"))
    planted = {"url_key": "planted", "generation": "999"}
    decision = Scene(URL, replace(keyring, accounts=("77",)), {"credentials": planted, "floor": 7}).decide()
    assert decision.keyring == replace(keyring, accounts=("77",))
    for known in ({"known_keys": frozenset({fingerprint("one")})}, {"reports": reports(keyring)}):
        lost = {"problem": "missing", "floor": 7, "known_retired": ()} | known
        assert shown(Scene(URL, None, {**lost, "credentials": planted}).decide().keyring) == [("current", "new-1")]
        assert shown(Scene(URL, None, {**lost, "credentials": planted | {"url_key": "one"}}).decide().keyring) == [("current", "one")]


def test_keys_by_another_hand_count_as_new() -> None:
    """Nobody noted since when they are there: they are not rotated at once, and their previous ones have the whole overlap."""
    keyring = ring(Key("url_key", "one", "current", LONG_AGO), Key("url_key", "zero", "previous", LONG_AGO), accounts=("77",))
    decision = Scene(URL, keyring).decide()
    assert reasons(decision) == ["TakenOver", "OverlapStarted"]
    assert decision.keyring is not None
    assert decision.keyring.keys == (current("one", "url_key"), previous("zero", "url_key"))
    assert decision.next_rotation == NOW + 90 * DAY


@pytest.mark.parametrize("paused", [False, True])
def test_an_older_keyring_that_comes_back_is_raised_without_what_had_left(paused: bool) -> None:
    """Pods would refuse it as older, or, started anew, accept what is retired."""
    keyring = ring(following("one"), current("zero", age=DAY), previous("gone", age=DAY))
    gone = Retired("client_secret", fingerprint("gone"), "retired", NOW)
    told = {"client_secret": "two", "generation": "11"}
    wanted = replace(GENERATED, paused=paused)
    confirmed = {"floor": 12, "known_retired": (gone,), "known_keys": frozenset({fingerprint("two")})}
    decision = Scene(wanted, keyring, {"credentials": told, **confirmed}).decide()
    assert decision.keyring is not None
    assert shown(decision.keyring) == [("current", "two"), ("previous", "zero"), ("next", "one")]
    assert (decision.keyring.generation, decision.keyring.retired) == (13, (gone,))
    assert reasons(decision)[0] == "KeyringRaised"
    plain = Scene(GENERATED, ring(current("one")), {"floor": 12}).decide()
    assert plain.keyring == replace(ring(current("one")), generation=13)
    revoked = Scene(replace(GENERATED, revoke=frozenset({fingerprint("one")})), ring(current("one")), {"floor": 12}).decide()
    assert shown(revoked.keyring) == [("current", "new-1")]
    assert revoked.keyring is not None
    assert [each.reason for each in revoked.keyring.retired] == ["revoked"]


def test_a_keyring_that_lacks_a_current_key_goes_on_with_the_next_one() -> None:
    """A person may have edited it: what is published already is better than what nobody has."""
    keyring = ring(following("two"), previous("one"))
    assert shown(Scene(GENERATED, keyring, {"steady": False}).decide().keyring) == [("current", "two"), ("previous", "one")]
