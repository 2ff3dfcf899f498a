"""Russian: `doctor` and `check` speak it where the locale does, and the guide in it is true and can be followed."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import httpx
import pytest
import trustme
from typer.testing import CliRunner

from amo_receiver import app
from amo_receiver.__main__ import main
from amo_receiver.amocrm.events import changes_card
from amo_receiver.amocrm.fields import MAPPABLE, Mapping
from amo_receiver.amocrm.keyring import KeyKind
from amo_receiver.commands import app as commands
from amo_receiver.commands.check import _said
from amo_receiver.commands.doctor import database_findings, direct_finding
from amo_receiver.commands.language import FIELD, in_russian, speaking
from amo_receiver.commands.prune import INTERRUPTED
from amo_receiver.commands.russian import SENTENCES, WORDS
from amo_receiver.connection import MANY_CONNECTIONS
from amo_receiver.embedded.folder import free_port
from amo_receiver.errors import CommandError, ConfigurationError, InvalidBody, Problem, RequestError
from amo_receiver.inbox import states
from amo_receiver.log import LOG_FILE_BYTES, LOG_FILES_KEPT
from amo_receiver.settings import Settings, load_settings
from amo_receiver.settings import check as check_settings
from servers import ServiceProcess, run_sql, service_environment, signed_headers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Mapping as Variables

    from typer.testing import Result

    from amo_receiver.embedded import EmbeddedPostgres
    from conftest import StartService

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "service" / "amo_receiver"
GUIDE = (ROOT / "service" / "README.ru.md").read_text(encoding="utf-8")
LANG = {"LANG": "ru_RU.UTF-8"}
ENGLISH = re.compile(
    r"\b(the|is|are|not|no|it|its|of|to|and|a|an|in|at|by|with|from|be|was|has|have|use|must|needs?|this|all|checks?)\b", re.IGNORECASE
)
PASSWORD = "a-password-of-ones-own"
NOTHING_OF_OURS = dict.fromkeys(("AMOCRM_CLIENT_ID", "AMOCRM_CLIENT_SECRET", "AMOCRM_WEBHOOK_TOKEN"))


def english_words(text: str) -> list[str]:
    """Return the English words of a text outside of code."""
    return ENGLISH.findall(re.sub(r"`[^`]*`", "", text))


# Which language


@pytest.mark.parametrize(
    ("environment", "russian"),
    [
        ({}, False),
        ({"LANG": "ru_RU.UTF-8"}, True),
        ({"LANG": "ru"}, True),
        ({"LANG": "en_US.UTF-8"}, False),
        ({"LANG": "run_XX.UTF-8"}, False),
        ({"LC_MESSAGES": "ru_UA.UTF-8", "LANG": "en_US.UTF-8"}, True),
        ({"LC_ALL": "C", "LC_MESSAGES": "ru_RU.UTF-8", "LANG": "ru_RU.UTF-8"}, False),
        ({"LC_ALL": "", "LC_MESSAGES": "", "LANG": "ru_RU.KOI8-R"}, True),
        ({"LC_ALL": "ru_RU@variant", "LANG": "C"}, True),
    ],
)
def test_the_first_variable_that_is_set_decides(environment: dict[str, str], russian: bool) -> None:
    """LC_ALL before LC_MESSAGES before LANG, an empty one counts as unset."""
    assert speaking(environment)("All is well.") == ("Всё в порядке." if russian else "All is well.")


# Which sentences there are

# What the two commands can print is written in these functions, constants and calls (None: anywhere in the module).
WRITTEN: dict[str, set[str] | None] = {
    "commands/doctor.py": None,
    "commands/check.py": None,
    "settings.py": {"load_settings", "_contradictions", "_missing", "_placeholders", "_warnings"},
    "notify.py": {"services"},
    "schema.py": {"_config"},
    "watch.py": {"load_mapping", "read_bounded"},
    "amocrm/fields.py": {"parse", "_compile", "_require_tables"},
    "amocrm/keyring_file.py": None,
    "amocrm/keyring.py": {"MEND_HEADERS", "MEND_CLIENT", "MEND_SIGNATURE", "MEND_URL", "verify_signature", "verify_token", "_entitled"},
    "inbox/endpoints.py": {"Unauthorized", "Unavailable", "BodyTooLarge", "envelope"},
    "inbox/service.py": {"Unauthorized", "Unavailable", "BodyTooLarge"},
    "inbox/batch.py": {"fail"},
}
NOT_SAID = {"text", "Option", "Argument", "debug", "info", "warning", "error", "exception"}
"""SQL, --help and the log."""


def template(node: ast.Constant | ast.JoinedStr) -> str:
    """Return a text of the code with ``{}`` wherever something is put in."""
    if isinstance(node, ast.Constant):
        return FIELD.sub("{}", str(node.value))
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def texts(node: ast.AST) -> Iterator[str]:
    """Yield the texts in a part of the code, docstrings and what is not said to the user left out."""
    if isinstance(node, ast.Call) and _called(node) in NOT_SAID:
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        yield template(node)
    children = (
        [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        if isinstance(node, ast.JoinedStr)
        else ast.iter_child_nodes(node)
    )
    for child in children:
        yield from texts(child)


def is_sentence(text: str) -> bool:
    """Tell whether a text is more than a name, a key or what joins two of them."""
    words = text.replace("{}", "").strip()
    return re.search("[A-Za-z]{2}", words) is not None and (" " in words or words.endswith("."))


def written_in(module: str, names: set[str] | None) -> Iterator[str]:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    if names is None:
        yield from texts(tree)
        return
    for node in ast.walk(tree):
        targets = [target.id for target in node.targets if isinstance(target, ast.Name)] if isinstance(node, ast.Assign) else []
        called = _called(node) if isinstance(node, ast.Call) else ""
        if names & {getattr(node, "name", ""), called, *targets}:
            yield from texts(node)


def of_pydantic() -> set[str]:
    """Return what pydantic says of values that no setting can have."""
    said = set()
    for name in Settings.model_fields:
        for value in ("x", "-1", "9" * 30, "9" * 5000, "nan", "\ud800"):
            try:
                load_settings(False, **{name: value})
            except ConfigurationError as error:
                said.add(str(error))
    return said


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start in an empty directory with none of the variables set."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_every_sentence_has_its_russian_and_no_russian_is_left_over() -> None:
    """What the code says is what the catalogue has; pydantic's sentences are asked for below."""
    written = {text for module, names in WRITTEN.items() for text in written_in(module, names) if is_sentence(text)}
    joined = {" or ".join(get_args(KeyKind)), str(InvalidBody([Problem("", "{}")]))}
    catalogue = {FIELD.sub("{}", english) for english in {*SENTENCES, *WORDS} if not english.startswith("{setting}: ")}
    assert len(written) > 100
    assert sorted((written | joined) - catalogue) == []
    assert sorted(filter(is_sentence, catalogue - written - joined)) == []


