"""Tables, facts and JSON on standard output; what outsiders sent can neither steer the terminal nor pass for markup."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDE = 240
"""Columns where nobody's terminal says how many there are, so that `grep` finds whole ids."""
NOTHING = "—"


def printable(value: object) -> str:
    """Return a value as text in one line, with whatever would steer a terminal escaped."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(value))


def printable_lines(content: str) -> str:
    """Return text of several lines with everything but its line breaks made printable."""
    return "\n".join(printable(line) if line else "" for line in content.split("\n"))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Print rows under headings; the first column stays whole, so that it can be copied, and the others break where there is no room."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for position, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=position == 0)
    for row in rows:
        table.add_row(*(Text(printable(value)) for value in row))
    _console().print(table)


def print_facts(title: str, facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values below a title."""
    table = Table(box=None, show_header=False, title=title, title_justify="left", pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(f"  {name}", Text(printable(value)))
    console = _console()
    console.print(table)
    console.print()


def print_json(document: Any) -> None:
    """Print a document for scripts."""
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDE, markup=False, highlight=False, emoji=False)
