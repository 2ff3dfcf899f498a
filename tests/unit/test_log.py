"""Log lines: their shape, what ends them, and what never shows in them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from amo_receiver.errors import ConfigurationError, Unavailable
from amo_receiver.log import LOG_FILE_BYTES, DeliveryLog, JsonFormatter, Logger, TextFormatter, configure, get_logger, set_level
from amo_receiver.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARK = "MARKEDsecretMARKED"
NAMES = ("", "amo_receiver", "uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access", "alembic")
TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG   |INFO    |WARNING |ERROR   |CRITICAL) (.*)\n")
EASY = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Give the process its logging back, whatever a test configured."""
    loggers = {name: logging.getLogger(name) for name in NAMES}
    before = {name: (each.level, each.handlers[:], each.propagate, each.disabled) for name, each in loggers.items()}
    yield
    for handler in set(loggers[""].handlers) - set(before[""][1]):
        handler.close()
    for name, each in loggers.items():
        level, each.handlers, each.propagate, each.disabled = before[name]
        each.setLevel(level)


def made(**overrides: Any) -> Settings:
    return load_settings(_env_file=None, **overrides)


def line_of(log_format: str, capsys: pytest.CaptureFixture[str], level: str = "info", event: str = "event", /, **fields: Any) -> str:
    configure(made(log_format=log_format, log_level="DEBUG"))
    getattr(get_logger("amo_receiver.test"), level)(event, **fields)
    return capsys.readouterr().err


def test_a_text_line_is_time_level_message_and_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    """The message begins right after the padded level; values with spaces are quoted."""
    event = 'Received webhook from amoCRM: {"leads": {"add": [{"id": 12345}]}}'
    line = line_of("text", capsys, "info", event, delivery_id="01-a", count=3, note="a b", empty="", path="a=b", quote='"', none=None)
    match = TEXT_LINE.fullmatch(line)
    assert match is not None
    assert match[1] == "INFO    "
    assert match[2] == event + ' delivery_id=01-a count=3 note="a b" empty="" path="a=b" quote="\\"" none=None'


def test_a_json_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """timestamp, level and event come first and cannot be overwritten by a pair."""
    line = line_of("json", capsys, "warning", "Сделка: 1", entity="leads", timestamp="x", level="y", nested={1: ["a"]}, name="n", msg="m")
    entry = json.loads(line)
    assert line.endswith("}\n")
    assert list(entry)[:3] == ["timestamp", "level", "event"]
    assert re.fullmatch(r"[-\dT:]{19}\.\d{3}Z", entry.pop("timestamp"))
    assert entry == {"level": "WARNING", "event": "Сделка: 1", "entity": "leads", "nested": {"1": ["a"]}, "name": "n", "msg": "m"}


def failing(error: BaseException) -> BaseException:
    """Return the error as it is once raised and caught, with what it was raised from."""
    with contextlib.suppress(type(error)):
        try:
            raise KeyError(MARK)  # noqa: TRY301 - it is to be the cause
        except KeyError as cause:
            raise error from cause
    return error


@pytest.mark.parametrize("level", ["error", "critical", "exception"])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"error_type": "UniqueViolation"}, "UniqueViolation"),
        ({"error_type": ValueError}, "ValueError"),
        ({"error_type": "Two words\nand=more"}, "Two_words_and_more"),
        ({"error_type": "UniqueViolation", "exc_info": failing(ValueError(MARK))}, "UniqueViolation"),
        ({"error_type": "", "key": "a b"}, "Error"),
        ({"exc_info": failing(ValueError(MARK + "\nsecond line"))}, "ValueError"),
        ({"exc_info": failing(asyncio.CancelledError())}, "CancelledError"),
        ({}, "Error"),
        ({"exc_info": False}, "Error"),
        ({"key": "a b", "exc_info": None}, "Error"),
    ],
)
def test_an_error_s_text_line_ends_with_its_type(
    capsys: pytest.CaptureFixture[str], level: str, fields: dict[str, Any], expected: str
) -> None:
    """From ERROR upwards the last word is the type, traceback or not, and the line is one."""
    line = line_of("text", capsys, level, "Event is dead: 5\nERROR forged", **fields)
    assert line.count("\n") == 1
    assert TEXT_LINE.fullmatch(line)
    assert line.split()[-1] == expected
    assert "error_type=" not in line
    assert "MARKED" not in line


