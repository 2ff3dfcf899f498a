"""Settings: where they come from, what is refused, and that no secret shows."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from amo_receiver.amocrm.keyring import LONGEST_ACCOUNT_CHARS, LONGEST_TOKEN_CHARS
from amo_receiver.errors import ConfigurationError
from amo_receiver.settings import FEWEST_RETENTION_DAYS, Settings, check, load_settings, settings_table
from amo_receiver.telemetry.metrics_stored import SILENT_DAYS

MARK = "MARKEDsecretMARKED"
STRONG = "Zr8-kQ2vX9_mT4bL7wPd"
EXAMPLE = Path(__file__).parents[2] / "service" / ".env.example"
URL = "postgresql://amo:pw@db:5432/amo"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start in an empty directory with none of the variables set."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def good(**changes: Any) -> Settings:
    values = {"db_url": URL, "amocrm_client_id": "c", "amocrm_client_secret": STRONG}
    return load_settings(**values | changes)


def test_the_defaults_are_the_documented_ones() -> None:
    """A start without any variable has the limits, budgets and retention of the design."""
    settings = load_settings()
    numbers = {name: value for name, value in settings if isinstance(value, int | float)}
    assert numbers == {
        "db_pool_size": 10,
        "log_deliveries_per_second": 20,
        "notify_interval_seconds": 900,
        "docs_enabled": True,
        "max_body_bytes": 1_048_576,
        "max_body_fields": 20_000,
        "max_body_depth": 16,
        "max_in_flight_requests": 2_000,
        "max_in_flight_bytes": 33_554_432,
        "answer_budget_ms": 1_500,
        "keep_alive_seconds": 620,
        "statement_timeout_ms": 800,
        "retention_processed_days": 30,
        "retention_dead_days": 90,
        "unparsed_quota_bytes": 67_108_864,
        "worker_poll_seconds": 1.0,
        "worker_batch_events": 50,
        "worker_enabled": True,
    }
    assert settings.management_port is None
    assert (settings.log_level, settings.log_format, settings.log_file, settings.mapping_file) == ("INFO", "text", None, None)
    assert settings.migrations_dir == Path(__file__).parents[2] / "migrations"
    assert not any(value for _, value in settings if isinstance(value, SecretStr))


def test_overrides_win_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual order; .env is the one of the working directory, and unknown variables are not our business."""
    Path(".env").write_text("DB_POOL_SIZE=3\nLOG_FORMAT=json\nAMOCRM_ACCOUNT_ID=31\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("DB_POOL_SIZE", "4")
    monkeypatch.setenv("LOG_FORMAT", "text")
    monkeypatch.setenv("ANOTHER_THING", "x")
    settings = load_settings(db_pool_size=5)
    assert (settings.db_pool_size, settings.log_format, settings.amocrm_account_id) == (5, "text", "31")


def test_an_empty_value_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """LOG_FILE= in .env and in the environment is as if it were absent."""
    Path(".env").write_text("LOG_FILE=\nDB_POOL_SIZE=\n")
    monkeypatch.setenv("MAX_BODY_BYTES", "")
    settings = load_settings()
    assert (settings.log_file, settings.db_pool_size, settings.max_body_bytes) == (None, 10, 1_048_576)


def test_settings_do_not_change() -> None:
    """A process has one set of settings."""
    with pytest.raises(ValidationError):
        load_settings().db_pool_size = 5


def test_migrations_use_the_database_s_url_unless_they_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """DB_DIRECT_URL falls back to DB_URL, however that is given."""
    monkeypatch.setenv("DB_URL", URL)
    assert load_settings().db_direct_url.get_secret_value() == URL
    assert load_settings(db_url="postgresql://x/y").db_direct_url.get_secret_value() == "postgresql://x/y"
    assert load_settings(db_direct_url="postgresql://d/y").db_direct_url.get_secret_value() == "postgresql://d/y"


@pytest.mark.parametrize(
    ("url", "pooled"),
    [
        (URL, "postgresql://amo:pw@pool:6432/amo?sslmode=disable"),
        ("postgresql://a:b%40c@db/d?sslmode=verify-full&sslrootcert=/ca.pem", "postgresql://a:b%40c@pool:6432/d?sslmode=disable"),
        ("postgresql://a@one,two:5433/d?target_session_attrs=any", "postgresql://a@pool:6432/d?sslmode=disable"),
        ("postgresql:///d?host=/run&application_name=x%20y", "postgresql://pool:6432/d?application_name=x%20y&sslmode=disable"),
        ("postgresql://[broken/d", "postgresql://[broken/d"),
        ("", ""),
    ],
)
def test_a_pooler_takes_the_server_s_place(url: str, pooled: str) -> None:
    """User, password, database and the other parameters stay; migrations still go to the server itself."""
    settings = load_settings(db_url=url, db_pooler="pool:6432")
    assert (settings.pooled_url, settings.db_direct_url.get_secret_value()) == (pooled, url)
    assert load_settings(db_url=url).pooled_url == url


@pytest.mark.parametrize("pooler", ["pool", "pool:", "pool:a", ":6432", "a@pool:6432", "pool:6432/d", "[::1:6432", "pool:6432\n"])
def test_a_pooler_is_a_host_and_a_port(pooler: str) -> None:
    """Anything else would lead somewhere else."""
    with pytest.raises(ConfigurationError, match="DB_POOLER"):
        load_settings(db_url=URL, db_pooler=pooler)
    assert load_settings(db_url=URL, db_pooler="[::1]:6432").pooled_url == "postgresql://amo:pw@[::1]:6432/amo?sslmode=disable"


def test_a_level_may_be_written_in_small_letters() -> None:
    """LOG_LEVEL=debug is DEBUG."""
    assert load_settings(log_level="debug").log_level == "DEBUG"


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("db_pool_size", 1, 1000),
        ("log_deliveries_per_second", 0, None),
        ("max_body_bytes", 1024, 2**30),
        ("max_body_fields", 1, None),
        ("max_body_depth", 4, 100),
        ("max_in_flight_requests", 1, None),
        ("max_in_flight_bytes", 1024, None),
        ("answer_budget_ms", 100, 60_000),
        ("statement_timeout_ms", 10, 60_000),
        ("retention_processed_days", 1, 36_500),
        ("retention_dead_days", 1, 36_500),
        ("unparsed_quota_bytes", 0, None),
        ("worker_poll_seconds", 0.001, 3600),
        ("worker_batch_events", 1, 10_000),
        ("management_port", 1, 65_535),
    ],
)
def test_numbers_have_ranges(name: str, lowest: float, highest: float | None) -> None:
    """The ends of the range are inside, one beyond is refused with the variable's name."""
    outside = [lowest - 1] + ([] if highest is None else [highest + 1])
    for value in [lowest] + ([] if highest is None else [highest]):
        assert getattr(load_settings(False, **{name: value}), name) == value
    for value in outside:
        with pytest.raises(ConfigurationError, match=f"^{name.upper()}: "):
            load_settings(False, **{name: value})


