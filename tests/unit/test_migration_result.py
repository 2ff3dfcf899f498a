"""What a migration may say of the database to those who have no access to it: names, never data."""

from __future__ import annotations

from typing import Any

import pytest
from asyncpg import PostgresError

from amo_receiver.commands.migrate import _milliseconds
from amo_receiver.commands.migration_result import first_line
from amo_receiver.errors import ConfigurationError
from amo_receiver.schema import fingerprint
from amo_receiver.telemetry.command import summarized

MARK = "Ivanova79161234567"


def error(state: str, message: str, **fields: str) -> PostgresError:
    """Make what asyncpg makes of the server's answer."""
    made: Any = PostgresError.new({"C": state, "M": message, "D": f"Key (name)=({MARK}) exists.", **fields})
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("state", "message", "line"),
    [
        ("23505", 'could not create unique index "leads_name"', '23505: could not create unique index "leads_name"'),
        ("42703", 'column "x" of relation "leads" does not exist', '42703: column "x" of relation "leads" does not exist'),
        ("42804", 'column "x" cannot be cast\nautomatically', '42804: column "x" cannot be cast'),
        ("42601", f'unterminated quoted string at or near "\'a "b" {MARK}"', "42601: unterminated quoted string at or near …"),
        ("42601", f'syntax error in tsquery: "{MARK}"', "42601: syntax error in tsquery: …"),
        ("42601", f"Syntaxfehler bei »{MARK}«", "42601: Syntaxfehler bei …"),
        ("22P02", f'invalid input syntax for type integer: "{MARK}"', "22P02: invalid input syntax for type integer: …"),
        ("22P02", f'invalid input syntax for type integer: "a" {MARK} "b"', "22P02: invalid input syntax for type integer: …"),
        ("22P02", f'invalid input syntax for type integer: "a\n{MARK}"', "22P02: invalid input syntax for type integer: …"),
        ("22P02", f"la sintaxis no es válida: «{MARK}»", "22P02: la sintaxis no es válida: …"),
        ("22003", f'value "{MARK}" is out of range for type integer', "22003: value … is out of range for type integer"),
        ("22003", "setval: value 79161234567 is out of bounds", "22003: setval: value … is out of bounds"),
        ("22021", 'invalid byte sequence for encoding "UTF8": 0xd0 0x98', "22021: invalid byte sequence for encoding …: … …"),
        ("22000", f'cut within a value: "{MARK}', "22000: DataError"),
        ("P0001", f"a customer's {MARK}", "P0001: RaiseError"),
        ("XX000", f"unexpected {MARK}", "XX000: InternalServerError"),
        ("AB123", f"an extension's {MARK}", "AB123: UnknownPostgresError"),
        ("23505", "", "23505: UniqueViolationError"),
    ],
)
def test_only_names_of_a_message_are_kept(state: str, message: str, line: str) -> None:
    """A message of a class that quotes names keeps them; in one that quotes data all quotes and numbers are cut; others are left out."""
    assert first_line(error(state, message)) == line


def test_a_message_of_raise_is_left_out_under_any_state() -> None:
    """Whoever wrote it may have put a row's values into it, and may give it the state of a violated constraint."""
    raised = error("23505", f"{MARK} is there already", F="pl_exec.c", R="exec_stmt_raise")
    assert first_line(raised) == "23505: UniqueViolationError"