@pytest.mark.usefixtures("bare")
def test_what_pydantic_says_of_a_setting_is_said_in_russian() -> None:
    """Whatever a setting's value is, there is a Russian sentence, and each of those is needed."""
    said = of_pydantic()
    assert {text: english_words(in_russian(text)) for text in said if english_words(in_russian(text))} == {}
    catalogue = {english for english in SENTENCES if english.startswith("{setting}: ")}
    assert {english for english in catalogue if not any(in_russian(text) == in_russian(filled(english, text)) for text in said)} == set()


def filled(english: str, like: str) -> str:
    """Fill a sentence of the catalogue with the setting and numbers of one that was said."""
    numbers = iter(re.findall(r"\d+", like))
    return FIELD.sub(lambda found: like.partition(":")[0] if found[1] == "setting" else next(numbers, "0"), english)


def test_the_words_of_the_tables_are_those_of_the_code() -> None:
    """Each is written in one of the two commands, and parts and states of findings all have one."""
    commands = [ast.parse((PACKAGE / module).read_text(encoding="utf-8")) for module in ("commands/doctor.py", "commands/check.py")]
    constants = {node.value for tree in commands for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert set(WORDS) - constants == set()
    findings = [node for node in ast.walk(commands[0]) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding"]
    shown = {argument.value for node in findings for argument in node.args[:2] if isinstance(argument, ast.Constant)}
    assert len(findings) > 20
    assert shown - set(WORDS) == set()


SAMPLES = {"time": "2026-11-22 12:00", "number": "17", "setting": "LOG_LEVEL", "key": "url_key 0123456789ab (current)"}


@pytest.mark.parametrize("english", SENTENCES)
def test_a_sentence_is_known_by_its_shape(english: str) -> None:
    """Filled in, it is translated by its own entry and no other, with everything in it and nothing English around."""
    values = {name: SAMPLES.get(name, f"‹{number}›") for number, name in enumerate(FIELD.findall(english))}
    expected = FIELD.sub(lambda found: values[found[1]], SENTENCES[english])
    assert in_russian(FIELD.sub(lambda found: values[found[1]], english)) == expected
    dropped = set(FIELD.findall(english)) - set(FIELD.findall(SENTENCES[english]))
    assert dropped <= {"length"}
    assert english_words(SENTENCES[english]) == []


KEY, OTHER_KEY, TIME = "url_key 0123456789ab (next)", "client_secret ba9876543210 (current)", "2026-11-22 12:00"


@pytest.mark.parametrize(
    ("english", "russian"),
    [
        (
            f"{KEY} begins {TIME} UTC, {OTHER_KEY} expired {TIME} UTC",
            f"{KEY}: начнёт действовать {TIME} UTC, {OTHER_KEY}: срок истёк {TIME} UTC",
        ),
        (f"{KEY} expired {TIME} UTC, {OTHER_KEY} expired {TIME} UTC", f"{KEY}: срок истёк {TIME} UTC, {OTHER_KEY}: срок истёк {TIME} UTC"),
        (
            f"{KEY} expired {TIME} UTC: take it out of the keyring, or give it a later not_after.",
            f"{KEY}: срок истёк {TIME} UTC; уберите ключ из файла или задайте более поздний not_after.",
        ),
        (
            "db/amo is Postgres 14 and answers in 0.3 ms: upgrade it to 15 or later.",
            "db/amo: Postgres 14, отвечает за 0.3 мс: обновите его до версии 15 или новее.",
        ),
        (
            "DB_POOL_SIZE: Input should be greater than or equal to 1; WORKER_POLL_SECONDS: Input should be a finite number.",
            "DB_POOL_SIZE: нужно число не меньше 1; WORKER_POLL_SECONDS: нужно конечное число.",
        ),
        ("acme.json is ignored: the file must be a JSON object.", "Файл acme.json не учитывается: корень: ожидается объект JSON."),
        ("3 of 4 checks FAILED; 7 not asked for want of credentials.", "Не пройдено проверок: 3 из 4, пропущено без учётных данных: 7."),
        ("keys of schema", "ключи schema"),
        ("Somebody else's words; All is well.", "Somebody else's words; All is well."),
        ("", ""),
    ],
)
def test_sentences_inside_sentences_are_translated(english: str, russian: str) -> None:
    """Lists too, as long as each part is known; names that happen to be words of a table stay, and so does what others say."""
    assert in_russian(english) == russian


# What the commands print


def run(folder: Path, *arguments: str, env: Variables[str, str | None], db_url: str | None = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "amo_receiver", *arguments]
    environment = service_environment("", folder, {"DB_URL": db_url} | dict(env))
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def cells(table: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if line.strip()]


def test_doctor_speaks_russian(database_url: str, tmp_path: Path) -> None:
    """A sound installation is well, with the states and exit code of the English one, and nothing English is mixed in."""
    done = run(tmp_path, "doctor", env=LANG | {"AMOCRM_ACCOUNT_ID": "32000001"}, db_url=database_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("Всё в порядке.\n")
    assert english_words(done.stdout) == []
    assert cells(done.stdout)[0] == ["часть", "состояние", "вывод"]
    assert {row[1] for row in cells(done.stdout)[2:-1]} == {"ok"}


def test_doctor_says_what_is_wrong_in_russian(tmp_path: Path) -> None:
    """Settings, files, keys and databases alike; the exit code is that of the English one."""
    keyring = tmp_path / "keyring"
    keyring.mkdir()
    (keyring / "broken.json").write_text("{")
    (keyring / "acme").write_text('{"version": 1, "generation": 1, "client_id": "acme", "accounts": [1], "keys": []}')
    url = f"postgresql://amo:secret@127.0.0.1:{free_port()}/amo"
    wrong = {"AMOCRM_KEYRING_DIR": str(keyring), "AMOCRM_WEBHOOK_TOKEN": "short", "MAPPING_FILE": "absent", "MIGRATIONS_DIR": "absent"}
    done = run(tmp_path, "doctor", env=LANG | NOTHING_OF_OURS | wrong, db_url=url)
    assert done.returncode == 1
    assert english_words(done.stdout) == []
    for said in ("слабое значение", "не учитывается: это не JSON", "accounts: ожидается null", "нет соединения (ConnectionRefusedError)",
                 "MAPPING_FILE absent не читается", "нет миграций"):  # fmt: skip
        assert said in done.stdout
    assert re.search(r"Проблем: \d+, предупреждений: 2\.\n$", done.stdout)


@pytest.mark.parametrize("url", ["postgresql://a:secret@[::1/amo", "postgresql://a:secret@127.0.0.1/amo?connect_timeout=soon"])
async def test_a_url_that_cannot_be_read_is_a_finding(url: str) -> None:
    """Of either setting, without quoting it."""
    settings = load_settings(db_url=url)
    for finding in (*[each async for each in database_findings(settings)], await direct_finding(settings)):
        assert "не разобрать" in in_russian(finding.sentence)
        assert "secret" not in finding.sentence


def check(*arguments: str, env: Variables[str, str | None] = LANG) -> Result:
    """Run `check` in this process with the tests' credentials."""
    ours = {name: value for name, value in service_environment("", Path()).items() if name.startswith("AMOCRM_")}
    return CliRunner().invoke(commands, ["check", *arguments], env={"LC_ALL": None, "LC_MESSAGES": None} | ours | dict(env))


@pytest.mark.usefixtures("bare")
def test_check_speaks_the_language_of_the_locale(start_service: StartService, database_url: str) -> None:
    """What passes and what fails is said in Russian, the service's own refusals included; machine words stay, and English is English."""
    url = start_service(database_url).url
    passed = check(url)
    assert passed.exit_code == 0
    assert passed.stdout.endswith("Пройдены все проверки: 11.\n")
    assert english_words(passed.stdout) == []
    assert ["leads.add", "200 success", "200 success", "ok"] in [row[:3] + row[4:] for row in cells(passed.stdout)]
    failed = check(url, env=LANG | {"AMOCRM_CLIENT_SECRET": "another-secret-0123456789"})
    assert failed.exit_code == 1
    assert "неверные данные: X-Signature не подходит ни к одному действующему ключу" in failed.stdout
    assert failed.stdout.endswith("Не пройдено проверок: 7 из 11.\n")
    assert english_words(failed.stdout) == []
    english = check(url, env={"LANG": "en_US.UTF-8"}).stdout
    assert english.endswith("All 11 checks passed.\n")
    assert re.search("[а-я]", english) is None


def test_a_service_without_its_database_is_known_for_one() -> None:
    """Its health page has no message, and is not mistaken for that of another program."""
    page = {"status": "unhealthy", "database": "disconnected"}
    assert in_russian(_said(httpx.Response(503), page)[1]) == "его база данных недоступна"
    assert in_russian(_said(httpx.Response(503), {})[1]) == "так этот сервис не отвечает"


@pytest.mark.parametrize(
    ("arguments", "env", "said", "kind"),
    [
        (("http://127.0.0.1:1",), {}, "По адресу http://127.0.0.1:1 никто не отвечает", CommandError),
        (("ftp://127.0.0.1",), {}, "Это не адрес сервиса", CommandError),
        (("--client-id", "me"), NOTHING_OF_OURS, "--client-id и --client-secret задаются вместе", ConfigurationError),
        ((), {"LOG_LEVEL": "loud"}, "LOG_LEVEL: нужно одно из значений DEBUG", ConfigurationError),
    ],
)
@pytest.mark.usefixtures("bare")
def test_errors_are_one_sentence_in_russian(
    arguments: tuple[str, ...], env: dict[str, str | None], said: str, kind: type[Exception]
) -> None:
    """Of the kind that decides the exit code."""
    done = check(*arguments, env=LANG | env)
    assert type(done.exception) is kind
    assert str(done.exception).startswith(said)
    assert done.stdout == ""


# What the guide says


def section(heading: str) -> str:
    """Return the part of the guide below a heading, up to the next one of its rank."""
    found = re.search(rf"^(#+) {re.escape(heading)}.*?\n", GUIDE, flags=re.MULTILINE)
    assert found, heading
    return re.split(rf"^#{{1,{len(found[1])}}} ", GUIDE[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def shown(tag: str) -> list[str]:
    """Return the guide's blocks of one kind."""
    return re.findall(rf"^ *```{tag}\n(.*?)^ *```$", GUIDE, flags=re.DOTALL | re.MULTILINE)


def first_cells(heading: str) -> list[list[str]]:
    """Return the words in code of the first column of the tables below a heading, a list for each row."""
    rows = [line.split("|") for line in section(heading).splitlines() if line.startswith("| ")]
    return [words for row in rows if (words := re.findall(r"`([^`]+)`", row[1]))]


def source(*modules: str) -> str:
    return "".join((PACKAGE / module).read_text(encoding="utf-8") for module in modules)


def test_the_settings_of_the_guide_exist() -> None:
    """With their defaults where it names them; those that nothing reads yet are the ones that it says so of."""
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", GUIDE)) - {"LC_ALL", "LC_MESSAGES", "UTM_MEDIUM"}
    assert named - {name.upper() for name in Settings.model_fields} == set()
    [unused] = re.findall(r"Переменные (`[^.]*?)\s+пока", GUIDE, flags=re.DOTALL)
    later = {name.upper() for name, field in Settings.model_fields.items() if (field.description or "").endswith("used later.")}
    assert set(re.findall("`(.+?)`", unused)) == later
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert f"за {defaults['answer_budget_ms'] / 1000:g} с (`ANSWER_BUDGET_MS`)".replace(".", ",") in GUIDE
    assert f"обработанные ({defaults['retention_processed_days']}) и мёртвые ({defaults['retention_dead_days']})" in GUIDE
    assert f"через {defaults['retention_processed_days']} дней, мёртвые через {defaults['retention_dead_days']}" in GUIDE
    assert f"о {defaults['log_deliveries_per_second']} вебхуках в секунду (`LOG_DELIVERIES_PER_SECOND`)" in GUIDE.replace("\n", " ")
    assert f"каждые {LOG_FILE_BYTES // 2**20} МиБ, хранится {LOG_FILES_KEPT} прежних" in GUIDE


def test_the_states_and_delays_of_the_guide_are_those_of_the_code() -> None:
    """Events, attempts and the words in `leads.status`."""
    assert [words[0] for words in first_cells("События") if "." not in words[0]] == list(get_args(states.State))
    assert all(f"`{effect}`" in section("События") for effect in get_args(states.Effect))
    delays = states.DELAYS_SECONDS
    assert f"через {delays[1]} секунд, потом ещё раз через {delays[2]}" in section("Ошибки и повторы")
    assert states.MAX_ATTEMPTS == 3
    assert "После третьей неудачи" in section("Ошибки и повторы").replace("\n", " ")
    shipped = tomllib.loads((PACKAGE / "mapping.toml").read_text(encoding="utf-8"))["leads"]["status"]
    [words] = re.findall(r"`leads.status` из готового файла соответствий: (.*?)\.\n", GUIDE, flags=re.DOTALL)
    assert re.findall("`(.+?)`", words) == list(shipped.values())


@pytest.mark.parametrize(("level", "code"), [("INFO", 1), ("loud", 2)])
def test_the_exit_codes_of_the_guide_are_those_of_the_commands(level: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 for what could not be done, 2 for the configuration; what an interrupted `prune` ends with stands beside them."""
    monkeypatch.setenv("LOG_LEVEL", level)
    monkeypatch.setattr(sys, "argv", ["amo-webhooks", "check", "ftp://127.0.0.1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert re.search(rf"кодом 0, .*; 1, .*; 2, .*`prune` — {INTERRUPTED}\.", section("Ошибки и повторы"), flags=re.DOTALL)


def test_the_answers_of_the_guide_are_those_of_the_service() -> None:
    """A row for each code that a webhook is answered with, and the words of the envelope."""
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)`", section("Адреса и ответы"), flags=re.MULTILINE)
    assert {int(code) for code, _ in rows} == {200} | {error.status for error in RequestError.__subclasses__()}
    assert {(code == "200", status) for code, status in rows} == {(True, "success"), (True, "partial"), (False, "error")}


def test_the_events_of_the_guide_do_what_it_says() -> None:
    """The last row is those that change no table."""
    *changing, recorded = [words for words in first_cells("События") if "." in words[0]]
    assert len([changes_card(*name.split(".")) for words in changing for name in words]) >= 10
    assert all(changes_card(*name.split(".")) for words in changing for name in words)
    assert not any(changes_card(*name.split(".")) for name in recorded)


def test_the_addresses_of_the_guide_answer(start_service: StartService, database_url: str) -> None:
    """Pages with 200, and the two webhook paths with 401 for a stranger."""
    service = start_service(database_url)
    rows = [line.split() for words in first_cells("Адреса и ответы") for line in words if line.startswith(("GET ", "POST "))]
    assert len(rows) == 8
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        codes = {path: client.request(method, path.replace("{token}", "nobodys-token")).status_code for method, path in rows}
    assert codes == {path: 401 if method == "POST" else 200 for method, path in rows}


@pytest.mark.parametrize(
    ("heading", "modules"),
    [
        ("Журнал", ("inbox/journal.py", "inbox/service.py", "inbox/batch.py", "worker/journal.py", "health.py")),
        ("Неверная подпись", ("inbox/journal.py", "inbox/service.py", "amocrm/keyring.py")),
    ],
)
def test_the_sentences_that_the_guide_quotes_are_written(heading: str, modules: tuple[str, ...]) -> None:
    """Whoever searches the log for them finds them, with the level that the guide says."""
    phrases = [phrase for phrase in re.findall(r"`([A-Z][^`]* [^`]*)`", section(heading)) if not phrase.startswith(("GET", "POST"))]
    assert len(phrases) >= 5
    assert [phrase for phrase in phrases if phrase not in source(*modules)] == []
    levels = re.findall(r"^\| `([^`]+)` \| ([A-Z]+) ", section(heading), flags=re.MULTILINE)
    assert [phrase for phrase, level in levels if not re.search(rf'\.{level.lower()}\(\s*"{re.escape(phrase)}', source(*modules))] == []


def test_the_mapping_of_the_guide_is_one() -> None:
    """Every way of naming a field works, an account's own rows come first, and all columns are named."""
    [toml] = shown("toml")
    mapping = Mapping.parse(toml)
    general, own = mapping.for_account("1"), mapping.for_account("32000001")
    assert general.column("leads", "987654", None, None) == (0, "utm_source")
    assert general.column("leads", "1", "utm_medium", None) == (1, "utm_medium")
    assert general.column("leads", "1", None, "комиссия") == (2, "commission")
    assert own.column("leads", "123458", None, None) == (0, "utm_source")
    assert (own.statuses["76789230"], own.statuses["2"]) == ("new", "contacted")
    [line] = re.findall(r"Столбцы для полей сделок: (.*?)\.\n", GUIDE, flags=re.DOTALL)
    assert re.findall("`(.+?)`", line) == [column for columns in MAPPABLE.values() for column in columns]


def signature_of_the_guide() -> str:
    return signed_headers("32000001", "test-uuid", "test-secret")["X-Signature"]


def test_the_python_of_the_guide_signs() -> None:
    """It prints the signature that its curl sends."""
    [program] = shown("python")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == signature_of_the_guide()
    assert set(re.findall(r"\b[0-9a-f]{64}\b", GUIDE)) == {signature_of_the_guide()}


def installed(program: str) -> str:
    """Return the path of a program; where there is none, what it would tell of the guide's example is skipped."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    return path or pytest.skip(f"{program} is not installed, so that the example for it cannot be tried")


def test_the_php_of_the_guide_signs() -> None:
    """It prints the same signature."""
    done = subprocess.run([installed("php")], input="".join(shown("php")), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == signature_of_the_guide()


def unit() -> str:
    [ini] = shown("ini")
    return ini


def test_the_proxy_of_the_guide_fits_the_service() -> None:
    """It leads to the unit's port, redirects nowhere, lets every allowed body through and waits longer than the service takes."""
    [nginx] = shown("nginx")
    [port] = re.findall(r"--port (\d+)", unit())
    assert re.findall(r"proxy_pass (\S+);", nginx) == [f"http://127.0.0.1:{port}"]
    assert re.search(r"\breturn 3|\brewrite\b|\bredirect", nginx) is None
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    [megabytes] = re.findall(r"client_max_body_size (\d+)m;", nginx)
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", nginx)
    assert int(megabytes) * 2**20 > defaults["max_body_bytes"]
    assert int(seconds) * 1000 > defaults["answer_budget_ms"]
    assert "access_log off;" in nginx
    [stop] = re.findall(r"TimeoutStopSec=(\d+)", unit())
    assert int(stop) > app.GRACEFUL_SECONDS + app.WORKER_END_SECONDS + 2 * app.CLOSE_SECONDS
    [files] = re.findall(r"LimitNOFILE=(\d+)", unit())
    assert int(files) > defaults["max_in_flight_requests"] + MANY_CONNECTIONS


def test_systemd_understands_the_unit_of_the_guide(tmp_path: Path) -> None:
    """No key of it is unknown and no value unreadable; another program stands for ours, because systemd looks whether it is there."""
    file = tmp_path / "amo-webhooks.service"
    file.write_text(re.sub(r"/opt/amo-webhooks/\S+", sys.executable, unit()))
    done = subprocess.run([installed("systemd-analyze"), "verify", str(file)], capture_output=True, text=True, check=False)
    # It ends with 0 also where it ignores a line, and speaks of the machine's other units too.
    assert (done.returncode, [line for line in done.stderr.splitlines() if file.name in line]) == (0, [])


def test_nginx_understands_the_proxy_of_the_guide(tmp_path: Path) -> None:
    """As all that a server has, with a certificate, a log and a port that are there."""
    trustme.CA().issue_cert("amo.example.ru").private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    server = shown("nginx")[0].replace("/var/log/nginx", str(tmp_path)).replace("listen 443 ", f"listen 127.0.0.1:{free_port()} ")
    server = re.sub("/etc/letsencrypt/[^;]+", str(tmp_path / "pem"), server)
    (tmp_path / "conf").write_text(f"pid {tmp_path}/pid; error_log {tmp_path}/log; events {{}} http {{ {server} }}")
    command = [installed("nginx"), "-t", "-p", str(tmp_path), "-c", "conf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "[warn]" in done.stderr) == (0, False), done.stderr


def test_the_links_inside_the_guide_lead_somewhere() -> None:
    """Each anchor is that of a heading."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"(?ms)^ *```.*?^ *```$", "", GUIDE), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", GUIDE)) - anchors == set()
    assert "support@asia-deals.com" in section("Поддержка")
    assert "@asia_deals_support" in section("Поддержка")


@pytest.fixture
def guides_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """Return the URL of a database that was made as the guide says, by a role with a password of its own."""
    made = [statement.replace("your_password", PASSWORD) for statement in shown("sql") if statement.startswith("CREATE")]
    assert len(made) == 2
    run_sql(postgres.url(), *made)
    yield f"postgresql://amo_webhooks:{PASSWORD}@{postgres.url('amo_webhooks').rpartition('@')[2]}"
    run_sql(postgres.url(), "DROP DATABASE amo_webhooks WITH (FORCE)", "DROP ROLE amo_webhooks")


@pytest.mark.usefixtures("bare")
def test_who_follows_the_guide_has_a_running_service(
    guides_url: str, postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the role, the `.env` and the unit's command that stand there, `doctor` and `check` find nothing wrong; `psql` works too."""
    [start] = re.findall(r"^ExecStart=/opt/amo-webhooks/\.venv/bin/amo-webhooks (.*)$", unit(), flags=re.MULTILINE)
    [script] = [block for block in shown("sh") if "cat > .env" in block]
    port, folder, env = free_port(), tmp_path / "opt", NOTHING_OF_OURS | LANG | {"DB_URL": None}
    environment = service_environment("", folder, env)
    service = ServiceProcess(start.replace("8000", str(port)).split(), folder=folder, env=environment, port=port)
    subprocess.run(["sh", "-e"], input=script, cwd=folder, env=environment, text=True, check=True)
    # What sets and uses $DB_URL, block after block as they follow in the guide, for a shell that does not know it.
    blocks = [block for block in shown("sh") if "export DB_URL=" in block or '"$DB_URL"' in block]
    assert (blocks[0].split("=")[0], len(blocks)) == ("export DB_URL", 6)
    script = re.sub(r"(?m)^ *curl .*\n", "", "".join(blocks))
    path = f"{Path(sys.executable).parent}:{postgres.bin_dir}:{environment['PATH']}"
    settings = folder / ".env"
    assert settings.stat().st_mode & 0o077 == 0
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigurationError, match="DB_URL still has a placeholder"):
        check_settings(load_settings(), dev=False)

    settings.write_text(re.sub(r"(?m)^DB_URL=.*$", f"DB_URL={guides_url}", settings.read_text()))
    assert run(folder, "migrate", "upgrade", "head", env=env, db_url=None).returncode == 0
    try:
        service.start()
        checked = run(folder, "check", service.url, env=env, db_url=None)
        examined = run(folder, "doctor", env=env, db_url=None)
        subprocess.run(["sh", "-euc", script], cwd=folder, env=environment | {"PATH": path}, check=True)
        log = (folder / "logs" / "app.log").read_text()
    finally:
        service.end()
    assert checked.stdout.endswith("Пройдены все проверки: 4, пропущено без учётных данных: 7.\n"), checked
    assert examined.stdout.endswith("Всё в порядке.\n"), examined
    assert "Webhook token verified for account: 32000001" in log
