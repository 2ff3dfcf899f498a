"""Every setting: environment variable or line of ``.env`` in the working directory, its default, unit and meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from amo_receiver.errors import ConfigurationError

LogLevel: TypeAlias = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]

NO_SECRET = SecretStr("")
MIGRATIONS_OF_CHECKOUT = Path(__file__).resolve().parents[2] / "migrations"
DEV_CLIENT_ID, DEV_CLIENT_SECRET, DEV_WEBHOOK_TOKEN = "test-uuid", "test-secret", "test-token"
DEV_LOG_FILE = Path("logs/app.log")

SHORTEST_SECRET_CHARS = 16
FEWEST_DISTINCT_CHARS = 8
FEWEST_RETENTION_DAYS = 14
"""Up to a week of silence is compared with the same stretch a week before (telemetry/metrics_stored.py)."""
PLACEHOLDERS = frozenset({"changeme", "placeholder", "replaceme", "testsecret", "testtoken", "todo"})
PLACEHOLDER_SHAPE = re.compile(r"your[_-].*|<.*>|\{.*\}|x{3,}|\*{3,}|\.{3,}", re.IGNORECASE)
SERVER_PARAMETERS = {"host", "port", "target_session_attrs"}
URL_SEGMENT = re.compile(r"[!$&-.0-;=@-Z_a-z~]+")


def _setting(default: Any, description: str, *, shown: str | None = None, **limits: Any) -> Any:
    """Declare a setting; ``shown`` replaces the default in the table where that is computed."""
    return Field(default, description=description, json_schema_extra={"shown": shown} if shown else None, **limits)


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class Settings(BaseSettings):
    """The settings of one process; read once at start."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    amocrm_client_id: str = _setting("", "Id of the amoCRM integration, which signed requests name in X-Client-UUID.")
    amocrm_client_secret: SecretStr = _setting(NO_SECRET, "Secret of the amoCRM integration, with which requests are signed.")
    amocrm_domain: str = _setting("", "Address of the amoCRM account, such as company.amocrm.ru; for the API, used later.")
    amocrm_redirect_uri: str = _setting("", "Redirect URI of the amoCRM integration; for OAuth, used later.")
    amocrm_webhook_token: SecretStr = _setting(NO_SECRET, "Last segment of the URL that amoCRM itself calls.", max_length=1024)
    amocrm_account_id: str = _setting("", "The one account that AMOCRM_WEBHOOK_TOKEN is for; empty means any account.", max_length=255)
    amocrm_keyring_dir: Path | None = _setting(None, "Folder with a keyring file per source, read again within 2 s of a change.")
    db_url: SecretStr = _setting(NO_SECRET, "Database, as a plain postgresql:// URL; may lead through a pooler.")
    db_pooler: str = _setting(
        "",
        "Pooler as host:port, which takes the place of DB_URL's host, port and TLS.",
        pattern=r"^$|^(\[[0-9A-Fa-f:.]+\]|[^\s:/@?#\[\]]+):[0-9]{1,5}$",
    )
    db_direct_url: SecretStr = Field(
        default_factory=lambda known: known["db_url"],
        description="Database without a pooler in between, for migrations.",
        json_schema_extra={"shown": "`DB_URL`"},
    )
    db_pool_size: int = _setting(10, "Most database connections of a process.", ge=1, le=1000)
    secret_key: SecretStr = _setting(NO_SECRET, "Secret for signing what this service itself hands out; used later.")
    jwt_secret: SecretStr = _setting(NO_SECRET, "Secret for JSON Web Tokens of this service; used later.")
    log_level: Annotated[LogLevel, BeforeValidator(_upper)] = _setting(
        "INFO", f"Lowest level that is logged, of {', '.join(get_args(LogLevel))}."
    )
    log_format: Literal["text", "json"] = _setting("text", "Shape of a log line: text or json.")
    log_file: Path | None = _setting(None, "File for logs besides standard error, rotated at 10 MiB, 5 kept; one process per file.")
    log_deliveries_per_second: int = _setting(
        20, "INFO lines about single deliveries beyond this many deliveries are counted in a summary line.", ge=0
    )
    docs_enabled: bool = _setting(True, "Whether the public port serves /docs.")
    mapping_file: Path | None = _setting(None, "What statuses and custom fields mean, as TOML.", shown="the shipped `mapping.toml`")
    migrations_dir: Path = _setting(MIGRATIONS_OF_CHECKOUT, "Folder of the database migrations.", shown="`migrations` of the checkout")
    max_body_bytes: int = _setting(1_048_576, "Largest body accepted; a larger one is answered 413.", ge=1024, le=1_073_741_824)
    max_body_fields: int = _setting(20_000, "Most fields of a body; more make it unparsable.", ge=1)
    max_body_depth: int = _setting(16, "Deepest nesting of a body; deeper makes it unparsable.", ge=4, le=100)
    max_in_flight_requests: int = _setting(2_000, "Most deliveries in progress; more are answered 503 at once.", ge=1)
    max_in_flight_bytes: int = _setting(33_554_432, "Most bytes of bodies in progress; more are answered 503 at once.", ge=1024)
    answer_budget_ms: int = _setting(
        1_500, "Time from a delivery's first byte to its answer; past it the answer is 503.", ge=100, le=60_000
    )
    keep_alive_seconds: int = _setting(
        620,
        "How long a connection may idle between requests: longer than the load balancer keeps it, or it sends into one that closes.",
        ge=1,
        le=86_400,
    )
    statement_timeout_ms: int = _setting(
        800, "Longest wait for a lock in the database; 400 ms later a call is given up and its connection closed.", ge=10, le=60_000
    )
    retention_processed_days: int = _setting(30, "Days that processed events and their deliveries are kept.", ge=1, le=36_500)
    retention_dead_days: int = _setting(90, "Days that dead events and their deliveries are kept.", ge=1, le=36_500)
    unparsed_quota_bytes: int = _setting(
        67_108_864, "Per source, bytes of unparsable bodies kept whole; beyond it the first 64 KiB of each are kept.", ge=0
    )
    worker_poll_seconds: float = _setting(1.0, "How often the worker looks for due events.", gt=0, le=3_600, allow_inf_nan=False)
    worker_batch_events: int = _setting(50, "Most due events the worker takes at once.", ge=1, le=10_000)
    worker_enabled: bool = _setting(True, "Whether the serving process also retries and prunes.")
    management_port: int | None = _setting(
        None, "Port for /livez, /readyz and /keyring; without it they are on the public one.", ge=1, le=65_535
    )
    management_host: str = _setting("0.0.0.0", "Address the management port listens on.")  # noqa: S104 - a pod's
    notify_url: SecretStr = _setting(
        NO_SECRET, "Who is told of dead letters and outages: addresses as Apprise writes them, separated by spaces or commas."
    )
    notify_interval_seconds: int = _setting(
        900, "Shortest time between two notifications of one kind; what comes in between is counted.", ge=1, le=86_400
    )

    @property
    def pooled_url(self) -> str:
        """Return the URL that serving connects to: DB_URL, led through DB_POOLER where there is one."""
        return through_pooler(self.db_url.get_secret_value(), self.db_pooler)


