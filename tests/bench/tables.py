"""Accepting into tables of millions next to accepting into empty ones; the due-event query in both; what an event takes on disk."""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING

from bench.filling import BYTES_PER_EVENT, fill
from bench.ledger import Ledger
from bench.plans import Plan, explain, show_plans
from bench.report import Figure, Outcome, progress, show
from bench.sender import Measured, saturate, send_steadily
from bench.templates import known_lead, single_form
from servers import run_sql

if TYPE_CHECKING:
    from argparse import Namespace

    from bench.stand import Receiver, Stand

EMPTY, FULL = "empty", "full"
NEW, KNOWN = "new leads", "known leads"
KNOWN_LEADS = 5_000
EVENTS_PER_LEAD = 5
LEAST_RATIO = 0.85
MOST_GROWTH = 1.5
# Tidied up at other times, the two would differ by more than what they hold.
ALONE = ("ALTER SYSTEM SET autovacuum = off", "ALTER SYSTEM SET max_wal_size = '8GB'", "SELECT pg_reload_conf()")
AS_BEFORE = ("ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()")
SIZES = """
    SELECT (SELECT count(*) FROM {table}), pg_relation_size(oid), pg_indexes_size(oid),
           coalesce(pg_total_relation_size(nullif(reltoastrelid, 0)), 0)
    FROM pg_class WHERE oid = '{table}'::regclass"""
SIZED = ("events", "deliveries", "leads")

Results = dict[str, dict[str, list[Measured]]]
"""By kind of body and by database."""


def measure(stand: Stand, options: Namespace) -> Outcome:
    """Fill one of two databases, then send the same to both, in turn."""
    _require_disk(stand, options.events)
    run_sql(stand.postgres.url(), *ALONE)
    ledgers = {name: Ledger(stand.create_database(f"{name}_tables")) for name in (EMPTY, FULL)}
    with ExitStack() as stack:
        services = {name: stack.enter_context(stand.service(f"{name}_tables")) for name in ledgers}
        leads = {EMPTY: KNOWN_LEADS, FULL: max(options.events // EVENTS_PER_LEAD, 1)}
        stored = _begin_empty(services[EMPTY], ledgers[EMPTY], options.seconds)
        _begin_full(services[FULL], ledgers[FULL], options.events, leads[FULL])
        run_sql(stand.postgres.url(), "CHECKPOINT")
        results = _rounds(services, ledgers, leads, options)
        plans = {name: explain(ledger.url) for name, ledger in ledgers.items()}
        balances = {f"{name} tables": ledger.balance() for name, ledger in ledgers.items()}
    for name in ledgers:
        stand.drop_database(f"{name}_tables")
    run_sql(stand.postgres.url(), *AS_BEFORE)
    _show(results)
    show_plans(plans)
    return Outcome([*_ratios(results), *_constant(plans), Figure("storage per event, bytes", stored, decimals=0)], balances)


def _require_disk(stand: Stand, events: int) -> None:
    free = shutil.disk_usage(stand.folder).free
    if free < events * BYTES_PER_EVENT:
        most = f"{free // BYTES_PER_EVENT // 100_000 * 100_000:,}"
        raise SystemExit(f"{events:,} events need {events * BYTES_PER_EVENT / 1e9:.0f} GB in {stand.folder}; --events {most} would fit.")


def _begin_empty(service: Receiver, ledger: Ledger, seconds: int) -> float:
    """Put in the few known leads; return how many bytes an event takes that comes alone and makes a lead."""
    saturate([service], single_form(), ledger, seconds=seconds)
    stored = _show_sizes("Storage of what was accepted one by one", ledger.url)
    saturate([service], known_lead(KNOWN_LEADS), ledger, seconds=3)
    return stored


def _begin_full(service: Receiver, ledger: Ledger, events: int, leads: int) -> None:
    send_steadily(service, single_form(), ledger, seconds=1, rate=1)
    began = time.monotonic()
    asyncio.run(fill(ledger.url, events, leads, lambda what: progress(f"{what} after {time.monotonic() - began:.0f} s")))
    _show_sizes("Storage of the full tables", ledger.url)
    saturate([service], single_form(), ledger, seconds=3)
    saturate([service], known_lead(leads), ledger, seconds=3)


def _rounds(services: dict[str, Receiver], ledgers: dict[str, Ledger], leads: dict[str, int], options: Namespace) -> Results:
    results: Results = {NEW: {name: [] for name in services}, KNOWN: {name: [] for name in services}}
    for number in range(options.rounds):
        for kind, databases in results.items():
            # What one leaves to be written to the disk falls to the next: they take turns at being first.
            for name in (EMPTY, FULL) if number % 2 else (FULL, EMPTY):
                template = single_form() if kind == NEW else known_lead(leads[name])
                measured = saturate([services[name]], template, ledgers[name], seconds=options.seconds)
                databases[name].append(measured)
                progress(f"round {number + 1}: {kind}, {name} tables: {measured.rate:.0f}/s")
    return results


def _ratios(results: Results) -> list[Figure]:
    return [
        Figure(
            f"rate into full tables over empty ones, {kind}",
            median(a.rate / b.rate for a, b in zip(databases[FULL], databases[EMPTY], strict=True)),
            ">=",
            LEAST_RATIO,
        )
        for kind, databases in results.items()
    ]


def _constant(plans: dict[str, Plan]) -> list[Figure]:
    empty, full = plans[EMPTY], plans[FULL]
    is_same = full.steps == empty.steps and full.is_by_due
    return [
        Figure("due-event query: same plan, by the index of due events (1: yes)", is_same, ">=", 1, 0, strict=True),
        Figure("due-event query: cost in full tables over empty ones", full.cost / empty.cost, "<=", MOST_GROWTH),
        Figure("due-event query: pages in full tables over empty ones", full.pages / empty.pages, "<=", MOST_GROWTH),
    ]


def _show(results: Results) -> None:
    rows = []
    for kind, databases in results.items():
        for name, rounds in databases.items():
            rate, cpu, p50, p99 = (median(getattr(m, what) for m in rounds) for what in ("rate", "cpu", "p50", "p99"))
            rows.append((f"{kind}, {name} tables", f"{rate:,.0f}", f"{cpu:,.0f}", f"{p50:.1f}", f"{p99:.1f}", sum(m.bad for m in rounds)))
    show("Accepting into full and into empty tables", ("bodies", "good/s", "CPU µs/request", "p50 ms", "p99 ms", "bad"), rows)


def _show_sizes(title: str, url: str) -> float:
    rows, total = [], 0.0
    for table in SIZED:
        (count, *parts) = run_sql(url, SIZES.format(table=table))[0]
        total += sum(parts) / count
        rows.append((table, f"{count:,}", *(f"{size / count:,.0f}" for size in (*parts, sum(parts))), f"{sum(parts) / 2**20:,.0f}"))
    show(title, ("table", "rows", "heap bytes/row", "index bytes/row", "toast bytes/row", "all bytes/row", "MiB"), rows)
    return total
