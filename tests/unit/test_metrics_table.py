"""The table of metrics: one for all who name them, by the rules that they are named by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from amo_receiver.telemetry import metrics, metrics_stored
from amo_receiver.telemetry.metrics_table import DEFINITIONS, Definition, metrics_table

README = Path(__file__).parents[2] / "service" / "README.md"
NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
CONVENTIONS = {
    "http.server.request.duration": ("histogram", "s"),
    "db.client.operation.duration": ("histogram", "s"),
    "db.client.connection.count": ("updowncounter", "{connection}"),
    "db.client.connection.max": ("updowncounter", "{connection}"),
}


def test_the_readme_shows_the_metrics_as_they_are() -> None:
    """Its table, between two markers, is the one that ``metrics_table()`` renders."""
    shown = re.findall(r"<!-- metrics -->\n(.*?)<!-- /metrics -->", README.read_text("utf-8"), flags=re.DOTALL)
    assert shown == [metrics_table()]


def test_a_row_for_each_metric() -> None:
    """With both of its names; none has a cell that a bar in its text has broken."""
    rows = metrics_table().splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [[f"| `{each.name}`", f"`{each.prometheus_name}`"] for each in DEFINITIONS]
    assert {len(row.split("|")) for row in rows} == {7}


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda each: each.name)
def test_a_metric_is_named_by_the_rules(definition: Definition) -> None:
    """The conventions' own as they have them, all others ``amo.``; no label tells an id; a histogram has growing bounds."""
    assert CONVENTIONS.get(definition.name) in (None, (definition.type, definition.unit))
    assert definition.name in CONVENTIONS or definition.name.startswith("amo.")
    assert [name for name in (definition.name, *definition.labels) if not NAME.fullmatch(name)] == []
    assert re.fullmatch(r"s|\{[a-z]+\}", definition.unit)
    assert [label for label in definition.labels if re.search(r"(^|[._])(id|account|token|uuid)$", label)] == []
    assert bool(definition.bounds) == (definition.type == "histogram")
    assert list(definition.bounds) == sorted(set(definition.bounds))
    assert re.fullmatch(r"[A-Z1].*\.", definition.help)


NAMES = {
    Definition("a.b_c.d", "counter", "{event}", (), ""): "a_b_c_d_total",
    Definition("a.b", "counter", "s", (), ""): "a_b_seconds_total",
    Definition("a.b", "gauge", "By", (), ""): "a_b_bytes",
    Definition("a.b", "histogram", "s", (), ""): "a_b_seconds",
    Definition("a.b", "updowncounter", "{connection}", (), ""): "a_b",
}


@pytest.mark.parametrize("definition", NAMES)
def test_prometheus_names_follow_the_usual_rules(definition: Definition) -> None:
    """Dots to underscores, the unit spelt out, and total for what only grows."""
    assert definition.prometheus_name == NAMES[definition]


def test_names_are_unique() -> None:
    """In Prometheus too, where different names could become the same."""
    names = [name for each in DEFINITIONS for name in (each.name, each.prometheus_name)]
    assert len(names) == len(set(names))


def test_the_meanings_say_the_numbers_of_the_code() -> None:
    """Limits, hours and counts that a reader of the table builds upon."""
    meanings = {each.name: each.help for each in DEFINITIONS}
    limit = metrics.ANSWER_LIMIT
    assert f"last {metrics.WINDOW_MINUTES // 60} h" in meanings["amo.answers.bad"]
    assert f"after more than {metrics.LATE_SECONDS:.0f} s" in meanings["amo.answers.bad"]
    assert f"at {limit}" in meanings["amo.answers.bad"]
    assert meanings["amo.answers.budget"].count(str(limit)) == 2
    assert f"{1 / metrics.LOOP_SAMPLE_SECONDS:.0f} times a second" in meanings["amo.loop.lag"]
    for name in ("pending", "due", "dead"):
        assert f"more than {metrics_stored.MOST_COUNTED:,} are shown as {metrics_stored.MOST_COUNTED:,}" in meanings[f"amo.queue.{name}"]
    assert f"at most {metrics_stored.QUEUE_SECONDS:.0f} s old" in meanings["amo.queue.pending"]
    silent = meanings["amo.accounts.silent"]
    assert f"nothing for {metrics_stored.SILENT_HOURS} h or more" in silent
    assert f"{metrics_stored.FEWEST_DELIVERIES} deliveries or more" in silent
    assert f"every {metrics_stored.ACCOUNTS_SECONDS / 60:.0f} min" in silent