def test_every_number_has_a_range() -> None:
    """No number is left without at least one end."""
    numbers = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]
    assert numbers
    assert [name for name in numbers if not Settings.model_fields[name].metadata] == []


def test_an_invalid_value_is_one_line_with_the_variable_and_without_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """All invalid variables are named at once; neither the error nor its context quotes any value."""
    monkeypatch.setenv("DB_POOL_SIZE", MARK)
    monkeypatch.setenv("LOG_FORMAT", MARK)
    monkeypatch.setenv("LOG_LEVEL", MARK)
    monkeypatch.setenv("DOCS_ENABLED", MARK)
    monkeypatch.setenv("WORKER_POLL_SECONDS", "nan")
    monkeypatch.setenv("AMOCRM_WEBHOOK_TOKEN", MARK * 100)
    monkeypatch.setenv("AMOCRM_ACCOUNT_ID", "7" * 256)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    message = str(caught.value)
    assert sorted(re.findall(r"([A-Z_]+):", message)) == [
        "AMOCRM_ACCOUNT_ID",
        "AMOCRM_WEBHOOK_TOKEN",
        "DB_POOL_SIZE",
        "DOCS_ENABLED",
        "LOG_FORMAT",
        "LOG_LEVEL",
        "WORKER_POLL_SECONDS",
    ]
    assert "MARKED" not in message
    assert "\n" not in message
    assert caught.value.__context__ is None


def test_a_file_that_is_no_text_is_a_sentence() -> None:
    """A binary .env is refused without quoting it."""
    Path(".env").write_bytes(b"DB_URL=" + MARK.encode() + b"\xff\xfe\n")
    with pytest.raises(ConfigurationError, match=r"^\.env cannot be read") as caught:
        load_settings()
    assert caught.value.__context__ is None


