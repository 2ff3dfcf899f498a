"""`poe bench`: what the service costs next to what it is measured against, as ratios within one run.

Everything is real and on this machine: contenders as processes of their own, one server with the same options, pgbouncer in
transaction mode before Postgres (fsync on), wrk as the sender. Rounds are interleaved; the table gives each figure's median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import psutil
from rich.console import Console
from rich.table import Table

from amo_receiver.embedded import EmbeddedPostgres
from amo_receiver.embedded.folder import free_port
from bench.sender import Measured, saturate, steady
from children import Child, guarded_folder
from factories import form_body, lead
from pooler import PgBouncer
from servers import WEBHOOK_TOKEN, connect, run_sql, service_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = f"/api/webhooks/amo/{WEBHOOK_TOKEN}"
PLACE = 999_000_999
TARGETS = {
    "rate over the empty FastAPI route": (">=", 0.65),
    "rate over one transaction per request": (">=", 6.0),
    "CPU per delivery over the empty FastAPI route": ("<=", 1.0),
    "p99 at 64 connections over the empty FastAPI route": ("<=", 2.0),
    "p50 at 300/s over a single INSERT": ("<=", 2.0),
}
console = Console(width=120)


class Contender(Child):
    """One application under uvicorn, with the options the service has."""

    def __init__(self, name: str, factory: str, folder: Path, db_url: str) -> None:
        self.name, self.port = name, free_port()
        self.url = f"http://127.0.0.1:{self.port}{PATH}"
        home = folder / name.replace(" ", "-")
        home.mkdir()
        options = ["--factory", "--no-access-log", "--no-server-header", "--log-level", "warning", "--port", str(self.port)]
        environment = service_environment(db_url, home, {"PYTHONPATH": str(Path(__file__).parents[1]), "LOG_LEVEL": "WARNING"})
        super().__init__([sys.executable, "-m", "uvicorn", factory, *options], cwd=home, env=environment, log_path=home / "log")

    def is_ready(self) -> bool:
        """Tell whether it listens."""
        return any(link.laddr.port == self.port for link in psutil.Process(self.pid).net_connections() if link.status == "LISTEN")

    def measure(self, body: Path, first_id: int, seconds: int, connections: int = 64) -> Measured:
        """Saturate it, and add its processor time per request."""
        before = _cpu_seconds(self.pid)
        measured = saturate(self.url, body, first_id=first_id, seconds=seconds, connections=connections)
        return replace(measured, cpu=(_cpu_seconds(self.pid) - before) / measured.requests * 1e6)


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _ids() -> Iterator[int]:
    """Give each run a range of ids of its own, so that no body is a duplicate."""
    first = 1_000_000_000
    while True:
        yield first
        first += 10_000_000


def layers(contenders: dict[str, Contender], body: Path, rounds: int, seconds: int) -> dict[str, list[Measured]]:
    """Saturate every contender in turn, ``rounds`` times."""
    results: dict[str, list[Measured]] = {name: [] for name in contenders}
    ids = _ids()
    for contender in contenders.values():
        contender.measure(body, next(ids), 2)
    for number in range(rounds):
        for name, contender in contenders.items():
            results[name].append(contender.measure(body, next(ids), seconds))
            console.print(f"round {number + 1}: {name}: {results[name][-1].rate:.0f}/s", style="dim")
    return results


def steady_rounds(contenders: dict[str, Contender], rounds: int, seconds: int) -> dict[str, list[Measured]]:
    """Send 300 requests a second to the service and to the single INSERT, in turn."""
    results: dict[str, list[Measured]] = {}
    now = int(time.time())
    for number in range(rounds):
        for name in ("service", "single insert"):
            first = 500_000_000 + number * 1_000_000
            bodies = [form_body("leads", "update", lead(id=first + index, at=now)) for index in range(300 * seconds)]
            results.setdefault(name, []).append(asyncio.run(steady(contenders[name].url, bodies, 300)))
    return results


def ratios(saturated: dict[str, list[Measured]], even: dict[str, list[Measured]]) -> dict[str, float]:
    """Return each target's figure: the median over the rounds of the ratio within a round."""
    ours, empty, single = saturated["service"], saturated["empty FastAPI route"], saturated["transaction per request"]
    pairs = {
        "rate over the empty FastAPI route": [(a.rate, b.rate) for a, b in zip(ours, empty, strict=True)],
        "rate over one transaction per request": [(a.rate, b.rate) for a, b in zip(ours, single, strict=True)],
        "CPU per delivery over the empty FastAPI route": [(a.cpu, b.cpu) for a, b in zip(ours, empty, strict=True)],
        "p99 at 64 connections over the empty FastAPI route": [(a.p99, b.p99) for a, b in zip(ours, empty, strict=True)],
        "p50 at 300/s over a single INSERT": [(a.p50, b.p50) for a, b in zip(even["service"], even["single insert"], strict=True)],
    }
    return {name: median(a / b for a, b in values) for name, values in pairs.items()}


