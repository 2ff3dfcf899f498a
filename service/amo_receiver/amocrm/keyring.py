"""Which sender is this: verify signatures and URL tokens against every active key of the keyring."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from amo_receiver.errors import Unauthorized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

KeyKind: TypeAlias = Literal["client_secret", "url_key"]
KeyState: TypeAlias = Literal["next", "current", "previous"]

DEFAULT_SOURCE = "default"
LONGEST_TOKEN_CHARS = 1024
LONGEST_ACCOUNT_CHARS = 255
URL_MAC_CHARS = 43  # 32 bytes of SHA-256 in base64 without padding

MEND_HEADERS = (
    "amoCRM itself does not sign its webhooks and needs the URL with the token, /api/webhooks/amo/{token}; "
    "anyone else sends X-Client-UUID, X-Signature and X-Account-ID"
)
MEND_CLIENT = "X-Client-UUID is not known here: compare it with AMOCRM_CLIENT_ID or the client_id in the keyring"
MEND_SIGNATURE = (
    "X-Signature matches no active key: it is the hex HMAC-SHA256 of '{X-Client-UUID}|{X-Account-ID}' keyed with the "
    "integration's client secret; compare the secret with AMOCRM_CLIENT_SECRET or the keyring"
)
MEND_URL = (
    "The token in the URL matches no active key: compare the webhook's URL in amoCRM with AMOCRM_WEBHOOK_TOKEN, "
    "or enter the URL that the current URL key gives for this account"
)


def fingerprint(secret: bytes) -> str:
    """Name a secret without telling it: the first 12 hex digits of a salted SHA-256."""
    return hashlib.sha256(b"amo-webhooks\0" + secret).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Key:
    """One of the secrets a source accepts; all three states are accepted while ``not_before <= now < not_after``."""

    kind: KeyKind
    secret: bytes = field(repr=False)
    state: KeyState = "current"
    not_before: datetime | None = None
    not_after: datetime | None = None

    @property
    def fingerprint(self) -> str:
        """Name the key in rows, logs and reports."""
        return fingerprint(self.secret)

    def active(self, now: datetime) -> bool:
        """Tell whether the key is accepted at ``now`` (aware of its time zone)."""
        return (self.not_before is None or self.not_before <= now) and (self.not_after is None or now < self.not_after)


@dataclass(frozen=True, slots=True)
class Source:
    """A configured sender; ``accounts`` None means any account, no keys means that the source is revoked."""

    name: str
    client_id: str
    generation: int
    accounts: frozenset[str] | None
    keys: tuple[Key, ...]

    def serves(self, account_id: str) -> bool:
        """Tell whether the source may speak for the account."""
        return self.accounts is None or account_id in self.accounts


@dataclass(frozen=True, slots=True)
class Match:
    """What authenticated a delivery; ``account_id`` is the account the credential is for, None for any."""

    source: Source
    fingerprint: str
    kind: Literal["client_secret", "url_key", "token"]
    account_id: str | None


PLAIN_TOKEN_SOURCE = Source(DEFAULT_SOURCE, "", 0, None, ())
Candidate: TypeAlias = tuple[Source, Key]


@dataclass(frozen=True)
class Keyring:
    """Every source with its keys and the plain token; replaced as a whole when a file changes."""

    sources: tuple[Source, ...]
    plain_token: bytes | None = field(default=None, repr=False)
    plain_account: str | None = None

    @classmethod
    def build(cls, default: Source | None, files: Mapping[str, Source], plain_token: str | None, plain_account: str | None) -> Keyring:
        """Join the environment's source with the files'; a file with the same client id replaces it."""
        sources = tuple(files[name] for name in sorted(files))
        if default is not None and default.client_id not in {source.client_id for source in sources}:
            sources = (default, *sources)
        return cls(sources, plain_token.encode() if plain_token else None, plain_account or None)

    @property
    def loaded(self) -> bool:
        """Tell whether anything at all could be verified, which readiness asks."""
        return self.plain_token is not None or any(source.keys for source in self.sources)

    # cached_property writes past the frozen __setattr__: the two indexes are made once per keyring, not per delivery.
    @cached_property
    def _secrets_by_client(self) -> dict[str, list[Candidate]]:
        candidates: dict[str, list[Candidate]] = defaultdict(list)
        for source in self.sources:
            candidates[source.client_id] += [(source, key) for key in source.keys if key.kind == "client_secret"]
        return dict(candidates)

    @cached_property
    def _url_keys(self) -> list[Candidate]:
        return [(source, key) for source in self.sources for key in source.keys if key.kind == "url_key"]

    def verify_signature(self, client_uuid: str, signature: str, account_id: str, now: datetime) -> Match:
        """Verify the three headers as they came off the wire; the account in the answer is text.

        :raises Unauthorized: no active key of the client signed this, or the source does not serve the account.
        """
        given = {"X-Client-UUID": client_uuid, "X-Signature": signature, "X-Account-ID": account_id}
        if missing := [name for name, value in given.items() if not value]:
            raise Unauthorized(f"Missing headers {', '.join(missing)}: {MEND_HEADERS}")
        if len(account_id) > LONGEST_ACCOUNT_CHARS:
            raise Unauthorized(f"X-Account-ID is longer than {LONGEST_ACCOUNT_CHARS} characters: send the id of the account")
        client, account = _header_text(client_uuid), _header_text(account_id)
        candidates = self._secrets_by_client.get(client)
        if candidates is None:
            raise Unauthorized(MEND_CLIENT)
        matches = _matching(candidates, f"{client}|{account}", signature.lower(), lambda mac: mac.hex())
        source, key = _entitled(matches, account, now, MEND_SIGNATURE)
        return Match(source, key.fingerprint, key.kind, account)

    def verify_token(self, token: str, now: datetime) -> Match:
        """Verify the last segment of the URL, percent-decoded: the plain token first, then every URL key.

        :raises Unauthorized: no active key gives this token, or the source does not serve its account.
        """
        if len(token) > LONGEST_TOKEN_CHARS:
            raise Unauthorized(MEND_URL)
        if self.plain_token is not None and hmac.compare_digest(_bytes(token), self.plain_token):
            return Match(PLAIN_TOKEN_SOURCE, fingerprint(self.plain_token), "token", self.plain_account)
        account, _, mac = token.rpartition(".")
        # Cheaper than the keys of every source, and tells a stranger nothing: the length is public.
        if not account or len(account) > LONGEST_ACCOUNT_CHARS or len(mac) != URL_MAC_CHARS:
            raise Unauthorized(MEND_URL)
        source, key = _entitled(_matching(self._url_keys, account, mac, _url_mac), account, now, MEND_URL)
        return Match(source, key.fingerprint, key.kind, account)

    def report(self) -> list[dict[str, Any]]:
        """List sources and keys by fingerprint for the management port, so that a rotation can be followed."""
        report: list[dict[str, Any]] = [
            {"source": source.name, "generation": source.generation, "keys": [_key_report(key) for key in source.keys]}
            for source in self.sources
        ]
        if self.plain_token is not None:
            token = {"kind": "token", "fingerprint": fingerprint(self.plain_token), "state": "current"}
            report.append({"source": DEFAULT_SOURCE, "generation": 0, "keys": [token | {"not_before": None, "not_after": None}]})
        return report


def environment_source(client_id: str, client_secret: str) -> Source:
    """Make the source ``default`` of the environment's credentials."""
    return Source(DEFAULT_SOURCE, client_id, 0, None, (Key("client_secret", client_secret.encode()),))


