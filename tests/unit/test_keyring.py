"""Signatures and URL tokens against the keyring."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from amo_receiver.amocrm.keyring import LONGEST_ACCOUNT_CHARS, LONGEST_TOKEN_CHARS, Key, Keyring, Source, environment_source, url_token
from amo_receiver.errors import Unauthorized

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
CLIENT = "3f2a-client"
MARK = "MARKEDsecretMARKED"
EASY = settings(max_examples=60, deadline=None)
STATES = ("next", "current", "previous")


def sign(secret: str, client: str = CLIENT, account: str = "77") -> str:
    return hmac.new(secret.encode(), f"{client}|{account}".encode(), hashlib.sha256).hexdigest()


def source(*keys: Key, name: str = "acme", client: str = CLIENT, accounts: set[str] | None = None) -> Source:
    return Source(name, client, 1, None if accounts is None else frozenset(accounts), keys)


def signing_key(secret: str, **values: Any) -> Key:
    return Key("client_secret", secret.encode(), **values)


def url_key(secret: str, **values: Any) -> Key:
    return Key("url_key", secret.encode(), **values)


def keyring(*sources: Source, token: str | None = None, account: str | None = None) -> Keyring:
    return Keyring.build(None, {each.name: each for each in sources}, token, account)


def test_a_signature_as_the_user_s_script_makes_it_is_accepted() -> None:
    """Hex HMAC-SHA256(client secret, "uuid|account"), against a value computed elsewhere, is a match for that account."""
    ring = Keyring.build(environment_source("test-uuid", "test-secret"), {}, None, None)
    signature = "58cf918a91c1397324466a7ba0419b166dcf969f7cef3e3ddc5d96cef7097ae5"
    match = ring.verify_signature("test-uuid", signature, "test-account", NOW)
    assert (match.source.name, match.source.generation, match.kind, match.account_id) == ("default", 0, "client_secret", "test-account")
    assert match.fingerprint == "f39513e7613e"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_key_of_every_state_verifies_wherever_it_stands(state: Any, position: int) -> None:
    """Next, current and previous keys are all accepted, first or last, and the match names the one that signed."""
    keys = [signing_key("other-a"), signing_key("other-b")]
    keys.insert(position, signing_key("the-one", state=state))
    match = keyring(source(*keys)).verify_signature(CLIENT, sign("the-one"), "77", NOW)
    assert match.fingerprint == keys[position].fingerprint
    token = keyring(source(*[Key("url_key", key.secret, key.state) for key in keys])).verify_token(url_token(b"the-one", "77"), NOW)
    assert (token.fingerprint, token.kind, token.account_id) == (keys[position].fingerprint, "url_key", "77")


@pytest.mark.parametrize(
    ("client", "signature", "account"),
    [
        (CLIENT, sign("wrong"), "77"),
        (CLIENT, sign("right", account="78"), "77"),
        (CLIENT, sign("right", client="77", account=CLIENT), "77"),
        (CLIENT, sign("right")[:-1], "77"),
        (CLIENT, sign("right") + "0", "77"),
        (CLIENT, "sha256=" + sign("right"), "77"),
        (CLIENT, hmac.new(b"right", CLIENT.encode() + b"77", "sha256").hexdigest(), "77"),
        (CLIENT, "0" * 64, "77"),
        (CLIENT, "\xff\xfe", "77"),
        (CLIENT, "подпись", "77"),
        (CLIENT, "\ud800", "\udfff"),
        ("77", sign("right", client="77", account=CLIENT), CLIENT),
        (CLIENT.upper(), sign("right", client=CLIENT.upper()), "77"),
        ("", sign("right", client=""), "77"),
        (CLIENT, "", "77"),
        (CLIENT, sign("right", account=""), ""),
        (CLIENT, sign("right", account="7" * (LONGEST_ACCOUNT_CHARS + 1)), "7" * (LONGEST_ACCOUNT_CHARS + 1)),
    ],
)
def test_anything_but_the_exact_signature_is_refused(client: str, signature: str, account: str) -> None:
    """A wrong key, a swapped or other account, a truncated, decorated, foreign or missing value is Unauthorized."""
    ring = keyring(source(signing_key("right"), signing_key("old", state="previous"), url_key("url")))
    with pytest.raises(Unauthorized):
        ring.verify_signature(client, signature, account, NOW)


def test_the_longest_account_is_accepted_on_both_paths() -> None:
    """The bound includes its own value; beyond it the header is named, because there the sender can see what is wrong."""
    ring, longest = keyring(source(signing_key("right"), url_key("url"))), "7" * LONGEST_ACCOUNT_CHARS
    assert ring.verify_signature(CLIENT, sign("right", account=longest), longest, NOW).account_id == longest
    assert ring.verify_token(url_token(b"url", longest), NOW).account_id == longest
    with pytest.raises(Unauthorized, match=r"^X-Account-ID is longer than 255 characters: send the id of the account$"):
        ring.verify_signature(CLIENT, sign("right", account=longest + "7"), longest + "7", NOW)


def test_upper_case_hex_is_accepted() -> None:
    """The case of the hex digits carries nothing."""
    assert keyring(source(signing_key("right"))).verify_signature(CLIENT, sign("right").upper(), "77", NOW)


@pytest.mark.parametrize(("account", "encoding"), [("счёт", "utf-8"), ("compté", "utf-8"), ("compté", "latin-1")])
def test_an_account_beyond_ascii_is_text_whatever_the_header_s_encoding(account: str, encoding: str) -> None:
    """Header bytes reach us decoded as latin-1; the signature is over the text, and the match holds the text."""
    header = account.encode(encoding).decode("latin-1")
    match = keyring(source(signing_key("right"), accounts={account})).verify_signature(CLIENT, sign("right", account=account), header, NOW)
    assert match.account_id == account


def test_a_url_key_signs_no_headers_and_a_client_secret_makes_no_token() -> None:
    """Each kind of key opens its own path only."""
    ring = keyring(source(signing_key("a-secret"), url_key("a-url-key")))
    with pytest.raises(Unauthorized, match="X-Signature"):
        ring.verify_signature(CLIENT, sign("a-url-key"), "77", NOW)
    with pytest.raises(Unauthorized, match="token in the URL"):
        ring.verify_token(url_token(b"a-secret", "77"), NOW)


def test_a_key_of_another_client_is_refused() -> None:
    """A signature counts for the client it was made for, even when both sources are known."""
    ring = keyring(source(signing_key("one")), source(signing_key("two"), name="beta", client="beta-client"))
    assert ring.verify_signature("beta-client", sign("two", client="beta-client"), "77", NOW).source.name == "beta"
    with pytest.raises(Unauthorized):
        ring.verify_signature(CLIENT, sign("two"), "77", NOW)


@pytest.mark.parametrize(
    ("not_before", "not_after", "accepted"),
    [
        (None, None, True),
        (NOW, None, True),
        (NOW + TICK, None, False),
        (NOW - TICK, None, True),
        (None, NOW, False),
        (None, NOW + TICK, True),
        (None, NOW - TICK, False),
        (NOW, NOW + TICK, True),
        (NOW, NOW, False),
        (None, (NOW + TICK).astimezone(timezone(timedelta(hours=-9))), True),
        (None, (NOW - TICK).astimezone(timezone(timedelta(hours=9))), False),
    ],
)
@pytest.mark.parametrize("state", STATES)
def test_a_key_is_accepted_from_not_before_until_just_before_not_after(
    not_before: datetime | None, not_after: datetime | None, accepted: bool, state: Any
) -> None:
    """The span is half open, on both paths and in every state."""
    times = {"not_before": not_before, "not_after": not_after, "state": state}
    ring = keyring(source(signing_key("one", **times), url_key("two", **times)))
    for attempt in (lambda: ring.verify_signature(CLIENT, sign("one"), "77", NOW), lambda: ring.verify_token(url_token(b"two", "77"), NOW)):
        if accepted:
            assert attempt().account_id == "77"
        else:
            with pytest.raises(Unauthorized, match="active only"):
                attempt()


@pytest.mark.parametrize(
    ("not_before", "not_after", "span"),
    [
        (NOW + TICK, None, "from 2026-11-22 12:00:00.000001+00:00 until ever"),
        (None, NOW, "from ever until 2026-11-22 12:00:00+00:00"),
    ],
)
def test_a_key_out_of_its_span_is_named_with_it(not_before: datetime | None, not_after: datetime | None, span: str) -> None:
    """Whoever forgot to change over learns which key it was, of which source, and when it counts."""
    key = signing_key("one", not_before=not_before, not_after=not_after)
    with pytest.raises(Unauthorized) as caught:
        keyring(source(key)).verify_signature(CLIENT, sign("one"), "77", NOW)
    assert str(caught.value) == f"The key {key.fingerprint} of source acme is active only {span}: use the source's current key"


def test_the_same_secret_twice_is_accepted_while_one_of_the_two_is_active() -> None:
    """An expired entry does not shadow an active one of the same secret."""
    ring = keyring(source(signing_key("one", state="previous", not_after=NOW), signing_key("one")))
    assert ring.verify_signature(CLIENT, sign("one"), "77", NOW)


def test_a_revoked_key_is_refused() -> None:
    """A key that is no longer in the keyring verifies nothing."""
    before, after = source(signing_key("old"), signing_key("new")), source(signing_key("new"))
    assert keyring(before).verify_signature(CLIENT, sign("old"), "77", NOW)
    with pytest.raises(Unauthorized):
        keyring(after).verify_signature(CLIENT, sign("old"), "77", NOW)


@pytest.mark.parametrize(
    ("accounts", "accepted"), [(None, True), ({"77"}, True), ({"78", "77"}, True), ({"78"}, False), (set(), False), ({"7"}, False)]
)
def test_a_source_speaks_only_for_its_accounts(accounts: set[str] | None, accepted: bool) -> None:
    """The allow-list holds on both paths; an empty one allows none."""
    ring = keyring(source(signing_key("one"), url_key("two"), accounts=accounts))
    for attempt in (lambda: ring.verify_signature(CLIENT, sign("one"), "77", NOW), lambda: ring.verify_token(url_token(b"two", "77"), NOW)):
        if accepted:
            assert attempt().account_id == "77"
        else:
            with pytest.raises(Unauthorized, match="does not serve this account"):
                attempt()


def test_of_two_sources_with_one_client_the_one_that_serves_the_account_matches() -> None:
    """Two files for one integration, with a list of accounts each, do not hide one another."""
    ring = keyring(
        source(signing_key("one"), url_key("u"), accounts={"1"}), source(signing_key("one"), url_key("u"), name="beta", accounts={"2"})
    )
    assert [ring.verify_signature(CLIENT, sign("one", account=account), account, NOW).source.name for account in "12"] == ["acme", "beta"]
    assert [ring.verify_token(url_token(b"u", account), NOW).source.name for account in "12"] == ["acme", "beta"]


def test_a_token_is_the_account_and_an_unpadded_base64url_mac() -> None:
    """The URL is what the design promises, so that an operator may compute it elsewhere."""
    mac = base64.urlsafe_b64encode(hmac.new(b"k", b"31.5.a", "sha256").digest()).decode().rstrip("=")
    assert url_token(b"k", "31.5.a") == f"31.5.a.{mac}"
    assert keyring(source(url_key("k"))).verify_token(f"31.5.a.{mac}", NOW).account_id == "31.5.a"


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "77",
        "77.",
        url_token(b"k", "77")[:-1],
        url_token(b"k", "77") + "A",
        url_token(b"k", "77") + "=",
        url_token(b"other", "77"),
        "78" + url_token(b"k", "77")[2:],
        url_token(b"k", "77").removeprefix("77"),
        url_token(b"k", ""),
        url_token(b"k", "7" * (LONGEST_ACCOUNT_CHARS + 1)),
        "7" * LONGEST_TOKEN_CHARS + url_token(b"k", "77"),
        "Плейн",
        "\udcff",
        "plain ",
        "plai",
        "PLAIN",
    ],
)
def test_anything_but_the_exact_token_is_refused(token: str) -> None:
    """The token of another account or key, cut, padded, over-long or foreign, is Unauthorized and says so."""
    with pytest.raises(Unauthorized, match="token in the URL"):
        keyring(source(url_key("k")), token="plain", account="77").verify_token(token, NOW)


def test_only_one_spelling_of_a_mac_is_accepted() -> None:
    """The two spare bits of the last base64 digit do not make four tokens of one."""
    token = url_token(b"k", "77")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    ring = keyring(source(url_key("k")))
    for digit in set(alphabet) - {token[-1]}:
        with pytest.raises(Unauthorized):
            ring.verify_token(token[:-1] + digit, NOW)


@pytest.mark.parametrize("account", ["77", None])
def test_the_plain_token_is_for_its_account_or_for_any(account: str | None) -> None:
    """The plain token matches whatever its shape, and says which account it is for."""
    for token in ("plain", "77.plain", "пароль", url_token(b"k", "99")):
        match = keyring(source(url_key("k")), token=token, account=account).verify_token(token, NOW)
        assert (match.kind, match.account_id, match.source.name) == ("token", account, "default")
        assert match.fingerprint == hashlib.sha256(b"amo-webhooks\0" + token.encode()).hexdigest()[:12]


def test_no_token_beyond_the_bound_is_looked_at() -> None:
    """A long URL costs a look at its length; settings refuse such a token at start."""
    for length, accepted in ((LONGEST_TOKEN_CHARS, True), (LONGEST_TOKEN_CHARS + 1, False)):
        ring = keyring(token="t" * length)
        if accepted:
            assert ring.verify_token("t" * length, NOW)
        else:
            with pytest.raises(Unauthorized):
                ring.verify_token("t" * length, NOW)


def test_without_a_plain_token_an_empty_one_is_refused() -> None:
    """An unset token is not an empty password."""
    for unset in (None, ""):
        with pytest.raises(Unauthorized):
            keyring(token=unset).verify_token("", NOW)


def test_a_file_with_the_same_client_id_replaces_the_environment_s_source() -> None:
    """The environment's secret is refused once a file speaks for its client; another client's file leaves it alone."""
    default = environment_source(CLIENT, "from-environment")
    replaced = Keyring.build(default, {"acme": source(signing_key("from-file"))}, None, None)
    beside = Keyring.build(default, {"beta": source(signing_key("from-file"), client="other")}, None, None)
    assert beside.verify_signature(CLIENT, sign("from-environment"), "77", NOW).source.name == "default"
    assert replaced.verify_signature(CLIENT, sign("from-file"), "77", NOW).source.name == "acme"
    with pytest.raises(Unauthorized):
        replaced.verify_signature(CLIENT, sign("from-environment"), "77", NOW)


def test_a_refusal_says_how_to_mend_it() -> None:
    """Missing headers point to the URL with the token; an unknown client and a wrong secret to the setting."""
    ring = keyring(source(signing_key("one")))
    with pytest.raises(Unauthorized, match=r"X-Client-UUID, X-Signature, X-Account-ID.*/api/webhooks/amo/\{token\}"):
        ring.verify_signature("", "", "", NOW)
    with pytest.raises(Unauthorized, match="Missing headers X-Account-ID:"):
        ring.verify_signature(CLIENT, sign("one"), "", NOW)
    with pytest.raises(Unauthorized, match="AMOCRM_CLIENT_ID"):
        ring.verify_signature("stranger", sign("one"), "77", NOW)
    with pytest.raises(Unauthorized, match="AMOCRM_CLIENT_SECRET"):
        ring.verify_signature(CLIENT, sign("two"), "77", NOW)
    with pytest.raises(Unauthorized, match="AMOCRM_WEBHOOK_TOKEN"):
        ring.verify_token("x", NOW)


def test_a_keyring_is_loaded_when_it_can_verify_something() -> None:
    """An empty keyring and a revoked source alone are not loaded."""
    assert not keyring().loaded
    assert not keyring(source()).loaded
    assert keyring(source(), source(url_key("k"), name="beta")).loaded
    assert keyring(token="plain").loaded


def test_the_report_tells_every_key_and_no_secret() -> None:
    """Source, generation, kind, fingerprint, state and span are there for each key and the plain token."""
    key = signing_key(MARK + "1", state="previous", not_before=NOW, not_after=NOW + timedelta(hours=1))
    report = keyring(source(key, url_key(MARK + "2", state="next")), token=MARK + "3").report()
    assert report[0]["source"] == "acme"
    assert report[0]["generation"] == 1
    assert report[0]["keys"][0] == {
        "kind": "client_secret",
        "fingerprint": key.fingerprint,
        "state": "previous",
        "not_before": "2026-11-22T12:00:00+00:00",
        "not_after": "2026-11-22T13:00:00+00:00",
    }
    assert (report[0]["keys"][1]["kind"], report[0]["keys"][1]["state"], report[0]["keys"][1]["not_after"]) == ("url_key", "next", None)
    token = {"kind": "token", "fingerprint": signing_key(MARK + "3").fingerprint, "state": "current", "not_before": None, "not_after": None}
    assert report[1:] == [{"source": "default", "generation": 0, "keys": [token]}]
    assert "MARKED" not in json.dumps(report)


def test_the_environment_s_secret_is_reported_as_the_current_one() -> None:
    """It has no other state, and no span."""
    ring = Keyring.build(environment_source(CLIENT, "one"), {}, None, None)
    key = {
        "kind": "client_secret",
        "fingerprint": signing_key("one").fingerprint,
        "state": "current",
        "not_before": None,
        "not_after": None,
    }
    assert ring.report() == [{"source": "default", "generation": 0, "keys": [key]}]


def test_no_secret_shows_in_a_representation_or_an_error() -> None:
    """The repr and str of key, source, match and keyring, and every refusal, are free of secrets."""
    keys = (signing_key(MARK), url_key(MARK), signing_key(MARK + "old", not_after=NOW))
    ring = keyring(source(*keys, accounts={"77"}), token=MARK + "token")
    shown = [
        repr(ring),
        str(ring),
        repr(keys),
        repr(ring.verify_signature(CLIENT, sign(MARK), "77", NOW)),
        repr(environment_source("c", MARK)),
    ]
    for client, secret, account in [
        (CLIENT, "x", "77"),
        ("x", MARK, "77"),
        (CLIENT, MARK, "78"),
        (CLIENT, MARK + "old", "77"),
        ("", "", ""),
    ]:
        with pytest.raises(Unauthorized) as caught:
            ring.verify_signature(client, sign(secret, client, account), account, NOW)
        shown += [repr(caught.value), repr(caught.value.__context__), repr(caught.value.__cause__)]
    assert "MARKED" not in "".join(shown)


@EASY
@given(secret=st.text(min_size=1), account=st.text(min_size=1, max_size=60), client=st.text(min_size=1))
def test_what_is_signed_verifies(secret: str, account: str, client: str) -> None:
    """For any secret, client and account sent as UTF-8, its own signature is a match for that account."""
    ring = keyring(source(signing_key(secret), client=client))
    client_header, account_header = client.encode().decode("latin-1"), account.encode().decode("latin-1")
    assert ring.verify_signature(client_header, sign(secret, client, account), account_header, NOW).account_id == account


@EASY
@given(account=st.text(min_size=1, max_size=LONGEST_ACCOUNT_CHARS), other=st.text(min_size=1, max_size=60), key=st.text(min_size=1))
@example(account="a.b", other="a", key="k")
def test_a_derived_token_verifies_for_its_account_only(account: str, other: str, key: str) -> None:
    """For any account and key, the token is a match; put before another account it is none."""
    ring = keyring(source(url_key(key)))
    token = url_token(key.encode(), account)
    assert ring.verify_token(token, NOW).account_id == account
    if other != account:
        with pytest.raises(Unauthorized):
            ring.verify_token(other + token[len(account) :], NOW)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)


@EASY
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_no_input_raises_anything_but_unauthorized(client: str, signature: str, account: str) -> None:
    """Strange text, lone surrogates included, is refused and never a crash."""
    ring = keyring(source(signing_key("one"), url_key("two")), token="plain")
    for attempt in (
        lambda: ring.verify_signature(client, signature, account, NOW),
        lambda: ring.verify_signature(CLIENT, signature, account, NOW),
        lambda: ring.verify_token(f"{account}.{signature}", NOW),
        lambda: ring.verify_token(account + url_token(b"other", "77"), NOW),
    ):
        with pytest.raises(Unauthorized):
            attempt()


def test_a_key_is_a_value() -> None:
    """Keys of equal content are equal, which tells a rewritten file from a changed one."""
    assert signing_key("a") == signing_key("a") != signing_key("b")