def test_no_secret_shows_in_a_representation() -> None:
    """repr, str, a dump and the warnings are free of secrets, the databases' URLs included."""
    names = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]
    assert sorted(names) == [
        "amocrm_client_secret",
        "amocrm_webhook_token",
        "db_direct_url",
        "db_url",
        "jwt_secret",
        "notify_url",
        "secret_key",
    ]
    settings = good(**dict.fromkeys(names, MARK))
    shown = repr(settings) + str(settings) + repr(settings.model_dump()) + settings.model_dump_json() + repr(check(settings, dev=False))
    assert "MARKED" not in shown


def test_dev_has_the_well_known_credentials_and_a_log_file() -> None:
    """Only dev fills them in, says nothing about them, and what a person set stays."""
    settings = load_settings(dev=True, db_url=URL)
    assert settings.amocrm_client_id == "test-uuid"
    assert settings.amocrm_client_secret.get_secret_value() == "test-secret"
    assert settings.amocrm_webhook_token.get_secret_value() == "test-token"
    assert settings.log_file == Path("logs/app.log")
    assert check(settings, dev=True) == []
    own = load_settings(dev=True, amocrm_client_id="c", amocrm_client_secret=STRONG, amocrm_webhook_token=STRONG, log_file="x.log")
    assert (own.amocrm_client_id, own.amocrm_client_secret.get_secret_value()) == ("c", STRONG)
    assert (own.amocrm_webhook_token.get_secret_value(), own.log_file) == (STRONG, Path("x.log"))


@pytest.mark.parametrize("dev", [True, False])
@pytest.mark.parametrize("half", [{"amocrm_client_id": "c"}, {"amocrm_client_secret": MARK}])
def test_half_of_the_credentials_is_refused_everywhere(dev: bool, half: dict[str, str]) -> None:
    """A client id without a secret, or the other way round, is never completed by the well-known other half."""
    with pytest.raises(
        ConfigurationError, match=r"AMOCRM_CLIENT_ID.*AMOCRM_CLIENT_SECRET|AMOCRM_CLIENT_SECRET.*AMOCRM_CLIENT_ID"
    ) as caught:
        check(load_settings(dev=dev, db_url=URL, **half), dev)
    assert "MARKED" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "your_client_secret",
        "YOUR-SECRET",
        "changeme",
        "ChangeMe",
        "change-me",
        "change_me",
        "test-secret",
        "test-token",
        "<secret>",
        "xxxxxxxx",
        "...",
        "{{ secret }}",
    ],
)
@pytest.mark.parametrize("name", ["amocrm_client_secret", "amocrm_webhook_token", "secret_key", "jwt_secret", "amocrm_client_id"])
def test_a_placeholder_is_refused_outside_dev(name: str, value: str) -> None:
    """A value out of an example names its variable and stops the start; in dev it does not."""
    settings = good(**{name: value})
    with pytest.raises(ConfigurationError, match=f"{name.upper()} still has a placeholder"):
        check(settings, dev=False)
    if re.fullmatch(r"[\w.-]+", value):
        check(settings, dev=True)


@pytest.mark.parametrize("name", ["db_url", "db_direct_url"])
def test_a_placeholder_password_of_the_database_is_refused_outside_dev(name: str) -> None:
    """The example's database URL is no database URL; a URL that cannot be split is left to the connection."""
    with pytest.raises(ConfigurationError, match=f"{name.upper()} still has a placeholder"):
        check(good(**{name: "postgresql://amo:your_password@db/amo"}), dev=False)
    assert check(good(**{name: "postgresql://[half/amo"}), dev=False) == []
    assert check(good(**{name: "postgresql:///amo?host=/run/postgresql"}), dev=False) == []


def test_a_value_that_only_resembles_a_placeholder_is_accepted() -> None:
    """Real secrets are not guessed at."""
    for value in ("yourself-" + STRONG, STRONG + "-changeme", "xx" + STRONG, STRONG + "-your_secret"):
        assert check(good(amocrm_client_secret=value, amocrm_client_id="test-uuid"), dev=False) == []