def url_token(url_key: bytes, account_id: str) -> str:
    """Derive the token for one account's URL; the caller percent-encodes it."""
    return f"{account_id}.{_url_mac(hmac.digest(url_key, _bytes(account_id), 'sha256'))}"


def _url_mac(mac: bytes) -> str:
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    # compare_digest refuses non-ASCII text, and a lone surrogate must be a mismatch, not a crash.
    return text.encode("utf-8", "surrogatepass")


def _header_text(value: str) -> str:
    """Undo the latin-1 decoding of headers where the bytes were UTF-8."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _matching(candidates: Iterable[Candidate], message: str, given: str, encode: Callable[[bytes], str]) -> list[Candidate]:
    """Compare with every key, in constant time and without stopping at the first match."""
    body, wanted = _bytes(message), _bytes(given)
    return [
        (source, key) for source, key in candidates if hmac.compare_digest(encode(hmac.digest(key.secret, body, "sha256")).encode(), wanted)
    ]


def _entitled(matches: list[Candidate], account_id: str, now: datetime, mend: str) -> Candidate:
    """Pick the match whose key is active and whose source serves the account, or say which of the two is missing."""
    if not matches:
        raise Unauthorized(mend)
    active = [(source, key) for source, key in matches if key.active(now)]
    if not active:
        source, key = matches[0]
        span = f"from {key.not_before or 'ever'} until {key.not_after or 'ever'}"
        raise Unauthorized(f"The key {key.fingerprint} of source {source.name} is active only {span}: use the source's current key")
    for source, key in active:
        if source.serves(account_id):
            return source, key
    raise Unauthorized(f"Source {active[0][0].name} does not serve this account: add it to `accounts` in the source's keyring")


def _key_report(key: Key) -> dict[str, Any]:
    return {
        "kind": key.kind,
        "fingerprint": key.fingerprint,
        "state": key.state,
        "not_before": key.not_before.isoformat() if key.not_before else None,
        "not_after": key.not_after.isoformat() if key.not_after else None,
    }