@pytest.mark.parametrize(
    "query",
    [
        f"UPDATE leads SET name = '{MARK}', price = 5 WHERE id IN (1)",
        "update leads  set name = 'it''s', price = -5.5e3 where id in (0x1f)",
        "UPDATE leads SET name = E'it\\'s',\n price = 5 WHERE id IN (1)",
        f"UPDATE leads SET name = $${MARK}$$, price = 5 WHERE id IN (1)",
        f"UPDATE leads SET name = $a${MARK}'$$ $a$, price = 5 WHERE id IN (1) -- {MARK}",
        f"/* {MARK} 'x */ UPDATE leads SET name = '--', price = 5 WHERE id IN (1)",
    ],
)
def test_statements_that_differ_in_literals_have_one_fingerprint(query: str) -> None:
    """So that it tells nothing of them, not even to whoever tries all phone numbers."""
    assert fingerprint(query, None) == fingerprint("UPDATE leads SET name = 'x', price = 7 WHERE id IN (8)", None)
    assert fingerprint(query, None) != fingerprint("UPDATE leads SET name = $1, price = 7 WHERE id IN (8)", None)
    assert fingerprint(query, None) != fingerprint("UPDATE contacts SET name = 'x', price = 7 WHERE id IN (8)", None)
    assert len(fingerprint(query, None)) == 12


def test_a_literal_that_was_cut_off_is_none_of_the_fingerprint() -> None:
    """Postgres shows the first kilobyte of a statement; the last literal may have no end."""
    for begin in ("'", "E'", "$$", "$a$", "/* ", "-- "):
        first, second = (fingerprint(f"SELECT 1, {begin}{rest}", None) for rest in (MARK, "another"))
        assert first == second, begin


def test_the_number_that_postgres_gives_a_query_is_its_fingerprint() -> None:
    """It is a signed 64-bit one, shown in hex."""
    assert [fingerprint("", number) for number in (255, -1)] == ["00000000000000ff", "f" * 16]


@pytest.mark.parametrize(
    ("statement", "operation", "summary"),
    [
        ("ALTER TABLE leads ADD COLUMN x text DEFAULT 'secret'", "ALTER TABLE", "ALTER TABLE leads"),
        ("\n-- why: 'secret'\nCREATE TABLE IF NOT EXISTS public.leads (id int)", "CREATE TABLE", "CREATE TABLE public.leads"),
        ("create unique index concurrently leads_name on leads (name)", "CREATE INDEX", "CREATE INDEX leads_name"),
        ("CREATE OR REPLACE FUNCTION join_v1(one jsonb)", "CREATE FUNCTION", "CREATE FUNCTION join_v1"),
        ('DROP INDEX CONCURRENTLY "leads_name"', "DROP INDEX", "DROP INDEX leads_name"),
        ("INSERT INTO leads VALUES ('secret')", "INSERT", "INSERT leads"),
        ("UPDATE leads SET name = 'secret'", "UPDATE", "UPDATE leads"),
        ("DELETE FROM ONLY leads WHERE name = 'secret'", "DELETE", "DELETE leads"),
        ("SELECT 'secret from secret'", "SELECT", "SELECT"),
        ("/* 'secret' */ SET lock_timeout = '5s'", "SET", "SET"),
        ("COMMENT ON TABLE leads IS 'secret'", "COMMENT", "COMMENT"),
        ("DO $$ BEGIN PERFORM 'secret'; END $$", "DO", "DO"),
        ("DROP", "DROP", "DROP"),
        ("'secret'", "?", "?"),
        ("", "?", "?"),
    ],
)
def test_a_statement_s_summary_holds_no_literal(statement: str, operation: str, summary: str) -> None:
    """What is done and to what, as a span's name."""
    assert summarized(statement) == (operation, summary)


@pytest.mark.parametrize(("written", "milliseconds"), [("100ms", 100), ("500ms", 500), ("1s", 1_000), ("5s", 5_000), ("5000ms", 5_000)])
def test_a_lock_timeout_in_its_bounds(written: str, milliseconds: int) -> None:
    """Whole milliseconds or seconds, as the custom resource has it."""
    assert _milliseconds(written) == milliseconds


@pytest.mark.parametrize("written", ["99ms", "5001ms", "6s", "0s", "1m", "500", "-1s", "1.5s", "s", "", "٥s", "1s; DROP TABLE leads"])
def test_a_lock_timeout_out_of_bounds_is_refused(written: str) -> None:
    """A longer one would queue every reader behind the migration."""
    with pytest.raises(ConfigurationError, match="from 100ms to 5s"):
        _milliseconds(written)
