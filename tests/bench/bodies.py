"""Forms and JSON, one event and ten: what a delivery and what an event costs."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from bench.ledger import Ledger
from bench.report import Figure, Outcome, progress, show
from bench.sender import Measured, saturate
from bench.templates import single_form, single_json, ten_form, ten_json

if TYPE_CHECKING:
    from argparse import Namespace

    from bench.stand import Stand
    from bench.templates import Template

DATABASE = "bodies"


def measure(stand: Stand, options: Namespace) -> Outcome:
    """Saturate one process with each kind in turn."""
    ledger = Ledger(stand.create_database(DATABASE))
    templates = [single_form(), ten_form(), single_json(), ten_json()]
    results: dict[str, list[Measured]] = {template.name: [] for template in templates}
    postgres: dict[str, list[float]] = {template.name: [] for template in templates}
    with stand.service(DATABASE) as service:
        for template in templates:
            saturate([service], template, ledger, seconds=1)
        for number in range(options.rounds):
            for template in templates:
                before = stand.cpu_seconds()["Postgres"]
                measured = saturate([service], template, ledger, seconds=options.seconds)
                postgres[template.name].append((stand.cpu_seconds()["Postgres"] - before) / measured.requests * 1e6)
                results[template.name].append(measured)
                progress(f"round {number + 1}: {template.name}: {measured.rate:.0f}/s")
        balance = ledger.balance()
    stand.drop_database(DATABASE)
    _show(templates, results, postgres)
    return Outcome(_figures(templates, results), {DATABASE: balance})


def _figures(templates: list[Template], results: dict[str, list[Measured]]) -> list[Figure]:
    form, ten_forms, json, ten_jsons = (results[template.name] for template in templates)
    figures = {
        "events/s in ten-event forms over single ones": median(10 * a.rate / b.rate for a, b in zip(ten_forms, form, strict=True)),
        "events/s in ten-event JSON over single ones": median(10 * a.rate / b.rate for a, b in zip(ten_jsons, json, strict=True)),
        "CPU per delivery, JSON over form, one event": median(a.cpu / b.cpu for a, b in zip(json, form, strict=True)),
    }
    return [Figure(name, measured) for name, measured in figures.items()]


def _show(templates: list[Template], results: dict[str, list[Measured]], postgres: dict[str, list[float]]) -> None:
    rows = []
    for template in templates:
        rounds = results[template.name]
        rate, cpu, p99 = (median(getattr(m, name) for m in rounds) for name in ("rate", "cpu", "p99"))
        database = median(postgres[template.name])
        numbers = (rate, rate * template.events, cpu, cpu / template.events, database, database / template.events)
        size = len(template.numbered(100_000_000))
        rows.append((template.name, size, *(f"{number:,.0f}" for number in numbers), f"{p99:.1f}", sum(m.bad for m in rounds)))
    header = ("body", "bytes", "deliveries/s", "events/s", "µs/delivery", "µs/event", "Postgres µs/delivery", "Postgres µs/event")
    show("Bodies: 64 connections to one process; CPU of the service and of Postgres", (*header, "p99 ms", "bad"), rows)
