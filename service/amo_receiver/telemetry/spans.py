"""The hot spans as OTLP protobuf bytes; pure.

Creating a span with the SDK and encoding it costs more than a whole delivery does. What a span of one shape has in common with the
last one is therefore kept as bytes, and only ids, times and a few values are put in. A test compares every field with what the SDK's
own encoder makes of the same span. Names are those of the semantic conventions for HTTP, messaging and PostgreSQL; the path is never
among them, because it carries the token, and of the words in a body only amoCRM's own are shown.
"""

from __future__ import annotations

import re
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from amo_receiver.amocrm.words import kind_word

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Value: TypeAlias = str | int | tuple[str, ...]

SAMPLED, RANDOM_TRACE_ID = 1, 2
INTERNAL, SERVER, CLIENT = 1, 2, 3
MOST_ENTITY_ACTIONS = 10
SERVER_ERRORS = 500
UUID_CHARS = 36
SHAPES_KEPT = 2048

TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
NO_TRACE_ID, NO_SPAN_ID = bytes(16), bytes(8)


class Remote(NamedTuple):
    """A span of somebody else's, as a traceparent names it."""

    trace_id: bytes
    span_id: bytes
    flags: int


class OpenSpan(NamedTuple):
    """A span that has begun: what its children, its links, rows and log lines need. A root has an empty ``parent_id``."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    is_parent_remote: bool
    flags: int
    start_ns: int

    @property
    def traceparent(self) -> str:
        """Return the W3C header that names this span."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{self.flags:02x}"

    @property
    def is_sampled(self) -> bool:
        """Tell whether this span is exported."""
        return bool(self.flags & SAMPLED)


class Kinded(Protocol):
    """An event, as far as it is needed here."""

    @property
    def entity(self) -> str:
        """Return amoCRM's word, such as ``leads``."""

    @property
    def action(self) -> str:
        """Return amoCRM's word, such as ``add``."""


def parse_traceparent(header: str) -> Remote | None:
    """Read a W3C traceparent, of a later version too; None for anything else."""
    match = TRACEPARENT.fullmatch(header)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    remote = Remote(bytes.fromhex(trace_id), bytes.fromhex(span_id), int(flags, 16))
    if version == "ff" or (version == "00" and more) or remote.trace_id == NO_TRACE_ID or remote.span_id == NO_SPAN_ID:
        return None
    return remote


def entity_actions(events: Sequence[Kinded]) -> tuple[str, ...]:
    """Return what kinds of events there are (``leads.update``), each once, at most ``MOST_ENTITY_ACTIONS``."""
    # Known words only, because others may be personal or have a megabyte, and shapes are kept.
    kinds = dict.fromkeys(kind_word(event.entity, event.action) for event in events)
    return tuple(kinds)[:MOST_ENTITY_ACTIONS]


# Protobuf: a field is its tag and its value, and what has a length is preceded by it.

SPAN = b"\x12"  # ScopeSpans.spans
PARENT, NAME, KIND, ATTRIBUTE, LINK, STATUS = b"\x22", b"\x2a", b"\x30", b"\x4a", b"\x6a", b"\x7a"  # Span
STRING, INT, ARRAY = b"\x0a", b"\x18", b"\x2a"  # AnyValue
KEY, VALUE = b"\x0a", b"\x12"  # KeyValue
UNSET, ERROR = STATUS + b"\x00", STATUS + b"\x02\x18\x02"
HAS_IS_REMOTE, IS_REMOTE = 0x100, 0x200  # Span.flags and Link.flags

# trace_id, span_id, [parent_span_id,] start_time_unix_nano, end_time_unix_nano, flags
ROOT_HEAD = Struct("<2s16s 2s8s BQ BQ 2sI")
CHILD_HEAD = Struct("<2s16s 2s8s 2s8s BQ BQ 2sI")
LINK_TO = Struct("<4s16s 2s8s BI")  # length, trace_id, span_id, flags


@lru_cache(SHAPES_KEPT)
def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def sized(tag: bytes, content: bytes) -> bytes:
    """Encode a field that has a length."""
    return tag + _varint(len(content)) + content


def _value(value: Value) -> bytes:
    if isinstance(value, int):
        return INT + _varint(value)
    if isinstance(value, str):
        return sized(STRING, value.encode())
    return sized(ARRAY, b"".join(sized(KEY, _value(each)) for each in value))


def encode_attributes(attributes: Mapping[str, Value]) -> bytes:
    """Encode a span's attributes; the empty ones (no delivery yet, no account) are left out."""
    present = ((key, value) for key, value in attributes.items() if value not in ("", ()))
    return b"".join(sized(ATTRIBUTE, sized(KEY, key.encode()) + sized(VALUE, _value(value))) for key, value in present)


