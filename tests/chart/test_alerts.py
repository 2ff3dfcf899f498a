"""Each alert fires when it should and only then, says where its runbook is, and stands on the pages that list them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from chart import alert_cases, operator_alert_cases
from prometheus import promtool

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Iterator

    from chart.alert_cases import Case

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "amo-webhooks"
FILES = sorted((CHART / "alerts").iterdir())
RUNBOOKS = sorted(path for path in (CHART / "runbooks").iterdir() if path.name != "README.md")
PAGES = [ROOT / "README.md", ROOT / "service" / "README.ru.md", CHART / "runbooks" / "README.md"]
Kind = Literal["fires", "quiet", "over"]
ALERTS = alert_cases.ALERTS | operator_alert_cases.ALERTS
CASES = [
    pytest.param(CHART / "alerts" / f"{name}.yaml", kind, case, id=f"{name} {kind}: {what}")
    for name, alert in ALERTS.items()
    for kind, what, case in alert.cases()
]
WINDOW = re.compile(r"\b(\d+)([smhd])\b|\b(\d{3,})\b")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def question(name: str, kind: Kind, case: Case) -> dict[str, Any]:
    """Ask whether an alert fires at the case's minute, at none till then, or fired and does no longer."""
    firing = f'ALERTS{{alertname="{name}", alertstate="firing"}}'
    ever = f"group(last_over_time({firing}[{case.minute}m]))"
    query = {"fires": f"group({firing})", "quiet": ever, "over": f"{ever} unless group({firing})"}[kind]
    expected = [] if kind == "quiet" else [{"labels": "{}", "value": 1}]
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    asked = {"expr": query, "eval_time": f"{case.minute}m", "exp_samples": expected}
    return {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}


def evaluated(rules: Path, cases: Iterable[tuple[Kind, Case]], folder: Path) -> subprocess.CompletedProcess[str]:
    """Let promtool evaluate rules every minute, and compare what their alert does in these cases."""
    tests = [question(rules.stem, kind, case) for kind, case in cases]
    file = folder / "test.yaml"
    file.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}))
    return promtool("test", "rules", str(file), cwd=folder)


def constant(rules: Path, expression: str, folder: Path) -> Path:
    """Write rules whose alert is named alike, and whose expression does not look at anything."""
    file = folder / rules.name
    file.write_text(json.dumps({"groups": [{"name": "g", "rules": [{"alert": rules.stem, "expr": expression}]}]}))
    return file


def changed(text: str) -> Iterator[tuple[str, str]]:
    """Return the rules with each window, delay or time of the expression halved or doubled, one at a time, and what was changed."""
    for found in WINDOW.finditer(text, text.index("expr:"), text.index("labels:\n")):
        number, unit, bare = found.groups()
        for factor in (0.5, 2):
            other = f"{int(int(bare or number) * SECONDS.get(unit, 1) * factor)}{'' if bare else 's'}"
            line = text.count("\n", 0, found.start()) + 1
            yield text[: found.start()] + other + text[found.end() :], f"line {line}: {found[0]} -> {other}"


@pytest.mark.parametrize(("rules", "kind", "case"), CASES)
def test_an_alert_fires_when_it_should_and_only_then(rules: Path, kind: Kind, case: Case, tmp_path: Path) -> None:
    """As promtool evaluates it; an alert that never fires, or always, would be noticed by this very case."""
    done = evaluated(rules, [(kind, case)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = constant(rules, "vector(1) > 1" if kind == "fires" else "vector(1)", tmp_path)
    assert "FAILED" in (done := evaluated(broken, [(kind, case)], tmp_path)).stdout + done.stderr


@pytest.mark.parametrize("rules", FILES, ids=lambda file: file.stem)
def test_another_window_would_be_noticed(rules: Path, tmp_path: Path) -> None:
    """Each time in an alert is there for a reason: halved or doubled, it makes one of the cases fail."""
    cases, survived = [(kind, case) for kind, _, case in ALERTS[rules.stem].cases()], []
    for text, what in changed(rules.read_text(encoding="utf-8")):
        (tmp_path / rules.name).write_text(text)
        done = evaluated(tmp_path / rules.name, cases, tmp_path)
        if "FAILED" not in done.stdout + done.stderr:
            survived.append(what)
    assert survived == []


def test_every_alert_has_cases_of_both_kinds() -> None:
    """One file for each alert, and at least one case in which it fires, and one in which it does not."""
    assert [file.name for file in FILES] == [f"{name}.yaml" for name in sorted(ALERTS)]
    assert [name for name, alert in ALERTS.items() if not (alert.fires and alert.quiet)] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_alert_says_what_a_person_needs(file: Path) -> None:
    """It is valid, is named as its file is, and has a severity, a summary, a description, and a runbook that there is."""
    done = promtool("check", "rules", str(file), cwd=CHART)
    assert "SUCCESS: 1 rules found" in done.stdout, done.stdout + done.stderr
    text = file.read_text(encoding="utf-8")
    assert re.findall(r"\balert: (.+)", text) == [file.stem]
    assert re.search(r"^ +severity: (critical|warning)$", text, flags=re.MULTILINE)
    assert re.search(r"^ +summary: \S", text, flags=re.MULTILINE)
    assert re.search(r"^ +description: \S", text, flags=re.MULTILINE)
    assert re.findall(r"^ +runbook: (.+)$", text, flags=re.MULTILINE) == [f"charts/amo-webhooks/runbooks/{file.stem}.md"]


def test_alerts_runbooks_and_pages_name_the_same() -> None:
    """Whoever reads of an alert finds it, and whoever adds one writes its runbook and tells of it."""
    names = [file.stem for file in FILES]
    assert [path.stem for path in RUNBOOKS] == names
    for page in PAGES:
        named = set(re.findall(r"\bAmo[A-Z]\w+", page.read_text(encoding="utf-8"))) - {"AmoIntegration"}
        assert sorted(named) == names, page
