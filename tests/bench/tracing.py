"""The service with every span exported to a collector on this machine, next to the same without a collector."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING

from bench.ledger import Ledger
from bench.report import Figure, Outcome, progress, show
from bench.sender import Measured, saturate
from bench.templates import single_form
from otlp_sink import OtlpSink, eventually

if TYPE_CHECKING:
    from argparse import Namespace

    from bench.stand import Stand

DATABASE = "tracing"
TRACED, UNTRACED = "every span exported", "no collector"


def measure(stand: Stand, options: Namespace) -> Outcome:
    """Saturate both in turn; afterwards the collector must have a span of each delivery."""
    ledgers = {name: Ledger(stand.create_database(f"{DATABASE}_{number}")) for number, name in enumerate((TRACED, UNTRACED))}
    rounds: dict[str, list[Measured]] = {name: [] for name in ledgers}
    with ExitStack() as stack:
        sink = stack.enter_context(OtlpSink())
        environments = {TRACED: {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url}, UNTRACED: {}}
        services = {
            name: stack.enter_context(stand.service(f"{DATABASE}_{number}", environments[name])) for number, name in enumerate(ledgers)
        }
        for name, service in services.items():
            saturate([service], single_form(), ledgers[name], seconds=2)
        for number in range(options.rounds):
            for name, service in services.items():
                rounds[name].append(saturate([service], single_form(), ledgers[name], seconds=options.seconds))
                progress(f"round {number + 1}: {name}: {rounds[name][-1].rate:.0f}/s")
        balances = {f"{DATABASE}: {name}": ledger.balance() for name, ledger in ledgers.items()}
        sent = sum(run.good for run in ledgers[TRACED].runs)
        spans = _spans(sink, sent)
    for number in range(len(ledgers)):
        stand.drop_database(f"{DATABASE}_{number}")
    _show(rounds)
    show("Spans at the collector", ("name", "spans"), sorted(spans.items()))
    return Outcome([*_figures(rounds), Figure("deliveries without a span", max(0, sent - spans["accept"]), "<=", 0, 0)], balances)


def _spans(sink: OtlpSink, deliveries: int) -> Counter[str]:
    """Count the spans by name once the last ones have come, or too few after a while."""
    counts: Counter[str] = Counter()
    decoded = 0

    def is_whole() -> bool:
        nonlocal decoded
        received = sink.accepted[decoded:]
        decoded += len(received)
        for each in received:
            counts.update(span.name for of in each.export.resource_spans for scope in of.scope_spans for span in scope.spans)
        return counts["accept"] >= deliveries

    try:
        eventually(is_whole, "all spans")
    except AssertionError as error:
        progress(str(error))
    return counts


def _figures(rounds: dict[str, list[Measured]]) -> list[Figure]:
    pairs = list(zip(rounds[TRACED], rounds[UNTRACED], strict=True))
    return [
        Figure("rate with every span exported over without", median(a.rate / b.rate for a, b in pairs), ">=", 0.9),
        Figure("p99 with every span exported over without", median(a.p99 / b.p99 for a, b in pairs), "<=", 1.25),
        Figure("CPU µs added by the spans of a delivery", median(a.cpu - b.cpu for a, b in pairs), decimals=0),
    ]


def _show(rounds: dict[str, list[Measured]]) -> None:
    rows = []
    for name, measured in rounds.items():
        rate, cpu, p50, p99 = (median(each) for each in zip(*((m.rate, m.cpu, m.p50, m.p99) for m in measured), strict=True))
        rows.append((name, f"{rate:,.0f}", f"{cpu:,.0f}", f"{p50:.1f}", f"{p99:.1f}", sum(m.bad for m in measured)))
    show("Tracing, 64 connections", ("service", "good/s", "CPU µs/request", "p50 ms", "p99 ms", "bad"), rows)