def test_a_start_without_credentials_is_refused_outside_dev(tmp_path: Path) -> None:
    """Any one of client, token and keyring folder is enough."""
    with pytest.raises(ConfigurationError, match="AMOCRM_CLIENT_ID with AMOCRM_CLIENT_SECRET, AMOCRM_WEBHOOK_TOKEN or AMOCRM_KEYRING_DIR"):
        check(load_settings(db_url=URL), dev=False)
    assert check(load_settings(db_url=URL), dev=True) == []
    assert check(load_settings(db_url=URL, amocrm_keyring_dir=tmp_path), dev=False) == []
    assert check(load_settings(db_url=URL, amocrm_client_id="c", amocrm_client_secret=STRONG), dev=False) == []
    assert check(load_settings(db_url=URL, amocrm_webhook_token=STRONG, amocrm_account_id="31"), dev=False) == []


def test_a_missing_database_is_one_sentence_outside_dev() -> None:
    """The variable and its form are named; dev brings its own database."""
    with pytest.raises(ConfigurationError, match=r"^DB_URL is not set: [^\n]*postgresql://[^\n]*$"):
        check(good(db_url=""), dev=False)
    assert check(good(db_url=""), dev=True) == []


def test_several_mistakes_are_told_at_once() -> None:
    """One start shows everything that is to be mended."""
    with pytest.raises(ConfigurationError, match=r"SECRET_KEY.*DB_URL.*no credentials"):
        check(load_settings(secret_key="changeme"), dev=False)


def test_a_token_for_any_account_is_warned_of() -> None:
    """Without AMOCRM_ACCOUNT_ID the token opens every account."""
    (warning,) = check(good(amocrm_webhook_token=STRONG), dev=False)
    assert warning.startswith("AMOCRM_WEBHOOK_TOKEN without AMOCRM_ACCOUNT_ID")
    assert check(good(amocrm_webhook_token=STRONG), dev=True) == [warning]
    assert check(good(amocrm_webhook_token=STRONG, amocrm_account_id="31"), dev=False) == []


@pytest.mark.parametrize(
    ("secret", "weak"),
    [(STRONG[:16], False), (STRONG[:15], True), ("abcdefg" * 5, True), ("abcdefgh" * 2, False), ("a" * 40, True)],
)
@pytest.mark.parametrize("dev", [True, False])
def test_a_weak_secret_is_warned_of(secret: str, weak: bool, dev: bool) -> None:
    """Fewer than 16 characters, or fewer than 8 different ones, are weak; the warning names the variable only."""
    for name in ("amocrm_client_secret", "amocrm_webhook_token", "secret_key", "jwt_secret"):
        warnings = check(good(amocrm_account_id="31", **{name: secret}), dev)
        assert [warning.startswith(f"{name.upper()} is weak") for warning in warnings] == [True] * weak
        assert secret not in "".join(warnings)


@pytest.mark.parametrize(("days", "warned"), [(13, True), (14, False)])
def test_a_retention_that_hides_silent_accounts_is_warned_of(days: int, warned: bool) -> None:
    """They are noticed by what came a week before their silence, which may itself last a week."""
    warnings = check(good(retention_processed_days=days), dev=False)
    assert [warning.startswith("RETENTION_PROCESSED_DAYS is below 14") for warning in warnings] == [True] * warned
    assert FEWEST_RETENTION_DAYS == 2 * SILENT_DAYS


def test_a_secret_with_a_line_break_around_it_is_warned_of() -> None:
    """A copy that took a line break along explains every later 401."""
    assert ["begins or ends" in warning for warning in check(good(amocrm_client_secret=STRONG + "\n"), dev=False)] == [True]


@pytest.mark.parametrize("token", ["a/b", "a?b", "a#b", "a%41", "a b", "токен", "a\n", "[a]"])
def test_a_token_that_cannot_stand_in_a_url_is_refused(token: str) -> None:
    """What a URL would cut or encode could never match."""
    with pytest.raises(ConfigurationError, match="AMOCRM_WEBHOOK_TOKEN must stand in a URL"):
        check(good(amocrm_webhook_token=token), dev=False)


def test_every_other_character_of_a_url_segment_is_accepted() -> None:
    """Letters, digits and what RFC 3986 leaves unencoded in a path segment."""
    token = string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@"
    assert check(good(amocrm_webhook_token=token, amocrm_account_id="31"), dev=False) == []


