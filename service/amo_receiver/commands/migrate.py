"""`migrate`: bring the schema up, or say where it is."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import suppress
from pathlib import Path  # noqa: TC003 - typer reads it at run time
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from sqlalchemy.exc import DBAPIError

from amo_receiver import schema
from amo_receiver.commands.database import sentence
from amo_receiver.commands.migration_result import reported
from amo_receiver.database import create_engine, span_attributes
from amo_receiver.errors import CommandError, ConfigurationError
from amo_receiver.settings import load_settings
from amo_receiver.telemetry.command import migration_tracer

if TYPE_CHECKING:
    from collections.abc import Coroutine

Result = TypeVar("Result")

LOCK_TIMEOUTS_MS = range(100, 5_001)
TOLD_TO_END = "Told to end (SIGTERM) before all was done: what was under way is rolled back."

app = typer.Typer(help="Bring the database schema up to date, on the direct connection.", no_args_is_help=True)


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's coroutine; trouble with the database becomes one sentence."""
    try:
        return asyncio.run(coroutine)
    except (DBAPIError, OSError) as error:
        raise CommandError(sentence(error)) from error


def _direct_url() -> str:
    url = load_settings().db_direct_url.get_secret_value()
    if not url:
        raise ConfigurationError(
            "DB_DIRECT_URL (or DB_URL) is not set: it names the database, as postgresql://user:password@host:5432/name."
        )
    return url


@app.command()
def upgrade(
    target: Annotated[str, typer.Argument(help="`head` or a revision.")] = "head",
    lock_timeout: Annotated[str, typer.Option(help="How long one try waits for its locks, from 100ms to 5s.")] = "500ms",
    lock_tries: Annotated[int, typer.Option(min=1, help="How often it tries, with longer and longer pauses.")] = schema.LOCK_TRIES,
    result: Annotated[Path | None, typer.Option(help="File for the result as JSON, such as /dev/termination-log.")] = None,
) -> None:
    """Apply the migrations that are missing; any number of processes may do it at once.

    Example: amo-webhooks migrate upgrade head
    """
    progress = schema.Run()
    with reported(progress, result):
        asyncio.run(_upgrade(target, lock_timeout, lock_tries, progress))
    typer.echo(f"The database is at {progress.after}.")


async def _upgrade(target: str, lock_timeout: str, lock_tries: int, progress: schema.Run) -> None:
    """Upgrade until told to end; the statement that runs then is cancelled, and its transaction rolled back."""
    url, loop, task = _direct_url(), asyncio.get_running_loop(), asyncio.current_task()
    told = asyncio.Event()

    def end() -> None:
        told.set()
        if task:
            task.cancel()

    with suppress(NotImplementedError):  # Windows has no such signal
        loop.add_signal_handler(signal.SIGTERM, end)
    try:
        await schema.upgrade(
            url,
            load_settings().migrations_dir,
            target,
            typer.echo,
            lock_timeout_ms=_milliseconds(lock_timeout),
            lock_tries=lock_tries,
            run=progress,
            step=migration_tracer(_named(url)),
        )
    except BaseException as error:
        if told.is_set():
            raise CommandError(TOLD_TO_END) from error
        raise


def _named(url: str) -> dict[str, str | int]:
    try:
        return span_attributes(url)
    except ValueError:  # several hosts: which one it was is not known here
        return {}


def _milliseconds(lock_timeout: str) -> int:
    written = re.fullmatch(r"([0-9]{1,4})(ms|s)", lock_timeout)
    milliseconds = int(written[1]) * (1 if written[2] == "ms" else 1_000) if written else 0
    if milliseconds not in LOCK_TIMEOUTS_MS:
        raise ConfigurationError("--lock-timeout must be from 100ms to 5s, such as 500ms or 2s.")
    return milliseconds


@app.command()
def current() -> None:
    """Say which revision the database is at, and which one this release brings.

    Example: amo-webhooks migrate current
    """
    settings = load_settings()
    revision, known = run(_current(_direct_url())), schema.known_revisions(settings.migrations_dir)
    fits = "fits" if schema.runs_on(revision, known) else "does not fit"
    typer.echo(f"The database is at {revision.current or 'no revision'}, this release brings {known[0]}: it {fits}.")


async def _current(url: str) -> schema.Revision:
    engine = create_engine(url, pool_size=1)
    try:
        return await schema.read_revision(engine)
    finally:
        await engine.dispose()
