"""Keyring files: what is read of them, what is refused, and that nothing of them shows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amo_receiver.amocrm.keyring import Key, Source
from amo_receiver.amocrm.keyring_file import MOST_SECRET_BYTES, parse_source
from amo_receiver.errors import ConfigurationError

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CLIENT = "3f2a-client"
MARK = "MARKEDsecretMARKED"


def document(**changes: Any) -> dict[str, Any]:
    keys = [
        {"kind": "client_secret", "secret": MARK, "state": "current", "not_before": None, "not_after": None},
        {
            "kind": "url_key",
            "secret": "ключ",
            "state": "next",
            "not_before": "2026-11-22T12:00:00Z",
            "not_after": "2026-11-22T15:00:00+02:00",
        },
    ]
    return {"version": 1, "generation": 7, "client_id": CLIENT, "accounts": None, "keys": keys} | changes


def with_key(**changes: Any) -> dict[str, Any]:
    return document(keys=[document()["keys"][0] | changes])


def test_a_keyring_file_is_read_whole() -> None:
    """Every field of the schema arrives, times with their zones, unknown fields are passed over."""
    text = json.dumps(document(accounts=["77", "78"], note="later") | {"keys": [key | {"extra": 1} for key in document()["keys"]]})
    expected = Source(
        "acme",
        CLIENT,
        7,
        frozenset({"77", "78"}),
        (Key("client_secret", MARK.encode()), Key("url_key", "ключ".encode(), "next", NOW, NOW + timedelta(hours=1))),
    )
    assert (
        parse_source("acme", text)
        == parse_source("acme", text.encode())
        == parse_source("acme", b"\xef\xbb\xbf" + text.encode())
        == expected
    )
    assert parse_source("acme", json.dumps(document())).accounts is None


def test_times_may_be_left_out_and_a_source_may_have_no_keys_or_no_client() -> None:
    """A revoked source has no keys; one that only serves URLs has no client id."""
    bare = {"kind": "url_key", "secret": "u", "state": "current"}
    for client_id in ("", None):
        parsed = parse_source("acme", json.dumps(document(client_id=client_id, keys=[bare])))
        assert (parsed.client_id, parsed.keys) == ("", (Key("url_key", b"u"),))
    assert parse_source("acme", json.dumps(document(keys=[]))).keys == ()


@pytest.mark.parametrize("generation", [0, 2**63 - 1])
def test_a_generation_is_any_count_that_a_bigint_holds(generation: int) -> None:
    """The first file may begin at 0."""
    assert parse_source("acme", json.dumps(document(generation=generation))).generation == generation


@pytest.mark.parametrize(
    ("field", "content"),
    [
        ("empty", ""),
        ("empty", "  \n"),
        ("not JSON", "{"),
        ("not JSON", '{"keys": "' + MARK),
        ("not JSON", "[" * 100_000),
        ("not JSON", '{"generation": ' + "9" * 5_000 + "}"),
        ("not JSON", b'{"secret": "' + MARK.encode() + b'\xff"}'),
        ("not JSON", json.dumps(document()).encode("utf-16")),
        ("object", "[]"),
        ("object", "null"),
        ("object", json.dumps(MARK)),
        ("version", document(version=2)),
        ("version", document(version=True)),
        ("version", document(version="1")),
        ("version", document(version=1.0)),
        ("version", {}),
        ("generation", document(generation=-1)),
        ("generation", document(generation="7")),
        ("generation", document(generation=None)),
        ("generation", document(generation=7.5)),
        ("generation", document(generation=True)),
        ("generation", document(generation=2**63)),
        ("client_id", document(client_id="")),
        ("client_id", document(client_id=None)),
        ("client_id", document(client_id=5)),
        ("client_id", document(client_id="a|b")),
        ("client_id", document(client_id="a\ud800")),
        ("client_id", {name: value for name, value in document(keys=[]).items() if name != "client_id"}),
        ("accounts", {name: value for name, value in document().items() if name != "accounts"}),
        ("accounts", document(accounts="77")),
        ("accounts", document(accounts=[77])),
        ("accounts", document(accounts=["77", ""])),
        ("accounts", document(accounts={"77": 1})),
        ("keys", document(keys=None)),
        ("keys", document(keys={})),
        (r"keys\[1\]", document(keys=[*document()["keys"][:1], MARK])),
        (r"keys\[0\].kind", with_key(kind="token")),
        (r"keys\[0\].kind", with_key(kind=None)),
        (r"keys\[0\].kind", with_key(kind=[])),
        (r"keys\[0\].state", with_key(state="retired")),
        (r"keys\[0\].state", with_key(state=None)),
        (r"keys\[0\].secret", with_key(secret="")),
        (r"keys\[0\].secret", with_key(secret=None)),
        (r"keys\[0\].secret", with_key(secret=[MARK])),
        (r"keys\[0\].secret", with_key(secret=MARK + "\n")),
        (r"keys\[0\].secret", with_key(secret=MARK + " ")),
        (r"keys\[0\].secret", with_key(secret=MARK + "\ud800")),
        (r"keys\[0\].secret", with_key(secret=MARK * MOST_SECRET_BYTES)),
        (r"keys\[0\].secret", with_key(secret="ы" * (MOST_SECRET_BYTES // 2 + 1))),
        (r"keys\[0\].not_before", with_key(not_before="yesterday")),
        (r"keys\[0\].not_before", with_key(not_before=1_700_000_000)),
        (r"keys\[0\].not_after", with_key(not_after="2026-11-22T12:00:00")),
        (r"keys\[0\].not_after", with_key(not_after="")),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused_by_field_without_its_content(field: str, content: Any) -> None:
    """The one error raised names the field, and neither it nor what it was raised from quotes the file."""
    text = json.dumps(content) if isinstance(content, dict) else content
    with pytest.raises(ConfigurationError, match=field) as caught:
        parse_source("acme", text)
    assert "MARKED" not in repr(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (" ", "the file is empty"),
        ("{", "the file is not JSON in UTF-8"),
        ("[]", "the file must be a JSON object"),
        (document(version=2), "version must be 1"),
        (document(generation=-1), "generation must be an integer from 0"),
        (document(client_id="a|b"), "client_id must be the integration's id, a text without '|'"),
        (document(accounts="77"), "accounts must be null (any account) or a list of account ids as texts"),
        (document(keys=None), "keys must be a list"),
        (document(keys=[MARK]), "keys[0] must be an object"),
        (with_key(kind="token"), "keys[0].kind must be client_secret or url_key"),
        (with_key(state="retired"), "keys[0].state must be next, current, previous"),
        (with_key(secret=""), "keys[0].secret must be a printable text of at most 4096 bytes without surrounding spaces"),
        (with_key(not_after="yesterday"), "keys[0].not_after must be null or an ISO 8601 time with its zone"),
    ],
)
def test_a_refusal_says_what_should_stand_there(content: Any, sentence: str) -> None:
    """Whoever wrote the file can mend it without reading the code."""
    with pytest.raises(ConfigurationError) as caught:
        parse_source("acme", json.dumps(content) if isinstance(content, dict) else content)
    assert str(caught.value) == sentence


def test_the_longest_secret_is_accepted() -> None:
    """The bound counts bytes and includes its own value."""
    assert parse_source("acme", json.dumps(with_key(secret="ы" * (MOST_SECRET_BYTES // 2)))).keys


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a\nb", "имя", "a" * 254])
def test_a_source_s_name_can_stand_in_a_log_line(name: str) -> None:
    """Names are what Kubernetes allows as a key of a Secret."""
    with pytest.raises(ConfigurationError, match=r"^a source's name has letters, digits, dots, dashes and underscores only$"):
        parse_source(name, json.dumps(document()))


@pytest.mark.parametrize("name", ["a", "Acme_2.x-9", "a" * 253])
def test_every_name_of_a_secret_s_key_is_good(name: str) -> None:
    """All that Kubernetes allows is allowed here."""
    assert parse_source(name, json.dumps(document())).name == name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*document(), *document()["keys"][0]]), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(list(document())), JSON).map(lambda changes: json.dumps(document() | changes)) | st.text() | st.binary()
)
def test_no_file_raises_anything_but_a_configuration_error(text: str | bytes) -> None:
    """Whatever stands in a file, it is a source or refused with the one error."""
    try:
        parsed = parse_source("acme", text)
    except ConfigurationError:
        return
    assert isinstance(parsed, Source)
