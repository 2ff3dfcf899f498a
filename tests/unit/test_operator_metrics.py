"""What the operator's page of metrics shows of an object: what holds, since when, and nothing of one that is gone."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from amo_operator.conditions import Standing, conditions
from amo_operator.evidence import Decision, Observed, Report, Wanted
from amo_operator.keyring import Key, Keyring
from amo_operator.metrics import DEFINITIONS, Definition, Metrics, metrics_table
from amo_operator.standing import KeyTimes, key_times

README = Path(__file__).parents[2] / "operator" / "README.md"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
WAITS, WORKS = Standing("Promoting", "It waits.", is_reconciling=True), Standing("InStep", "It works.", is_ready=True)
INTEGRATION = ("AmoIntegration", "main")


def page(metrics: Metrics) -> dict[str, float]:
    """Return the page as values by series."""
    lines = (line.rpartition(" ") for line in metrics.page().decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def ago(**length: float) -> datetime:
    """Return a time before now."""
    return NOW - timedelta(**length)


def test_the_readme_shows_the_metrics_as_they_are() -> None:
    """Its table, between two markers, is the one that ``metrics_table()`` renders."""
    shown = re.findall(r"<!-- metrics -->\n(.*?)<!-- /metrics -->", README.read_text("utf-8"), flags=re.DOTALL)
    assert shown == [metrics_table()]


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda each: each.name)
def test_a_metric_is_on_the_page_and_named_by_the_rules(definition: Definition) -> None:
    """As its definition has it: name, type and help; the name says what is counted or its unit."""
    text = Metrics().page().decode()
    assert f"# HELP {definition.name} {definition.help}\n# TYPE {definition.name} {definition.type}\n" in text
    assert re.fullmatch(r"amo_operator_(\w+_total|\w+_seconds|condition|pods_out_of_step)", definition.name)
    assert (definition.type == "counter") is definition.name.endswith("_total")
    assert re.fullmatch(r"[A-Z1].*\.", definition.help)


def test_an_object_is_not_ready_since_its_status_says_so() -> None:
    """Whichever process shows it, and whatever it waited for in the meantime; once it is ready there is no such time."""
    metrics, before = Metrics(), conditions(WAITS, [], 1, ago(hours=2))
    metrics.stands(*INTEGRATION, WAITS, conditions(WAITS, before, 1, NOW))
    since = 'amo_operator_not_ready_since_seconds{kind="AmoIntegration",name="main"}'
    assert page(metrics)[since] == ago(hours=2).timestamp()
    held = {name: value for name, value in page(metrics).items() if name.startswith("amo_operator_condition")}
    assert {re.sub(r'.*type="(\w+)".*', r"\1", name): value for name, value in held.items()} == {"Ready": 0, "Reconciling": 1, "Stalled": 0}
    metrics.stands(*INTEGRATION, WORKS, conditions(WORKS, before, 1, NOW))
    assert since not in page(metrics)
    assert [name for name in page(metrics) if "Promoting" in name] == []


def test_nothing_is_shown_of_an_object_that_is_gone() -> None:
    """Another one of that name but another kind stays, as does what was counted by kind."""
    metrics, others = Metrics(), ("SchemaMigration", "main")
    for kind, name in (INTEGRATION, others):
        metrics.stands(kind, name, WAITS, conditions(WAITS, [], 1, NOW))
    metrics.keys("main", KeyTimes({"url_key": NOW}, {"url_key": NOW}, {"url_key": NOW}, 1))
    metrics.damaged("main", NOW)
    metrics.round_ended(NOW, {INTEGRATION, others})
    everything = page(metrics)
    assert len([name for name in everything if 'name="main"' in name]) == 13
    metrics.round_ended(NOW, {others})
    left = page(metrics)
    assert [name for name in everything if name not in left and "SchemaMigration" in name] == []
    assert [name for name in left if 'name="main"' in name and "SchemaMigration" not in name] == []
    assert left["amo_operator_last_round_seconds"] == NOW.timestamp()


def test_a_reconcile_is_counted_by_what_came_of_it() -> None:
    """One that ends with an exception is an error."""
    metrics = Metrics()
    with metrics.reconcile("AmoIntegration") as outcome:
        outcome["outcome"] = "changed"
    with pytest.raises(KeyError), metrics.reconcile("AmoIntegration"):
        raise KeyError
    counted = {name: value for name, value in page(metrics).items() if name.startswith("amo_operator_reconciles_total")}
    assert {re.sub(r'.*outcome="(\w+)".*', r"\1", name): value for name, value in counted.items()} == {"changed": 1, "error": 1}
    assert page(metrics)['amo_operator_reconcile_seconds_count{kind="AmoIntegration"}'] == 2


def test_the_times_of_keys_are_those_of_the_one_that_ends_first() -> None:
    """And a match is late when the overlap of a previous key was over, never that of the current one."""
    wanted = Wanted("client", None, None, {"url_key": timedelta(days=90)}, overlap=timedelta(hours=1))
    soon, later = NOW + timedelta(hours=1), NOW + timedelta(days=1)
    keys = (
        Key("url_key", "a" * 43, "current", ago(days=1)),
        Key("url_key", "b" * 43, "previous", ago(days=1), not_after=later),
        Key("url_key", "c" * 43, "previous", ago(days=2), not_after=soon),
        Key("client_secret", "d" * 43, "previous", ago(minutes=90), not_after=later),
    )
    keyring = Keyring(3, "client", None, keys)
    names = [key.fingerprint for key in keys]
    matched = dict(zip(names, (ago(minutes=1), ago(minutes=2), ago(minutes=3), ago(minutes=31)), strict=True))
    reports = (
        Report("a", "1", None, 3, keyring.fingerprints, matched),
        Report("b", "2", None, 2, keyring.fingerprints),
        Report("c", "3", "it does not answer", None),
    )
    times = key_times(wanted, Decision(keyring), Observed(NOW, keyring, None, reports=reports))
    assert times.expires == {"url_key": soon, "client_secret": later}
    assert times.matched == {"url_key": ago(minutes=3), "client_secret": ago(minutes=31)}
    assert times.late == {"url_key": ago(minutes=2)}
    assert times.behind == 2
    assert key_times(wanted, Decision(None), Observed(NOW, None, "missing")) == KeyTimes({}, {}, {}, 0)
