"""A picture of a dashboard's first panels, laid out as Grafana would, from what a Prometheus answers: for a page that shows one."""

from __future__ import annotations

import math
import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Points: TypeAlias = dict[str, list[float]]
    Ask: TypeAlias = Callable[[str], list[dict[str, Any]]]

COLUMN, LINE, GAP, HEAD, FOOT = 50, 24, 4, 26, 24
COLORS = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#37872d"]


def draw(panels: list[dict[str, Any]], ask: Ask) -> str:
    """Return an SVG of panels; ``ask`` returns a query's matrix."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * LINE
    style = "text{font:12px sans-serif;fill:#ccccdc}.small{font-size:10px;fill:#9fa7b3}.big{font-size:26px;fill:#73bf69;text-anchor:middle}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * COLUMN} {height}"><style>{style}</style>'
    return "\n".join(
        [head, '<rect width="100%" height="100%" fill="#111217"/>', *(line for each in panels for line in _panel(each, ask)), "</svg>\n"]
    )


def _panel(panel: dict[str, Any], ask: Ask) -> Iterator[str]:
    place = panel["gridPos"]
    x, y, width, height = place["x"] * COLUMN + GAP, place["y"] * LINE + GAP, place["w"] * COLUMN - 2 * GAP, place["h"] * LINE - 2 * GAP
    yield f'<g transform="translate({x} {y})">'
    if panel["type"] != "row":
        yield f'<rect width="{width}" height="{height}" rx="3" fill="#181b1f" stroke="#2a2d33"/>'
    yield f'<text x="8" y="17">{escape(panel["title"])}</text>'
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    series = {name: points for target in panel.get("targets", []) for name, points in _series(ask(target["expr"]), target["legendFormat"])}
    if panel["type"] == "stat":
        shown = series if panel["options"]["textMode"] == "name" else [_number(each[-1], defaults["unit"]) for each in series.values()]
        yield f'<text class="big" x="{width / 2}" y="{height - 22}">{escape(" / ".join(shown))}</text>'
    elif series:
        yield from _chart(series, defaults, width - 60, height - HEAD - FOOT)
        names = list(zip(series, COLORS * 3, strict=False))
        legend = "  ".join(f'<tspan fill="{color}">━ </tspan>{escape(name)}' for name, color in names)
        yield f'<text class="small" x="8" y="{height - 8}" xml:space="preserve">{legend}</text>'
    yield "</g>"


def _series(matrix: list[dict[str, Any]], legend: str) -> Iterator[tuple[str, list[float]]]:
    for each in matrix:
        name = re.sub(r"\{\{(\w+)\}\}", lambda label, metric=each["metric"]: metric.get(label[1], ""), legend)
        yield name, [float(value) for _, value in each["values"]]


def _chart(series: Points, defaults: dict[str, Any], width: float, height: float) -> Iterator[str]:
    is_stacked = "stacking" in defaults["custom"]
    longest = max(map(len, series.values()))
    rows = [[0.0] * (longest - len(points)) + [0.0 if math.isnan(each) else each for each in points] for points in series.values()]
    tops = (
        [list(each) for each in accumulate(rows, lambda one, two: [a + b for a, b in zip(one, two, strict=True)])] if is_stacked else rows
    )
    most = max(*map(max, tops), 1e-9) * 1.1
    yield f'<g transform="translate(50 {HEAD})"><path d="M0 0V{height}H{width}" fill="none" stroke="#3a3d44"/>'
    for part in (0, 0.5, 1):
        yield f'<text class="small" x="-44" y="{height * (1 - part) + 4:.0f}">{_number(most * part, defaults["unit"])}</text>'
    for points, color in reversed(list(zip(tops, COLORS * 3, strict=False))):
        line = " ".join(f"{at * width / max(longest - 1, 1):.1f},{height * (1 - value / most):.1f}" for at, value in enumerate(points))
        yield f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        yield f'<polygon points="0,{height} {line} {width},{height}" fill="{color}" fill-opacity="{0.25 if is_stacked else 0.06}"/>'
    yield "</g>"


def _number(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.3g}"
