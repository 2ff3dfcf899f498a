"""The house: what lies where, how it is named, how large it may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
TOP_LEVEL = {"service", "operator", "charts", "migrations", "tests", "skaffold.yaml", "pyproject.toml", "README.md"}
NAMELESS = {"common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}
UNTRACKED = {".git", ".venv", "__pycache__", "logs"}
# In pieces, so that this file does not mention them either.
HOSTS = [
    ".".join(labels)
    for labels in (
        ("pypi", "org"), ("pythonhosted", "org"), ("registry", "npmjs", "org"), ("registry", "yarnpkg", "com"), ("crates", "io"),
        ("proxy", "golang", "org"), ("maven", "org"), ("maven", "apache", "org"), ("deb", "debian", "org"), ("archive", "ubuntu", "com"),
        ("huggingface", "co"),
    )
]  # fmt: skip
INDEX_OPTIONS = ["-".join(words) for words in (("index", "url"), ("find", "links"), ("trusted", "host"))]
SHARED = Path("..", "shared").as_posix()
ROUTER_METHODS = {"get", "post", "put", "patch", "delete", "head", "options", "api_route", "route", "websocket"}


class Bounds(NamedTuple):
    """The most lines of a module, of a function and of an endpoint."""

    module: int
    function: int
    endpoint: int


PROGRAM = Bounds(300, 40, 15)
# Tests stand side by side and do not build on each other: a long module of them is read like a table.
TESTS = Bounds(600, 60, 60)


def _listed() -> list[Path] | None:
    """Ask git for the files that are in the repository or about to be; None where it cannot say."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return [ROOT / name for name in done.stdout.decode().split("\0") if name] if done.returncode == 0 else None


