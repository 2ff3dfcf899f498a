"""Every query that we ship is asked: a real Prometheus reads a real service under a little load, and no panel comes back empty."""

from __future__ import annotations

import json
import math
import os
import re
import time
from itertools import combinations, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree as ET

import httpx
import pytest

from amo_operator import metrics as operator_metrics
from amo_receiver.embedded.folder import free_port
from amo_receiver.embedded.processes import wait_until
from amo_receiver.telemetry.metrics_table import ANSWERS_BUDGET, DEFINITIONS
from factories import form_body, lead
from integration.load import PATIENT, TOKEN_PATH
from integration.operator_page import OperatorPage
from integration.picture import draw
from integration.test_runbooks import DUE, RUNBOOKS, UNWRITABLE, blocks
from prometheus import Prometheus
from servers import Services, run_sql, signed_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from amo_receiver.embedded import EmbeddedPostgres

CHART = Path(__file__).parents[2] / "charts" / "amo-webhooks"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
ALERTS = sorted((CHART / "alerts").glob("*.yaml"))
VARIABLES = {"$__rate_interval": "1m", "$namespace": ".*", "$job": ".*"}
UNUSED = {ANSWERS_BUDGET.prometheus_name: "it is one process's; the panel and the alert add up the bad answers of all of them"}
# What the client library says of a process, and what Prometheus itself adds.
FOREIGN = {"process_cpu_seconds_total", "process_resident_memory_bytes", "ALERTS"}
PATIENCE_SECONDS = 60.0
PICTURED_LINES = 37
AGENT = "amoCRM-Webhooks/3.0"
SVG = "{http://www.w3.org/2000/svg}"


class Query(NamedTuple):
    """One query of a panel."""

    dashboard: Path
    panel: str
    expression: str
    legend: str

    def asked(self) -> str:
        """Return it as Grafana would send it."""
        expression = self.expression
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        return expression


def everything(dashboard: Path) -> dict[str, Any]:
    """Read a dashboard."""
    document: dict[str, Any] = json.loads(dashboard.read_text(encoding="utf-8"))
    return document


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """Return what a dashboard shows; rows are only its headings."""
    return [panel for panel in everything(dashboard)["panels"] if panel["type"] != "row"]


QUERIES = [
    Query(dashboard, panel["title"], target["expr"], target["legendFormat"])
    for dashboard in DASHBOARDS
    for panel in panels(dashboard)
    for target in panel["targets"]
]


