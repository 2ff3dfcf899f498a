"""A fact that is written twice is compared, so that no page, pin or constraint goes stale alone."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sqlalchemy import CheckConstraint, Table, UniqueConstraint

import amo_receiver
from amo_operator.keyring import MOST_REVOKED
from amo_operator.spec import AmoIntegrationSpec
from amo_receiver import errors
from amo_receiver.amocrm.keyring import KeyKind, KeyState
from amo_receiver.amocrm.keyring_file import parse_source
from amo_receiver.app import MATCHES_SECONDS
from amo_receiver.connection import CROWDED_SECONDS, MANY_CONNECTIONS, STALL_SECONDS
from amo_receiver.health import CACHE_SECONDS
from amo_receiver.inbox import repository, states
from amo_receiver.inbox.delivery import CUT_BODY_BYTES
from amo_receiver.inbox.matches import LAG, MOST_ACCOUNTS, READ_SECONDS
from amo_receiver.inbox.models import Base
from amo_receiver.settings import Settings, settings_table
from amo_receiver.telemetry.metrics_stored import QUEUE_SECONDS
from servers import connect

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "service"
README = SERVICE / "README.md"
IMAGES = {"service": [], "operator": ["operator"]}  # folder with the requirements of an image, and the extras that they hold
COMPILE = "uv pip compile --universal --generate-hashes --no-header --no-annotate --python-version 3.11"
MIGRATIONS = sorted((ROOT / "migrations" / "versions").glob("*.py"))

WRITTEN_MIGRATIONS = {
    "0001_deliveries_events_cards.py": "475252c0a9f041551be04d105020fd47dc18b662bfb5888584128d9add7e24bf",
    "0002_key_matches.py": "eb902657f495efc0906728e8b0babafc79ea93e1eee364e3d3ff555191921420",
}
"""The SHA-256 of each as it was first written; it stays so."""

SIX_TABLES = {"deliveries", "events", "attempts", "leads", "contacts", "tokens"}
OTHERS_BY_ACCOUNT = {"key_matches"}
OTHER_TABLES = {"schema_floor": "one row about the schema as a whole, which is no account's"}
FIRST_KEY_COLUMN = "account_id"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(_read(ROOT / "pyproject.toml"))
    return project


# What the service's README says


def test_the_readme_shows_the_settings_as_they_are() -> None:
    """Its table, between two markers, is the one that ``settings_table()`` renders."""
    shown = re.findall(r"<!-- settings -->\n(.*?)<!-- /settings -->", _read(README), flags=re.DOTALL)
    assert shown == [settings_table()]


def test_the_readme_lists_the_states_of_the_code() -> None:
    """A row for each state, in the order of the type, with the delays of the retry schedule."""
    rows = re.findall(r"^\| `([a-z]+)` \|(.*)", _read(README).split("## States of an event")[1].split("\n## ")[0], flags=re.MULTILINE)
    assert [state for state, _ in rows] == list(get_args(states.State))
    pending = dict(rows)["pending"]
    first, second, deferral = states.DELAYS_SECONDS[1], states.DELAYS_SECONDS[2], states.DEFERRAL_SECONDS
    assert f"{first} s after the first attempt, {second} s after the second" in pending
    assert f"waits {deferral} s, doubling to {states.MAX_DEFERRAL_SECONDS // 60} min" in pending


def test_the_readme_lists_the_statuses_of_the_error_tree() -> None:
    """An answer with a code that no error has, or an error without a row, would mislead whoever reads a log of amoCRM's."""
    rows = re.findall(r"^\| (\d{3}) ", _read(README).split("## Answers")[1].split("\n## ")[0], flags=re.MULTILINE)
    assert set(rows) == {"200"} | {str(status) for _, status in _error_classes().values() if status}


def test_the_readmes_keyring_file_is_one() -> None:
    """Pasted and filled in, the example loads, with both kinds of key; all states are named below it."""
    section = _read(README).split("## Keys")[1].split("\n## ")[0]
    examples = re.findall(r"```json\n(.*?)```", section, flags=re.DOTALL)
    sources = [parse_source("example", example) for example in examples]
    assert [{key.kind for key in source.keys} for source in sources] == [set(get_args(KeyKind))]
    assert [state for state in get_args(KeyState) if f"`{state}`" not in section] == []