def test_below_error_the_type_is_a_pair_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    """A retry's warning names its error by key."""
    assert line_of("text", capsys, "warning", "Retry", error_type="Timeout", attempt=1).endswith("Retry error_type=Timeout attempt=1\n")


def test_errors_are_counted_by_the_documented_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The pipe grep ERROR | awk | sort | uniq -c over the file counts by type."""
    configure(made(log_file=tmp_path / "some" / "logs" / "app.log"))
    logger = get_logger("amo_receiver.test")
    for error in (ValueError(MARK), Unavailable("no database"), ValueError("a\nb")):
        logger.error("Failed", exc_info=failing(error), note="one two")
    logger.info("Fine")
    logger.error("Dead", error_type="DeadLetter")
    command = f"grep ERROR {tmp_path}/some/logs/app.log | awk '{{print $NF}}' | sort | uniq -c"
    counted = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout  # noqa: S602
    assert [line.split() for line in counted.splitlines()] == [["1", "DeadLetter"], ["1", "Unavailable"], ["2", "ValueError"]]
    assert capsys.readouterr().err == (tmp_path / "some" / "logs" / "app.log").read_text()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_tells_types_and_places_and_no_foreign_message(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    """Messages of others may quote personal data; ours are safe and shown; the chain of causes is followed."""
    line = line_of(log_format, capsys, "error", "Failed", exc_info=failing(Unavailable("too much in flight")))
    assert "Unavailable (too much in flight) < " in line
    assert "test_log.py:" in line
    assert " failing; caused by KeyError < " in line
    assert "MARKED" not in line
    assert line.count("\n") == 1


def test_a_hidden_cause_stays_hidden_and_a_loop_of_causes_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """``from None`` is respected, an implicit context is shown, and a cycle is cut."""
    first, second = ValueError("a"), TypeError("b")
    first.__context__, second.__context__ = second, first
    assert line_of("text", capsys, "error", exc_info=first).count("caused by") == 4
    first.__suppress_context__ = True
    assert "caused by" not in line_of("text", capsys, "error", exc_info=first)


def test_a_deep_traceback_is_cut_to_its_innermost_places(capsys: pytest.CaptureFixture[str]) -> None:
    """A recursion does not make a line of a megabyte."""

    def deeper(depth: int) -> None:
        if depth == 0:
            raise ValueError("bottom")
        deeper(depth - 1)

    with pytest.raises(ValueError, match="bottom") as caught:
        deeper(100)
    line = line_of("text", capsys, "error", exc_info=caught.value)
    assert line.count(" < ") == 20


HOSTILE = "a\nb\r\x1b[31m\x00\x7f\x85\u2028\u2029\u202e\ud800z"


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("where", ["event", "value", "nested"])
def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str], log_format: str, where: str) -> None:
    """Neither message nor value can start a line of its own, colour a terminal or reverse the text."""
    if where == "event":
        line = line_of(log_format, capsys, "info", HOSTILE)
    else:
        line = line_of(log_format, capsys, key=HOSTILE if where == "value" else {"k": [HOSTILE]})
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert "\\u001b[31m" in line or "\\x1b[31m" in line
    if log_format == "json":
        entry = json.loads(line)
        assert HOSTILE in (entry["event"], entry.get("key")) or where == "nested"


@pytest.mark.parametrize("value", [2**70, float("nan"), b"bytes", object, {1, 2}, {"a": 2**70}, [[[1]]]])
def test_any_value_makes_a_valid_json_line(capsys: pytest.CaptureFixture[str], value: Any) -> None:
    """A value that JSON does not know is its text, and never costs the line."""
    entry = json.loads(line_of("json", capsys, key=value), parse_constant=pytest.fail)
    assert entry["event"] == "event"
    assert "key" in entry


def record(message: Any, fields: dict[str, Any] | None, level: int = logging.ERROR) -> logging.LogRecord:
    made_record = logging.LogRecord("amo_receiver.test", level, "", 0, message, (), None)
    if fields is not None:
        made_record.fields = fields
    return made_record


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)


@EASY
@given(message=ANY_TEXT, fields=st.none() | st.dictionaries(st.sampled_from(["a", "error_type"]), ANY_TEXT | st.integers() | st.none()))
def test_one_record_is_one_line_whatever_is_in_it(message: str, fields: dict[str, Any] | None) -> None:
    """Any text in message and values gives a line that splits nowhere, is JSON, and as text ends with a single word."""
    text = TextFormatter().format(record(message, fields))
    assert len((text + "\n").splitlines()) == 1
    assert re.fullmatch(r"[\w.]+", text.split(" ")[-1])
    line = JsonFormatter().format(record(message, fields))
    assert len((line + "\n").splitlines()) == 1
    assert json.loads(line)["event"] == message


def test_standard_logging_takes_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    """Libraries' records are lines of the same shape with the logger's name, and their first line only beside a traceback."""
    configure(made())
    logging.getLogger("some.library").warning("Slow: %s", "x y")
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: %r", MARK, exc_info=failing(ValueError(MARK)))
    logging.getLogger("uvicorn.error").info("Started\nserver")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith(" WARNING  Slow: x y logger=some.library")
    assert second.split()[-1] == "ValueError"
    assert "MARKED" not in second
    assert third.endswith(" INFO     Started\\nserver logger=uvicorn.error")


def test_uvicorn_s_own_handlers_are_replaced_and_its_access_log_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    """No path, and so no URL token, is ever written."""
    for name in ("uvicorn", "uvicorn.access"):
        logging.getLogger(name).addHandler(logging.StreamHandler(sys.stderr))
        logging.getLogger(name).propagate = False
    configure(made(log_level="DEBUG"))
    access = logging.getLogger("uvicorn.access")
    access.setLevel(logging.DEBUG)
    access.critical(MARK)
    assert not access.hasHandlers()
    logging.getLogger("uvicorn").warning("one")
    logging.getLogger("uvicorn.error").warning("two")
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()] == ["one", "two"]


def test_libraries_never_log_their_details(capsys: pytest.CaptureFixture[str]) -> None:
    """DEBUG is for our own lines: libraries' would quote parameters, bodies and URLs."""
    configure(made(log_level="DEBUG"))
    for name in ("httpx", "sqlalchemy.engine", "asyncio"):
        logging.getLogger(name).info(MARK)
    for name in ("uvicorn.error", "alembic.runtime"):
        logging.getLogger(name).debug(MARK)
    assert capsys.readouterr().err == ""


