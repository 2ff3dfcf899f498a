"""The service next to what it is measured against."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING

from bench.ledger import Ledger
from bench.report import Figure, Outcome, progress, show
from bench.sender import Measured, saturate, send_steadily
from bench.templates import single_form

if TYPE_CHECKING:
    from argparse import Namespace

    from bench.stand import Receiver, Stand

DATABASE = "layers"
SERVICE, EMPTY, PER_REQUEST, INSERT = "service", "empty FastAPI route", "transaction per request", "single insert"
STORES_EVENTS = (SERVICE, PER_REQUEST)
RATE = 300

Rounds = dict[str, list[Measured]]


def measure(stand: Stand, options: Namespace) -> Outcome:
    """Saturate each in turn, then send steadily to two of them; the ratios are those within a round."""
    ledger, unkept = Ledger(stand.create_database(DATABASE)), Ledger()
    with ExitStack() as stack:
        receivers = {
            EMPTY: stand.application("bench.contenders:empty", DATABASE),
            SERVICE: stand.service(DATABASE),
            PER_REQUEST: stand.application("bench.contenders:per_request", DATABASE),
            INSERT: stand.application("bench.contenders:single_insert", DATABASE),
        }
        for receiver in receivers.values():
            stack.enter_context(receiver)
        ledgers = {name: ledger if name in STORES_EVENTS else unkept for name in receivers}
        saturated = _saturated(receivers, ledgers, options)
        even = _even(receivers, ledgers, options)
        _show(saturated, even)
        balance = ledger.balance()
    stand.drop_database(DATABASE)
    return Outcome(_figures(saturated, even), {DATABASE: balance})


def _saturated(receivers: dict[str, Receiver], ledgers: dict[str, Ledger], options: Namespace) -> Rounds:
    template = single_form()
    for name, receiver in receivers.items():
        saturate([receiver], template, ledgers[name], seconds=2)
    results: Rounds = {name: [] for name in receivers}
    for number in range(options.rounds):
        for name, receiver in receivers.items():
            results[name].append(saturate([receiver], template, ledgers[name], seconds=options.seconds))
            progress(f"round {number + 1}: {name}: {results[name][-1].rate:.0f}/s")
    return results


def _even(receivers: dict[str, Receiver], ledgers: dict[str, Ledger], options: Namespace) -> Rounds:
    template = single_form()
    results: Rounds = {SERVICE: [], INSERT: []}
    for _ in range(options.rounds):
        for name, rounds in results.items():
            rounds.append(send_steadily(receivers[name], template, ledgers[name], seconds=options.seconds, rate=RATE))
    return results


def _figures(saturated: Rounds, even: Rounds) -> list[Figure]:
    def ratio(name: str, rounds: Rounds, other: str) -> float:
        return median(getattr(a, name) / getattr(b, name) for a, b in zip(rounds[SERVICE], rounds[other], strict=True))

    return [
        Figure("rate over the empty FastAPI route", ratio("rate", saturated, EMPTY), ">=", 0.65),
        Figure("rate over one transaction per request", ratio("rate", saturated, PER_REQUEST), ">=", 6.0),
        Figure("CPU per delivery over the empty FastAPI route", ratio("cpu", saturated, EMPTY), "<=", 1.0),
        Figure("p99 at 64 connections over the empty FastAPI route", ratio("p99", saturated, EMPTY), "<=", 2.0),
        Figure(f"p50 at {RATE}/s over a single INSERT", ratio("p50", even, INSERT), "<=", 2.0),
    ]


def _show(saturated: Rounds, even: Rounds) -> None:
    rows = []
    for name, rounds in saturated.items():
        rate, cpu, p50, p99 = (median(each) for each in zip(*((m.rate, m.cpu, m.p50, m.p99) for m in rounds), strict=True))
        rows.append((name, f"{rate:,.0f}", f"{cpu:,.0f}", f"{p50:.1f}", f"{p99:.1f}", sum(m.bad for m in rounds)))
    show("64 connections, as fast as they are answered", ("receiver", "good/s", "CPU µs/request", "p50 ms", "p99 ms", "bad"), rows)
    rows = [(n, f"{median(m.p50 for m in r):.1f}", f"{median(m.p99 for m in r):.1f}", sum(m.bad for m in r)) for n, r in even.items()]
    show(f"{RATE} requests a second", ("receiver", "p50 ms", "p99 ms", "bad"), rows)
