"""What the pages for people show is run: a command in a README that stopped working fails here.

Blocks tagged ``sh`` are commands, each run as it stands beside one service that ``amo-webhooks dev`` started, block after block in the
order of the page; ``sql`` blocks are run on its database. Anything else (``text``, ``json``, ``console`` ...) is shown, not run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import typer.main

from amo_receiver.commands import app
from amo_receiver.embedded.folder import free_port
from amo_receiver.embedded.processes import wait_until
from servers import ServiceProcess, run_sql, service_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "service").glob("README*.md")), *sorted((ROOT / "operator").glob("README*.md"))]

DEV_LINE = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/amo-webhooks dev"
TEST_LINE = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/poe test"
INSTALL_LINE = "python3 -m venv .venv && .venv/bin/pip install -q -e ."
NOT_RUN = {
    re.escape(DEV_LINE): "it installs into the clone and runs until it is stopped; the service beside the blocks is its last part",
    re.escape(TEST_LINE): "it installs into the clone and runs this very test; the script that decides what lands runs it literally",
    r"(\.venv/bin/)?poe .*": "the tasks call the tests; that they exist is tested",
    r"(.* )?(\.venv/bin/)?amo-webhooks (dev|serve|work)( .*)?": "it runs until it is stopped; that its options exist is tested",
    re.escape(INSTALL_LINE): "it installs into the clone",
    r"git (clone|pull)( .*)?": "it fetches from a foreign host",
    r"(useradd|chown|install) .*": "it makes the service's own user and what belongs to it",
    r"cd /opt/amo-webhooks": "the clone stands for that folder, and the blocks are run in it",
    r"(systemctl|journalctl) .*": "it needs a machine on which systemd runs the service; that the unit's program starts is tested",
    r"nginx -t": "it needs the proxy and its certificate; what the proxy must do is compared with the settings",
    r"(path=\$\()?(kubectl|helm|kind) .*|curl .*\$path.*": "it needs a cluster, and is run on one by the cluster test",
    r".*https://amo\.example\.ru\b.*": "it needs a host behind a TLS proxy; the same is run on 127.0.0.1",
}
SHOWN = {"", "console", "ini", "json", "mermaid", "nginx", "php", "python", "text", "toml", "yaml"}
RUN = {"sh", "sql"}
COMMAND = re.compile(r"\s*(\$ |amo-webhooks |curl |poe |psql |python3? |\.venv/)")
READY_SECONDS = 30.0
BLOCK_SECONDS = 60.0


class Block(NamedTuple):
    """A fenced block of a page, and the line it begins at."""

    page: Path
    line: int
    tag: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8") if text is None else text
    fences = re.finditer(r"^(?P<margin> *)```(?P<tag>[^\n`]*)\n(?P<text>.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)
    return [
        Block(page, text.count("\n", 0, fence.start()) + 1, fence["tag"].strip(), re.sub(f"(?m)^{fence['margin']}", "", fence["text"]))
        for fence in fences
    ]


def commands(text: str) -> list[str]:
    """Split a block into its commands: a line, or several where a backslash or an open quote joins them."""
    found: list[str] = []
    unfinished = ""
    for line in text.splitlines():
        unfinished += line
        if not _is_whole(unfinished):
            unfinished += "\n"
        elif unfinished.strip():
            found.append(unfinished)
            unfinished = ""
    return found + [unfinished] * bool(unfinished.strip())


def _is_whole(text: str) -> bool:
    if text.endswith("\\"):
        return False
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def why_not_run(command: str) -> str | None:
    """Return the reason why a command is not run, or None."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.fullmatch(pattern, command.strip(), flags=re.DOTALL)), None)


ALL = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in ALL if block.tag == "sh"]
QUERIES = [block for block in ALL if block.tag == "sql"]


# What is shown


@pytest.mark.parametrize("line", [DEV_LINE, TEST_LINE], ids=["dev", "test"])
def test_the_two_lines_to_paste_stand_in_the_readme(line: str) -> None:
    """A person pastes one line to run everything, and one to test everything."""
    assert sum(commands(block.text).count(line) for block in SHELL if block.page == ROOT / "README.md") == 1


