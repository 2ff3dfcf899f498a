"""A picture of a dashboard's first panels, laid out as Grafana would, from what a Prometheus answers: for a page that shows one."""

from __future__ import annotations

import math
import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Points: TypeAlias = dict[float, float]
    Ask: TypeAlias = Callable[[str], list[dict[str, Any]]]

COLUMN, LINE, GAP, HEAD, FOOT = 50, 24, 4, 26, 24
COLORS = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#37872d"]
NAMED = {"green": "#73bf69", "orange": "#ff780a", "red": "#f2495c", "text": "#ccccdc"}
STYLE = "text{font:12px sans-serif;fill:#ccccdc}.small{font-size:10px;fill:#9fa7b3}.big{font-size:26px;text-anchor:middle}"


def draw(panels: list[dict[str, Any]], ask: Ask) -> str:
    """Return an SVG of panels; ``ask`` returns a query's matrix."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * LINE
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * COLUMN} {height}"><style>{STYLE}</style>'
    drawn = (line for each in panels for line in _panel(each, ask))
    return "\n".join([head, '<rect width="100%" height="100%" fill="#111217"/>', *drawn, "</svg>\n"])


def _panel(panel: dict[str, Any], ask: Ask) -> Iterator[str]:
    place, defaults = panel["gridPos"], panel.get("fieldConfig", {}).get("defaults", {})
    width, height = place["w"] * COLUMN - 2 * GAP, place["h"] * LINE - 2 * GAP
    overflow = "visible" if panel["type"] == "row" else "hidden"
    yield f'<svg x="{place["x"] * COLUMN + GAP}" y="{place["y"] * LINE + GAP}" width="{width}" height="{height}" overflow="{overflow}">'
    if panel["type"] != "row":
        yield '<rect width="100%" height="100%" rx="3" fill="#181b1f" stroke="#2a2d33"/>'
    yield f'<text x="8" y="17">{escape(panel["title"])}</text>'
    series = [each for target in panel.get("targets", []) for each in _series(ask(target["expr"]), target["legendFormat"])]
    if panel["type"] == "stat":
        last = [list(points.values())[-1] for _, points in series]
        is_name = panel["options"]["textMode"] == "name"
        shown = " / ".join([name for name, _ in series] if is_name else [_number(each, defaults["unit"]) for each in last])
        color = [each["color"] for each in defaults["thresholds"]["steps"] if each["value"] is None or each["value"] <= last[0]][-1]
        yield f'<text class="big" x="50%" y="{height / 2 + 18}" style="fill:{NAMED[color]}">{escape(shown)}</text>'
    elif panel["type"] == "timeseries":
        series = [each for each in series if any(each[1].values())] or series
        yield from _chart([points for _, points in series], defaults, width - 60, height - HEAD - FOOT)
        legend = (f'<tspan fill="{color}">━ </tspan>{escape(name)}' for (name, _), color in zip(series, COLORS * 3, strict=False))
        yield f'<text class="small" x="8" y="{height - 8}" xml:space="preserve">{"  ".join(legend)}</text>'
    yield "</svg>"


def _series(matrix: list[dict[str, Any]], legend: str) -> Iterator[tuple[str, Points]]:
    for each in matrix:
        name = re.sub(r"\{\{(\w+)\}\}", lambda label, metric=each["metric"]: metric.get(label[1], ""), legend)
        yield name, {at: 0.0 if math.isnan(float(value)) else float(value) for at, value in each["values"]}


def _chart(series: list[Points], defaults: dict[str, Any], width: float, height: float) -> Iterator[str]:
    times = sorted({at for points in series for at in points})
    rows = [[points.get(at, 0.0) for at in times] for points in series]
    is_stacked = "stacking" in defaults["custom"]
    tops = list(accumulate(rows, lambda one, two: [a + b for a, b in zip(one, two, strict=True)])) if is_stacked else rows
    most = max(map(max, tops)) * 1.1 or 1.0
    yield f'<g transform="translate(50 {HEAD})"><path d="M0 0V{height}H{width}" fill="none" stroke="#3a3d44"/>'
    for part in (0, 0.5, 1):
        yield f'<text class="small" x="-44" y="{height * (1 - part) + 4:.0f}">{_number(most * part, defaults["unit"])}</text>'
    for points, color in reversed(list(zip(tops, COLORS * 3, strict=False))):
        line = " ".join(f"{at * width / max(len(times) - 1, 1):.0f},{height * (1 - value / most):.1f}" for at, value in enumerate(points))
        area = f'fill="{color}" fill-opacity="{0.25 if is_stacked else 0.06}"'
        yield f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        yield f'<polygon points="0,{height} {line} {width},{height}" {area}/>'
    yield "</g>"


def _number(value: float, unit: str) -> str:
    return f"{value * 1000:.3g} ms" if unit == "s" and 0 < value < 1 else f"{value:.3g}{' s' * (unit == 's')}"