def _walked(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in UNTRACKED or path.name.endswith((".egg-info", "_cache")) or path.name in (".env", ".hypothesis"):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walked(path)
        else:
            yield path


def files() -> list[Path]:
    """Return the project's own files."""
    listed = _listed()
    return sorted(path for path in (_walked(ROOT) if listed is None else listed) if path.is_file())


def modules(*folders: str) -> list[Path]:
    """Return the Python modules in top-level folders."""
    return [path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def _parse(path: Path) -> ast.Module:
    return ast.parse(_text(path), str(path))


def _lines(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined,no-any-return]


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def is_endpoint(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell whether a function answers HTTP: it takes what ASGI hands over or a request, or a router's decorator says so."""
    arguments = function.args.args
    decorators = [each.func if isinstance(each, ast.Call) else each for each in function.decorator_list]
    return (
        [each.arg for each in arguments][-3:] == ["scope", "receive", "send"]
        or any(each.annotation is not None and ast.unparse(each.annotation).strip("'\"").split(".")[-1] == "Request" for each in arguments)
        or any(isinstance(each, ast.Attribute) and each.attr in ROUTER_METHODS for each in decorators)
    )


def _lines_of_texts(tree: ast.Module) -> int:
    """Return how many lines the long texts of a module take up: a migration's are SQL, which is as long as the schema is."""
    constants = [node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    return sum(_lines(node) for node in constants if isinstance(node.value, str) and _lines(node) > 1)


def oversized(text: str, bounds: Bounds, *, migration: bool = False) -> list[str]:
    """Say what in a module's text exceeds the bounds."""
    tree = ast.parse(text)
    lines = len(text.splitlines()) - (_lines_of_texts(tree) if migration else 0)
    found = [f"{lines} lines"] if lines > bounds.module else []
    for function in _functions(tree):
        most = bounds.endpoint if is_endpoint(function) else bounds.function
        if _lines(function) > most:
            found.append(f"{function.name} has {_lines(function)} lines of {most}")
    return found


def nameless(path: Path) -> list[str]:
    """Return the words in a path that say nothing about what is in there."""
    names = [*path.parts[:-1], path.stem]
    return [word for name in names for word in re.split(r"[^a-z]+", name.lower()) if word in NAMELESS]


def test_the_top_level_holds_nothing_but_the_agreed_folders() -> None:
    """A reader finds everything from eight names; besides them there are only dotfiles."""
    names = {path.relative_to(ROOT).parts[0] for path in files()}
    assert {name for name in names if not name.startswith(".")} - TOP_LEVEL == set()
    assert {"service", "migrations", "tests", "pyproject.toml", "README.md"} <= names


def test_without_git_the_same_files_are_found() -> None:
    """An unpacked archive is held to the same rules as a clone."""
    listed = _listed()
    if listed is None:
        pytest.skip("git does not know this folder, so there is nothing to compare with")
    assert {path for path in listed if path.is_file()} <= set(_walked(ROOT))


@pytest.mark.parametrize("folder", ["service", "operator"])
def test_the_folders_of_the_packages_are_no_packages(folder: str) -> None:
    """An ``operator/__init__.py`` would take the place of Python's own module for whatever starts in the repository's root."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_pythons_own_operator_module_is_importable_from_the_root(tmp_path: Path) -> None:
    """``import operator`` there means the standard library, with or without our folder; were it a package, this would notice."""
    command = [sys.executable, "-S", "-c", "import operator; operator.itemgetter"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    (tmp_path / "operator").mkdir()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "operator" / "__init__.py").touch()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_nothing_is_named_for_saying_nothing() -> None:
    """A folder or module is named by the noun inside it, never utils, common, manager or helpers."""
    assert {str(path.relative_to(ROOT)): words for path in files() if (words := nameless(path.relative_to(ROOT)))} == {}


@pytest.mark.parametrize("name", ["service/amo_receiver/utils.py", "tests/common/test_a.py", "service/key_manager.py", "a/HTTP-Helpers.md"])
def test_such_names_would_be_noticed(name: str) -> None:
    """The words count wherever they stand in a path."""
    assert nameless(Path(name))


def test_modules_functions_and_endpoints_of_the_program_stay_small() -> None:
    """A module has at most 300 lines, a function 40, an endpoint 15; a migration's SQL is not counted."""
    found = {
        str(path.relative_to(ROOT)): problems
        for path in modules("service", "operator", "migrations")
        if (problems := oversized(_text(path), PROGRAM, migration=path.parent.name == "versions"))
    }
    assert found == {}


def test_modules_and_functions_of_the_tests_stay_readable() -> None:
    """A module has at most 600 lines, a function 60."""
    found = {str(path.relative_to(ROOT)): problems for path in modules("tests") if (problems := oversized(_text(path), TESTS))}
    assert found == {}


def _function(lines: int, head: str = "def grown():") -> str:
    return head + "\n" + "    pass\n" * (lines - head.count("\n") - 1)


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda lines: "x = 1\n" * lines, PROGRAM.module),
        (_function, PROGRAM.function),
        (lambda lines: "class A:\n" + "".join(f"    {line}\n" for line in _function(lines).splitlines()), PROGRAM.function),
        (lambda lines: _function(lines, "async def grown(scope, receive, send):"), PROGRAM.endpoint),
        (lambda lines: _function(lines, "async def grown(request: Request):"), PROGRAM.endpoint),
        (lambda lines: "@router.get('/')\n" + _function(lines), PROGRAM.endpoint),
    ],
    ids=["module", "function", "method", "asgi", "request", "route"],
)
def test_one_line_more_would_be_noticed(make: Callable[[int], str], most: int) -> None:
    """The bounds themselves are allowed, and nothing beyond."""
    assert oversized(make(most), PROGRAM) == []
    assert len(oversized(make(most + 1), PROGRAM)) == 1


def test_only_the_texts_of_a_migration_are_left_out_of_its_length() -> None:
    """The code around them is held to the same 300 lines."""
    text = 'SQL = """\n' + "SELECT 1;\n" * 400 + '"""\n' + "x = 1\n" * 300
    assert oversized(text, PROGRAM, migration=True) == []
    assert oversized(text, PROGRAM) == ["702 lines"]
    assert oversized(text + "x = 1\n", PROGRAM, migration=True) == ["301 lines"]


def test_the_webhook_endpoint_is_seen_as_one() -> None:
    """The hot path is plain ASGI, so the bound for endpoints must reach it."""
    tree = _parse(ROOT / "service" / "amo_receiver" / "inbox" / "endpoints.py")
    assert "__call__" in {function.name for function in _functions(tree) if is_endpoint(function)}


def test_every_module_says_what_it_is_for() -> None:
    """Its first line is a docstring; an empty ``__init__.py`` is a module too."""
    found = modules("service", "operator", "migrations", "tests")
    assert [str(path.relative_to(ROOT)) for path in found if not ast.get_docstring(_parse(path))] == []


def test_no_file_names_where_packages_are_downloaded_from() -> None:
    """Where packages come from is the machine's own setting, so a mirror or an offline installation needs no change here."""
    words = HOSTS + INDEX_OPTIONS
    assert {str(path.relative_to(ROOT)): seen for path in files() if (seen := [each for each in words if each in _text(path)])} == {}


def test_there_is_no_lock_file() -> None:
    """Those name download hosts; the pins stand in pyproject.toml, and hashes in the requirements of each image."""
    locks = {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "package-lock.json", "yarn.lock"}
    assert [str(path.relative_to(ROOT)) for path in files() if path.name in locks] == []


def test_the_repository_needs_nothing_beside_it() -> None:
    """A clone alone is complete; only the script that decides what lands may look at what lies next to it."""
    outside = [path.relative_to(ROOT).as_posix() for path in files() if SHARED in _text(path)]
    assert set(outside) <= {".ci/run"}