def test_every_row_of_the_threat_model_names_tests_that_exist() -> None:
    """Each row names a test, a function or a file, that exists; whether it would fail if somebody could do it, only a reader can tell."""
    section = _read(README).split("## Who could do what")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    assert rows.pop(0) == ["who", "can", "cannot", "guarded by"]
    guards = {who: re.findall(r"`([^`]+)`", named) for who, _, _, named in rows}
    assert len(guards) >= 7
    assert [who for who, names in guards.items() if not names] == []
    files = list((ROOT / "tests").rglob("test_*.py"))
    there = {path.name for path in files} | {
        name for path in files for name in re.findall(r"^(?:async )?def (test_\w+)\(", _read(path), re.MULTILINE)
    }
    assert {name for names in guards.values() for name in names} - there == set()


def test_the_bounds_in_the_threat_model_are_those_of_the_code() -> None:
    """How long connections may idle, and how often anybody can have the database asked."""
    section = _read(README).split("## Who could do what")[1].split("\n## ")[0]
    keep_alive = Settings.model_fields["keep_alive_seconds"].default
    for said in (
        f"for {STALL_SECONDS:.0f} to {2 * STALL_SECONDS:.0f} s",
        f"`KEEP_ALIVE_SECONDS` ({keep_alive} s), or for {CROWDED_SECONDS} s",
        f"more than {MANY_CONNECTIONS} were connected",
        {1.0: "`SELECT 1` at most once a second"}[CACHE_SECONDS],
        f"the queue at most every {QUEUE_SECONDS:.0f} s",
        f"({CUT_BODY_BYTES // 1024} KiB of each)",
    ):
        assert said in section


def test_the_bounds_of_key_matches_are_those_of_the_code() -> None:
    """How many accounts are told apart, and how often they are written: both READMEs say it, one to operators and one to developers."""
    service, operator = _read(README), _read(ROOT / "operator" / "README.md")
    assert f"up to {MOST_ACCOUNTS}, and `accounts_complete` is false" in service
    assert f"Pods tell up to {MOST_ACCOUNTS} accounts of a URL key apart" in operator
    assert f"A match less than {LAG.total_seconds():.0f} s after the one in the table" in service
    assert {60.0: "Once a minute each process writes"}[READ_SECONDS] in service
    assert LAG + timedelta(seconds=READ_SECONDS + 2 * MATCHES_SECONDS) <= timedelta(minutes=2), "what a killed process takes with it"


def test_what_a_spec_may_revoke_is_what_is_remembered() -> None:
    """However long the list: the operator's README promises it, the CRD bounds it, and the keyring keeps as many."""
    (bound,) = [each.max_length for each in AmoIntegrationSpec.model_fields["revoke"].metadata if hasattr(each, "max_length")]
    assert bound == MOST_REVOKED
    page = _read(ROOT / "operator" / "README.md")
    assert f"fingerprints, up to {bound}, of keys that are refused at once and for good" in page
    assert f"of those no longer listed the last {MOST_REVOKED} are remembered" in page


def test_the_keyring_is_mounted_read_only() -> None:
    """Who takes over a pod of the chart cannot write keys for the others: every mount of the folder says so."""
    texts = [_read(path) for path in (ROOT / "charts").rglob("*") if path.suffix in {".yaml", ".tpl"}]
    folders = [match for text in texts for match in re.findall(r"mountPath: /var/run/amo-webhooks/keyring\b", text)]
    mounts = [match for text in texts for match in re.findall(r"mountPath: /var/run/amo-webhooks/keyring[,\s]+(.*?)[}\n]", text)]
    assert len(mounts) == len(folders) >= 2
    assert set(mounts) == {"readOnly: true"}


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(SERVICE.glob("README*.md"))], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_readme_names_exist(page: Path) -> None:
    """A module, test or page is named by its path from the root, the page, the package, or a test by its name alone."""
    text = re.sub(r"```.*?```", "", _read(page), flags=re.DOTALL)
    named = set(re.findall(r"`([\w./-]+\.(?:py|toml|txt|md|example))`", text)) | set(re.findall(r"\]\((?!https?:)([^)#]+)", text))
    places = [ROOT, page.parent, SERVICE / "amo_receiver", *(path for path in (ROOT / "tests").iterdir() if path.is_dir())]
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


# What docstrings say


def _drawn_tree(docstring: str) -> dict[str, tuple[str | None, int | None]]:
    """Read the tree in the docstring: for each name its parent and status."""
    tree: dict[str, tuple[str | None, int | None]] = {}
    above: list[str] = []
    for line in docstring.splitlines():
        found = re.match(r"    ((?:[│ ] {3})*(?:[├└]── )?)(\w+)(?:\s+(\d{3})\b)?(?:\s{2,}|$)", line)
        if found:
            depth = len(found[1]) // 4
            above[depth:] = [found[2]]
            tree[found[2]] = (above[depth - 1] if depth else None, int(found[3]) if found[3] else None)
    return tree


