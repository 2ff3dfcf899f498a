"""How Postgres finds the events that are due: which indexes, how many pages."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from amo_receiver.inbox.repository import CLAIM
from bench.report import show
from servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DUE = 200
CLAIMED = 50
MAKE_DUE = """
    UPDATE events SET state = 'pending', effect = NULL, processed_at = NULL, available_at = now() - interval '1 second'
    WHERE (account_id, id) IN (SELECT account_id, id FROM events ORDER BY received_at DESC LIMIT $1)"""


@dataclass(frozen=True)
class Plan:
    """One execution: its steps from the top, Postgres' guess of its cost, what it took."""

    steps: tuple[str, ...]
    cost: float
    rows: int
    pages: int
    milliseconds: float

    @property
    def is_by_due(self) -> bool:
        """Tell whether due events are found by their index, and nothing is searched through."""
        return any("events_due" in step for step in self.steps) and not any("Seq Scan on events" in step for step in self.steps)


def explain(url: str) -> Plan:
    """Explain the claim of due events while there are some; nothing of it stays."""
    return asyncio.run(_explain(url))


async def _explain(url: str) -> Plan:
    async with connect(url) as connection:
        await connection.execute("ANALYZE events")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(MAKE_DUE, DUE, timeout=120)
        claim = str(CLAIM).replace(":most", str(CLAIMED))
        document = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {claim}")
        await transaction.rollback()
    explained = orjson.loads(document)[0]
    top = explained["Plan"]
    pages = top["Shared Hit Blocks"] + top["Shared Read Blocks"]
    return Plan(tuple(_steps(top)), top["Total Cost"], top["Actual Rows"], pages, explained["Execution Time"])


def _steps(node: dict[str, Any]) -> Iterator[str]:
    place = node.get("Index Name") or node.get("Relation Name") or node.get("CTE Name") or ""
    yield f"{node['Node Type']} {'on' if place else ''} {place}".strip()
    for child in node.get("Plans", ()):
        yield from _steps(child)


def show_plans(plans: Mapping[str, Plan]) -> None:
    """Print them side by side."""
    header = ("tables", "cost", "rows", "pages", "ms")
    rows = [(name, f"{plan.cost:,.0f}", f"{plan.rows:.0f}", plan.pages, f"{plan.milliseconds:.1f}") for name, plan in plans.items()]
    show(f"The due-event query with {DUE} due, at most {CLAIMED} claimed", header, rows)
    for steps in dict.fromkeys(plan.steps for plan in plans.values()):
        names = " and ".join(name for name, plan in plans.items() if plan.steps == steps)
        show(f"Its plan in {names} tables", ("step",), [(step,) for step in steps])
