"""The chart's scoreboard, printed when its tests have run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chart.scoreboard import COLUMNS, SCOREBOARD

if TYPE_CHECKING:
    import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a row for each rendering that was measured."""
    reports = [each for outcome in ("passed", "failed") for each in terminalreporter.getreports(outcome)]
    rows = [row for each in reports if each.when == "call" for name, row in each.user_properties if name == SCOREBOARD]
    if rows:
        terminalreporter.section("the chart as it is rendered")
        for row in (["values", *COLUMNS], ["---"] * (len(COLUMNS) + 1), *rows):
            terminalreporter.write_line(f"| {' | '.join(row)} |")