def _subclasses(base: type[Any]) -> list[type[Any]]:
    return [base, *(each for child in base.__subclasses__() for each in _subclasses(child))]


def _error_classes() -> dict[str, tuple[str | None, int | None]]:
    """Return each error's parent and the status that it sets itself, after importing all there is."""
    for module in pkgutil.walk_packages(amo_receiver.__path__, "amo_receiver."):
        importlib.import_module(module.name)
    own = [each for each in _subclasses(errors.AmoWebhooksError) if each.__module__.startswith("amo_receiver.")]
    return {
        each.__name__: (
            None if each is errors.AmoWebhooksError else each.__mro__[1].__name__,
            each.__dict__.get("status") if each is not errors.RequestError else None,
        )
        for each in own
    }


def test_the_tree_of_errors_is_the_one_drawn() -> None:
    """Each error stands under its parent with its HTTP status, and none is declared elsewhere."""
    assert _drawn_tree(errors.__doc__ or "") == _error_classes()


def test_every_error_that_is_answered_has_a_status() -> None:
    """Only the base keeps 500, which is for bugs."""
    answered = _subclasses(errors.RequestError)[1:]
    assert [each.__name__ for each in answered if "status" not in each.__dict__] == []


def test_a_paragraph_for_each_state() -> None:
    """The docstring explains the states of the type, in its order, and names both effects."""
    docstring = states.__doc__ or ""
    assert re.findall(r"^(\w+)\n    \S", docstring, flags=re.MULTILINE) == list(get_args(states.State))
    assert [effect for effect in get_args(states.Effect) if f"``{effect}``" not in docstring] == []


# What the models say


def _checks(table: Table) -> dict[str, str]:
    return {str(each.name): str(each.sqltext) for each in table.constraints if isinstance(each, CheckConstraint)}


def _allowed(constraint: str) -> list[str]:
    checks = {name: text for table in Base.metadata.tables.values() for name, text in _checks(table).items()}
    return re.findall(r"'([^']*)'", checks[constraint])


def test_the_database_allows_the_states_of_the_code() -> None:
    """States, effects and kinds of key are the same in type and CHECK."""
    assert _allowed("events_state") == list(get_args(states.State))
    assert _allowed("events_effect") == list(get_args(states.Effect))
    assert _allowed("deliveries_key_kind") == [*get_args(KeyKind), "token"]


def test_every_table_and_column_says_what_it_holds() -> None:
    """A sentence per column, whole to its end, for whoever reads the tables."""
    assert {mapper.class_.__name__ for mapper in Base.registry.mappers if not mapper.class_.__dict__.get("__doc__")} == set()
    columns = [column for table in Base.metadata.tables.values() for column in table.columns]
    assert [str(column) for column in columns if not re.fullmatch(r"\S.{4,}[.…]", column.doc or "")] == []


def test_the_tables_are_the_six_and_those_with_a_reason() -> None:
    """A new table belongs to an account, or says why not."""
    assert set(Base.metadata.tables) == SIX_TABLES | OTHERS_BY_ACCOUNT | set(OTHER_TABLES)


@pytest.mark.parametrize("name", sorted(SIX_TABLES | OTHERS_BY_ACCOUNT))
def test_every_key_starts_with_the_account(name: str) -> None:
    """So that the tables can be distributed by account, no primary or unique key may begin otherwise."""
    table = Base.metadata.tables[name]
    unique = [each for each in table.constraints if isinstance(each, UniqueConstraint)] + [each for each in table.indexes if each.unique]
    keys = [list(table.primary_key.columns), *(list(each.columns) for each in unique)]
    assert [[column.name for column in key] for key in keys if not key or key[0].name != FIRST_KEY_COLUMN] == []


# What the database has


async def test_the_migrations_make_the_checks_of_the_models(database_url: str) -> None:
    """Postgres' own reading of each CHECK in the models is that of the one in the database, of the same name."""
    definitions = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c' AND conrelid = to_regclass($1)"
    async with connect(database_url) as connection:
        for table in Base.metadata.sorted_tables:
            migrated = dict(await connection.fetch(definitions, f"public.{table.name}"))
            await connection.execute(f"CREATE TEMP TABLE as_modelled (LIKE public.{table.name})")
            for name, check in _checks(table).items():
                await connection.execute(f'ALTER TABLE as_modelled ADD CONSTRAINT "{name}" CHECK ({check})')
            modelled = dict(await connection.fetch(definitions, "pg_temp.as_modelled"))
            await connection.execute("DROP TABLE as_modelled")
            assert modelled == migrated, table.name


