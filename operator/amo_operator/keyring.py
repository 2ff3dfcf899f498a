"""The keyring document: the keys of one integration as the service reads them, and the operator's own notes; pure.

The service's parser passes over what it does not know: ``since``, ``retired`` and ``rotated_for`` are the operator's.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, get_args
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable

KeyKind: TypeAlias = Literal["client_secret", "url_key"]
KeyState: TypeAlias = Literal["next", "current", "previous"]
Farewell: TypeAlias = Literal["retired", "revoked"]
KINDS: tuple[KeyKind, ...] = get_args(KeyKind)

DOCUMENT_VERSION = 1
MOST_RETIRED = 50
MOST_REVOKED = 100
"""As many as a spec may name: whatever it names is remembered."""
MOST_SECRET_BYTES = 4096
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
"""Since when a key is there of which nobody noted it: the rotation begins its time anew."""
URL_PREFIX = "/api/webhooks/amo/"


class CorruptKeyring(ValueError):  # noqa: N818 - named for what was found, as the service's errors are
    """What lies in the Secret is no keyring document; the message names the field, never its value."""


@dataclass(frozen=True, slots=True)
class Key:
    """A secret that the service accepts, in each of the three states; since when it is in this one, and until when it is accepted."""

    kind: KeyKind
    secret: str = field(repr=False)
    state: KeyState
    since: datetime
    not_after: datetime | None = None

    @property
    def fingerprint(self) -> str:
        """Name the key without telling it."""
        return fingerprint(self.secret)


@dataclass(frozen=True, slots=True)
class Retired:
    """A key that is refused from now on, by its fingerprint: its time was over, or a person revoked it."""

    kind: KeyKind
    fingerprint: str
    reason: Farewell
    at: datetime


@dataclass(frozen=True, slots=True)
class Keyring:
    """One integration's document; ``accounts`` None means any account. Keys and retired ones are in the order of the document."""

    generation: int
    client_id: str
    accounts: tuple[str, ...] | None
    keys: tuple[Key, ...] = ()
    retired: tuple[Retired, ...] = ()
    rotated_for: tuple[tuple[KeyKind, str], ...] = field(default=(), repr=False)
    """The request for a rotation that was last carried out, by kind of key."""

    @property
    def fingerprints(self) -> frozenset[str]:
        """Name every key that is accepted."""
        return frozenset(key.fingerprint for key in self.keys)

    def of(self, kind: KeyKind, state: KeyState) -> tuple[Key, ...]:
        """Return the keys of a kind in a state, the one that came into it last first."""
        return tuple(key for key in self.keys if key.kind == kind and key.state == state)

    def one(self, kind: KeyKind, state: Literal["next", "current"]) -> Key | None:
        """Return the next or the current key of a kind, of which there is one at most."""
        return next(iter(self.of(kind, state)), None)


def fingerprint(secret: str) -> str:
    """Name a secret without telling it, as the service does: 12 hex digits of a salted SHA-256."""
    return hashlib.sha256(b"amo-webhooks\0" + secret.encode()).hexdigest()[:12]


def new_secret() -> str:
    """Make a secret of 32 random bytes."""
    return secrets.token_urlsafe(32)


def is_usable(secret: str) -> bool:
    """Tell whether the service takes this text for a secret."""
    return secret != "" and secret.isprintable() and secret == secret.strip() and len(secret.encode()) <= MOST_SECRET_BYTES


def url_path(url_key: str, account: str) -> str:
    """Return the path that amoCRM calls for an account; whoever knows it can send in the account's name."""
    mac = base64.urlsafe_b64encode(hmac.digest(url_key.encode(), account.encode(), "sha256")).rstrip(b"=").decode()
    return URL_PREFIX + quote(f"{account}.{mac}", safe="")


def credentials(keyring: Keyring, *, is_generated: bool) -> dict[str, str]:
    """Return what senders need of the current keys; a client secret only if it is made here, else a person has it already."""
    texts = {"client_id": keyring.client_id, "generation": str(keyring.generation)}
    if is_generated and (current := keyring.one("client_secret", "current")):
        texts["client_secret"] = current.secret
    if current := keyring.one("url_key", "current"):
        texts["url_key"] = current.secret
        texts |= {f"url.{account}": url_path(current.secret, account) for account in keyring.accounts or ()}
    return texts


def bounded(retired: Iterable[Retired]) -> tuple[Retired, ...]:
    """Keep what can be remembered, oldest first: so many that are retired, and so many that a person revoked."""
    noted = {(each.kind, each.fingerprint): each for each in retired}
    oldest_first = sorted(noted.values(), key=lambda each: each.at)
    by_reason = {reason: [each for each in oldest_first if each.reason == reason] for reason in get_args(Farewell)}
    kept = {*by_reason["retired"][-MOST_RETIRED:], *by_reason["revoked"][-MOST_REVOKED:]}
    return tuple(each for each in oldest_first if each in kept)