def through_pooler(url: str, pooler: str) -> str:
    """Return the URL with the pooler (``host:port``) in place of its server; ``sslmode`` and its kind are the pooler's business then."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # what is wrong with it is said where it is used
    if not pooler or not url:
        return url
    user, at, _ = parts.netloc.rpartition("@")
    query = [(name, value) for name, value in parse_qsl(parts.query) if not name.startswith("ssl") and name not in SERVER_PARAMETERS]
    kept = urlencode([*query, ("sslmode", "disable")], quote_via=quote)
    return parts._replace(netloc=f"{user}{at}{pooler}", query=kept).geturl()


def load_settings(dev: bool = False, **overrides: Any) -> Settings:
    """Read the settings; overrides win over the environment, that over ``.env``, and dev's credentials fill what is left.

    :raises ConfigurationError: names the variables and what they must be, never their values.
    """
    # Raised after the handlers: their errors carry the values, and would be the context of ours.
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        # Where DB_DIRECT_URL is left to its default, another variable's mistake is reported as its own, too.
        own = [item for item in problems if item["type"] != "default_factory_not_called"]
        problem = "; ".join(f"{str(item['loc'][0]).upper()}: {item['msg']}" for item in own)
    except (OSError, UnicodeError) as error:
        problem = f".env cannot be read ({type(error).__name__})"
    else:
        return settings.model_copy(update=_dev_defaults(settings)) if dev else settings
    raise ConfigurationError(problem)


def _dev_defaults(settings: Settings) -> dict[str, Any]:
    update: dict[str, Any] = {}
    # Both or neither: a person's own client id never goes with the well-known secret.
    if not settings.amocrm_client_id and not settings.amocrm_client_secret:
        update |= {"amocrm_client_id": DEV_CLIENT_ID, "amocrm_client_secret": SecretStr(DEV_CLIENT_SECRET)}
    if not settings.amocrm_webhook_token:
        update["amocrm_webhook_token"] = SecretStr(DEV_WEBHOOK_TOKEN)
    if settings.log_file is None:
        update["log_file"] = DEV_LOG_FILE
    return update


def check(settings: Settings, dev: bool) -> list[str]:
    """Refuse settings that cannot work or are known to everybody, and return warnings about weak ones.

    :raises ConfigurationError: names every such variable, never a value.
    """
    errors = _contradictions(settings) + ([] if dev else _placeholders(settings) + _missing(settings))
    if errors:
        raise ConfigurationError("; ".join(errors))
    return _warnings(settings, dev)


def _contradictions(settings: Settings) -> list[str]:
    errors = []
    if settings.amocrm_client_id and not settings.amocrm_client_secret:
        errors.append("AMOCRM_CLIENT_ID is set without AMOCRM_CLIENT_SECRET: set both")
    if settings.amocrm_client_secret and not settings.amocrm_client_id:
        errors.append("AMOCRM_CLIENT_SECRET is set without AMOCRM_CLIENT_ID: set both")
    token = settings.amocrm_webhook_token.get_secret_value()
    if token and not URL_SEGMENT.fullmatch(token):
        errors.append("AMOCRM_WEBHOOK_TOKEN must stand in a URL as it is: use letters, digits, '-' and '_'")
    if settings.max_in_flight_bytes < settings.max_body_bytes:
        errors.append("MAX_IN_FLIGHT_BYTES must be at least MAX_BODY_BYTES, or the largest body is never accepted")
    return errors


def _missing(settings: Settings) -> list[str]:
    errors = []
    if not settings.db_url:
        errors.append("DB_URL is not set: it names the database, as postgresql://user:password@host:5432/name")
    if not (settings.amocrm_client_id or settings.amocrm_webhook_token or settings.amocrm_keyring_dir):
        errors.append(
            "no credentials are set, so every delivery would be refused: "
            "set AMOCRM_CLIENT_ID with AMOCRM_CLIENT_SECRET, AMOCRM_WEBHOOK_TOKEN or AMOCRM_KEYRING_DIR"
        )
    return errors


def _secrets(settings: Settings) -> dict[str, str]:
    """Return the secrets that are set, with the passwords of the database URLs in place of the URLs, by variable.

    NOTIFY_URL is none of them: where in its addresses the secrets stand, only Apprise knows.
    """
    values = {name: value.get_secret_value() for name, value in settings if isinstance(value, SecretStr) and name != "notify_url"}
    values |= {name: _password(values[name]) for name in ("db_url", "db_direct_url")}
    return {name.upper(): value for name, value in values.items() if value}


def _password(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""


def _placeholders(settings: Settings) -> list[str]:
    values = _secrets(settings) | {
        name.upper(): str(getattr(settings, name))
        for name in ("amocrm_client_id", "amocrm_domain", "amocrm_redirect_uri", "amocrm_account_id")
    }
    named = [name for name, value in values.items() if _is_placeholder(value)]
    return [f"{name} still has a placeholder: replace it by a value of your own" for name in named]


def _is_placeholder(value: str) -> bool:
    bare = re.sub(r"[\s_-]", "", value).lower()
    return bare in PLACEHOLDERS or PLACEHOLDER_SHAPE.fullmatch(value.strip()) is not None


def _warnings(settings: Settings, dev: bool) -> list[str]:
    warnings = []
    secrets = _secrets(settings)
    for name, value in secrets.items():
        if dev and value in (DEV_CLIENT_SECRET, DEV_WEBHOOK_TOKEN):
            continue
        if value != value.strip():
            warnings.append(f"{name} begins or ends with a space or a line break, which counts as a part of it")
        if not name.startswith("DB_") and (len(value) < SHORTEST_SECRET_CHARS or len(set(value)) < FEWEST_DISTINCT_CHARS):
            warnings.append(f"{name} is weak: use {SHORTEST_SECRET_CHARS} random characters or more")
    if secrets.get("AMOCRM_WEBHOOK_TOKEN", DEV_WEBHOOK_TOKEN) != DEV_WEBHOOK_TOKEN and not settings.amocrm_account_id:
        warnings.append("AMOCRM_WEBHOOK_TOKEN without AMOCRM_ACCOUNT_ID is accepted for any account: set AMOCRM_ACCOUNT_ID")
    if settings.statement_timeout_ms >= settings.answer_budget_ms:
        warnings.append("STATEMENT_TIMEOUT_MS is not below ANSWER_BUDGET_MS: one stuck statement uses the whole budget")
    if settings.retention_processed_days < FEWEST_RETENTION_DAYS:
        warnings.append(
            f"RETENTION_PROCESSED_DAYS is below {FEWEST_RETENTION_DAYS}: an account that goes silent is not noticed, "
            "because the week before is pruned"
        )
    return warnings


def settings_table() -> str:
    """Render all settings as a Markdown table for the README."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name.upper()}` | {_shown_default(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _shown_default(field: Any) -> str:
    if field.json_schema_extra:
        return str(field.json_schema_extra["shown"])
    if field.default in (None, "", NO_SECRET):
        return "none"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
