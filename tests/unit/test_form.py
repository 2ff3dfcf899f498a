"""The wire: each choice the two formats leave, the limits, and that no bytes at all do harm."""

from __future__ import annotations

import contextlib
import json
import sys
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amo_receiver.amocrm import form
from amo_receiver.amocrm.form import Limits, decode
from amo_receiver.errors import Unparsable
from factories import http_build_query

if TYPE_CHECKING:
    from types import FrameType

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
MIB = 1024 * 1024


def test_the_items_of_a_body_keep_their_order() -> None:
    """Numbers in brackets are names in document order, also where they do not ascend."""
    document = decode(b"leads[add][2][id]=a&leads[add][0][id]=b&leads[add][10][id]=c", FORM)
    assert list(document["leads"]["add"]) == ["2", "0", "10"]


@pytest.mark.parametrize(
    ("written", "document"),
    [
        (b"", {}),
        (b" \r\n", {}),
        (b"a", {"a": ""}),
        (b"a=", {"a": ""}),
        (b"a=b=c", {"a": "b=c"}),
        (b"=x&&a=1&", {"a": "1"}),
        (b"a=1&a=2", {"a": "2"}),
        (b"a=1&a[b]=2", {"a": {"b": "2"}}),
        (b"a[b]=2&a=1", {"a": "1"}),
        (b"a[b]=1&a=2&a[c]=3", {"a": {"c": "3"}}),
        (b"a[b]=1&c=2&a[d]=3", {"a": {"b": "1", "d": "3"}, "c": "2"}),
        (b"a[]=x&a[]=y", {"a": {"0": "x", "1": "y"}}),
        (b"a%5B%5D[b]=x&a[][b]=y", {"a": {"0": {"b": "x"}, "1": {"b": "y"}}}),
        (b"a[1]=x&a[]=y&a[]=z", {"a": {"1": "x", "2": "y", "3": "z"}}),
        (b"a[b][]=1&a[c][]=2&a[b][]=3", {"a": {"b": {"0": "1", "1": "3"}, "c": {"0": "2"}}}),
        (b"a[]=1&a=2&a[]=3", {"a": {"0": "3"}}),
        (b"a[99999999]=1", {"a": {"99999999": "1"}}),
        (b"a[b=1", {"a[b": "1"}),
        (b"a]b=1", {"a]b": "1"}),
        (b"a]b[c]=1", {"a]b": {"c": "1"}}),
        (b"[x]=1", {"[x]": "1"}),
        (b"[]=1", {"[]": "1"}),
        (b"a[b]c=1", {"a[b]c": "1"}),
        (b"a[b]c[d]=1", {"a[b]c[d]": "1"}),
        (b"a[[b]]=1", {"a[[b]]": "1"}),
        (b"a[b[c]=1", {"a": {"b[c": "1"}}),
        (b"a.b c[d.e]=1", {"a.b c": {"d.e": "1"}}),
        (b"a=%zz%4%&b=100%", {"a": "%zz%4%", "b": "100%"}),
        (b"a=%C3%a9+%2B%26%3D%25", {"a": "é +&=%"}),
        ("a[é]=é".encode(), {"a": {"é": "é"}}),
        (b"a=\xd0%B6%D0\xb6", {"a": "жж"}),
        (b"a%5bb%5D=1", {"a": {"b": "1"}}),
        (b"a%5B+b%2Bc%5D=1", {"a": {" b+c": "1"}}),
        (b"%61%3D%26=1", {"a=&": "1"}),
        (b"a=%00%ED%9F%BF", {"a": "\0\ud7ff"}),
        (b"a;b=1;c", {"a;b": "1;c"}),
    ],
)
def test_form(written: bytes, document: dict[str, Any]) -> None:
    """Where the format leaves a choice, it is made as the module says."""
    assert decode(written, FORM) == document