def write_keyring(keyring: Keyring) -> str:
    """Write the document."""
    document = {
        "version": DOCUMENT_VERSION,
        "generation": keyring.generation,
        "client_id": keyring.client_id,
        "accounts": None if keyring.accounts is None else list(keyring.accounts),
        "keys": [
            {
                "kind": key.kind,
                "secret": key.secret,
                "state": key.state,
                "since": _text(key.since),
                "not_before": None,
                "not_after": _text(key.not_after) if key.not_after else None,
            }
            for key in keyring.keys
        ],
        "retired": [
            {"kind": each.kind, "fingerprint": each.fingerprint, "reason": each.reason, "at": _text(each.at)} for each in keyring.retired
        ],
        "rotated_for": dict(keyring.rotated_for),
    }
    return json.dumps(document)


def read_keyring(text: str) -> Keyring:
    """Read a document; one that people wrote for the service, without the operator's notes, is a document too.

    :raises CorruptKeyring: names the field, never its value.
    """
    document = _json(text)
    _require(isinstance(document, dict), "the document", "a JSON object")
    _require(document.get("version") == DOCUMENT_VERSION, "version", str(DOCUMENT_VERSION))
    generation, client_id, accounts = document.get("generation"), document.get("client_id"), document.get("accounts", "absent")
    is_count = isinstance(generation, int) and not isinstance(generation, bool) and 0 <= generation < 2**63
    _require(is_count, "generation", "an integer from 0")
    _require(_is_text(client_id), "client_id", "a text")
    _require(accounts is None or (isinstance(accounts, list) and all(map(_is_text, accounts))), "accounts", "null or a list of texts")
    requests = document.get("rotated_for", {})
    _require(isinstance(requests, dict) and all(isinstance(each, str) for each in requests.values()), "rotated_for", "texts by kind")
    keyring = Keyring(
        generation,
        client_id,
        None if accounts is None else tuple(accounts),
        tuple(_key(path, fields) for path, fields in _objects(document, "keys")),
        tuple(_retired(path, fields) for path, fields in _objects(document, "retired", absent=[])),
        tuple((kind, requests[kind]) for kind in KINDS if kind in requests),
    )
    _require(len({(key.kind, key.secret) for key in keyring.keys}) == len(keyring.keys), "keys", "without the same key twice")
    is_single = all(len(keyring.of(kind, state)) <= 1 for kind in KINDS for state in ("next", "current"))
    _require(is_single, "keys", "at most one next and one current of each kind")
    return keyring


def _json(text: str) -> Any:
    # Not raised inside a handler: the decoder's error would be its context, and that carries the whole document, secrets included.
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return _corrupt("the document", "JSON")


def _objects(document: dict[str, Any], name: str, absent: object = None) -> Iterable[tuple[str, dict[str, Any]]]:
    listed = document.get(name, absent)
    _require(isinstance(listed, list) and all(isinstance(each, dict) for each in listed), name, "a list of objects")
    return [(f"{name}[{index}]", each) for index, each in enumerate(listed)]


def _key(path: str, fields: dict[str, Any]) -> Key:
    kind: Any = fields.get("kind")
    secret: Any = fields.get("secret")
    state: Any = fields.get("state")
    _require(kind in KINDS, f"{path}.kind", " or ".join(KINDS))
    _require(state in get_args(KeyState), f"{path}.state", ", ".join(get_args(KeyState)))
    _require(isinstance(secret, str) and is_usable(secret), f"{path}.secret", "a secret that the service takes")
    since = _time(f"{path}.since", fields.get("since")) or LONG_AGO
    return Key(kind, secret, state, since, _time(f"{path}.not_after", fields.get("not_after")))


def _retired(path: str, fields: dict[str, Any]) -> Retired:
    kind: Any = fields.get("kind")
    name: Any = fields.get("fingerprint")
    reason: Any = fields.get("reason")
    _require(kind in KINDS, f"{path}.kind", " or ".join(KINDS))
    _require(_is_text(name), f"{path}.fingerprint", "a text")
    _require(reason in get_args(Farewell), f"{path}.reason", " or ".join(get_args(Farewell)))
    return Retired(kind, name, reason, _time(f"{path}.at", fields.get("at")) or LONG_AGO)


def _time(path: str, value: object) -> datetime | None:
    if value is None:
        return None
    time = None
    with suppress(TypeError, ValueError):
        time = datetime.fromisoformat(value)  # type: ignore[arg-type]
    if time is None or time.tzinfo is None:
        return _corrupt(path, "null or an ISO 8601 time with its zone")
    return time.astimezone(UTC)


def _text(time: datetime) -> str:
    return time.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _require(condition: bool, field_name: str, expected: str) -> None:
    if not condition:
        _corrupt(field_name, expected)


def _corrupt(field_name: str, expected: str) -> NoReturn:
    raise CorruptKeyring(f"{field_name} must be {expected}")
