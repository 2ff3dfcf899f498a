"""`doctor`: what is wrong with an installation, and how to mend it; it changes nothing and shows no secret."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

import typer
from rich.console import Console
from sqlalchemy import text

from amo_receiver import schema
from amo_receiver.amocrm.keyring_file import parse_source
from amo_receiver.commands.language import speaking
from amo_receiver.commands.tables import print_table
from amo_receiver.database import create_engine, describe, sqlstate, unsafe_settings
from amo_receiver.errors import ConfigurationError
from amo_receiver.notify import name_of, services
from amo_receiver.settings import Settings, check, load_settings
from amo_receiver.watch import MOST_FILE_BYTES, KeyringDirectory, load_keyring, load_mapping, read_bounded, visible_entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

OLDEST_VERSION = 15
SLOW_MS = 50.0
LATENCY_SAMPLES = 5
QUESTION_SECONDS = 5.0
MENDS = {
    "28P01": "the password is refused: correct it in the URL",
    "28000": "the user is refused: correct the URL, or pg_hba.conf",
    "3D000": "there is no database of this name: create it, or correct the URL",
    "53300": "Postgres has no connection left: raise max_connections, or lower DB_POOL_SIZE",
}


@dataclass(frozen=True)
class Finding:
    """What was found out about one part, and how to mend it unless it is ok."""

    part: str
    state: Literal["ok", "warning", "problem"]
    sentence: str


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    dev: Annotated[bool, typer.Option("--dev", help="Judge as `amo-webhooks dev` runs, with its default credentials.")] = False,
) -> None:
    """Examine configuration, database, pooler, schema and keys; say what is wrong and how to mend it.

    Example: amo-webhooks doctor
    """
    # What the parts would log about themselves is in the table.
    logging.disable()
    speak = speaking(os.environ)
    with Console(stderr=True).status(speak("Examining ...")):
        findings = asyncio.run(_examine(dev))
    rows = (map(speak, (finding.part, finding.state, finding.sentence)) for finding in findings)
    print_table([speak(heading) for heading in ("part", "state", "finding")], map(list, rows))
    typer.echo(speak(verdict(findings)))
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


async def _examine(dev: bool) -> list[Finding]:
    try:
        settings = load_settings(dev)
    except ConfigurationError as error:
        return [Finding("settings", "problem", f"{error}.")]
    findings = [*settings_findings(settings, dev), *file_findings(settings), *keyring_findings(settings, datetime.now(UTC))]
    if settings.db_url:
        findings += [finding async for finding in database_findings(settings)]
    elif dev:  # elsewhere it is a mistake of the settings already
        findings.append(Finding("database", "problem", "DB_URL is not set: paste the line with it that `amo-webhooks dev` prints."))
    if settings.db_direct_url:
        findings.append(await direct_finding(settings))
    return findings


def settings_findings(settings: Settings, dev: bool) -> Iterator[Finding]:
    """Judge the settings by themselves."""
    try:
        warnings = check(settings, dev)
        told = ", ".join(map(name_of, services(settings.notify_url.get_secret_value())))
    except ConfigurationError as error:
        yield from (Finding("settings", "problem", f"{problem}.") for problem in str(error).split("; "))
        return
    yield from (Finding("settings", "warning", f"{warning}.") for warning in warnings)
    if not warnings:
        yield Finding("settings", "ok", "Complete.")
    if told:
        yield Finding("notifications", "ok", f"They go to {told}.")


def file_findings(settings: Settings) -> Iterator[Finding]:
    """Judge the mapping and the migrations."""
    try:
        load_mapping(settings)
        yield Finding("mapping", "ok", f"{settings.mapping_file or 'The shipped one'} is readable.")
    except ConfigurationError as error:
        yield Finding("mapping", "problem", f"{error} Correct the file that MAPPING_FILE names.")
    try:
        yield Finding("migrations", "ok", f"They go up to {schema.known_revisions(settings.migrations_dir)[0]}.")
    except ConfigurationError as error:
        yield Finding("migrations", "problem", str(error))


def keyring_findings(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Judge the keys of the environment and of the keyring folder, by fingerprint."""
    directory = None
    if settings.amocrm_keyring_dir:
        yield from _folder_findings(settings.amocrm_keyring_dir)
        directory = KeyringDirectory(settings.amocrm_keyring_dir)
        directory.load()
    keyring = load_keyring(settings, directory)
    if settings.amocrm_keyring_dir and not keyring.loaded:
        yield Finding(
            "keys", "problem", "No key is loaded, so nothing is accepted: put a keyring file with a current key in AMOCRM_KEYRING_DIR."
        )
    for source in keyring.report():
        keys = source["keys"]
        part = f"keys of {source['source']}"
        if not keys:
            yield Finding(part, "ok", f"Revoked (generation {source['generation']}).")
        elif all(_lapse(key, now) for key in keys):
            named = ", ".join(_lapse(key, now) for key in keys)
            yield Finding(part, "problem", f"No key is active ({named}): write a file of a higher generation with a current key.")
        else:
            yield from (_key_finding(part, key, now) for key in keys)


