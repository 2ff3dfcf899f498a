"""`poe bench`: what the service costs next to what it is measured against, as ratios within one run.

Everything is real and on this machine: receivers as processes of their own, pgbouncer in transaction mode before Postgres (fsync on),
wrk as the sender. Rounds are interleaved; the tables give each figure's median of the rounds.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import ExitStack

from bench import bodies, layers, memory, processes, tables, tracing
from bench.report import Figure, console, show_balances, show_figures, totals
from bench.stand import Contender, Stand
from children import guarded_folder

__all__ = ["Contender", "main"]

PARTS = {part.__name__.rpartition(".")[2]: part.measure for part in (layers, processes, bodies, memory, tracing, tables)}


def main() -> None:
    """Measure the parts that are asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure; all of them by default")
    parser.add_argument("--trace", dest="only", action="store_const", const=["tracing"], help="the same as --only tracing")
    parser.add_argument("--rounds", type=int, default=3, help="how often each thing is measured")
    parser.add_argument("--seconds", type=int, default=6, help="for how long each time")
    parser.add_argument("--requests", type=int, default=200_000, help="for memory")
    parser.add_argument("--events", type=int, default=5_000_000, help="in the full tables; one lead for each five of them")
    options = parser.parse_args()
    began = time.monotonic()
    console.print(f"{os.cpu_count()} cores for sender, receivers, pgbouncer and Postgres together")
    figures: list[Figure] = []
    balances = {}
    with ExitStack() as stack:
        stand = Stand(stack.enter_context(guarded_folder()), stack)
        for name in options.only:
            outcome = PARTS[name](stand, options)
            figures += outcome.figures
            balances |= outcome.balances
    show_balances(balances)
    figures += totals(balances.values())
    show_figures(figures)
    console.print(f"{time.monotonic() - began:.0f} s")
    if any(figure.strict and figure.is_missed for figure in figures):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
