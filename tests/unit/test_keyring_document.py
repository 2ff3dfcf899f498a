"""The operator's keyring document: the service reads it as it was meant, and nothing of it shows."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amo_operator.keyring import (
    KINDS,
    LONG_AGO,
    MOST_RETIRED,
    CorruptKeyring,
    Key,
    Keyring,
    Retired,
    bounded,
    credentials,
    fingerprint,
    is_usable,
    new_secret,
    read_keyring,
    url_path,
    write_keyring,
)
from amo_receiver.amocrm import keyring as service
from amo_receiver.amocrm.keyring_file import parse_source

NOW = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
MARK = "MARKEDsecretMARKED"
KEYRING = Keyring(
    7,
    "client",
    ("77", "78"),
    (
        Key("client_secret", MARK, "current", NOW),
        Key("client_secret", "ключ", "previous", NOW, NOW + timedelta(days=7)),
        Key("url_key", "u", "next", NOW),
        Key("url_key", "v", "current", NOW),
    ),
    (Retired("url_key", "0" * 12, "retired", NOW), Retired("client_secret", "1" * 12, "revoked", NOW)),
    (("client_secret", "a"), ("url_key", "b")),
)
texts = st.text(min_size=1, max_size=20).filter(is_usable)
times = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds have no zone there


def document(**changes: Any) -> dict[str, Any]:
    return json.loads(write_keyring(KEYRING)) | changes


def test_a_document_is_read_as_it_was_written() -> None:
    """By the operator whole, by the service all that concerns it."""
    text = write_keyring(KEYRING)
    assert read_keyring(text) == KEYRING
    source = parse_source("acme", text)
    assert (source.generation, source.client_id, source.accounts) == (7, "client", frozenset({"77", "78"}))
    assert [(key.kind, key.secret.decode(), key.state, key.not_before, key.not_after) for key in source.keys] == [
        (key.kind, key.secret, key.state, None, key.not_after) for key in KEYRING.keys
    ]
    assert document()["keys"][1]["not_after"] == "2026-11-29T12:00:00.123456Z"
    assert document()["accounts"] == ["77", "78"]


@given(
    st.builds(Key, st.sampled_from(KINDS), texts, st.just("previous"), times, st.none() | times),
    st.none() | st.lists(st.from_regex(r"[0-9A-Za-z]{1,9}", fullmatch=True), max_size=3).map(tuple),
    st.integers(0, 2**63 - 1),
)
def test_whatever_is_written_is_read(key: Key, accounts: tuple[str, ...] | None, generation: int) -> None:
    """What the operator takes for a secret, the service takes too."""
    keyring = Keyring(generation, "client", accounts, (key,))
    assert read_keyring(write_keyring(keyring)) == keyring
    (parsed,) = parse_source("acme", write_keyring(keyring)).keys
    assert (parsed.secret.decode(), parsed.not_after, parsed.fingerprint) == (key.secret, key.not_after, key.fingerprint)


def test_fingerprints_and_urls_are_the_services() -> None:
    """A fact that stands twice."""
    assert fingerprint(MARK) == service.fingerprint(MARK.encode())
    path = url_path(MARK, "77")
    assert path == "/api/webhooks/amo/" + service.url_token(MARK.encode(), "77")
    keyring = service.Keyring((parse_source("acme", write_keyring(replace(KEYRING, keys=(Key("url_key", MARK, "next", NOW),)))),))
    assert keyring.verify_token(unquote(path.rpartition("/")[2]), NOW).account_id == "77"


def test_new_secrets_are_new() -> None:
    """32 random bytes in base64url, which the service takes."""
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert {len(each) for each in made} == {43}
    assert all(map(is_usable, made))


def test_credentials_tell_senders_the_current_keys() -> None:
    """A person's own secret is not told again."""
    told = {"client_id": "client", "generation": "7", "url_key": "v", "url.77": url_path("v", "77"), "url.78": url_path("v", "78")}
    assert credentials(KEYRING, is_generated=False) == told
    assert credentials(KEYRING, is_generated=True) == told | {"client_secret": MARK}
    assert credentials(Keyring(7, "client", None), is_generated=True) == {"client_id": "client", "generation": "7"}
    assert "url_key" in credentials(replace(KEYRING, accounts=None), is_generated=True)


