"""``amo-webhooks doctor``: says what is wrong and how to mend it, and never a secret."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from amo_receiver.commands.doctor import database_findings, direct_finding, file_findings, keyring_findings, settings_findings
from amo_receiver.embedded.folder import free_port
from amo_receiver.embedded.processes import wait_until
from amo_receiver.settings import Settings, load_settings
from servers import CLIENT_SECRET, WEBHOOK_TOKEN, run_sql, service_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from amo_receiver.commands.doctor import Finding
    from amo_receiver.embedded import EmbeddedPostgres
    from conftest import StartService

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MARK = "MARKEDpasswordMARKED"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start in an empty directory with none of the variables set."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def doctor(folder: Path, db_url: str, *arguments: str, env: Mapping[str, str | None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "amo_receiver", "doctor", *arguments]
    environment = service_environment(db_url, folder, env)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    for secret in (CLIENT_SECRET, WEBHOOK_TOKEN, MARK, *db_url.split(":")[2:3]):
        assert secret.partition("@")[0] not in done.stdout + done.stderr
    assert done.stderr == ""
    return done


async def by_part(settings: Settings) -> dict[str, Finding]:
    return {finding.part: finding async for finding in database_findings(settings)}


def test_a_sound_installation_is_well(pooled_url: str, database_url: str, tmp_path: Path) -> None:
    """Through a pooler, with the direct URL beside it, a migrated database and keys, nothing is a problem and the exit code is 0."""
    done = doctor(tmp_path, pooled_url, env={"DB_DIRECT_URL": database_url, "AMOCRM_ACCOUNT_ID": "32000001"})
    assert done.returncode == 0, done
    assert done.stdout.endswith("All is well.\n")
    assert "DB_URL leads through a pooler." in done.stdout
    assert "DB_DIRECT_URL leads to Postgres itself." in done.stdout
    assert done.stdout.count(" (current) is accepted.") == 2


def test_a_pooled_direct_url_is_a_problem(pooled_url: str, tmp_path: Path) -> None:
    """Migrations would refuse it, so the exit code is 1; a token for any account is a warning beside it."""
    done = doctor(tmp_path, pooled_url)
    assert done.returncode == 1
    assert "DB_DIRECT_URL leads through a pooler" in done.stdout
    assert "set AMOCRM_ACCOUNT_ID" in done.stdout
    assert done.stdout.endswith("Problems: 1, warnings: 1.\n")


def test_beside_a_pooler_the_database_itself_is_somebody_else_s(pooled_url: str, database_url: str, tmp_path: Path) -> None:
    """A pod may be kept from it; whoever sets DB_DIRECT_URL means it."""
    user, _, pooler = urlsplit(pooled_url).netloc.rpartition("@")
    away = urlsplit(database_url)._replace(netloc=f"{user}@127.0.0.1:{free_port()}").geturl()
    done = doctor(tmp_path, away, env={"DB_POOLER": pooler, "AMOCRM_ACCOUNT_ID": "1"})
    assert (done.returncode, "Not asked: DB_POOLER leads there" in done.stdout) == (0, True), done.stdout
    done = doctor(tmp_path, away, env={"DB_POOLER": pooler, "DB_DIRECT_URL": away})
    assert (done.returncode, "DB_DIRECT_URL" in done.stdout) == (1, True), done.stdout


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Missing credentials, an unreachable database, a mapping and migrations that are not there: each is a line, none is a traceback."""
    url = f"postgresql://amo:{MARK}@127.0.0.1:{free_port()}/amo?password={MARK}"
    nothing = dict.fromkeys(("AMOCRM_CLIENT_ID", "AMOCRM_CLIENT_SECRET", "AMOCRM_WEBHOOK_TOKEN"))
    done = doctor(tmp_path, url, env=nothing | {"MAPPING_FILE": "absent.toml", "MIGRATIONS_DIR": "absent"})
    assert done.returncode == 1
    for said in (
        "no credentials are set",
        "MAPPING_FILE",
        "MIGRATIONS_DIR",
        "not reached (ConnectionRefusedError)",
        "DB_DIRECT_URL, 127.0.0.1:",
    ):
        assert said in done.stdout
    assert done.stdout.endswith("Problems: 5, warnings: 0.\n")


def test_dev_without_its_database_is_not_well(tmp_path: Path) -> None:
    """Judged as dev, the default credentials are right, and a DB_URL that was not exported is a problem."""
    done = doctor(tmp_path, "", "--dev", env=dict.fromkeys(("AMOCRM_CLIENT_ID", "AMOCRM_CLIENT_SECRET", "AMOCRM_WEBHOOK_TOKEN")))
    assert done.returncode == 1
    assert "paste the line" in done.stdout
    assert done.stdout.endswith("Problems: 1, warnings: 0.\n")


def test_settings_that_cannot_be_read_are_a_finding(tmp_path: Path) -> None:
    """A value that no setting can have is named, with exit code 1 and without the value."""
    done = doctor(tmp_path, "", env={"LOG_LEVEL": MARK})
    assert done.returncode == 1
    assert "LOG_LEVEL" in done.stdout


