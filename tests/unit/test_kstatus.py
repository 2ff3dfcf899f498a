"""What ``helm --wait`` and other programs that know kstatus make of the conditions.

The rules are those of kubernetes-sigs/cli-utils, pkg/kstatus/status: generic.go first, then the Ready condition of core.go.
"""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from amo_operator.conditions import Standing, conditions
from amo_operator.crds import UNSEEN

OPERATOR = Path(__file__).parents[2] / "operator" / "amo_operator"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
GENERATION = 7
MEANING = {frozenset({"is_ready"}): "Current", frozenset({"is_stalled"}): "Failed"}


def standings() -> list[tuple[str, frozenset[str]]]:
    """Return every Standing that the operator's code makes, by its place and what it is said to be."""
    found = []
    for path in sorted(OPERATOR.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Standing":
                flags = [each.arg for each in node.keywords if each.arg and ast.literal_eval(each.value)]
                found.append((f"{path.name}:{node.lineno}", frozenset(flags)))
    return found


def kstatus(status: dict[str, Any], generation: int = GENERATION) -> str:
    """Return what kstatus computes of a custom resource with this status."""
    if status.get("observedGeneration", generation) != generation:
        return "InProgress"
    for each in status.get("conditions", ()):
        if each["status"] == "True" and each["type"] in ("Reconciling", "Stalled"):
            return {"Reconciling": "InProgress", "Stalled": "Failed"}[each["type"]]
    ready = next((each["status"] for each in status.get("conditions", ()) if each["type"] == "Ready"), None)
    return "Current" if ready in ("True", None) else "InProgress"


def shown(flags: frozenset[str], before: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the status that says how an object stands."""
    standing = Standing("Reason", "Sentence.", **dict.fromkeys(flags, True))
    return {"observedGeneration": GENERATION, "conditions": conditions(standing, before, GENERATION, NOW)}


@pytest.mark.parametrize("flags", [flags for _, flags in standings()], ids=[place for place, _ in standings()])
def test_each_standing_is_understood(flags: frozenset[str]) -> None:
    """However the object stood before; it is one thing at once, or who waits waits for ever; of another generation it says nothing yet."""
    assert len(flags) == 1
    for other in {flags for _, flags in standings()}:
        status = shown(flags, shown(other, [])["conditions"])
        assert kstatus(status) == MEANING.get(flags, "InProgress")
        assert kstatus(status, GENERATION + 1) == "InProgress"


def test_there_are_standings_of_each_meaning() -> None:
    """Or the search for them has missed them."""
    assert {flags for _, flags in standings()} >= {*MEANING, frozenset({"is_reconciling"})}


def test_an_object_that_the_operator_has_not_seen_is_waited_for() -> None:
    """By the CRDs' default; without any status kstatus would take it for ready."""
    assert kstatus(UNSEEN, 1) == "InProgress"
    assert kstatus({}, 1) == "Current"