def test_a_document_that_a_person_wrote_is_taken_over() -> None:
    """Without the operator's notes: since when is not known, so that its keys are old."""
    text = json.dumps(
        {
            "version": 1,
            "generation": 3,
            "client_id": "c",
            "accounts": None,
            "keys": [{"kind": "url_key", "secret": "u", "state": "current"}],
        }
    )
    assert read_keyring(text) == Keyring(3, "c", None, (Key("url_key", "u", "current", LONG_AGO),))


KEY = {"kind": "url_key", "secret": MARK, "state": "current", "since": "2026-11-22T12:00:00Z", "not_after": None}
GONE = {"kind": "url_key", "fingerprint": "0" * 12, "reason": "retired", "at": "2026-11-22T12:00:00Z"}
REFUSED: list[tuple[str, Any]] = [
    ("version", document(version=2)),
    ("generation", document(generation="7")),
    ("generation", document(generation=True)),
    ("generation", document(generation=-1)),
    ("generation", document(generation=2**63)),
    ("client_id", document(client_id="")),
    ("client_id", document(client_id=None)),
    ("accounts", document(accounts=[77])),
    ("accounts", document(accounts="77")),
    ("accounts", {key: value for key, value in document().items() if key != "accounts"}),
    ("keys", document(keys=None)),
    ("keys", document(keys=[MARK])),
    ("keys", document(keys=[KEY, KEY])),
    ("keys", document(keys=[KEY, KEY | {"secret": "other"}])),
    ("keys", document(keys=[KEY | {"state": "next"}, KEY | {"state": "next", "secret": "other"}])),
    ("keys[0].kind", document(keys=[KEY | {"kind": "token"}])),
    ("keys[0].secret", document(keys=[KEY | {"secret": f" {MARK}"}])),
    ("keys[0].secret", document(keys=[KEY | {"secret": None}])),
    ("keys[0].secret", document(keys=[KEY | {"secret": "x" * 4097}])),
    ("keys[1].state", document(keys=[KEY, KEY | {"state": "retired"}])),
    ("keys[0].since", document(keys=[KEY | {"since": MARK}])),
    ("keys[0].not_after", document(keys=[KEY | {"not_after": "2026-11-22T12:00:00"}])),
    ("keys[0].not_after", document(keys=[KEY | {"not_after": 5}])),
    ("retired", document(retired=None)),
    ("retired[0].kind", document(retired=[GONE | {"kind": []}])),
    ("retired[0].fingerprint", document(retired=[GONE | {"fingerprint": 5}])),
    ("retired[0].reason", document(retired=[GONE | {"reason": "lost"}])),
    ("retired[0].at", document(retired=[GONE | {"at": "soon"}])),
    ("rotated_for", document(rotated_for=[])),
    ("rotated_for", document(rotated_for={"url_key": 5})),
    ("the document", [document()]),
    ("the document", MARK),
]


@pytest.mark.parametrize(("path", "refused"), REFUSED, ids=[path for path, _ in REFUSED])
def test_what_is_no_document_is_refused_by_the_name_of_the_field(path: str, refused: Any) -> None:
    """Never by its value."""
    with pytest.raises(CorruptKeyring, match=rf"^{path.replace('[', '.').replace(']', '.')} must be") as error:
        read_keyring(json.dumps(refused))
    assert MARK not in str(error.value)


@pytest.mark.parametrize("text", ["", write_keyring(KEYRING)[:-1], "[" * 100_000])
def test_what_is_no_json_is_refused_without_a_trace_of_it(text: str) -> None:
    """The decoder's error holds the whole text: it must not hang on to ours."""
    with pytest.raises(CorruptKeyring, match=r"^the document must be JSON$") as error:
        read_keyring(text)
    assert error.value.__context__ is None


def test_secrets_do_not_show() -> None:
    """In no repr."""
    assert MARK not in repr(KEYRING)
    assert KEYRING.keys[0].fingerprint == fingerprint(MARK)


def test_the_retired_are_remembered_within_bounds() -> None:
    """In the order of time, each once; neither those nor what a person revoked makes the other forgotten."""
    many = [Retired("url_key", f"{number:012x}", "retired", NOW + timedelta(minutes=number)) for number in range(MOST_RETIRED)]
    revoked = Retired("url_key", "f" * 12, "revoked", NOW - timedelta(days=900))
    kept = bounded([*many, revoked, *many])
    assert kept == (revoked, *many)
    one_more = Retired("url_key", "e" * 12, "retired", NOW + timedelta(days=900))
    assert bounded([*kept, one_more]) == (revoked, *many[1:], one_more)
    assert bounded([*many, revoked, *many, *kept]) == kept
