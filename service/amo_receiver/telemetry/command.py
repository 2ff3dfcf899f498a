"""A span for each command that changes the database, where the environment names a collector."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.trace import StatusCode

from amo_receiver.telemetry.setup import set_up

if TYPE_CHECKING:
    from collections.abc import Iterator

TRACED = frozenset({"migrate", "prune", "replay"})


@contextmanager
def traced(command: str) -> Iterator[None]:
    """Trace a command, if it is one of those, by its name and how it ended."""
    if command not in TRACED:
        yield
        return
    telemetry = set_up()
    telemetry.start()
    span = telemetry.tracer.start_span(f"amo-webhooks {command}")
    try:
        yield
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
        raise
    finally:
        span.end()
        telemetry.stop()
