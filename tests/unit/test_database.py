"""Connections: libpq's URLs in asyncpg's words, and whose trouble an error is."""

from __future__ import annotations

import asyncpg
import pytest
from asyncpg import exceptions as pg
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from amo_receiver.database import DatabaseTimeout, connect_arguments, describe, is_temporary, is_worth_repeating, span_attributes
from amo_receiver.errors import ConfigurationError


@pytest.mark.parametrize(
    ("error", "temporary", "repeated"),
    [
        (pg.CheckViolationError("x"), False, False),
        (pg.NumericValueOutOfRangeError("x"), False, False),
        (pg.StatementTooComplexError("x"), False, False),
        (TypeError("Integer exceeds 64-bit range"), False, False),
        (pg.DeadlockDetectedError("x"), True, True),
        (pg.SerializationError("x"), True, True),
        (pg.LockNotAvailableError("x"), True, False),
        (pg.QueryCanceledError("x"), True, False),
        (pg.AdminShutdownError("x"), True, False),
        (pg.DiskFullError("x"), True, False),
        (pg.UndefinedFunctionError("x"), True, False),
        (pg.ConnectionDoesNotExistError("x"), True, True),
        (asyncpg.InterfaceError("x"), True, True),
        (ConnectionResetError(), True, True),
        (PoolTimeoutError(), True, True),
        (DatabaseTimeout(), True, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_whose_trouble_it_is(error: Exception, temporary: bool, repeated: bool) -> None:
    """Data that is refused, and our own code that fails on it, counts; outages, locks and a schema that does not fit do not."""
    assert (is_temporary(error), is_worth_repeating(error)) == (temporary, repeated)


def test_an_error_is_described_without_what_it_quotes() -> None:
    """Type and SQLSTATE; messages and details quote the data."""
    assert describe(pg.CheckViolationError("Failing row contains (Иван)")) == "CheckViolationError 23514"


@pytest.mark.parametrize(
    ("url", "dsn", "timeout"),
    [
        ("postgresql://u:p@h:5432/d", "postgresql://u:p@h:5432/d", 2.0),
        ("postgres://u@h/d?sslmode=verify-full&sslrootcert=/ca", "postgresql://u@h/d?sslmode=verify-full&sslrootcert=%2Fca", 2.0),
        ("postgresql+asyncpg://u@h/d", "postgresql://u@h/d", 2.0),
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=%2Frun%2Fpostgresql", 2.0),
        (
            "postgresql://u@h/d?connect_timeout=7&channel_binding=require&keepalives=1&sslmode=require",
            "postgresql://u@h/d?sslmode=require",
            7.0,
        ),
    ],
)
def test_a_libpq_url_is_translated(url: str, dsn: str, timeout: float) -> None:
    """What only libpq knows is left out, or the server would refuse it as a setting; statement caches are off."""
    assert connect_arguments(url) == {"dsn": dsn, "timeout": timeout, "statement_cache_size": 0}


@pytest.mark.parametrize("url", ["mysql://h/d", "h/d", ""])
def test_another_url_is_refused(url: str) -> None:
    """One sentence says what it must begin with."""
    with pytest.raises(ConfigurationError, match="postgresql://"):
        connect_arguments(url)


@pytest.mark.parametrize(
    ("url", "attributes"),
    [
        ("postgresql://u:p@h:6432/d", {"server.address": "h", "server.port": 6432, "db.namespace": "d"}),
        ("postgresql://u:p@[::1]/d", {"server.address": "::1", "db.namespace": "d"}),
        ("postgresql://u:p@h1:5432,h2:5432/d", {"db.namespace": "d"}),
        ("postgresql://u:p,p@h1/d?target_session_attrs=primary", {"server.address": "h1", "db.namespace": "d"}),
        ("postgresql:///d?host=/run/postgresql", {"db.namespace": "d"}),
        ("", {}),
    ],
)
def test_spans_name_the_server_where_there_is_one(url: str, attributes: dict[str, object]) -> None:
    """Of several it is not known which one a call goes to."""
    assert span_attributes(url) == attributes


def test_several_hosts_are_asyncpgs_to_choose_from() -> None:
    """They reach it as they are written."""
    assert connect_arguments("postgresql://u@h1:5432,h2:5433/d?target_session_attrs=read-write")["dsn"] == (
        "postgresql://u@h1:5432,h2:5433/d?target_session_attrs=read-write"
    )


@pytest.mark.parametrize("port", ["x", "99999"])
def test_a_port_that_is_none_is_one_sentence(port: str) -> None:
    """Without the URL, which has the password."""
    with pytest.raises(ConfigurationError, match=r"its port is a number from 0") as caught:
        span_attributes(f"postgresql://u:password@h:{port}/d")
    assert caught.value.__suppress_context__