@pytest.mark.parametrize(
    ("written", "document"),
    [
        (b"{}", {}),
        (b"\xef\xbb\xbf {} \n", {}),
        (b'{"a": {"0": [1, "1", null, true, 1.5, [], {}]}}', {"a": {"0": [1, "1", None, True, 1.5, [], {}]}}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'{"a": "\\ud800"}', {"a": "\ud800"}),
        (b'{"a": "\\u0000"}', {"a": "\0"}),
        (b'{"a": 1e999, "b": -1e999, "c": 1e400}', {"a": "1e999", "b": "-1e999", "c": "1e400"}),
        (b'{"a": 9223372036854775808, "b": -7}', {"a": 2**63, "b": -7}),
        (b'{"a": 9223372036854775808.0, "b": -9223372036854774784.0}', {"a": "9223372036854775808.0", "b": -(2.0**63 - 2**10)}),
        (b'{"a": ' + b"9" * 40 + b"}", {"a": 10**40 - 1}),
        (b'{"a": ' + b"9" * 41 + b"}", {"a": "9" * 41}),
        (b'{"a": -' + b"9" * 4300 + b"}", {"a": "-" + "9" * 4300}),
        (b'{"a": ' + b"9" * 100_000 + b".0}", {"a": "9" * 100_000 + ".0"}),
    ],
)
def test_json(written: bytes, document: dict[str, Any]) -> None:
    """JSON keeps its types; numbers that Python or the database could not hold stay text."""
    assert decode(written, JSON) == document


