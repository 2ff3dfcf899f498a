"""The custom resources' models, and the CRDs rendered from them."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from amo_operator.crds import DEFINITIONS, render, text
from amo_operator.fields import Model, duration_text
from amo_operator.spec import (
    AmoIntegration,
    AmoIntegrationSpec,
    GeneratedSecret,
    InvalidResource,
    SchemaMigrationSpec,
    parse_integration,
    parse_migration,
)
from custom_resources import INTEGRATION, MIGRATE, MIGRATION, PLURALS, REF, REFUSED_CHANGES, RIGHT, URL, WRONG, Example

if TYPE_CHECKING:
    from collections.abc import Iterator

    from amo_operator.crds import Definition
    from amo_operator.fields import Rule

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "amo-webhooks" / "crds"
PARSERS = {INTEGRATION: parse_integration, MIGRATION: parse_migration}

every_definition = pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda each: each.plural)


def schema_of(definition: Definition) -> dict[str, Any]:
    return render(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def parts(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Return every part of a schema with its path."""
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from parts(each, f"{path}.{name}")
    if "items" in schema:
        yield from parts(schema["items"], f"{path}[]")


def rules() -> list[tuple[str, Rule]]:
    """Return every rule with the path of the part that it is about."""
    places: dict[str, type[Model]] = {"": AmoIntegration, "spec.": AmoIntegrationSpec, "spec.clientSecret.": GeneratedSecret}
    found = [(f"{place}{rule.path}".strip("."), rule) for place, model in places.items() for rule in model.rules]
    return found + [(f"spec.{rule.path}", rule) for rule in SchemaMigrationSpec.rules]


def uncovered(kept: list[tuple[str, Rule]], examples: list[tuple[str, str]]) -> list[str]:
    return [
        f"{path}: {rule.message}" for path, rule in kept if not any(path == at and said and said in rule.message for at, said in examples)
    ]


def said_of(example: Example) -> str:
    with pytest.raises(InvalidResource) as caught:
        PARSERS[example.kind](example.manifest())
    assert caught.value.__context__ is None
    return str(caught.value)


@every_definition
def test_the_charts_files_are_what_the_models_say(definition: Definition) -> None:
    """A changed model and a file made before it would be two truths."""
    found = (CHART / f"{definition.plural}.yaml").read_text(encoding="utf-8")
    assert found == text(definition), "make them again: python -m amo_operator.crds charts/amo-webhooks/crds"
    assert yaml.safe_load(found) == render(definition)


def test_the_chart_has_no_other_definitions() -> None:
    """A file that no model stands behind any more would still be installed."""
    assert {path.name for path in CHART.iterdir()} == {f"{plural}.yaml" for plural in PLURALS.values()}


