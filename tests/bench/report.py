"""What is printed: the tables of each part, and at the end every figure next to what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bench.ledger import Balance

console = Console(width=140, highlight=False)


@dataclass(frozen=True)
class Figure:
    """One figure that is asked for: at least or at most ``asked``; without ``sign`` it is only shown.

    One that is no timing but tells whether something is right is ``strict``: a run that misses it has failed.
    """

    name: str
    measured: float
    sign: str = ""
    asked: float = 0.0
    decimals: int = 2
    strict: bool = False

    @property
    def is_missed(self) -> bool:
        """Tell whether it is not as asked."""
        return bool(self.sign) and not (self.measured >= self.asked if self.sign == ">=" else self.measured <= self.asked)

    @property
    def verdict(self) -> str:
        """Say whether it is met."""
        return ("MISSED" if self.is_missed else "met") if self.sign else "shown"


@dataclass(frozen=True)
class Outcome:
    """What one part gives to the last tables."""

    figures: Sequence[Figure]
    balances: Mapping[str, Balance]


def progress(sentence: str) -> None:
    """Say how far it is."""
    console.print(sentence, style="dim")


def show(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; its first column is text, the others are numbers."""
    table = Table()
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(f"\n[bold]{title}[/bold]")  # a title of the table itself would be no wider than the table
    console.print(table)


def show_balances(balances: Mapping[str, Balance]) -> None:
    """Print what became of everything that was acknowledged."""
    show(
        "Acknowledged, and what the database has of it",
        ("database", "deliveries", "events", "lost", "stored twice", "leads unlike their newest event"),
        [(name, f"{b.deliveries:,}", f"{b.events:,}", b.lost, b.stored_twice, b.different) for name, b in balances.items()],
    )


def show_figures(figures: Iterable[Figure]) -> None:
    """Print every figure next to what is asked of it."""
    rows = [(f.name, f"{f.sign} {f.asked:,.{f.decimals}f}" if f.sign else "", f"{f.measured:,.{f.decimals}f}", f.verdict) for f in figures]
    show("Targets (ratios within a round: their median)", ("figure", "asked", "measured", ""), rows)


def totals(balances: Iterable[Balance]) -> list[Figure]:
    """Return the three figures that must be nothing in every run."""
    all_balances = list(balances)
    return [
        Figure("acknowledged but lost", sum(b.lost for b in all_balances), "<=", 0, 0, strict=True),
        Figure("stored twice", sum(b.stored_twice for b in all_balances), "<=", 0, 0, strict=True),
        Figure("leads unlike their newest event", sum(b.different for b in all_balances), "<=", 0, 0, strict=True),
    ]
