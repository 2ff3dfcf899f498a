"""`migrate`: bring the schema up, or say where it is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from sqlalchemy.exc import DBAPIError

from amo_receiver import schema
from amo_receiver.commands.database import sentence
from amo_receiver.database import create_engine
from amo_receiver.errors import CommandError, ConfigurationError
from amo_receiver.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Coroutine

Result = TypeVar("Result")

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
def upgrade(target: Annotated[str, typer.Argument(help="`head` or a revision.")] = "head") -> None:
    """Apply the migrations that are missing; any number of processes may do it at once.

    Example: amo-webhooks migrate upgrade head
    """
    revision = run(schema.upgrade(_direct_url(), load_settings().migrations_dir, target, typer.echo))
    typer.echo(f"The database is at {revision}.")


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
