"""Render the CustomResourceDefinitions from the models; ``python -m amo_operator.crds FOLDER`` writes them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]
from pydantic.json_schema import GenerateJsonSchema

from amo_operator.fields import duration_text
from amo_operator.spec import GROUP, VERSION, AmoIntegration, SchemaMigration

if TYPE_CHECKING:
    from amo_operator.fields import Model

HEADING = "# Made by `python -m amo_operator.crds` from the operator's models: change those.\n"
LONGEST_LINE_CHARS, LONGEST_PLAIN_CHARS = 120, 80
ORDER = ("description", "type", "format", "enum", "default", "required", "properties", "items")
UNSEEN = {"observedGeneration": -1}
"""Status of an object that the operator has not seen; kstatus takes one without any status for ready."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of what ``kubectl get`` prints; those with a priority only with ``-o wide``."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Definition:
    """One custom resource: its model, its names and its columns."""

    model: type[Model]
    plural: str
    short: str
    columns: tuple[Column, ...]


READY = Column("Ready", '.status.conditions[?(@.type=="Ready")].status')
REASON = Column("Reason", '.status.conditions[?(@.type=="Ready")].reason')
AGE = Column("Age", ".metadata.creationTimestamp", "date")

DEFINITIONS = (
    Definition(
        AmoIntegration,
        "amointegrations",
        "amoint",
        (
            READY,
            REASON,
            Column("Keyring", ".status.generation", "integer"),
            Column("Next rotation", ".status.nextRotation"),  # a column of type date shows an age, and nothing of the future
            AGE,
            Column("Action", ".status.action", priority=1),
        ),
    ),
    Definition(
        SchemaMigration,
        "schemamigrations",
        "schemamig",
        (READY, REASON, Column("Revision", ".status.currentRevision"), Column("Image", ".spec.image"), AGE),
    ),
)


class _Schemas(GenerateJsonSchema):
    """JSON Schema whose defaults are written as people write them in a spec."""

    def encode_default(self, dft: Any) -> Any:
        return duration_text(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """YAML for people: long texts folded, list items indented, nothing abbreviated."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:  # noqa: ARG002 - lists are always indented
        return super().increase_indent(flow, False)

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _folded(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=">" if len(text) > LONGEST_PLAIN_CHARS else None)


_Dumper.add_representer(str, _folded)


def render(definition: Definition) -> dict[str, Any]:
    """Return the CustomResourceDefinition of one custom resource."""
    kind = definition.model.__name__
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{definition.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": definition.plural,
                "singular": kind.lower(),
                "shortNames": [definition.short],
                "categories": ["amo"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(column) for column in definition.columns],
                    "schema": {"openAPIV3Schema": _schema(definition.model)},
                }
            ],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    shown = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return shown | ({"priority": column.priority} if column.priority else {})


def _schema(model: type[Model]) -> dict[str, Any]:
    made = model.model_json_schema(schema_generator=_Schemas)
    root = _structural(made, made["$defs"])
    parts = root["properties"]
    root["properties"] = {
        "apiVersion": {"description": "Version of this representation.", "type": "string"},
        "kind": {"description": "Kind of the resource.", "type": "string"},
        "metadata": {"type": "object"},
        "spec": parts["spec"],
        "status": parts["status"] | {"default": UNSEEN},
    }
    return root | {"required": ["spec"]}


def _structural(schema: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    """Turn JSON Schema as pydantic writes it into a structural one: nothing referred to, no alternatives, absent instead of null."""
    schema = dict(schema)
    for alternative in schema.pop("anyOf", ()):
        if alternative != {"type": "null"}:
            schema = alternative | schema
    if reference := schema.pop("$ref", None):
        schema = models[reference.rpartition("/")[2]] | schema
    schema.pop("title", None)
    schema.pop("$defs", None)
    if schema.get("default") in (None, []):
        schema.pop("default", None)
    if schema.get("additionalProperties") is True:
        del schema["additionalProperties"]
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    if "properties" in schema:
        schema["properties"] = {name: _structural(each, models) for name, each in schema["properties"].items()}
    if "items" in schema:
        schema["items"] = _structural(schema["items"], models)
    return {name: schema[name] for name in sorted(schema, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))}


def text(definition: Definition) -> str:
    """Return the file of one custom resource."""
    rendered: str = yaml.dump(render(definition), Dumper=_Dumper, sort_keys=False, width=LONGEST_LINE_CHARS, allow_unicode=True)
    return HEADING + rendered


def write(folder: Path) -> None:
    """Write each definition into its file."""
    for definition in DEFINITIONS:
        (folder / f"{definition.plural}.yaml").write_text(text(definition), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
