"""What a run of migrations leaves for whoever started it: one JSON object, small enough for a container's termination message.

Neither a literal nor a row's value gets into it. Of the server's messages only the first line of the primary one is taken, and of
that what Postgres' sources say is no data.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from asyncpg import InterfaceError, PostgresError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from amo_receiver.commands.database import sentence
from amo_receiver.database import describe, sqlstate
from amo_receiver.errors import AmoWebhooksError, CommandError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from amo_receiver.schema import Run

LONGEST_ERROR = 500
"""Characters: with the rest and escaped it stays far below the 4096 bytes that Kubernetes keeps."""
KILLED = "The run was killed before it could say how it ended."
REFUSALS = {"Incompatible", "Blocked"}
"""Outcomes that are known before anything fails."""

TEMPORARY_CLASSES = {"08", "28", "3D", "40", "53", "57", "58"}
"""Connections, credentials, resources, operators: the same image may get through next time."""
NAMING_CLASSES = {"08", "0A", "23", "25", "28", "2B", "3D", "3F", "40", "42", "53", "54", "55", "57"}
"""Their messages quote the names of things; those of the others quote data."""
DATA_EXCEPTION = "22"
QUOTES = "\"'`«»„“”‚‘’"
NAMES_ONLY = re.compile(rf"""(?:[^{QUOTES}]|(?<!:\ )"[^\W\d][\w$.]*")*""", re.VERBOSE)
QUOTED = re.compile(rf"[{QUOTES}].*[{QUOTES}]", re.DOTALL)
NUMBER = re.compile(r"\d\w*")


def first_line(error: PostgresError) -> str:
    """Return SQLSTATE and primary message of the server's error without what may be data.

    Names stay where the message's class quotes names; a message of RAISE is whatever its author put together.
    """
    message, group = str(error.args[0] if error.args else ""), str(error.sqlstate)[:2]
    if error.server_source_filename == "pl_exec.c":
        message = ""
    elif group == DATA_EXCEPTION:
        message = NUMBER.sub("…", QUOTED.sub("…", message))
        message = message if not any(quote in message for quote in QUOTES) else ""
    elif group in NAMING_CLASSES:
        names = NAMES_ONLY.match(message)
        end = names.end() if names else 0
        message = message[:end] + "…" * (end < len(message))
    else:
        message = ""
    line = next(iter(message.splitlines()), "").strip()
    return f"{error.sqlstate}: {line or type(error).__name__}"


def said(error: BaseException) -> tuple[str, bool]:
    """Return an error's sentence, and whether it may end otherwise next time without another image."""
    cause = error.orig.__cause__ if isinstance(error, DBAPIError) and error.orig else error
    if isinstance(cause, PostgresError):
        return first_line(cause), str(sqlstate(cause))[:2] in TEMPORARY_CLASSES
    if isinstance(error, AmoWebhooksError):
        return str(error), True
    if isinstance(error, OSError):
        return sentence(error), True
    if isinstance(error, SQLAlchemyError | InterfaceError):
        return sentence(error), isinstance(cause, InterfaceError)
    return f"{describe(error)}: see the log.", not isinstance(error, Exception)


@contextmanager
def reported(run: Run, result: Path | None) -> Iterator[None]:
    """Run migrations; what came of it is written to ``result`` in any case, and the database's trouble becomes one sentence."""
    _write(result, run, KILLED, temporary=True)
    try:
        yield
    except BaseException as error:
        line, temporary = said(error)
        if run.outcome not in REFUSALS:
            run.outcome = "Failed"
        _write(result, run, line, temporary=temporary and run.outcome != "Incompatible")
        if isinstance(error, DBAPIError | PostgresError | InterfaceError | OSError):
            raise CommandError(line) from error
        raise
    _write(result, run, None, temporary=False)


def _write(result: Path | None, run: Run, error: str | None, *, temporary: bool) -> None:
    if result is None:
        return
    document: dict[str, Any] = {
        "outcome": run.outcome,
        "from": run.before,
        "to": run.after,
        "blockers": [blocker._asdict() for blocker in run.blockers],
        "error": " ".join(error.split())[:LONGEST_ERROR] if error else None,
        "temporary": temporary,
    }
    try:
        # Over what is there: a container's termination message is mounted as a single file, which cannot be replaced.
        result.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as problem:
        raise ConfigurationError(f"--result {result} cannot be written ({type(problem).__name__}).") from problem
