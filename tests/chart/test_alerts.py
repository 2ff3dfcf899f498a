"""Each alert fires when it should and only then, says where its runbook is, and stands on the pages that list them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chart.alert_cases import ALERTS
from prometheus import promtool

if TYPE_CHECKING:
    import subprocess

    from chart.alert_cases import Case

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "amo-webhooks"
FILES = sorted((CHART / "alerts").iterdir())
RUNBOOKS = sorted(path for path in (CHART / "runbooks").iterdir() if path.name != "README.md")
PAGES = [ROOT / "README.md", ROOT / "service" / "README.ru.md", CHART / "runbooks" / "README.md"]
CASES = [
    pytest.param(CHART / "alerts" / f"{name}.yaml", case, fires, id=f"{name} {'fires' if fires else 'is quiet'}: {what}")
    for name, alert in ALERTS.items()
    for fires, cases in ((True, alert.fires), (False, alert.quiet))
    for what, case in cases.items()
]


def evaluated(rules: Path, case: Case, folder: Path, *, fires: bool) -> subprocess.CompletedProcess[str]:
    """Let promtool evaluate rules every minute, and say whether their alert fires at the case's minute, or at none till then."""
    expected = [{"labels": "{}", "value": 1}] if fires else []
    firing = f'ALERTS{{alertname="{rules.stem}", alertstate="firing"}}'
    query = f"group({firing if fires else f'last_over_time({firing}[{case.minute}m])'})"
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    question = {"expr": query, "eval_time": f"{case.minute}m", "exp_samples": expected}
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [question]}
    file = folder / "test.yaml"
    file.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}))
    return promtool("test", "rules", str(file), cwd=folder)


def constant(rules: Path, expression: str, folder: Path) -> Path:
    """Write rules whose alert is named alike, and whose expression does not look at anything."""
    file = folder / rules.name
    file.write_text(json.dumps({"groups": [{"name": "g", "rules": [{"alert": rules.stem, "expr": expression}]}]}))
    return file


@pytest.mark.parametrize(("rules", "case", "fires"), CASES)
def test_an_alert_fires_when_it_should_and_only_then(rules: Path, case: Case, fires: bool, tmp_path: Path) -> None:
    """As promtool evaluates it; an alert that never fires, or always, would be noticed by this very case."""
    done = evaluated(rules, case, tmp_path, fires=fires)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = constant(rules, "vector(1) > 1" if fires else "vector(1)", tmp_path)
    assert "FAILED" in (done := evaluated(broken, case, tmp_path, fires=fires)).stdout + done.stderr


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
        assert sorted(set(re.findall(r"\bAmo[A-Z]\w+", page.read_text(encoding="utf-8")))) == names, page