def test_every_block_says_what_it_is() -> None:
    """A command under another tag would never be run, and a tag that nobody knows is a spelling mistake."""
    assert [str(block) for block in ALL if block.tag not in SHOWN | RUN] == []
    hidden = [block for block in ALL if block.tag in {"", "text"} and any(COMMAND.match(line) for line in block.text.splitlines())]
    assert [str(block) for block in hidden] == []


def test_commands_can_be_pasted() -> None:
    """No prompt stands before a command."""
    assert [str(block) for block in SHELL if re.search(r"^\s*[$#>] ?(amo|curl|poe|python|\.venv)", block.text, flags=re.MULTILINE)] == []


def _resolve(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command of ours that words name, and the words left for it; LookupError where there is none."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        command = command.commands[rest.pop(0)]
    return command, rest


def _mentions(page: Path) -> list[list[str]]:
    """Return the words after each ``amo-webhooks`` in blocks and in code between backticks, up to what the shell would end it with."""
    text = page.read_text(encoding="utf-8")
    code = [block.text for block in blocks(page, text)] + re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^ *```.*?^ *```$", "", text))
    found = [match for each in code for match in re.findall(r"(?:^|[\s/])amo-webhooks ([a-z][^|&;()\n]*)", each)]
    return [match.split() for match in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_ours_that_a_page_names_exist(page: Path) -> None:
    """Each of them has a help page with an example."""
    for words in _mentions(page):
        try:
            command, rest = _resolve(words)
        except LookupError:
            pytest.fail(f"{page.name} names `amo-webhooks {' '.join(words)}`, which there is not")
        options = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]} | {"--help"}
        assert [word for word in rest if word.startswith("--") and word.split("=")[0] not in options] == [], words
        assert hasattr(command, "commands") or "Example: amo-webhooks" in (command.help or ""), words


def test_lines_that_run_until_stopped_are_complete() -> None:
    """Their options and values are those that the command takes, as far as can be told without running it."""
    lines = [command for block in SHELL for command in commands(block.text) if why_not_run(command)]
    for line in lines:
        for tail in re.findall(r"(?:^|[\s/])amo-webhooks ((?:dev|serve|work)\b[^|&;\n]*)", line):
            command, rest = _resolve(shlex.split(tail, comments=True))
            command.make_context(command.name, [word for word in rest if word != "--help"])


def test_tasks_that_a_page_names_exist() -> None:
    """``poe`` followed by a word is one of the tasks in pyproject.toml, and each of those has a line of help."""
    tasks = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["poe"]["tasks"]
    named = {name for page in PAGES for name in re.findall(r"\bpoe ([a-z][\w-]*)", page.read_text(encoding="utf-8"))}
    assert named - set(tasks) == set()
    assert [name for name, task in tasks.items() if not task.get("help")] == []


# What is run


class Clone(NamedTuple):
    """A clone as the reader has it: with everything installed, and ``dev`` running in another terminal."""

    folder: Path
    port: int
    db_url: str

    def script(self, text: str) -> str:
        """Return a block's commands, those that can be run, for the port that the service has here."""
        here = f"127.0.0.1:{self.port}"
        script = "\n".join(command for command in commands(text) if not why_not_run(command))
        script = re.sub(r"(amo-webhooks check)(?=\s*($|[|&;#]))", rf"\1 http://{here}", script, flags=re.MULTILINE)
        return re.sub(r"\b(127\.0\.0\.1|localhost):8000\b", here, script)

    def environment(self, page: Path) -> dict[str, str]:
        """Return what the reader's shell has: what ``dev`` told to export, and as in an image our program for the pages of folders."""
        paths = [str(self.folder / "bin"), *(each for each in os.get_exec_path() if Path(each) != Path(sys.executable).parent)]
        if page.parent != ROOT:
            paths.insert(0, str(self.folder / ".venv" / "bin"))
        return {"PATH": os.pathsep.join(paths), "HOME": str(self.folder), "LANG": "C.UTF-8", "DB_URL": self.db_url}