@pytest.mark.parametrize(
    ("content_type", "written", "document"),
    [
        (FORM, b'{"a":1}', {'{"a":1}': ""}),
        (" Application/X-WWW-Form-Urlencoded ; charset=UTF-8", b"[a]=1", {"[a]": "1"}),
        ("APPLICATION/JSON;charset=utf-8", b' {"a":1}', {"a": 1}),
        (" application/vnd.example+json ", b'{"a":1}', {"a": 1}),
        ("", b'{"a":1}', {"a": 1}),
        ("", b'\r\n\t {"a":1}', {"a": 1}),
        ("", b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        ("", b"a=1", {"a": "1"}),
        ("text/plain", b'{"a":1}', {"a": 1}),
        ("multipart/form-data", b"a={", {"a": "{"}),
        ("application/jsonx; a+json", b"a=1", {"a": "1"}),
    ],
)
def test_the_content_type_decides_else_the_first_character(content_type: str, written: bytes, document: dict[str, Any]) -> None:
    """A declared form or JSON is read as that, anything else by its first character."""
    assert decode(written, content_type) == document


@pytest.mark.parametrize(
    ("content_type", "written", "reason"),
    [
        (FORM, b"a=%FF", "not UTF-8"),
        (FORM, b"a=\xff", "not UTF-8"),
        (FORM, b"%FF=1", "not UTF-8"),
        (FORM, b"a=%ED%A0%80", "not UTF-8"),
        (JSON, b'{"a": "\xff"}', "not UTF-8"),
        (JSON, '{"a": "ж"}'.encode("utf-16"), "not UTF-8"),
        (JSON, b"a=1", "not JSON: error at character 0"),
        (" application/vnd.example+JSON ; charset=utf-8", b"a=1", "not JSON: error at character 0"),
        (JSON, b'{"a": secret}', "not JSON: error at character 6"),
        (JSON, b'{"a": "\\\n"}', "not JSON: error at character 7"),
        (JSON, b'{"a": 1}{', "not JSON: error at character 8"),
        (JSON, b'{"a": NaN}', "not JSON: NaN and Infinity are no numbers"),
        (JSON, b'{"a": -Infinity}', "not JSON: NaN and Infinity are no numbers"),
        (JSON, b"[]", "not a JSON object"),
        ("", b"[]", "not a JSON object"),
        (JSON, b'"leads"', "not a JSON object"),
        (JSON, b"null", "not a JSON object"),
    ],
)
def test_what_cannot_be_read_is_unparsable(content_type: str, written: bytes, reason: str) -> None:
    """The reason says what is wrong and repeats nothing of the body."""
    with pytest.raises(Unparsable) as caught:
        decode(written, content_type)
    assert str(caught.value) == caught.value.problem.message == reason


@pytest.mark.parametrize(
    ("content_type", "written", "limits", "reason"),
    [
        (FORM, b"a=1&b=2&c=3", Limits(max_fields=2), "more than 2 fields"),
        (FORM, b"&a&&b&=c&", Limits(max_fields=2), "more than 2 fields"),
        (FORM, b"a[b][c]=1", Limits(max_depth=1), "nested deeper than 1 levels"),
        (FORM, b"&".join([b"a=1"] * 20_001), Limits(), "more than 20000 fields"),
        (FORM, b"a" + b"[b]" * 17 + b"=1", Limits(), "nested deeper than 16 levels"),
        (FORM, b"a" + b"%5Bb%5D" * 10_000 + b"=1", Limits(), "nested deeper than 16 levels"),
        (FORM, b"a" + b"[" * 10_000, Limits(), "nested deeper than 16 levels"),
        (JSON, b'{"a": [1, 2, "3"]}', Limits(max_fields=2), "more than 2 fields"),
        (JSON, b'{"a": [[]]}', Limits(max_depth=2), "nested deeper than 2 levels"),
        (JSON, b'{"a": [' + b"1," * 20_000 + b"1]}", Limits(), "more than 20000 fields"),
        (JSON, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, Limits(), "nested deeper than 16 levels"),
        (JSON, b'{"a":' + b"[" * 10_000, Limits(), "nested deeper than 16 levels"),
        (JSON, b'{"a":' + b"[" * 100_000, Limits(max_depth=MIB, max_containers=MIB), "nested too deep to be read"),
        (FORM, b"a[b][c]=1", Limits(max_containers=1), "more than 1 containers"),
        (FORM, b"a[b]=1&a=2&a[b]=3", Limits(max_containers=1), "more than 1 containers"),
        (FORM, b"a[][][][]=1&" * 15_000, Limits(), "more than 40000 containers"),
        (JSON, b'{"a": [{}]}', Limits(max_containers=2), "more than 2 containers"),
        (JSON, b"{}" * 40_001, Limits(), "more than 40000 containers"),
    ],
)
def test_a_body_past_a_limit_is_unparsable(content_type: str, written: bytes, limits: Limits, reason: str) -> None:
    """Fields, depth and containers are limited in both encodings, and the reason names the limit."""
    with pytest.raises(Unparsable) as caught:
        decode(written, content_type, limits)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("content_type", "written", "limits"),
    [
        (FORM, b"a=1&b=2", Limits(max_fields=2)),
        (FORM, b"&&&a=1&&&b=2&&&", Limits(max_fields=2)),
        (FORM, b"&".join(b"a%d=1" % number for number in range(20_000)), Limits()),
        (FORM, b"a" + b"[b]" * 16 + b"=1", Limits()),
        (FORM, b"a=" + b"[" * 100, Limits()),
        (FORM, b"a[b]=1&a[c]=2&d[e]=3", Limits(max_containers=2)),
        (JSON, b'{"a": [1, ",,,"]}', Limits(max_fields=2)),
        (JSON, b'{"a": ["\\",[[[", [], {}]}', Limits(max_depth=3)),
        (JSON, b'{"a": [' + b"1," * 19_999 + b"1]}", Limits()),
    ],
)
def test_a_body_at_its_limits_is_read(content_type: str, written: bytes, limits: Limits) -> None:
    """What is no field and no level is not counted as one."""
    assert decode(written, content_type, limits)


