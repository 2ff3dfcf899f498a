"""Logging: one record is one line, on standard error and in ``LOG_FILE``, for our loggers and those of the libraries.

Text: ``2026-11-22T15:39:00.123Z ERROR    message key=value … ErrorType``. From ERROR upwards the last word is the error's type.
JSON: one object a line with ``timestamp``, ``level``, ``event`` and the keys. A traceback is folded into the key ``traceback``: types and
places without messages, because those of a database or a parser quote personal data; only our own errors' messages are safe.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from datetime import UTC, datetime
from itertools import islice
from logging.handlers import RotatingFileHandler
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, get_args

import orjson
import structlog

from amo_receiver.errors import AmoWebhooksError, ConfigurationError
from amo_receiver.settings import LogLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from amo_receiver.settings import Settings

OUR_LOGGER = "amo_receiver"
LIBRARIES_AT_INFO = ("uvicorn", "alembic")
LOG_FILE_BYTES = 10 * 1024 * 1024
LOG_FILES_KEPT = 5
MOST_TRACEBACK_PLACES = 20
MOST_CHAINED_ERRORS = 5

UNPRINTABLE = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Logger(structlog.stdlib.BoundLogger):
    """A logger with key-value pairs; a level that is off costs one look-up."""

    def debug(self, event: str | None = None, *args: Any, **kw: Any) -> Any:
        """Write a DEBUG line."""
        return self._proxy_to_logger("debug", event, *args, **kw) if self._logger.isEnabledFor(logging.DEBUG) else None

    def info(self, event: str | None = None, *args: Any, **kw: Any) -> Any:
        """Write an INFO line."""
        return self._proxy_to_logger("info", event, *args, **kw) if self._logger.isEnabledFor(logging.INFO) else None


def get_logger(name: str) -> Logger:
    """Return the logger of a module; it follows ``configure`` and ``set_level`` at any time."""
    return Logger(logging.getLogger(name), [structlog.contextvars.merge_contextvars, _to_record], {})


def _to_record(_logger: object, _method: str, event_dict: Any) -> Any:
    """Hand the pairs over as one attribute of the record, where they cannot collide with its own."""
    arguments = {name: event_dict.pop(name) for name in ("exc_info", "stack_info") if name in event_dict}
    event = (event_dict.pop("event"), *event_dict.pop("positional_args", ()))
    return event, {**arguments, "extra": {"fields": event_dict}}


def configure(settings: Settings) -> None:
    """Send all logging of the process to standard error and ``LOG_FILE``; may be called again.

    :raises ConfigurationError: ``LOG_FILE`` cannot be written.
    """
    formatter = JsonFormatter() if settings.log_format == "json" else TextFormatter()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if settings.log_file is not None:
        handlers.append(_file_handler(settings.log_file))
    root = logging.getLogger()
    for former in [handler for handler in root.handlers if isinstance(handler.formatter, _LineFormatter)]:
        root.removeHandler(former)
        former.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    _take_over_uvicorn()
    set_level(settings.log_level)


def _file_handler(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return RotatingFileHandler(path, maxBytes=LOG_FILE_BYTES, backupCount=LOG_FILES_KEPT, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"LOG_FILE {path} cannot be written: {error.strerror}") from error


def _take_over_uvicorn() -> None:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    # The access log would write the path, and with it the URL token.
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate, access.disabled = [], False, True


def set_level(name: str) -> None:
    """Set the level of our lines at once; libraries never go below INFO or WARNING, for theirs quote parameters and URLs.

    :raises ConfigurationError: there is no such level.
    """
    if name.upper() not in get_args(LogLevel):
        raise ConfigurationError(f"LOG_LEVEL must be one of {', '.join(get_args(LogLevel))}")
    level = logging.getLevelNamesMapping()[name.upper()]
    logging.getLogger().setLevel(max(level, logging.WARNING))
    logging.getLogger(OUR_LOGGER).setLevel(level)
    for library in LIBRARIES_AT_INFO:
        logging.getLogger(library).setLevel(max(level, logging.INFO))


class _LineFormatter(logging.Formatter):
    """Turn a record into one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Escape whatever would end the line or steer a terminal."""
        return _one_line(self._line(record, _fields(record)))

    def _line(self, record: logging.LogRecord, fields: dict[str, Any]) -> str:
        raise NotImplementedError


class TextFormatter(_LineFormatter):
    """Write the lines people read."""

    def _line(self, record: logging.LogRecord, fields: dict[str, Any]) -> str:
        ending = ""
        if record.levelno >= logging.ERROR:
            ending = " " + (re.sub(r"[^\w.]+", "_", str(fields.pop("error_type", ""))) or "Error")
        pairs = "".join(f" {name}={_text_value(value)}" for name, value in fields.items())
        return f"{_timestamp(record)} {record.levelname:<8} {_message(record)}{pairs}{ending}"


class JsonFormatter(_LineFormatter):
    """Write the lines machines read."""

    def _line(self, record: logging.LogRecord, fields: dict[str, Any]) -> str:
        own = {"timestamp": _timestamp(record), "level": record.levelname, "event": _message(record)}
        entry = own | fields | own
        try:
            return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # a lone surrogate, an integer beyond 64 bits, a loop
            return json.dumps({name: str(value) for name, value in entry.items()})


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    # asyncio adds lines with the repr of the future, and that quotes the error's message.
    return message.partition("\n")[0] if record.exc_info and not hasattr(record, "fields") else message


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    fields = {"logger": record.name} if fields is None else dict(fields)
    if isinstance(fields.get("error_type"), type):
        fields["error_type"] = fields["error_type"].__name__
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        fields.setdefault("error_type", type(error).__name__)
        fields["traceback"] = "; caused by ".join(_describe(link) for link in islice(_chain(error), MOST_CHAINED_ERRORS))
    return fields


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _describe(error: BaseException) -> str:
    """Name an error and the places it passed, innermost first."""
    message = f" ({error})" if isinstance(error, AmoWebhooksError) else ""
    return " < ".join([type(error).__name__ + message, *_places(error.__traceback__)])


def _places(trace: TracebackType | None) -> list[str]:
    codes = [(frame.f_code, line) for frame, line in walk_tb(trace)]
    return [f"{code.co_filename}:{line} {code.co_qualname}" for code, line in codes[: -MOST_TRACEBACK_PLACES - 1 : -1]]


def _text_value(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text and not any(character in text for character in ' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)


def _one_line(line: str) -> str:
    if line.isprintable():
        return line
    return UNPRINTABLE.sub(lambda match: json.dumps(match.group())[1:-1], line)


class DeliveryLog:
    """Let the lines of ``per_second`` deliveries a second through, and count the others in one line; all of one ``level``."""

    def __init__(self, logger: Logger, per_second: int, clock: Callable[[], float] = time.monotonic, *, level: int = logging.INFO) -> None:
        self._level = level
        self._logger = logger
        self._per_second = per_second
        self._clock = clock
        self._began = clock()
        self._admitted = 0
        self._withheld = 0

    def admits(self) -> bool:
        """Tell whether the next delivery may write its INFO lines; ask once a delivery."""
        if not self._logger.isEnabledFor(self._level):
            return False
        self.flush()
        if self._admitted < self._per_second:
            self._admitted += 1
            return True
        self._withheld += 1
        return False

    def flush(self) -> None:
        """End a second that has passed; called now and then, the summary also comes when no delivery follows."""
        now = self._clock()
        if now - self._began < 1:
            return
        self._began, self._admitted = now, 0
        self.close()

    def close(self) -> None:
        """Write the summary of what was withheld."""
        if self._withheld:
            noun = "delivery" if self._withheld == 1 else "deliveries"
            self._logger.log(self._level, "… and %d more %s in the last second", self._withheld, noun)
        self._withheld = 0