@pytest.fixture(scope="module")
def clone(server_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """Return a folder that looks like a clone, in which ``dev`` runs."""
    folder, port = tmp_path_factory.mktemp("readme") / "clone", free_port()
    credentials = dict.fromkeys(("AMOCRM_CLIENT_ID", "AMOCRM_CLIENT_SECRET", "AMOCRM_WEBHOOK_TOKEN", "DB_URL"))
    arguments = ["dev", "--port", str(port), "--data-dir", str(server_folder / "readme")]
    dev = ServiceProcess(arguments, folder=folder, env=service_environment("", folder, credentials), port=port)
    for path in ROOT.iterdir():
        if path.name in {"service", "operator", "charts", "migrations", "tests"} or path.suffix in {".md", ".toml"}:
            (folder / path.name).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "bin").mkdir()
    try:
        dev.start()
        wait_until(lambda: "Ctrl-C stops everything" in dev.log, READY_SECONDS)
        exported = re.search(r"^ *export DB_URL=(.+)$", dev.log, flags=re.MULTILINE)
        psql = re.search(r"^ *(\S+) \"\$DB_URL\"", dev.log, flags=re.MULTILINE)
        assert exported, dev.log
        assert psql, dev.log
        (folder / "bin" / "psql").symlink_to(shutil.which(shlex.split(psql[1])[0]) or "")
        yield Clone(folder, port, shlex.split(exported[1])[0])
    finally:
        dev.end()


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_the_commands_of_a_block_work(clone: Clone, block: Block) -> None:
    """Pasted one block after the other they all end well, and none is answered with an error."""
    script = clone.script(block.text)
    if not script.strip():
        assert all(why_not_run(command) for command in commands(block.text))
        return
    if "curl " in script and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["sh", "-e"],
        input=script,
        cwd=clone.folder,
        env=clone.environment(block.page),
        capture_output=True,
        text=True,
        timeout=BLOCK_SECONDS,
        check=False,
    )
    said = f"{block}\n{script}\nanswered {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    assert not re.search(r'"status": ?"error"', done.stdout), said


def test_the_queries_that_are_shown_work(clone: Clone) -> None:
    """Each column and function in them exists."""
    for block in QUERIES:
        run_sql(clone.db_url, block.text)


# Whether this would notice

PAGE = ROOT / "README.md"
EXAMPLE = """Text
```sh
one 'two
three' # comment
  four \\
    five

.venv/bin/amo-webhooks serve --port 8000
```
1. in a list
   ```text
   shown
   ```
"""


def test_blocks_and_commands_are_found() -> None:
    """Also in lists, over several lines, and with their place for whoever has to mend them."""
    found = blocks(PAGE, EXAMPLE)
    assert [(str(block), block.tag) for block in found] == [("README.md:2", "sh"), ("README.md:11", "text")]
    assert found[1].text == "shown\n"
    assert commands(found[0].text) == ["one 'two\nthree' # comment", "  four \\\n    five", ".venv/bin/amo-webhooks serve --port 8000"]


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        (DEV_LINE, False),
        (TEST_LINE, False),
        (DEV_LINE + " --port 1", False),
        (".venv/bin/poe check", False),
        ("amo-webhooks serve", False),
        ("DB_URL=x .venv/bin/amo-webhooks work", False),
        (INSTALL_LINE, False),
        ("systemctl restart amo-webhooks", False),
        ("curl -sS https://amo.example.ru/api/webhooks/amo/test", False),
        ("cd /opt/amo-webhooks && amo-webhooks doctor", True),
        (".venv/bin/amo-webhooks events list", True),
        ("amo-webhooks check", True),
        ("curl -sS http://127.0.0.1:8000/readyz", True),
        ("python3 -m venv .venv", True),
    ],
)
def test_nothing_is_left_out_without_a_reason(command: str, runs: bool) -> None:
    """Only what installs or runs until stopped is not run."""
    assert (why_not_run(command) is None) is runs


def test_a_block_is_run_against_the_service_of_the_test() -> None:
    """Whatever port the page names, and a check without an address is given one."""
    clone = Clone(ROOT, 4321, "")
    assert clone.script("curl http://localhost:8000/a\namo-webhooks dev\n") == "curl http://127.0.0.1:4321/a"
    assert clone.script("amo-webhooks check\n") == "amo-webhooks check http://127.0.0.1:4321"
    assert clone.script("amo-webhooks check http://127.0.0.1:8000 | cat") == "amo-webhooks check http://127.0.0.1:4321 | cat"
    assert clone.script("amo-webhooks check | cat") == "amo-webhooks check http://127.0.0.1:4321 | cat"