def test_one_command_writes_the_files(tmp_path: Path) -> None:
    """The chart's files are made by the command that their first line names."""
    subprocess.run([sys.executable, "-m", "amo_operator.crds", str(tmp_path)], cwd=ROOT / "operator", check=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {path.name: path.read_text() for path in CHART.iterdir()}


@every_definition
def test_a_schema_is_structural_and_described(definition: Definition) -> None:
    """Each part has a type and, where ``kubectl explain`` shows it, a sentence; nothing is left of what CRDs do not know."""
    for path, part in parts(schema_of(definition)):
        assert "type" in part, path
        assert not part.keys() & {"$ref", "$defs", "anyOf", "title", "const", "additionalProperties", "prefixItems"}, path
        if path != ".metadata" and not path.endswith("[]"):
            assert part["description"][0].isupper(), path
            assert part["description"].endswith("."), path


@every_definition
def test_what_is_written_by_people_is_bounded(definition: Definition) -> None:
    """The API server refuses rules whose cost it cannot bound, and a Secret holds only so many accounts."""
    for path, part in parts(schema_of(definition)["properties"]["spec"]):
        if part["type"] in ("string", "array"):
            assert "maxLength" in part or "maxItems" in part, path


@every_definition
def test_a_rule_says_what_to_do(definition: Definition) -> None:
    """Without a message the API server shows the expression."""
    found = [rule for _, part in parts(schema_of(definition)) for rule in part.get("x-kubernetes-validations", ())]
    assert found
    assert all(len(rule["message"]) > 20 and not rule["message"].endswith(".") for rule in found)
    own = [rule for _, rule in rules()]
    assert all(
        {"rule": rule["rule"], "message": rule["message"]} in [{"rule": each.cel, "message": each.message} for each in own]
        for rule in found
    )


def test_a_rule_holds_on_both_sides_unless_it_is_about_a_change() -> None:
    """A rule that only the API server knows can compare an object with what it was before, and with nothing else."""
    assert all((rule.holds is None) == ("oldSelf" in rule.cel) for _, rule in rules())


def test_every_rule_is_broken_by_an_example() -> None:
    """A rule that nothing breaks may never have worked."""
    lasting = [(path, rule) for path, rule in rules() if rule.holds]
    assert uncovered(lasting, [(each.path, each.said) for each in WRONG]) == []
    changing = [(path, rule) for path, rule in rules() if not rule.holds]
    assert uncovered(changing, [(each.path, each.said) for each in REFUSED_CHANGES]) == []


@pytest.mark.parametrize("example", RIGHT, ids=repr)
def test_what_is_right_is_read(example: Example) -> None:
    """What people may write is understood."""
    assert PARSERS[example.kind](example.manifest()).spec


@pytest.mark.parametrize("example", WRONG, ids=lambda each: f"{each.path} {each.said}")
def test_what_is_wrong_is_named(example: Example) -> None:
    """The message names the path and the rule, and never the value."""
    message = said_of(example)
    assert message.startswith(f"{example.path or 'metadata'}")
    assert example.said in message


def test_all_mistakes_are_told_at_once() -> None:
    """Whoever mends one need not find the next by trying."""
    message = said_of(Example(INTEGRATION, {"accounts": ["a", "hunter2!"], "overlap": "soon"}))
    assert [part.partition(":")[0] for part in message.split("; ")] == ["spec.clientId", "spec.accounts.1", "spec.overlap"]
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("written", "length"),
    [
        ("90d", timedelta(days=90)),
        ("36h", timedelta(hours=36)),
        ("1h30m", timedelta(minutes=90)),
        ("10s", timedelta(seconds=10)),
        ("1d2h3m4s", timedelta(days=1, hours=2, minutes=3, seconds=4)),
        ("90m", timedelta(minutes=90)),
    ],
)
def test_a_duration_is_a_length_of_time(written: str, length: timedelta) -> None:
    """Units add up, and what is written out again is read as the same."""

    def read(text: str) -> timedelta:
        url_key = parse_integration(Example(INTEGRATION, URL).manifest(urlKey={"rotateEvery": text}, **none)).spec.url_key
        assert url_key is not None
        return url_key.rotate_every

    none = {"overlap": "0s", "quietPeriod": "0s", "maxOverlap": "1s"}
    assert read(written) == read(duration_text(read(written))) == length


def test_a_lock_timeout_is_given_on_as_it_is_meant() -> None:
    """Half a second is written in milliseconds, and m is not ms."""
    read = parse_migration(Example(MIGRATION, {**MIGRATE, "lockTimeout": "1500ms"}).manifest()).spec
    assert (read.lock_timeout, read.lock_timeout_text) == (timedelta(seconds=1.5), "1500ms")
    assert parse_migration(Example(MIGRATION, MIGRATE).manifest()).spec.lock_timeout_text == "500ms"


def test_an_integration_has_the_agreed_defaults() -> None:
    """Ninety days, a day of overlap, a week at most, an hour of quiet; any account; a secret under its own name."""
    spec = parse_integration(Example(INTEGRATION, {**REF, "urlKey": {}}).manifest()).spec
    assert spec.url_key is not None
    assert spec.client_secret_ref is not None
    assert (spec.url_key.rotate_every, spec.client_secret_ref.key) == (timedelta(days=90), "client_secret")
    assert (spec.overlap, spec.max_overlap, spec.quiet_period) == (timedelta(days=1), timedelta(days=7), timedelta(hours=1))
    assert (spec.accounts, spec.revoke, spec.paused) == (None, (), False)


def test_fields_of_a_later_version_are_ignored() -> None:
    """The CRDs may be upgraded before the operator is."""
    manifest = Example(INTEGRATION, {**URL, "later": 1}).manifest() | {"status": {"observedGeneration": 3, "later": 1}}
    assert parse_integration(manifest).status.observed_generation == 3


def test_an_object_that_nobody_has_seen_says_so() -> None:
    """Helm waits for the operator instead of taking the new object for ready."""
    for definition in DEFINITIONS:
        assert schema_of(definition)["properties"]["status"]["default"] == {"observedGeneration": -1}
    assert parse_migration(Example(MIGRATION, MIGRATE).manifest()).status.observed_generation == -1
