"""What an upgrade cannot change: Kubernetes refuses it, and a release would be stuck between two charts.

upgrade.json holds it as the chart's first version has it: `PYTHONPATH=tests python -m chart.test_upgrade` writes it for a new major one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chart.rendering import of_kind, rendered

RECORDED = Path(__file__).with_name("upgrade.json")
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"worker": {"enabled": True}},
    "external": {"database": {"existingSecret": "own"}},
    "without-operator": {"operator": {"enabled": False}},
}
CUSTOM = {"AmoIntegration": ("clientId",), "SchemaMigration": ("databaseSecretRef",)}
"""Fields of ours that their definitions forbid to change."""
KEPT_BY_NAME = {"PersistentVolumeClaim", "Secret"}
"""A new name would mean new data, new keys, new passwords."""


def unchangeable(values: dict[str, Any]) -> dict[str, Any]:
    """Return by kind and name what a later chart must render the same."""
    objects = rendered(values)
    found: dict[str, Any] = {}
    for each in of_kind(objects, "Deployment", "StatefulSet"):
        spec = each["spec"]
        claims = [(one["metadata"]["name"], one["spec"]["accessModes"]) for one in spec.get("volumeClaimTemplates", [])]
        found[f"{each['kind']} {each['metadata']['name']}"] = [spec["selector"], spec.get("serviceName"), claims]
    for each in of_kind(objects, "Service"):
        found[f"Service {each['metadata']['name']}"] = each["spec"].get("clusterIP")
    for each in of_kind(objects, *CUSTOM):
        found[f"{each['kind']} {each['metadata']['name']}"] = {name: each["spec"][name] for name in CUSTOM[each["kind"]]}
    for each in of_kind(objects, *KEPT_BY_NAME):
        found[f"{each['kind']} {each['metadata']['name']}"] = sorted(each["data"])
    made: dict[str, Any] = json.loads(json.dumps(found))
    return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_upgrade_changes_nothing_that_cannot_be_changed(variant: str) -> None:
    """Of what the first chart installs: selectors, claims, Services without an address, whose database and client, names of Secrets."""
    before = json.loads(RECORDED.read_text(encoding="utf-8"))[variant]
    now = unchangeable(VARIANTS[variant])
    assert {name: now.get(name) for name in before} == before


if __name__ == "__main__":
    RECORDED.write_text(json.dumps({name: unchangeable(values) for name, values in VARIANTS.items()}, indent=2) + "\n", encoding="utf-8")
