"""The service with every span exported to a collector on this machine, and with one that is dead or hangs, next to none at all."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import httpx

from amo_receiver.embedded.folder import free_port
from bench.ledger import Ledger
from bench.report import Figure, Outcome, progress, show
from bench.sender import Measured, saturate
from bench.templates import single_form
from exposition import sample, samples_on
from otlp_sink import Answer, OtlpSink, eventually

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

    from bench.stand import Receiver, Stand

DATABASE = "tracing"
TRACED, UNTRACED, DEAD, HANGING = "every span exported", "no collector", "dead collector", "hanging collector"
DROPPED = sample("amo_span_exports_total", amo_outcome="dropped")

Rounds = dict[str, list[Measured]]


@dataclass
class Spans:
    """Ids of the spans that the collector has: of deliveries, of batches with the deliveries each is linked with, of calls' parents."""

    accepts: set[bytes] = field(default_factory=set)
    batches: set[bytes] = field(default_factory=set)
    carried: set[bytes] = field(default_factory=set)
    called: set[bytes] = field(default_factory=set)

    def lacking(self, deliveries: int) -> dict[str, int]:
        """Return how many spans of each kind are not there."""
        return {
            "deliveries without a span": max(0, deliveries - len(self.accepts)),
            "deliveries without their batch's span": len(self.accepts - self.carried),
            "batches without their call's span": len(self.batches - self.called),
        }


@contextmanager
def _collectors() -> Iterator[tuple[OtlpSink, dict[str, dict[str, str]]]]:
    """Yield the collector that works, and the environment of each service; one hangs for as long as this lasts, at one nobody listens."""
    released = threading.Event()
    with OtlpSink() as sink, OtlpSink() as hanging:
        hanging.always = Answer(when=released)
        addresses = {TRACED: sink.url, DEAD: f"http://127.0.0.1:{free_port()}", HANGING: hanging.url}
        try:
            yield sink, {UNTRACED: {}} | {name: {"OTEL_EXPORTER_OTLP_ENDPOINT": url} for name, url in addresses.items()}
        finally:
            released.set()


def measure(stand: Stand, options: Namespace) -> Outcome:
    """Saturate each in turn; afterwards the collector must have the spans of each delivery, and the service must have dropped none."""
    with ExitStack() as stack:
        sink, environments = stack.enter_context(_collectors())
        databases = {name: f"{DATABASE}_{number}" for number, name in enumerate(environments)}
        ledgers = {name: Ledger(stand.create_database(database)) for name, database in databases.items()}
        services = {name: stack.enter_context(stand.service(databases[name], environments[name])) for name in ledgers}
        rounds = _rounds(services, ledgers, options)
        balances = {f"{DATABASE}: {name}": ledger.balance() for name, ledger in ledgers.items()}
        lacking = _received(sink, sum(run.good for run in ledgers[TRACED].runs))
        dropped = {name: _dropped(service) for name, service in services.items()}
        peaks = {name: service.resident_mib()[1] for name, service in services.items()}
    for database in databases.values():
        stand.drop_database(database)
    _show(rounds, peaks, dropped)
    return Outcome([*_figures(rounds, peaks), *_none_of(lacking | {"spans that the service dropped": dropped[TRACED]})], balances)


def _rounds(services: dict[str, Receiver], ledgers: dict[str, Ledger], options: Namespace) -> Rounds:
    rounds: Rounds = {name: [] for name in services}
    for name, service in services.items():
        saturate([service], single_form(), ledgers[name], seconds=2)
    for number in range(options.rounds):
        for name, service in services.items():
            rounds[name].append(saturate([service], single_form(), ledgers[name], seconds=options.seconds))
            progress(f"round {number + 1}: {name}: {rounds[name][-1].rate:.0f}/s")
    return rounds


def _received(sink: OtlpSink, deliveries: int) -> dict[str, int]:
    """Return what the collector lacks once the last spans have come, or too few after a while."""
    spans = Spans()
    decoded = 0

    def is_whole() -> bool:
        nonlocal decoded
        received = sink.accepted[decoded:]
        decoded += len(received)
        for each in received:
            if each.path == "/v1/traces":
                _note(each.export.resource_spans, spans)
        return not any(spans.lacking(deliveries).values())

    try:
        eventually(is_whole, "all spans")
    except AssertionError as error:
        progress(str(error))
    counts = ("accept", len(spans.accepts)), ("batch", len(spans.batches)), ("SELECT accept_v1, of batches", len(spans.called))
    show("Spans at the collector", ("name", "spans"), counts)
    return spans.lacking(deliveries)


def _note(resource_spans: Iterable[ResourceSpans], spans: Spans) -> None:
    for span in (span for of in resource_spans for scope in of.scope_spans for span in scope.spans):
        if span.name == "accept":
            spans.accepts.add(span.span_id)
        elif span.name == "batch":
            spans.batches.add(span.span_id)
            spans.carried.update(link.span_id for link in span.links)
        elif span.name == "SELECT accept_v1":
            spans.called.add(span.parent_span_id)


def _dropped(service: Receiver) -> int:
    """Ask the service how many spans it gave up on."""
    page = httpx.get(f"http://127.0.0.1:{service.port}/metrics", trust_env=False)
    return int(samples_on(page.content).get(DROPPED, 0))


def _none_of(counts: dict[str, int]) -> list[Figure]:
    return [Figure(name, count, "<=", 0, 0) for name, count in counts.items()]


def _figures(rounds: Rounds, peaks: dict[str, float]) -> list[Figure]:
    pairs = list(zip(rounds[TRACED], rounds[UNTRACED], strict=True))
    figures = [
        Figure("rate with every span exported over without", median(a.rate / b.rate for a, b in pairs), ">=", 0.9),
        Figure("p99 with every span exported over without", median(a.p99 / b.p99 for a, b in pairs), "<=", 1.25),
        Figure("CPU µs added by the spans of a delivery", median(a.cpu - b.cpu for a, b in pairs), decimals=0),
    ]
    for name in (DEAD, HANGING):
        rate = median(a.rate / b.rate for a, b in zip(rounds[name], rounds[UNTRACED], strict=True))
        figures += [
            Figure(f"rate with a {name} over without", rate),
            Figure(f"peak RSS with a {name} over without", peaks[name] / peaks[UNTRACED]),
        ]
    return figures


def _show(rounds: Rounds, peaks: dict[str, float], dropped: dict[str, int]) -> None:
    rows = []
    for name, measured in rounds.items():
        rate, cpu, p50, p99 = (median(each) for each in zip(*((m.rate, m.cpu, m.p50, m.p99) for m in measured), strict=True))
        bad = sum(m.bad for m in measured)
        rows.append((name, f"{rate:,.0f}", f"{cpu:,.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{peaks[name]:.0f}", f"{dropped[name]:,}", bad))
    header = ("service", "good/s", "CPU µs/request", "p50 ms", "p99 ms", "peak RSS MiB", "spans dropped", "bad")
    show("Tracing, 64 connections", header, rows)
