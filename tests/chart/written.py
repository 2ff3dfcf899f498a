"""What the chart says twice: `PYTHONPATH=tests python -m chart.written` writes its README's table and two parts of its schema anew.

The table comes from the comments of values.yaml, `settings` from the service's settings, `integrations` from the AmoIntegration's CRD.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from amo_receiver.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

CHART = Path(__file__).parents[2] / "charts" / "amo-webhooks"
README, SCHEMA, VALUES = CHART / "README.md", CHART / "values.schema.json", CHART / "values.yaml"
CRD = CHART / "crds" / "amointegrations.yaml"
CHART_S_OWN = {"db_pooler", "amocrm_keyring_dir", "management_port", "management_host", "worker_enabled", "mapping_file", "migrations_dir"}
"""Settings that the chart itself makes from other values."""
KEPT = ("type", "enum", "pattern", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "required", "description")
NAME = {
    "description": "Name of the AmoIntegration, and of its source.",
    "type": "string",
    "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "maxLength": 63,
}


def documented(text: str) -> Iterator[tuple[str, str, Any]]:
    """Return path, meaning and default of each value that has a comment `# -- …`."""
    values = yaml.safe_load(text)
    above: list[tuple[int, str]] = []
    meaning = ""
    for line in text.splitlines():
        if found := re.match(r" *# -- (.*)", line):
            meaning = found[1]
        elif found := re.match(r"( *)([\w.]+):", line):
            indent = len(found[1])
            above = [*(each for each in above if each[0] < indent), (indent, found[2])]
            if meaning:
                path = [name for _, name in above]
                default = values
                for name in path:
                    default = default[name]
                yield ".".join(path), meaning, default
            meaning = ""


def table() -> str:
    """Return the README's table of values."""
    rows = [
        f"| `{path}` | `{json.dumps(default)}` | {meaning} |" for path, meaning, default in documented(VALUES.read_text(encoding="utf-8"))
    ]
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows, ""])


def settings_schema() -> dict[str, Any]:
    """Return the schema of `settings`: what is no secret and not made by the chart."""
    model = Settings.model_json_schema()
    properties = {}
    for name, field in model["properties"].items():
        if name in CHART_S_OWN or field.get("format") == "password" or name.startswith("db_direct"):
            continue
        alternatives = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
        kept = {key: alternatives[0][key] for key in ("type", "enum", "minimum", "maximum", "exclusiveMinimum") if key in alternatives[0]}
        properties[name.upper()] = {"description": field["description"], **kept}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    made = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in schema:
        made |= {"additionalProperties": False, "properties": {name: _strict(each) for name, each in schema["properties"].items()}}
    if "items" in schema:
        made["items"] = _strict(schema["items"])
    return made


def integration_schema() -> dict[str, Any]:
    """Return the schema of one of `integrations`: the fields of the custom resource's spec, and its name."""
    definition = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    spec = _strict(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"])
    return spec | {"required": ["name", *spec["required"]], "properties": {"name": NAME, **spec["properties"]}}


def schema() -> dict[str, Any]:
    """Return the schema of the values with the two parts as they must be."""
    made: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    made["properties"]["settings"] = settings_schema()
    made["properties"]["integrations"]["items"] = integration_schema()
    return made


def readme() -> str:
    """Return the README with the table as it must be."""
    text = README.read_text(encoding="utf-8")
    return re.sub(r"(<!-- values -->\n).*?(<!-- /values -->)", lambda found: found[1] + table() + found[2], text, flags=re.DOTALL)


def as_text(made: dict[str, Any]) -> str:
    """Write a schema as it lies in its file."""
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")
    SCHEMA.write_text(as_text(schema()), encoding="utf-8")
