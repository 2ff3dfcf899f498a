"""Whatever values the schema allows: they render to whole objects, or are refused in a sentence."""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chart.rendering import template
from chart.written import SCHEMA

DOCUMENT = json.loads(SCHEMA.read_text(encoding="utf-8"))
ASCII = st.characters(codec="ascii")
MOST_KEYS, MOST_ITEMS = 3, 2
LARGEST = 2**31
ALWAYS = ("name", "clientId", "urlKey")
"""Without them an integration is only ever refused."""
OWN_SENTENCES = "contradictions.yaml"


LINES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Co", "Cs"]), min_size=1, max_size=20)


def strategy(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that a part of the schema allows; what is Kubernetes' own stays empty."""
    if "$ref" in schema:
        return strategy(DOCUMENT["definitions"][schema["$ref"].rpartition("/")[2]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema["type"] if isinstance(schema["type"], str) else schema["type"][0]
    return STRATEGIES[kind](schema)


def _texts(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    found = st.from_regex(schema["pattern"], fullmatch=True, alphabet=ASCII) if "pattern" in schema else LINES
    return found.filter(lambda text: schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", 100))


def _lists(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if schema["items"] == {"type": "object"}:
        return st.just([])
    unique = (lambda each: json.dumps(each, sort_keys=True)) if schema.get("uniqueItems") else None
    return st.lists(strategy(schema["items"]), min_size=schema.get("minItems", 0), max_size=MOST_ITEMS, unique_by=unique)


def _numbers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    numbers = st.integers if schema["type"] == "integer" else st.floats
    return numbers(schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1), schema.get("maximum", LARGEST))


def _objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "properties" not in schema:
        if not isinstance(schema.get("additionalProperties"), dict):
            return st.just({})
        names = st.from_regex(schema.get("propertyNames", {}).get("pattern", "^[a-z]{1,9}$"), fullmatch=True, alphabet=ASCII)
        return st.dictionaries(names, strategy(schema["additionalProperties"]), max_size=MOST_ITEMS)
    parts = {name: strategy(part) for name, part in schema["properties"].items()}
    required = {*schema.get("required", ()), *(ALWAYS if "clientId" in parts else ())}
    optional = st.sampled_from(sorted(parts.keys() - required) or [""])
    fewest = 0 if required else schema.get("minProperties", 0)
    chosen = st.lists(optional, unique=True, min_size=fewest, max_size=MOST_KEYS)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: parts[name] for name in sorted({*required, *names} - {""})}))


STRATEGIES = {
    "object": _objects,
    "array": _lists,
    "string": _texts,
    "boolean": lambda _: st.booleans(),
    "integer": _numbers,
    "number": _numbers,
}


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(strategy(DOCUMENT))
def test_any_values_render_or_are_refused_in_a_sentence(values: dict[str, Any]) -> None:
    """Never half a document, an object twice, or an error of a template's own."""
    done = template(values)
    if done.returncode:
        assert OWN_SENTENCES in done.stderr, done.stderr
        return
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    names = [(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names) > 0
    assert not any("<no value>" in name for _, _, name in names)