HOSTILE = {
    "one huge index": (FORM, b"a[99999999]=1"),
    "ampersands": (FORM, b"&" * MIB),
    "ampersands and few fields": (FORM, b"&&&&&&&&&&a=1" * 19_000),
    "the same field": (FORM, b"a=1&" * (MIB // 4)),
    "appended fields": (FORM, b"a[]=1&" * 19_000),
    "appended behind taken numbers": (FORM, b"&".join(b"a[%d]=1&a[]=2" % number for number in range(19_999, 10_000, -1))),
    "replaced containers": (FORM, b"a[][]=1&a=2&" * 9_000),
    "long brackets": (FORM, b"a" + b"[]" * (MIB // 2)),
    "open brackets in a short key": (FORM, b"[" * 200 + b"=1"),
    "many deep containers": (FORM, b"&".join(b"%d[][][][][][][][][][][][][][][][]=" % number for number in range(19_999))),
    "escapes": (FORM, b"a=" + b"%41" * (MIB // 3)),
    "single escapes": (FORM, b"a=" + b"%41b" * (MIB // 4)),
    "broken escapes": (FORM, b"a=" + b"%" * MIB),
    "escapes in a key": (FORM, b"%41" * (MIB // 3) + b"=1"),
    "raw UTF-8": (FORM, b"a=" + "ж".encode() * (MIB // 2)),
    "quotes that never close": (JSON, b'{"a":[[[[[[[[[[[[[[[["' + b'\\"' * (MIB // 2)),
    "backslashes": (JSON, b'{"a":[[[[[[[[[[[[[[[["' + b"\\" * MIB),
    "levels of JSON": (JSON, b"[" * MIB),
    "pairs of JSON brackets": (JSON, b"{}" * (MIB // 2)),
    "commas in JSON": (JSON, b'{"a":[' + b"1," * (MIB // 2)),
    "commas in a string": (JSON, b'{"a":"' + b"," * MIB + b'"}'),
    "strings": (JSON, b'{"a":[' + b'"a",' * (MIB // 4)),
    "digits": (JSON, b'{"a":' + b"9" * MIB + b"}"),
    "digits behind the point": (JSON, b'{"a":0.' + b"9" * MIB + b"}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_body_takes_memory_out_of_proportion(name: str) -> None:
    """The peak stays within 16 times the largest body that is accepted."""
    content_type, written = HOSTILE[name]
    tracemalloc.start()
    try:
        with contextlib.suppress(Unparsable):
            decode(written, content_type)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 16 * MIB


def test_brackets_without_a_number_take_work_in_proportion() -> None:
    """Numbers that are taken already are passed once, not again for each ``[]`` that follows."""
    written = b"&".join(b"a[%d]=1&a[]=2" % number for number in range(1_999, 1_000, -1))
    lines = 0

    def count_line(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line" and frame.f_code.co_filename == form.__file__
        return count_line

    before = sys.gettrace()
    sys.settrace(count_line)
    try:
        decode(written, FORM)
    finally:
        sys.settrace(before)
    assert lines < 100 * 1_998


def test_the_memory_of_known_keys_is_bounded() -> None:
    """Keys that never repeat, of a sender gone wild, are forgotten again."""
    tracemalloc.start()
    try:
        for number in range(3):
            decode(b"&".join(b"%s%d=" % (b"a" * 240, key) for key in range(number * 10_000, (number + 1) * 10_000)), FORM)
        for number in range(100):
            decode(b"a" * 200_000 + b"%d=" % number, FORM)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 10 * MIB


# hypothesis

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="[]"), min_size=1, max_size=8) | st.integers(0, 10**9).map(str)
scalars = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.integers() | st.booleans() | st.none()
documents = st.dictionaries(
    names,
    st.recursive(scalars, lambda nodes: st.lists(nodes, max_size=4) | st.dictionaries(names, nodes, max_size=4), max_leaves=15),
    max_size=4,
)
json_scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(-(2.0**62), 2.0**62)
json_text = st.text(st.sampled_from(',"\\[]{}:aж\n') | st.characters(exclude_categories=["Cs"]), max_size=8)
json_documents = st.dictionaries(
    json_text,
    st.recursive(
        json_scalars | json_text,
        lambda nodes: st.lists(nodes, max_size=4) | st.dictionaries(json_text, nodes, max_size=4),
        max_leaves=15,
    ),
    max_size=4,
)


def as_strings(node: Any) -> Any:
    """Return what is left of a document in a form: strings, dicts, nothing that is empty."""
    if isinstance(node, dict | list):
        entries = node.items() if isinstance(node, dict) else enumerate(node)
        children = {str(name): as_strings(child) for name, child in entries}
        return {name: child for name, child in children.items() if child is not None} or None
    return None if node is None else str(int(node)) if isinstance(node, bool) else str(node)


def leaves_of(node: Any) -> int:
    """Count scalars and empty containers."""
    children = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return sum(map(leaves_of, children)) if children else 1


def containers_of(node: Any) -> int:
    """Count objects and lists."""
    if not isinstance(node, dict | list):
        return 0
    return 1 + sum(map(containers_of, node.values() if isinstance(node, dict) else node))


def depth_of(node: Any) -> int:
    """Count the levels of objects and lists."""
    if not isinstance(node, dict | list):
        return 0
    return 1 + max((depth_of(child) for child in (node.values() if isinstance(node, dict) else node)), default=0)


@given(documents)
@settings(max_examples=150, deadline=None)
def test_what_php_writes_is_read_back(document: dict[str, Any]) -> None:
    """Any document that PHP encodes comes back the same, leaves as strings, in the same order."""
    decoded = decode(http_build_query(document), FORM, Limits(max_depth=100))
    assert decoded == (as_strings(document) or {})
    assert http_build_query(decoded) == http_build_query(document)


@given(st.text(st.sampled_from("abж&&==++%%4152F") | st.characters(exclude_categories=["Cs"], exclude_characters="[]"), max_size=40))
@settings(max_examples=150, deadline=None)
def test_flat_fields_are_read_as_the_standard_library_reads_them(written: str) -> None:
    """Without brackets a form means what it means everywhere, but for fields without a key, which are left out."""
    with_keys = "&".join(field for field in written.split("&") if not field.startswith("="))
    try:
        expected = dict(parse_qsl(with_keys, keep_blank_values=True, errors="strict"))
    except UnicodeDecodeError:
        with pytest.raises(Unparsable):
            decode(written.encode(), FORM)
    else:
        assert decode(written.encode(), FORM) == ({} if written.encode().isspace() else expected)


@given(json_documents, st.booleans())
@settings(max_examples=150, deadline=None)
def test_json_is_limited_by_exactly_what_it_holds(document: dict[str, Any], ascii_only: bool) -> None:
    """Brackets, commas and quotes inside strings count for nothing."""
    written = json.dumps(document, ensure_ascii=ascii_only).encode()
    limits = Limits(max_fields=leaves_of(document), max_depth=depth_of(document), max_containers=containers_of(document))

    assert decode(written, JSON, limits) == document
    for name, reason in (("max_fields", "fields"), ("max_depth", "levels"), ("max_containers", "containers")):
        with pytest.raises(Unparsable, match=reason):
            decode(written, JSON, replace(limits, **{name: getattr(limits, name) - 1}))


fragments = st.sampled_from(
    [
        *(b"a", b"[", b"]", b"[]", b"[0]", b"=", b"&", b"+", b"%", b"%5B", b"%5d", b"%FF", b"%00", b"\xd0", "ж".encode(), b" ", b"\n"),
        *(b"{", b"}", b'"', b"\\", b"\\ud800", b",", b":", b"1", b"-", b"1e999", b"NaN", b"null", b'{"a":', b"[1,", b"\xef\xbb\xbf"),
    ]
)
anything = st.binary(max_size=60) | st.lists(fragments, max_size=40).map(b"".join)
content_types = st.sampled_from([FORM, JSON, "", "application/x+json; charset=cp1251", "text/plain"]) | st.text(max_size=20)


@given(anything, content_types, st.builds(Limits, max_fields=st.integers(0, 6), max_depth=st.integers(0, 4)) | st.just(Limits()))
@settings(max_examples=600, deadline=None)
def test_no_bytes_raise_anything_but_unparsable(written: bytes, content_type: str, limits: Limits) -> None:
    """Whatever arrives is a document or Unparsable."""
    with contextlib.suppress(Unparsable):
        assert type(decode(written, content_type, limits)) is dict
