"""One, two and four processes of the service before the same pgbouncer: what they accept together, and who uses the processors."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import psutil

from bench.ledger import Ledger
from bench.report import Figure, Outcome, progress, show
from bench.sender import Measured, saturate
from bench.templates import single_form

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from bench.stand import Receiver, Stand

DATABASE = "processes"
COUNTS = (1, 2, 4)
CONNECTIONS = 64


@dataclass(frozen=True)
class Sample:
    """One run, with the processor seconds per second of each program and how busy the whole machine was."""

    measured: Measured
    cpu: dict[str, float]
    busy: float


def measure(stand: Stand, options: Namespace) -> Outcome:
    """Saturate one, two and four at once, in turn."""
    ledger = Ledger(stand.create_database(DATABASE))
    samples: dict[int, list[Sample]] = {count: [] for count in COUNTS}
    with ExitStack() as stack:
        services = [stack.enter_context(stand.service(DATABASE)) for _ in range(max(COUNTS))]
        saturate(services, single_form(), ledger, seconds=2)
        for number in range(options.rounds):
            for count in COUNTS:
                samples[count].append(_sample(stand, services[:count], ledger, options.seconds))
                progress(f"round {number + 1}: {count} processes: {samples[count][-1].measured.rate:.0f}/s")
        balance = ledger.balance()
    stand.drop_database(DATABASE)
    _show(samples)
    rates = {count: [sample.measured.rate for sample in rounds] for count, rounds in samples.items()}
    ratios = {count: median(a / b for a, b in zip(rates[count], rates[1], strict=True)) for count in COUNTS[1:]}
    figures = [Figure(f"rate of {count} processes over one", ratio) for count, ratio in ratios.items()]
    return Outcome(figures, {DATABASE: balance})


def _sample(stand: Stand, services: Sequence[Receiver], ledger: Ledger, seconds: int) -> Sample:
    before, machine = stand.cpu_seconds(), psutil.cpu_times()
    measured = saturate(services, single_form(), ledger, seconds=seconds, connections=CONNECTIONS)
    after, machine_after = stand.cpu_seconds(), psutil.cpu_times()
    cpu = {"service": measured.cpu * measured.requests / 1e6} | {name: after[name] - before[name] for name in after}
    idle = (machine_after.idle + machine_after.iowait) - (machine.idle + machine.iowait)
    busy = 1 - idle / (sum(machine_after[:8]) - sum(machine[:8]))
    return Sample(measured, {name: used / measured.seconds for name, used in cpu.items()}, busy)


def _show(samples: dict[int, list[Sample]]) -> None:
    rows = []
    for count, rounds in samples.items():
        rate, p50, p99 = (median(getattr(s.measured, name) for s in rounds) for name in ("rate", "p50", "p99"))
        cpu = {name: median(sample.cpu[name] for sample in rounds) for name in rounds[0].cpu}
        share = cpu["Postgres"] / sum(cpu.values())
        busy = median(sample.busy for sample in rounds)
        used = [f"{seconds:.2f}" for seconds in cpu.values()]
        bad = sum(sample.measured.bad for sample in rounds)
        rows.append((count, f"{rate:,.0f}", *used, f"{share:.0%}", f"{busy:.0%}", f"{p50:.1f}", f"{p99:.1f}", bad))
    names = [f"{name} CPU s/s" for name in next(iter(samples.values()))[0].cpu]
    title = f"Processes of the service, {CONNECTIONS} connections to each; {os.cpu_count()} cores for everything"
    show(title, ("processes", "good/s", *names, "Postgres' share", "machine busy", "p50 ms", "p99 ms", "bad"), rows)