def test_budgets_fit_one_another() -> None:
    """The largest body must fit in flight; a statement as long as the budget is warned of."""
    check(good(max_in_flight_bytes=2048, max_body_bytes=2048), dev=False)
    with pytest.raises(ConfigurationError, match="MAX_IN_FLIGHT_BYTES"):
        check(good(max_in_flight_bytes=2047, max_body_bytes=2048), dev=True)
    assert check(good(statement_timeout_ms=1499), dev=False) == []
    assert ["STATEMENT_TIMEOUT_MS" in warning for warning in check(good(statement_timeout_ms=1500), dev=False)] == [True]


def test_what_settings_allow_the_keyring_compares() -> None:
    """The longest token and account id are one fact, written in two modules that do not import each other."""
    good(amocrm_webhook_token="t" * LONGEST_TOKEN_CHARS, amocrm_account_id="7" * LONGEST_ACCOUNT_CHARS)
    for name, length in (("amocrm_webhook_token", LONGEST_TOKEN_CHARS), ("amocrm_account_id", LONGEST_ACCOUNT_CHARS)):
        with pytest.raises(ConfigurationError, match=name.upper()):
            good(**{name: "7" * (length + 1)})


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=60))
@example("postgresql://u:" + MARK)
def test_no_message_contains_a_secret(value: str) -> None:
    """Whatever a secret looks like, neither warnings nor refusals repeat it."""
    secret = MARK + value
    settings = good(**dict.fromkeys(("amocrm_client_secret", "amocrm_webhook_token", "db_url", "secret_key", "jwt_secret"), secret))
    try:
        said = " ".join(check(settings, dev=False))
    except ConfigurationError as error:
        said = str(error)
    assert "MARKED" not in said


def test_the_table_has_every_setting_with_default_and_meaning() -> None:
    """The README's table is this one; nothing of the machine it was made on is in it."""
    lines = settings_table().splitlines()
    assert lines[:2] == ["| setting | default | meaning |", "|---|---|---|"]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
    assert [row[0] for row in rows] == [f"`{name.upper()}`" for name in Settings.model_fields]
    defaults = {row[0].strip("`"): row[1] for row in rows}
    assert defaults["MAX_BODY_BYTES"] == "`1048576`"
    assert defaults["DB_DIRECT_URL"] == "`DB_URL`"
    assert defaults["DOCS_ENABLED"] == "`true`"
    assert defaults["LOG_FILE"] == defaults["SECRET_KEY"] == defaults["AMOCRM_ACCOUNT_ID"] == "none"
    assert defaults["MIGRATIONS_DIR"] == "`migrations` of the checkout"
    assert all(re.fullmatch(r"[A-Z].+\.", row[2]) for row in rows)
    assert str(Path(__file__).parents[2]) not in settings_table()


def test_the_unit_is_in_the_name() -> None:
    """A number is a count of what its name ends with, or a size or duration in the unit at its end."""
    units = ("_bytes", "_ms", "_seconds", "_days", "_per_second", "_fields", "_depth", "_requests", "_events", "_size")
    numbers = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]
    assert [name for name in numbers if not name.endswith(units)] == []


def test_the_example_lists_exactly_the_settings_with_their_meaning() -> None:
    """Each has its description above it, and a default, a placeholder or nothing as its value."""
    text = EXAMPLE.read_text(encoding="utf-8").split("\n\n", 1)[1]
    entries = re.findall(r"# (.+)\n([A-Z_]+)=(.*)\n", text)
    assert "".join(f"# {meaning}\n{name}={value}\n" for meaning, name, value in entries) == text
    assert [(name, meaning) for meaning, name, _ in entries] == [
        (name.upper(), field.description) for name, field in Settings.model_fields.items()
    ]
    without_placeholders = {name.lower(): value for _, name, value in entries if value and "your_" not in value}
    assert load_settings(_env_file=None, **without_placeholders) == load_settings(_env_file=None)


def test_the_example_as_it_is_is_refused_and_names_what_to_replace() -> None:
    """A copy nobody edited does not start."""
    Path(".env").write_text(EXAMPLE.read_text(encoding="utf-8"))
    with pytest.raises(ConfigurationError) as caught:
        check(load_settings(), dev=False)
    named = re.findall(r"([A-Z_]+) still has", str(caught.value))
    assert sorted(named) == ["AMOCRM_CLIENT_ID", "AMOCRM_CLIENT_SECRET", "AMOCRM_WEBHOOK_TOKEN", "DB_DIRECT_URL", "DB_URL"]