def test_the_level_changes_at_once_for_loggers_already_made(capsys: pytest.CaptureFixture[str]) -> None:
    """set_level holds for every later line; an unknown level is refused and changes nothing."""
    logger = get_logger("amo_receiver.test")
    configure(made(log_level="WARNING"))
    logger.info("no")
    logger.debug("no")
    set_level("debug")
    logger.info("yes")
    logger.debug("yes")
    set_level("INFO")
    logger.debug("no")
    with pytest.raises(ConfigurationError, match="LOG_LEVEL must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL"):
        set_level("NOTSET")
    logger.info("yes")
    set_level("ERROR")
    logging.getLogger("some.library").warning("no")
    logging.getLogger("uvicorn.error").warning("no")
    logger.warning("no")
    written = capsys.readouterr().err
    assert (written.count("yes"), written.count("no")) == (3, 0)


def test_a_level_that_is_off_runs_no_processor() -> None:
    """The price of a line that is not written is one look-up."""

    def never(*_: Any) -> Any:
        pytest.fail("a processor ran")

    set_level("WARNING")
    logger = Logger(logging.getLogger("amo_receiver.test"), [never], {})
    logger.info("x", key="y")
    logger.debug("x", key="y")


def test_bound_and_ambient_pairs_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    """bind, contextvars and positional arguments work as structlog's users know them."""
    configure(made())
    with structlog.contextvars.bound_contextvars(delivery_id="d"):
        get_logger("amo_receiver.test").bind(worker=1).info("Took %s of %d", "a", 2, key="v")
    assert capsys.readouterr().err.endswith(" INFO     Took a of 2 worker=1 key=v delivery_id=d\n")


