"""`prune`: delete what retention no longer keeps, now."""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from amo_receiver.commands.database import ask
from amo_receiver.errors import CommandError
from amo_receiver.settings import load_settings
from amo_receiver.worker import maintenance

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prune")(prune)


class Spoken(maintenance.Progress):
    """Says how far it is, and ends the run at Ctrl-C."""

    def __init__(self) -> None:
        self.has_rival = False
        self.is_stopped = False
        self._spoken_at = time.monotonic()

    def pruned(self, what: str, count: int) -> None:
        """Say the running total, once a second."""
        if time.monotonic() - self._spoken_at >= 1:
            self._spoken_at = time.monotonic()
            typer.echo(f"{count} {what} so far ...", err=True)

    def rival(self) -> None:
        """Remember it for the end."""
        self.has_rival = True

    def stopped(self) -> bool:
        """Tell whether Ctrl-C was pressed."""
        return self.is_stopped

    def stop(self) -> None:
        """End after this batch; pressed again, Ctrl-C ends at once, and the batch under way is undone."""
        self.is_stopped = True
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


def prune(
    processed_days: Annotated[int | None, typer.Option(help="Instead of RETENTION_PROCESSED_DAYS.", min=0)] = None,
    dead_days: Annotated[int | None, typer.Option(help="Instead of RETENTION_DEAD_DAYS.", min=0)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be deleted.")] = False,
) -> None:
    """Delete processed and dead events past their days, and deliveries of which no event is left; pending events stay.

    A worker does the same every hour. Ctrl-C ends it after the batch under way.

    Example: amo-webhooks prune --processed-days 7 --dry-run
    """
    settings = load_settings()
    processed_days = settings.retention_processed_days if processed_days is None else processed_days
    dead_days = settings.retention_dead_days if dead_days is None else dead_days
    if dry_run:
        counts = ask(lambda engine: maintenance.count_old(engine, processed_days, dead_days))
        typer.echo(f"Would delete {_sentence(counts)}.")
        return
    spoken = Spoken()
    counts = ask(partial(_prune, processed_days, dead_days, spoken))
    if spoken.has_rival:
        raise CommandError(f"Another process is pruning and does what is left; deleted here: {_sentence(counts)}.")
    if spoken.is_stopped:
        typer.echo(f"Interrupted; deleted {_sentence(counts)}. The next run goes on from there.", err=True)
        raise typer.Exit(INTERRUPTED)
    typer.echo(f"Deleted {_sentence(counts)}.")


async def _prune(processed_days: int, dead_days: int, spoken: Spoken, engine: AsyncEngine) -> dict[str, int]:
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, spoken.stop)
    return await maintenance.prune(engine, processed_days, dead_days, spoken)


def _sentence(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())