MESSAGE_ID = encode_attributes({"messaging.message.id": "0" * UUID_CHARS})[:-UUID_CHARS]


def _head(span: OpenSpan, end_ns: int) -> bytes:
    trace_id, span_id, parent_id, is_parent_remote, _, start_ns = span
    if not parent_id:
        return ROOT_HEAD.pack(b"\x0a\x10", trace_id, b"\x12\x08", span_id, 0x39, start_ns, 0x41, end_ns, b"\x85\x01", HAS_IS_REMOTE)
    flags = HAS_IS_REMOTE | IS_REMOTE if is_parent_remote else HAS_IS_REMOTE
    return CHILD_HEAD.pack(
        b"\x0a\x10", trace_id, b"\x12\x08", span_id, b"\x22\x08", parent_id, 0x39, start_ns, 0x41, end_ns, b"\x85\x01", flags
    )  # fmt: skip


def _shape(name: str, kind: int, attributes: Mapping[str, Value], *, failed: bool) -> bytes:
    """Encode what spans of one shape have in common."""
    return sized(NAME, name.encode()) + KIND + _varint(kind) + encode_attributes(attributes) + (ERROR if failed else UNSET)


def accept_span(span: OpenSpan, end_ns: int, delivery_id: str, account_id: str, shape: bytes) -> bytes:
    """Encode the span of one delivery; ``delivery_id`` is a UUID, or empty where the delivery was refused before it had one."""
    identity = MESSAGE_ID + delivery_id.encode() if delivery_id else b""
    encoded = _head(span, end_ns) + identity + account_attribute(account_id) + shape
    return SPAN + _varint(len(encoded)) + encoded


@lru_cache(SHAPES_KEPT)
def account_attribute(account_id: str) -> bytes:
    """Encode whose delivery it is; apart from the shapes, because there are many accounts and few shapes."""
    return encode_attributes({"amo.account_id": account_id})


@lru_cache(SHAPES_KEPT)
def accept_shape(
    route: str, status: int | None, outcome: str, kinds: tuple[str, ...], events: int, key_kind: str, key_fingerprint: str
) -> bytes:
    """Encode what accept spans have in common; ``outcome`` is ``success``, ``partial`` or the error's type.

    ``status`` None: nobody was left to be answered.
    """
    failed = status is None or status >= SERVER_ERRORS
    attributes: dict[str, Value] = {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": route,
        "http.response.status_code": status or "",
        "error.type": outcome if failed else "",
        "messaging.system": "amocrm",
        "messaging.operation.name": "accept",
        "messaging.operation.type": "process",
        "amo.entity_actions": kinds,
        "amo.events": events,
        "amo.key.kind": key_kind,
        "amo.key.fingerprint": key_fingerprint,
        "amo.outcome": outcome,
    }
    return _shape("accept", SERVER, attributes, failed=failed)


def batch_span(span: OpenSpan, end_ns: int, accepts: Iterable[OpenSpan], shape: bytes) -> bytes:
    """Encode the span of a group commit, linked with the sampled accept spans that it carried."""
    links = [
        LINK_TO.pack(b"\x6a\x21\x0a\x10", each.trace_id, b"\x12\x08", each.span_id, 0x35, HAS_IS_REMOTE)
        for each in accepts
        if each.flags & SAMPLED
    ]
    return sized(SPAN, _head(span, end_ns) + shape + b"".join(links))


@lru_cache(SHAPES_KEPT)
def batch_shape(deliveries: int, events: int, error_type: str) -> bytes:
    """Encode what batches of one size have in common."""
    attributes: dict[str, Value] = {
        "messaging.system": "amocrm",
        "messaging.operation.name": "batch",
        "messaging.operation.type": "process",
        "messaging.batch.message_count": deliveries,
        "amo.events": events,
        "error.type": error_type,
    }
    return _shape("batch", INTERNAL, attributes, failed=bool(error_type))


def call_span(span: OpenSpan, end_ns: int, shape: bytes) -> bytes:
    """Encode the span of one call of the database."""
    return sized(SPAN, _head(span, end_ns) + shape)


@lru_cache(SHAPES_KEPT)
def call_shape(function: str, error_type: str, sqlstate: str, database: bytes) -> bytes:
    """Encode what calls of one database function have in common; ``database``: encoded attributes that name the database."""
    summary = f"SELECT {function}"
    attributes: dict[str, Value] = {
        "db.system.name": "postgresql",
        "db.query.summary": summary,
        "db.stored_procedure.name": function,
        "db.response.status_code": sqlstate,
        "error.type": error_type,
    }
    return database + _shape(summary, CLIENT, attributes, failed=bool(error_type))