def test_a_message_with_a_percent_sign_is_written_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Without arguments nothing is formatted."""
    assert "100 %s done" in line_of("text", capsys, "info", "100 %s done")


def test_configured_twice_a_line_is_still_written_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The second configuration replaces the first and leaves foreign handlers alone."""
    foreign = logging.NullHandler()
    logging.getLogger().addHandler(foreign)
    configure(made(log_file=tmp_path / "a.log"))
    configure(made(log_file=tmp_path / "b.log", log_format="json"))
    get_logger("amo_receiver.test").info("once")
    assert capsys.readouterr().err.count("once") == 1
    assert (tmp_path / "a.log").read_text() == ""
    assert json.loads((tmp_path / "b.log").read_text())["event"] == "once"
    assert foreign in logging.getLogger().handlers


def test_the_log_file_is_rotated(tmp_path: Path) -> None:
    """At 10 MiB the file is renamed; five old ones are kept."""
    path = tmp_path / "app.log"
    for number in range(1, 6):
        path.with_name(f"app.log.{number}").write_text(str(number))
    path.write_bytes(b"x" * (LOG_FILE_BYTES - 10))
    configure(made(log_file=path))
    get_logger("amo_receiver.test").info("строка \ud800")
    assert "строка" in path.read_text(encoding="utf-8")
    assert path.with_name("app.log.1").stat().st_size == LOG_FILE_BYTES - 10
    assert path.with_name("app.log.5").read_text() == "4"
    assert not path.with_name("app.log.6").exists()
    assert LOG_FILE_BYTES == 10_485_760


def test_a_log_file_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    """The setting and the reason are named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"LOG_FILE .* cannot be written"):
        configure(made(log_file=tmp_path / "file" / "app.log"))


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def summaries(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [each.getMessage() for each in caplog.records]
    caplog.clear()
    return lines


def test_deliveries_beyond_the_limit_are_counted_in_a_line_a_second(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """Twenty of 500 are let through, the summary counts 480 when the second is over, and the next second starts anew."""
    set_level("INFO")
    deliveries = DeliveryLog(get_logger("amo_receiver.test"), 20, clock)
    assert [deliveries.admits() for _ in range(500)] == [True] * 20 + [False] * 480
    clock.now += 0.999
    assert deliveries.admits() is False
    assert summaries(caplog) == []
    clock.now += 0.001
    assert [deliveries.admits() for _ in range(21)] == [True] * 20 + [False]
    assert summaries(caplog) == ["… and 481 more deliveries in the last second"]


def test_a_summary_comes_without_a_further_delivery(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """A flush ends a second that has passed, close writes what is left, and neither repeats itself."""
    set_level("INFO")
    deliveries = DeliveryLog(get_logger("amo_receiver.test"), 0, clock)
    assert deliveries.admits() is False
    deliveries.flush()
    assert summaries(caplog) == []
    clock.now += 1
    deliveries.flush()
    deliveries.flush()
    clock.now += 1
    deliveries.flush()
    assert summaries(caplog) == ["… and 1 more delivery in the last second"]
    deliveries.admits()
    deliveries.close()
    deliveries.close()
    assert summaries(caplog) == ["… and 1 more delivery in the last second"]


def test_within_the_limit_there_is_no_summary(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """Nothing withheld, nothing said."""
    set_level("INFO")
    deliveries = DeliveryLog(get_logger("amo_receiver.test"), 1, clock)
    for _ in range(3):
        assert deliveries.admits() is True
        clock.now += 1
    assert summaries(caplog) == []


def test_with_info_off_nothing_is_admitted_or_counted(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """At WARNING a delivery costs one look-up, and there is no summary when INFO comes back."""
    set_level("WARNING")
    deliveries = DeliveryLog(get_logger("amo_receiver.test"), 1, clock)
    assert [deliveries.admits() for _ in range(3)] == [False] * 3
    set_level("INFO")
    clock.now += 5
    assert deliveries.admits() is True
    assert summaries(caplog) == []