def _folder_findings(folder: Path) -> Iterator[Finding]:
    """Name the files that the service ignores."""
    try:
        files = [entry for entry in visible_entries(folder) if not entry.is_dir()]
    except OSError as error:
        reason = type(error).__name__
        yield Finding("keyring", "problem", f"AMOCRM_KEYRING_DIR cannot be read ({reason}): create it, or let this user read it.")
        return
    if not files:
        yield Finding("keyring", "warning", "AMOCRM_KEYRING_DIR is empty: put a file for each source in it.")
    for file in files:
        try:
            parse_source(file.name.removesuffix(".json"), read_bounded(file, MOST_FILE_BYTES))
        except ConfigurationError as error:
            yield Finding("keyring", "problem", f"{file.name} is ignored: {error}.")


def _lapse(key: dict[str, Any], now: datetime) -> str:
    """Return which key is not accepted and why; nothing for one that is."""
    before, after = _span(key)
    if after and after <= now:
        return f"{_name(key)} expired {after:%Y-%m-%d %H:%M} UTC"
    return f"{_name(key)} begins {before:%Y-%m-%d %H:%M} UTC" if before and before > now else ""


def _span(key: dict[str, Any]) -> tuple[datetime | None, datetime | None]:
    before, after = (key[name] and datetime.fromisoformat(key[name]) for name in ("not_before", "not_after"))
    return before, after


def _name(key: dict[str, Any]) -> str:
    return f"{key['kind']} {key['fingerprint']} ({key['state']})"


def _key_finding(part: str, key: dict[str, Any], now: datetime) -> Finding:
    lapse, (_, after) = _lapse(key, now), _span(key)
    # A previous key that has ended is how a rotation ends.
    if after and after <= now and key["state"] != "previous":
        return Finding(part, "warning", f"{lapse}: take it out of the keyring, or give it a later not_after.")
    return Finding(part, "ok", f"{lapse}." if lapse else f"{_name(key)} is accepted.")


