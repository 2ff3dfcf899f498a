"""A span for each command that changes the database, where the environment names a collector; below it, what a migration does."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanKind, StatusCode, set_span_in_context

from amo_receiver.telemetry.links import span_context
from amo_receiver.telemetry.setup import set_up
from amo_receiver.telemetry.spans import parse_traceparent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span, Tracer
    from sqlalchemy.engine import Connection

TRACED = frozenset({"migrate", "prune", "replay"})
BESIDE_NAMES = (
    r"(?:\s+(?:or|replace|unique|temp|temporary|unlogged|materialized|concurrently|if|not|exists|only|into|from|on)\b|\s*--[^\n]*\n)*"
)
NAME = r'\s+"?(?P<{}>[a-z_][\w.]*)'
STATEMENT = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:"
    rf"(?P<verb>create|alter|drop){BESIDE_NAMES}{NAME.format('kind')}(?:{BESIDE_NAMES}{NAME.format('thing')})?"
    rf"|(?P<change>insert|update|delete){BESIDE_NAMES}{NAME.format('table')}"
    r"|(?P<other>[a-z]+))",
    re.IGNORECASE | re.DOTALL,
)


class _Command(NamedTuple):
    tracer: Tracer
    span: Span


_COMMAND: ContextVar[_Command | None] = ContextVar("command", default=None)


@contextmanager
def traced(command: str) -> Iterator[None]:
    """Trace a command, if it is one of those, by its name and how it ended, below the environment's ``TRACEPARENT``."""
    if command not in TRACED:
        yield
        return
    telemetry = set_up()
    telemetry.start()
    parent = parse_traceparent(os.environ.get("TRACEPARENT", "").strip())
    context = _below(NonRecordingSpan(span_context(parent))) if parent else None
    span = telemetry.tracer.start_span(f"amo-webhooks {command}", context)
    before = _COMMAND.set(_Command(telemetry.tracer, span) if telemetry.exporter else None)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            _fail(span, error)
        raise
    finally:
        _COMMAND.reset(before)
        span.end()
        telemetry.stop()


def migration_tracer(database: Mapping[str, str | int]) -> Callable[[str, Connection], AbstractContextManager[None]]:
    """Return what traces one revision, by its number and connection, below the command's span; ``database``: attributes that name it."""
    command = _COMMAND.get()
    if command is None:
        return lambda _revision, _connection: nullcontext()
    return lambda revision, connection: _revision_span(command, revision, connection, database)


@contextmanager
def _revision_span(command: _Command, revision: str, connection: Connection, database: Mapping[str, str | int]) -> Iterator[None]:
    from sqlalchemy import event  # noqa: PLC0415 - only where tracing is on

    span = command.tracer.start_span(f"migrate {revision}", _below(command.span))
    statements = _Statements(command.tracer, span, database)
    event.listen(connection, "before_cursor_execute", statements.begin)
    event.listen(connection, "after_cursor_execute", statements.end)
    try:
        yield
    except BaseException as error:
        statements.fail(error)
        _fail(span, error)
        raise
    finally:
        event.remove(connection, "before_cursor_execute", statements.begin)
        event.remove(connection, "after_cursor_execute", statements.end)
        span.end()


class _Statements:
    """The spans of the statements of one revision; one that another follows before it ended has failed."""

    def __init__(self, tracer: Tracer, parent: Span, database: Mapping[str, str | int]) -> None:
        self._tracer = tracer
        self._context = _below(parent)
        self._database = {"db.system.name": "postgresql", **database}
        self._span: Span | None = None

    def begin(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        self.fail(None)
        operation, summary = summarized(statement)
        attributes = {**self._database, "db.operation.name": operation, "db.query.summary": summary}
        self._span = self._tracer.start_span(summary, self._context, SpanKind.CLIENT, attributes)

    def end(self, *_: object) -> None:
        if self._span:
            self._span.end()
        self._span = None

    def fail(self, error: BaseException | None) -> None:
        if self._span:
            _fail(self._span, error)
        self.end()


def summarized(statement: str) -> tuple[str, str]:
    """Return what a statement does, and to what: ``("ALTER TABLE", "ALTER TABLE leads")``; no literal of it."""
    found = STATEMENT.match(statement)
    if found is None:
        return "?", "?"
    operation = " ".join(found[part] for part in ("verb", "kind", "change", "other") if found[part]).upper()
    thing = found["thing"] or found["table"]
    return operation, f"{operation} {thing}"[:100] if thing else operation


def _below(span: Span) -> Context:
    return set_span_in_context(span, Context())


def _fail(span: Span, error: BaseException | None) -> None:
    cause = getattr(error, "orig", None) or error
    state = getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        span.set_attribute("db.response.status_code", state)
    if error is not None:
        span.set_attribute("error.type", type(error).__name__)
    span.set_status(StatusCode.ERROR)