def metrics_in(expression: str) -> set[str]:
    """Return the metrics that a query is about: words outside of selectors, ranges and groups that are no functions or operators."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", "", re.sub(r'"[^"]*"', "", expression))
    return set(re.findall(r"\b[a-zA-Z_]\w*\b(?! *\()", bare)) - {"and", "offset", "or", "unless"}


class Load:
    """A little of everything: events that are applied, recorded, refused by the database and given up on, and wrong keys."""

    def __init__(self, url: str, db_url: str) -> None:
        self._url = url
        self._db_url = db_url
        self._numbers = count(1)

    def send(self, *, trouble_every: int = 1) -> None:
        """Send one of each, what makes trouble only now and then, and let what waits for its next attempt be due."""
        number, now = next(self._numbers), int(time.time()) - 2
        is_trouble = number % trouble_every == 0
        bodies = [form_body("leads", "update", lead(id=number + 1, at=now, price=number)), form_body("task", "add", {"id": number})]
        if is_trouble:
            bodies += [form_body("leads", "update", lead(id=1, at=now, price=number)), b"%d" % number]
        with httpx.Client(base_url=self._url, headers={"User-Agent": AGENT}, timeout=PATIENCE_SECONDS) as client:
            for body in bodies:
                assert client.post(TOKEN_PATH, content=body).status_code == 200
            headers = {"Content-Type": "application/json", **signed_headers("32000001")}
            assert client.post("/api/webhooks/amo", headers=headers, content=b"{}").status_code == 200
            if is_trouble:
                assert client.post(TOKEN_PATH + "x", content=b"").status_code == 401
        run_sql(self._db_url, DUE)


@pytest.fixture(scope="module")
def watched(postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Load]]:
    """Return a Prometheus with our alerts that reads a service's management port and an operator's page, and the load for the service."""
    folder, port, url = tmp_path_factory.mktemp("dashboards"), free_port(), postgres.url("dashboards")
    run_sql(postgres.url(), f"CREATE DATABASE dashboards TEMPLATE {template}")
    services, page = Services(folder), OperatorPage()
    targets = {"amo-webhooks": [f"127.0.0.1:{port}"], "amo-operator": [page.target]}
    prometheus = Prometheus(folder / "prometheus", targets, ALERTS)
    prometheus.start()
    try:
        service = services.serve(url, args=["--management-port", str(port)], env=PATIENT)
        run_sql(url, UNWRITABLE)
        assert wait_until(lambda: prometheus.ask("query", query="amo_up")["result"] != [], PATIENCE_SECONDS)
        with page:
            yield prometheus, Load(service.url, url)
    finally:
        prometheus.end()
        services.end()
        run_sql(postgres.url(), "DROP DATABASE dashboards WITH (FORCE)")


def series(prometheus: Prometheus, expression: str) -> list[dict[str, str]]:
    """Ask a query and return the labels of what has a value; what is not a number is no answer."""
    answer = prometheus.ask("query", query=expression)["result"]
    return [each["metric"] for each in answer if not math.isnan(float(each["value"][1]))]


def is_answered(prometheus: Prometheus, query: Query) -> bool:
    """Tell whether a query has an answer, and the labels that its legend names."""
    labels = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
    return any(labels <= set(each) for each in series(prometheus, query.asked()))


def test_no_panel_comes_back_empty(watched: tuple[Prometheus, Load]) -> None:
    """Each query has an answer, what was sent is seen in it, alerts can be evaluated, and so can the queries of the runbooks."""
    prometheus, load = watched
    left = list(QUERIES)

    def seen() -> tuple[set[str], set[str]]:
        outcomes = series(prometheus, "sum by (amo_outcome) (increase(amo_deliveries_total[1m])) > 0")
        matches = series(prometheus, "amo_key_matches_total > 1")
        return {each["amo_outcome"] for each in outcomes}, {each["amo_key_kind"] for each in matches}

    def answered() -> bool:
        load.send()
        left[:] = [query for query in left if not is_answered(prometheus, query)]
        return not left and seen() == sent

    sent = ({"success", "partial", "Unauthorized"}, {"token", "client_secret"})
    wait_until(answered, PATIENCE_SECONDS)
    assert left == []
    assert seen() == sent
    for page in RUNBOOKS:
        for query in blocks(page, "promql"):
            prometheus.ask("query", query=query)


def test_every_alert_can_be_evaluated_and_one_of_them_fires(watched: tuple[Prometheus, Load]) -> None:
    """Dead letters are told, with their number, within a few evaluations."""
    prometheus, load = watched

    def firing() -> list[dict[str, Any]]:
        load.send()
        alerts: list[dict[str, Any]] = prometheus.ask("alerts")["alerts"]
        return [alert for alert in alerts if (alert["labels"]["alertname"], alert["state"]) == ("AmoDeadLetters", "firing")]

    wait_until(lambda: bool(firing()), PATIENCE_SECONDS)
    assert re.match(r"[\d.]+ events", firing()[0]["annotations"]["description"])
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule["health"] for rule in rules} == {file.stem: "ok" for file in ALERTS}


def test_the_picture_shows_the_first_panels(watched: tuple[Prometheus, Load]) -> None:
    """It is drawn from what Prometheus answers; OVERVIEW_SVG=file draws it there, after OVERVIEW_SECONDS of load."""
    prometheus, load = watched
    file, seconds = os.environ.get("OVERVIEW_SVG"), float(os.environ.get("OVERVIEW_SECONDS", "1"))
    start, shown = time.time(), [panel for panel in everything(DASHBOARDS[0])["panels"] if panel["gridPos"]["y"] < PICTURED_LINES]
    expressions = {target["expr"] for panel in shown for target in panel.get("targets", [])}

    def ask(expression: str) -> list[dict[str, Any]]:
        query = Query(DASHBOARDS[0], "", expression.replace("$__rate_interval", "15s"), "").asked()
        span = {"start": start + seconds / 6, "end": start + max(seconds, 4), "step": max(seconds / 90, 0.5)}
        found: list[dict[str, Any]] = prometheus.ask("query_range", query=query, **span)["result"]
        return found

    def loaded() -> bool:
        load.send(trouble_every=40 if file else 1)
        return time.time() - start >= seconds and all(map(ask, expressions))

    wait_until(loaded, PATIENCE_SECONDS + seconds)
    picture = draw(shown, ask)
    root = ET.fromstring(picture)  # noqa: S314 - our own
    texts = {"".join(each.itertext()) for each in root.iter(f"{SVG}text")}
    assert {panel["title"] for panel in shown} <= texts
    assert {"success", "partial", "Unauthorized"} <= set(re.findall(r"━ (\w+)", " ".join(texts)))
    assert len(list(root.iter(f"{SVG}polyline"))) >= len([panel for panel in shown if panel["type"] == "timeseries"]) > 1
    if file:
        Path(file).write_text(picture, encoding="utf-8")


def test_every_metric_is_looked_at_and_every_query_is_about_one_that_there_is() -> None:
    """A metric is in a panel or an alert, or has a reason here; a query of a metric that was renamed would only show nothing."""
    types = {each.prometheus_name: each.type for each in DEFINITIONS} | {each.name: each.type for each in operator_metrics.DEFINITIONS}
    names = {name + end: name for name, kind in types.items() for end in ("_bucket", "_count", "_sum") if kind == "histogram"}
    names |= {name: name for name, kind in types.items() if kind != "histogram"}
    expressions = [query.expression for query in QUERIES]
    rules = [re.search(r"expr: \|-\n((?: {10}.*\n)+)", file.read_text(encoding="utf-8")) for file in ALERTS]
    expressions += [rule[1] for rule in rules if rule]
    used = set().union(*map(metrics_in, expressions))
    shown = used | set().union(*(metrics_in(query) for page in RUNBOOKS for query in blocks(page, "promql")))
    assert len(expressions) == len(QUERIES) + len(ALERTS)
    assert shown - set(names) - FOREIGN == set()
    assert set(types) - {names[name] for name in used & set(names)} == set(UNUSED)


@pytest.mark.parametrize(
    ("expression", "metrics"),
    [
        ('sum by (amo_outcome) (rate(amo_a_total{job="amo_b"}[5m])) / sum(amo_c)', {"amo_a_total", "amo_c"}),
        ("absent(amo_ready) or last_over_time(amo_up[1h]) unless amo_a and amo_b", {"amo_ready", "amo_up", "amo_a", "amo_b"}),
        ("max by (job) (amo_d) - max(amo_d offset 1h)", {"amo_d"}),
    ],
)
def test_the_metrics_of_a_query_are_found(expression: str, metrics: set[str]) -> None:
    """They are not mixed up with functions, labels or texts."""
    assert metrics_in(expression) == metrics


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_read(dashboard: Path) -> None:
    """Its panels have a title, a sentence and a unit, do not lie over each other, and ask whatever data source the reader chose."""
    shown, document = panels(dashboard), everything(dashboard)
    assert {variable["name"] for variable in document["templating"]["list"]} == {"datasource", "namespace", "job"}
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    assert len({panel["title"] for panel in shown}) == len(shown)
    for panel in shown:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert {each["datasource"]["uid"] for each in (panel, *panel["targets"])} == {"${datasource}"}
    for one, other in combinations([panel["gridPos"] for panel in document["panels"]], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