async def lost_and_twice(url: str, accepted: int) -> tuple[int, int]:
    """Return how many acknowledged deliveries have no event and lead, and how many events stand there twice."""
    async with connect(url) as connection:
        events = await connection.fetchval("SELECT count(*) FROM events WHERE state = 'processed'")
        leads = await connection.fetchval("SELECT count(*) FROM leads")
        distinct = await connection.fetchval("SELECT count(DISTINCT (entity_id, occurred_at)) FROM events")
    return max(0, accepted - min(events, leads)), events - distinct


def show(saturated: dict[str, list[Measured]], even: dict[str, list[Measured]], figures: dict[str, float]) -> None:
    """Print the tables."""
    table = Table("contender", "good/s", "CPU µs/request", "p50 ms", "p99 ms", "bad", title="64 connections, as fast as they are answered")
    for name, rounds in saturated.items():
        cells = [median(each) for each in zip(*((m.rate, m.cpu, m.p50, m.p99) for m in rounds), strict=True)]
        table.add_row(
            name, *(f"{cell:,.0f}" for cell in cells[:2]), *(f"{cell:.1f}" for cell in cells[2:]), str(sum(m.bad for m in rounds))
        )
    console.print(table)
    table = Table("contender", "p50 ms", "p99 ms", "bad", title="300 requests a second")
    for name, rounds in even.items():
        table.add_row(name, f"{median(m.p50 for m in rounds):.1f}", f"{median(m.p99 for m in rounds):.1f}", str(sum(m.bad for m in rounds)))
    console.print(table)
    table = Table("ratio within a round (median)", "asked", "measured", "", title="Targets")
    for name, (sign, asked) in TARGETS.items():
        met = figures[name] >= asked if sign == ">=" else figures[name] <= asked
        table.add_row(name, f"{sign} {asked}", f"{figures[name]:.2f}", "met" if met else "MISSED")
    console.print(table)


def main() -> None:
    """Run the rounds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(guarded_folder())
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", options={"max_connections": "100"}))
        run_sql(postgres.url(), "CREATE DATABASE bench")
        url = postgres.url("bench")
        environment = service_environment(url, folder)
        subprocess.run([sys.executable, "-m", "amo_receiver", "migrate", "upgrade", "head"], env=environment, check=True, cwd=folder)
        pooler = PgBouncer(postgres, folder / "pgbouncer", pool_size=10)
        pooler.start()
        stack.callback(pooler.end)
        pooled = pooler.url("bench")
        contenders = {}
        for name, factory in (
            ("empty FastAPI route", "bench.contenders:empty"),
            ("service", "amo_receiver.app:create_app"),
            ("transaction per request", "bench.contenders:per_request"),
            ("single insert", "bench.contenders:single_insert"),
        ):
            contenders[name] = Contender(name, factory, folder, pooled)
            contenders[name].start()
            stack.callback(contenders[name].end)
        body = folder / "body"
        body.write_bytes(form_body("leads", "update", lead(id=PLACE, at=int(time.time()))).replace(str(PLACE).encode(), b"@ID@"))
        console.print(f"{os.cpu_count()} cores shared by sender, contender, pgbouncer and Postgres; body {body.stat().st_size} bytes")
        saturated = layers(contenders, body, arguments.rounds, arguments.seconds)
        even = steady_rounds(contenders, arguments.rounds, arguments.seconds)
        show(saturated, even, ratios(saturated, even))
        accepted = sum(m.requests - m.bad for name in ("service", "transaction per request") for m in saturated[name])
        lost, twice = asyncio.run(lost_and_twice(url, accepted))
        console.print(f"acknowledged but lost: {lost}; applied twice: {twice}")


if __name__ == "__main__":
    main()