async def test_the_functions_that_the_code_calls_are_in_the_database(database_url: str) -> None:
    """Each numbered function named in the service exists, and the calls fit its arguments."""
    named = {name for path in SERVICE.rglob("*.py") for name in re.findall(r"\b(\w+_v\d+)\b", _read(path))}
    calls = [value for value in vars(repository).values() if isinstance(value, str) and re.match(r"SELECT \w+_v\d+\(", value)]
    assert len(calls) >= 2
    async with connect(database_url) as connection:
        rows = await connection.fetch("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
        assert named - {row["proname"] for row in rows} == set()
        for call in calls:
            await connection.prepare(call)


def test_the_schedule_in_sql_is_that_of_the_code() -> None:
    """What is left pending at acceptance is due when a first attempt that failed would be; claiming counts the same delays."""
    accept = [match for path in MIGRATIONS for match in re.findall(r"available_at = now\(\) \+ interval '(\d+) seconds'", _read(path))]
    assert set(accept) == {str(states.DELAYS_SECONDS[1])}
    claim = re.search(r"CASE attempts WHEN 0 THEN (\d+) ELSE (\d+) END", str(repository.CLAIM))
    assert claim, "the claim's delays are no longer written out: is this comparison still needed?"
    assert [int(claim[1]), *[int(claim[2])] * (states.MAX_ATTEMPTS - 1)] == list(states.DELAYS_SECONDS.values())


def test_a_migration_is_never_changed() -> None:
    """A database that has run it does not run it again: what was changed would be missing there, and nobody would notice."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in MIGRATIONS}
    changed = sorted(name for name, written in WRITTEN_MIGRATIONS.items() if found.get(name) != written)
    assert changed == [], "databases have run these as they were: take the change back, and add a new migration that makes it"
    assert found.keys() - WRITTEN_MIGRATIONS.keys() == set(), f"write a new migration down in WRITTEN_MIGRATIONS: {found}"


# What is installed


def _pins(requirements: list[str]) -> dict[str, str]:
    """Return name → exact version and marker; a requirement that is not one exact version keeps its specifier."""
    parsed = [Requirement(each) for each in requirements]
    return {canonicalize_name(each.name): f"{each.specifier}; {each.marker or ''}" for each in parsed}


def _compiled(folder: str) -> dict[str, list[str]]:
    """Return the compiled requirements, each with its hashes."""
    entries = re.split(r"\n(?=\S)", _read(ROOT / folder / "requirements.txt").strip())
    parts = [re.split(r"\s*\\\n\s+", entry) for entry in entries]
    return {entry[0]: entry[1:] for entry in parts}


def test_direct_dependencies_are_pinned() -> None:
    """An installation of today and one of next year get the same versions of what we name; the extras too."""
    project = _project()
    extras = project["project"].get("optional-dependencies", {})
    named = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *(each for extra in extras.values() for each in extra),
    ]
    foreign = [Requirement(each) for each in named if Requirement(each).name != project["project"]["name"]]
    assert [str(each) for each in foreign if not re.fullmatch(r"==[\w.]+", str(each.specifier))] == []


@pytest.mark.parametrize(("folder", "extras"), IMAGES.items())
def test_the_images_requirements_are_the_projects(folder: str, extras: list[str]) -> None:
    """Every direct dependency is in there with its pin and marker; everything in there is one exact version."""
    project = _project()["project"]
    compiled = _pins(list(_compiled(folder)))
    direct = _pins([*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])])
    command = [COMPILE, *(f"--extra {extra}" for extra in extras), "pyproject.toml -o", f"{folder}/requirements.txt"]
    again = f"compile it anew: {' '.join(command)}"
    assert {name: compiled.get(name) for name in direct} == direct, again
    assert [name for name, pin in compiled.items() if not re.fullmatch(r"==[\w.]+; .*", pin)] == [], again


def test_the_images_have_the_same_versions() -> None:
    """What both install is one version: a trace or a migration means the same in both."""
    service, operator = (_pins(list(_compiled(folder))) for folder in IMAGES)
    assert {name: pin.split(";")[0] for name, pin in operator.items() if name in service} == {
        name: pin.split(";")[0] for name, pin in service.items()
    }


@pytest.mark.parametrize("folder", IMAGES)
def test_every_requirement_of_an_image_has_its_hashes(folder: str) -> None:
    """What is installed is what was compiled; a single entry without a hash would make pip refuse them all."""
    compiled = _compiled(folder)
    assert len(compiled) > len(_project()["project"]["dependencies"])
    assert [
        name
        for name, hashes in compiled.items()
        if not hashes or not all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
    ] == []