async def database_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Judge what DB_URL leads to: reachable, new enough, durable, pooled, with a schema that fits."""
    url = settings.pooled_url
    try:
        engine = _engine("DB_URL", url)
    except ConfigurationError as error:
        yield Finding("database", "problem", str(error))
        return
    try:
        async with asyncio.timeout(QUESTION_SECONDS):
            async with engine.connect() as connection:
                yield await _server_finding(connection, url)
                pooled = await schema.is_pooled(connection)
                yield Finding("pooler", "ok", f"DB_URL leads {'through a pooler' if pooled else 'to Postgres itself'}.")
            yield await _durability_finding(engine)
            yield await _schema_finding(engine, settings)
    except Exception as error:  # noqa: BLE001 - whatever it is, the answer is a finding
        yield Finding("database", "problem", _unreached(_address(url), error))
    finally:
        await engine.dispose()


async def _server_finding(connection: AsyncConnection, url: str) -> Finding:
    version = int(await connection.scalar(text("SELECT current_setting('server_version_num')::int / 10000")) or 0)
    took = []
    for _ in range(LATENCY_SAMPLES):
        began = time.perf_counter()
        await connection.execute(text("SELECT 1"))
        took.append((time.perf_counter() - began) * 1000)
    answer = f"{_address(url)} is Postgres {version} and answers in {min(took):.1f} ms"
    if version < OLDEST_VERSION:
        return Finding("database", "problem", f"{answer}: upgrade it to {OLDEST_VERSION} or later.")
    if min(took) > SLOW_MS:
        return Finding("database", "warning", f"{answer}: bring service and database nearer to each other.")
    return Finding("database", "ok", f"{answer}.")


async def _durability_finding(engine: AsyncEngine) -> Finding:
    off = await unsafe_settings(engine)
    if off:
        return Finding("durability", "warning", f"{', '.join(off)} off: a crash of Postgres loses what was answered 200; set to on.")
    return Finding("durability", "ok", "What is answered 200 survives a crash of Postgres.")


async def _schema_finding(engine: AsyncEngine, settings: Settings) -> Finding:
    revision = await schema.read_revision(engine)
    try:
        known = schema.known_revisions(settings.migrations_dir)
    except ConfigurationError:
        return Finding("schema", "problem", "What this release needs is not known without its migrations: set MIGRATIONS_DIR.")
    at = f"The database is at {revision.current or 'no revision'}, this release brings {known[0]}"
    if schema.runs_on(revision, known):
        return Finding("schema", "ok", f"{at}: it fits.")
    if revision.current is None or revision.current in known:
        return Finding("schema", "problem", f"{at}: run `amo-webhooks migrate upgrade head`.")
    return Finding("schema", "problem", f"{at}, which is too old for it: install a later release.")


async def direct_finding(settings: Settings) -> Finding:
    """Judge what DB_DIRECT_URL leads to; it is the same as DB_URL unless it is set.

    Beside a DB_POOLER it is somebody else's, who migrates: a pod may be kept from the database itself.
    """
    url = settings.db_direct_url.get_secret_value()
    if settings.db_pooler and "db_direct_url" not in settings.model_fields_set:
        return Finding("direct", "ok", "Not asked: DB_POOLER leads there, and whoever migrates goes past it.")
    try:
        engine = _engine("DB_DIRECT_URL", url)
    except ConfigurationError as error:
        return Finding("direct", "problem", str(error))
    try:
        async with asyncio.timeout(QUESTION_SECONDS), engine.connect() as connection:
            if await schema.is_pooled(connection):
                return Finding(
                    "direct", "problem", "DB_DIRECT_URL leads through a pooler and migrations refuse that: name Postgres itself."
                )
            return Finding("direct", "ok", "DB_DIRECT_URL leads to Postgres itself.")
    except Exception as error:  # noqa: BLE001 - whatever it is, the answer is a finding
        return Finding("direct", "problem", _unreached(f"DB_DIRECT_URL, {_address(url)}", error))
    finally:
        await engine.dispose()


def _engine(setting: str, url: str) -> AsyncEngine:
    """Create an engine; ConfigurationError where the URL is none, whose parser would quote it."""
    try:
        return create_engine(url, pool_size=1)
    except ConfigurationError:
        raise ConfigurationError(f"{setting} must start with postgresql://.") from None
    except ValueError:
        raise ConfigurationError(f"{setting} cannot be read: it looks like postgresql://user:password@host:5432/name.") from None


def _address(url: str) -> str:
    """Return where a URL leads, without user and password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2] or ", ".join(parse_qs(parts.query).get("host", ["unix:"]))
    return f"{host}{parts.path}"


def _unreached(address: str, error: Exception) -> str:
    mend = MENDS.get(sqlstate(error) or "", "look whether it runs, and at host, port and sslmode in the URL")
    return f"{address}: not reached ({describe(error)}); {mend}."


def verdict(findings: list[Finding]) -> str:
    """Sum the table up in one line."""
    problems, warnings = (sum(finding.state == state for finding in findings) for state in ("problem", "warning"))
    if problems:
        return f"Problems: {problems}, warnings: {warnings}."
    return f"No problem found; warnings: {warnings}." if warnings else "All is well."