@pytest.mark.parametrize(
    ("made", "advice"),
    [
        ("DROP TABLE alembic_version", "run `amo-webhooks migrate upgrade head`"),
        ("UPDATE alembic_version SET version_num = '9999'; INSERT INTO schema_floor VALUES ('9998')", "install a later release"),
    ],
)
async def test_a_schema_that_does_not_fit_is_a_problem(database_url: str, made: str, advice: str) -> None:
    """Too old is mended by a migration, too new by a later release."""
    for statement in made.split("; "):
        run_sql(database_url, statement)
    finding = (await by_part(load_settings(db_url=database_url)))["schema"]
    assert finding.state == "problem"
    assert advice in finding.sentence


async def test_what_a_crash_would_lose_is_said(
    database: str, database_url: str, postgres: EmbeddedPostgres, start_service: StartService
) -> None:
    """synchronous_commit off is a warning of the doctor's, and one in the log of a service that starts; on, neither says anything."""
    settings = load_settings(db_url=database_url)
    assert (await by_part(settings))["durability"].state == "ok"
    assert "synchronous_commit" not in start_service(database_url).log
    run_sql(postgres.url(), f"ALTER DATABASE {database} SET synchronous_commit = off")
    finding = (await by_part(settings))["durability"]
    assert finding.state == "warning"
    assert finding.sentence.startswith("synchronous_commit off")
    service = start_service(database_url)
    assert wait_until(lambda: "WARNING  Postgres runs with synchronous_commit off" in service.log, 30)


@pytest.mark.parametrize(
    ("edit", "mend"),
    [
        (lambda url: url.replace("/postgres:", "/postgres:wrong"), "the password is refused"),
        (lambda url: url.rpartition("/")[0] + "/absent", "there is no database of this name"),
        (lambda url: "mysql" + url.removeprefix("postgresql"), "must start with postgresql://"),
        (lambda url: url + "?sslmode=require", "sslmode"),
        (lambda url: url + "?sslmode=nonsense", "sslmode"),
    ],
)
async def test_a_database_that_is_not_reached_says_why(postgres: EmbeddedPostgres, edit: Any, mend: str) -> None:
    """The two URLs are judged alike: each is a problem whose sentence says where to look, without the password."""
    url = edit(postgres.url())
    settings = load_settings(db_url=url)
    for finding in (*(await by_part(settings)).values(), await direct_finding(settings)):
        assert finding.state == "problem"
        assert mend in finding.sentence
        assert url.split(":")[2].partition("@")[0] not in finding.sentence


@pytest.fixture
def keyring(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "keyring"
    folder.mkdir()
    return folder


def write(folder: Path, name: str, *keys: dict[str, str]) -> None:
    filled = [{"kind": "client_secret", "secret": f"{name}-{number}-{MARK}", **key} for number, key in enumerate(keys)]
    document = {"version": 1, "generation": 3, "client_id": name, "accounts": None, "keys": filled}
    (folder / f"{name}.json").write_text(json.dumps(document))


def judged(folder: Path) -> list[tuple[str, str, str]]:
    found = list(keyring_findings(load_settings(amocrm_keyring_dir=folder), NOW))
    assert MARK not in repr(found)
    return [(finding.part, finding.state, finding.sentence) for finding in found]


PAST, FUTURE = "2026-11-01T00:00:00Z", "2027-01-01T00:00:00Z"


def test_a_source_without_an_active_key_is_a_problem(keyring: Path) -> None:
    """Expired and not yet begun keys alone mean that nothing of the source is accepted; the fingerprints say which keys."""
    write(keyring, "acme", {"state": "current", "not_after": PAST}, {"state": "next", "not_before": FUTURE})
    [(part, state, sentence)] = judged(keyring)
    assert (part, state) == ("keys of acme", "problem")
    assert "(current) expired 2026-11-01 00:00 UTC" in sentence
    assert "(next) begins 2027-01-01 00:00 UTC" in sentence


def test_how_a_rotation_goes_is_no_problem(keyring: Path) -> None:
    """A previous key that has ended and a next one are ok beside a current one; a current one that has ended is a warning."""
    states = [{"state": "previous", "not_after": PAST}, {"state": "current"}, {"state": "current", "not_after": PAST}, {"state": "next"}]
    write(keyring, "acme", *states)
    assert [state for _, state, _ in judged(keyring)] == ["ok", "ok", "warning", "ok"]


def test_files_that_the_service_ignores_are_named(keyring: Path) -> None:
    """A corrupt file is a problem beside a good one; a revoked source is ok; an empty or absent folder means that no key is loaded."""
    assert [state for _, state, _ in judged(keyring)] == ["warning", "problem"]
    assert [state for _, state, _ in judged(keyring / "absent")] == ["problem", "problem"]
    (keyring / "broken.json").write_text("{")
    write(keyring, "gone")
    write(keyring, "good", {"state": "current"})
    found = judged(keyring)
    assert [(part, state) for part, state, _ in found] == [("keyring", "problem"), ("keys of gone", "ok"), ("keys of good", "ok")]
    assert found[0][2].startswith("broken.json is ignored: ")


def test_files_and_settings_that_are_right_are_ok() -> None:
    """The shipped mapping and migrations are found, and dev's credentials are right for dev."""
    assert {finding.state for finding in file_findings(load_settings())} == {"ok"}
    assert [finding.state for finding in settings_findings(load_settings(dev=True), dev=True)] == ["ok"]
