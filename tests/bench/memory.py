"""How much memory one process has, and whether that grows with what it has accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.ledger import Ledger
from bench.report import Figure, Outcome, progress, show
from bench.sender import saturate
from bench.templates import single_form, ten_form

if TYPE_CHECKING:
    from argparse import Namespace

    from bench.stand import Stand

DATABASE = "memory"
LEGS = 4
MOST_MIB = 120.0
MOST_GROWTH = 1.05


def measure(stand: Stand, options: Namespace) -> Outcome:
    """Look at it before the first request, after a warm-up, and four times while so many requests are answered."""
    ledger = Ledger(stand.create_database(DATABASE))
    with stand.service(DATABASE) as service:
        seen = [("start", 0, *service.resident_mib())]
        saturate([service], ten_form(), ledger, seconds=1)
        rate = saturate([service], single_form(), ledger, seconds=3).rate
        seen.append(("warm", _answered(ledger), *service.resident_mib()))
        for leg in range(LEGS):
            due = options.requests * (leg + 1) / LEGS
            while (left := due - _answered(ledger)) > 0:
                rate = saturate([service], single_form(), ledger, seconds=max(1, round(left / rate))).rate
            seen.append((f"{leg + 1} of {LEGS}", _answered(ledger), *service.resident_mib()))
            progress(f"{_answered(ledger):,} requests: {seen[-1][2]:.1f} MiB")
        balance = ledger.balance()
    stand.drop_database(DATABASE)
    rows = [(when, f"{answered:,}", f"{now:.1f}", f"{most:.1f}") for when, answered, now, most in seen]
    show("Memory of one process of the service", ("when", "requests", "RSS MiB", "most so far MiB"), rows)
    figures = [
        Figure("most RSS of a service process, MiB", seen[-1][3], "<=", MOST_MIB, 1),
        Figure(f"RSS after {options.requests:,} requests over that after a quarter", seen[-1][2] / seen[2][2], "<=", MOST_GROWTH),
    ]
    return Outcome(figures, {DATABASE: balance})


def _answered(ledger: Ledger) -> int:
    return sum(run.good for run in ledger.runs)
