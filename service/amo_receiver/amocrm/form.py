"""Read the bytes of a body into a nested document, whichever of the two encodings it is in.

amoCRM writes forms as PHP's ``http_build_query`` does (``leads%5Badd%5D%5B0%5D%5Bid%5D=7``). Where that leaves a choice:

- A number in brackets is a name like any other, in document order, never a list position: ids of eight digits occur there.
- ``a[]`` takes the number of entries its container has so far, or the next one that is free.
- A later field replaces an earlier one of the same name, a value replaces a container and a container a value, as in PHP.
- A key that is not a name followed by closed brackets is one plain name, brackets included. Dots and spaces stay what they
  are (PHP would make underscores of them). A field without a key is left out.
- A percent sign that starts no escape stands for itself.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from amo_receiver.errors import Unparsable

if TYPE_CHECKING:
    from collections.abc import Callable

    KeyPath = tuple[tuple[str, ...], str]

KNOWN_KEYS = 8192
LONGEST_KNOWN_KEY = 256
LONGEST_INTEGER = 40

_ESCAPES = re.compile("(?:%[0-9A-Fa-f]{2})++")
_FIELD = re.compile("[^&]++")
# A string without its closing quote runs to the end: to try again behind each quote in it would take quadratic time.
_NO_STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[^][{},"]++')


INT64 = 2**63


@dataclass(frozen=True, slots=True)
class Limits:
    """What a body may hold: leaves, brackets of one key or levels of JSON, objects and lists; counted before they are made."""

    max_fields: int = 20_000
    max_depth: int = 16
    # One costs up to 60 times the bytes that ask for it, and real bodies have fewer of them than fields.
    max_containers: int = 40_000


DEFAULT_LIMITS = Limits()


def decode(body: bytes, content_type: str, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """Return the nested document of a body (leaves of a form are strings), or raise `Unparsable` and nothing else."""
    if not body or body.isspace():
        return {}
    try:
        return _decode_json(body, limits) if _is_json(body, content_type) else _decode_form(body, limits)
    except UnicodeDecodeError:
        raise Unparsable("not UTF-8") from None


def _is_json(body: bytes, content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/x-www-form-urlencoded":
        return False
    if media_type == "application/json" or media_type.endswith("+json"):
        return True
    return body.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in {b"{", b"["}


def _decode_form(body: bytes, limits: Limits) -> dict[str, Any]:
    # One character per byte: whether the bytes are UTF-8 can only be told behind the escapes.
    text = body.decode("latin-1").replace("+", " ")
    known_path = _known_paths(limits.max_depth)
    document: dict[str, Any] = {}
    numbers: dict[int, tuple[dict[str, Any], int]] = {}
    room = limits.max_containers
    for field in _fields(text, limits.max_fields):
        key, _, value = field.partition("=")
        if not key:
            continue
        parents, name = known_path(key) if len(key) <= LONGEST_KNOWN_KEY else _path(limits.max_depth, key)
        node = document
        for parent in parents:
            child = node.get(parent)
            if type(child) is not dict:
                room -= 1
                if room < 0:
                    raise _too_many(limits.max_containers, "containers")
                child = node[parent or _free_number(node, numbers)] = {}
            node = child
        node[name or _free_number(node, numbers)] = value if "%" not in value and value.isascii() else _unescape(value)
    return document


def _fields(text: str, max_fields: int) -> list[str]:
    if text.count("&") < max_fields:
        return text.split("&")
    fields = [match[0] for match in islice(_FIELD.finditer(text), max_fields + 1)]
    if len(fields) > max_fields:
        raise _too_many(max_fields, "fields")
    return fields


@lru_cache(maxsize=4)
def _known_paths(max_depth: int) -> Callable[[str], KeyPath]:
    """Return `_path` with a bounded memory: deliveries repeat the same keys, and splitting one costs more than the rest of its field."""
    return lru_cache(maxsize=KNOWN_KEYS)(partial(_path, max_depth))


def _path(max_depth: int, raw_key: str) -> KeyPath:
    """Split a key into the names of its containers and its own; the name of ``[]`` is empty."""
    key = _unescape(raw_key)
    if key.count("[") > max_depth:
        raise _too_deep(max_depth)
    first, _, rest = key.partition("[")
    names = rest[:-1].split("][")
    if not first or not rest.endswith("]") or any("]" in name for name in names):
        return (), key
    *parents, name = [sys.intern(name) for name in (first, *names)]
    return tuple(parents), name


def _free_number(node: dict[str, Any], numbers: dict[int, tuple[dict[str, Any], int]]) -> str:
    """Return the name of the next ``[]`` in a container; ``numbers`` remembers how far it had to count, so that it does so once."""
    _, number = numbers.get(id(node), (node, 0))
    number = max(number, len(node))
    while str(number) in node:
        number += 1
    if number > len(node):
        # Kept together with its container: once that is replaced and freed, another could be given its id.
        numbers[id(node)] = (node, number + 1)
    return str(number)


def _unescape(text: str) -> str:
    return _ESCAPES.sub(_escaped_bytes, text).encode("latin-1").decode()


def _escaped_bytes(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("%", "")).decode("latin-1")


def _decode_json(body: bytes, limits: Limits) -> dict[str, Any]:
    text = body.decode("utf-8-sig")
    _check_structure(text, limits)
    try:
        document = _JSON.decode(text)
    except json.JSONDecodeError as error:
        raise Unparsable(f"not JSON: error at character {error.pos}") from None
    except RecursionError:
        raise Unparsable("nested too deep to be read") from None
    if not isinstance(document, dict):
        raise Unparsable("not a JSON object")
    return document


def _check_structure(text: str, limits: Limits) -> None:
    """Refuse JSON with too many leaves (one more than its commas outside strings), containers or levels."""
    if text.count(",") < limits.max_fields and text.count("{") + text.count("[") <= min(limits.max_depth, limits.max_containers):
        return
    structure = _NO_STRUCTURE.sub("", text)
    if structure.count(",") >= limits.max_fields:
        raise _too_many(limits.max_fields, "fields")
    if structure.count("{") + structure.count("[") > limits.max_containers:
        raise _too_many(limits.max_containers, "containers")
    depth = 0
    for bracket in structure.replace(",", ""):
        depth += 1 if bracket in "[{" else -1
        if depth > limits.max_depth:
            raise _too_deep(limits.max_depth)


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= LONGEST_INTEGER else digits


def _decimal(digits: str) -> float | str:
    number = float(digits)
    # Beyond 64 bits jsonb gives it back as an integer that nothing here can write again.
    return number if abs(number) < INT64 else digits


def _constant(_: str) -> NoReturn:
    raise Unparsable("not JSON: NaN and Infinity are no numbers")


_JSON = json.JSONDecoder(parse_int=_integer, parse_float=_decimal, parse_constant=_constant)


def _too_many(limit: int, counted: str) -> Unparsable:
    return Unparsable(f"more than {limit} {counted}")


def _too_deep(max_depth: int) -> Unparsable:
    return Unparsable(f"nested deeper than {max_depth} levels")
