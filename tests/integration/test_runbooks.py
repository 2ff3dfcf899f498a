"""What the runbooks tell somebody to type works: each command is run beside a live service, a database, and a dead letter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest

from amo_receiver.embedded.folder import free_port
from amo_receiver.embedded.processes import wait_until
from factories import form_body, lead
from integration.load import PATIENCE_SECONDS, PATIENT, TOKEN_PATH
from servers import Services, run_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from amo_receiver.embedded import EmbeddedPostgres
    from servers import ServiceProcess

CHART = Path(__file__).parents[2] / "charts" / "amo-webhooks"
RUNBOOKS = sorted((CHART / "runbooks").glob("*.md"))
PODS = [CHART / "templates" / component / "deployment.yaml" for component in ("service", "worker")]
PUBLIC, MANAGEMENT = "8000", "9000"
TOOLS = re.compile(r"\b(amo-webhooks|curl|psql) ")
OF_ONE_RELEASE = re.compile(r"\b(deploy|deployment|pod|svc|service)/")
FENCE = re.compile(r"^```(?P<tag>[^\n]*)\n(?P<text>.*?)^```$", flags=re.DOTALL | re.MULTILINE)
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
BLOCK_SECONDS = 60.0
UNWRITABLE, WRITABLE = "ALTER TABLE leads ADD CONSTRAINT no_one CHECK (id <> 1)", "ALTER TABLE leads DROP CONSTRAINT no_one"
DUE = "UPDATE events SET available_at = now() WHERE state = 'pending'"


def blocks(page: Path, tag: str) -> list[str]:
    """Return the fenced blocks of a runbook with this tag."""
    return [fence["text"] for fence in FENCE.finditer(page.read_text(encoding="utf-8")) if fence["tag"] == tag]


class Place(NamedTuple):
    """Where somebody types: the service's settings in the environment, ``psql`` on the path, and both ports open."""

    service: ServiceProcess
    management_port: int
    programs: Path

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run commands as they are written, but for the ports, and an answer of 404 is a failure."""
        script = script.replace("curl -sS ", "curl -sSf ")
        for shown, real in ((PUBLIC, self.service.url.rsplit(":", 1)[1]), (MANAGEMENT, str(self.management_port))):
            script = script.replace(f"127.0.0.1:{shown}", f"127.0.0.1:{real}")
        env = self.service.env | {"PATH": f"{self.programs}:{os.environ.get('PATH', os.defpath)}"}
        options = {"cwd": self.service.cwd, "env": env, "capture_output": True, "text": True, "timeout": BLOCK_SECONDS}
        return subprocess.run(["bash", "-e", "-o", "pipefail"], input=script, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def place(postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Return a place beside a live service that has given up on an event whose cause is mended by now."""
    folder = tmp_path_factory.mktemp("runbooks")
    run_sql(postgres.url(), f"CREATE DATABASE runbooks TEMPLATE {template}")
    url, port = postgres.url("runbooks"), free_port()
    (folder / "amo-webhooks").symlink_to(Path(sys.executable).with_name("amo-webhooks"))
    (folder / "psql").symlink_to(postgres.bin_dir / "psql")
    services = Services(folder)
    try:
        environment = {"DB_DIRECT_URL": url, "AMOCRM_ACCOUNT_ID": "32000001", **PATIENT}
        service = services.serve(url, args=["--management-port", str(port)], env=environment)
        run_sql(url, UNWRITABLE)
        body = form_body("leads", "update", lead(id=1))
        assert httpx.post(service.url + TOKEN_PATH, content=body, timeout=PATIENCE_SECONDS).json()["status"] == "partial"
        assert wait_until(lambda: run_sql(url, DUE, "SELECT FROM events WHERE state = 'dead'") != [], BLOCK_SECONDS)
        run_sql(url, WRITABLE)
        yield Place(service, port, folder)
    finally:
        services.end()
        run_sql(postgres.url(), "DROP DATABASE runbooks WITH (FORCE)")


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: page.stem)
def test_the_commands_of_a_runbook_work(place: Place, page: Path) -> None:
    """Typed one block after the other they all end well, and those that look have something to show."""
    script = "".join(blocks(page, "sh"))
    if "curl " in script and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = place.run(script)
    assert done.returncode == 0, f"{script}\nanswered {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert bool(done.stdout.strip()) is bool(script)


@pytest.mark.parametrize("command", ["amo-webhooks nonsense", f"curl -sS http://127.0.0.1:{MANAGEMENT}/nowhere | cat", "false\ntrue"])
def test_a_command_that_fails_would_be_noticed(place: Place, command: str) -> None:
    """Also at the head of a pipe, and before others."""
    assert place.run(command).returncode != 0


@pytest.mark.parametrize("page", [page for page in RUNBOOKS if page.name != "README.md"], ids=lambda page: page.stem)
def test_a_runbook_is_complete(page: Path) -> None:
    """It is named as its alert is, and goes from what it means to what to do; whoever is woken reads no more than a page."""
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^# (.+)$", FENCE.sub("", text), flags=re.MULTILINE) == [page.stem]
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == HEADINGS
    assert len(text.splitlines()) <= 50


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: page.stem)
def test_everything_in_a_runbook_is_of_a_kind_that_is_checked(page: Path) -> None:
    """A block is run here, or by kubectl or Helm in a cluster, or asked of Prometheus beside the dashboards; links lead somewhere."""
    text = page.read_text(encoding="utf-8")
    assert {fence["tag"] for fence in FENCE.finditer(text)} <= {"sh", "sh kubectl", "sh helm", "promql"}
    for program in ("kubectl", "helm"):
        lines = [line for block in blocks(page, f"sh {program}") for line in block.splitlines()]
        assert [line for line in lines if not line.startswith(f"{program} ")] == []
    assert [line for block in blocks(page, "sh") for line in block.splitlines() if "kubectl" in line] == []
    assert [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: page.stem)
def test_a_block_works_where_its_program_is(page: Path) -> None:
    """In a pod there is no curl and no psql, beside it there are no settings; a release may be called anything."""
    for block in blocks(page, "sh"):
        tools = set(TOOLS.findall(block))
        assert tools == {"amo-webhooks"} or (tools and "amo-webhooks" not in tools), block
    assert [line for block in blocks(page, "sh kubectl") for line in block.splitlines() if OF_ONE_RELEASE.search(line)] == []


def test_the_ports_are_those_of_the_pods() -> None:
    """Whoever forwards a port of the chart finds there what the pages ask."""
    asked = {found for page in RUNBOOKS for found in re.findall(r"127\.0\.0\.1:(\d+)", page.read_text(encoding="utf-8"))}
    assert asked == {PUBLIC, MANAGEMENT}
    ports = {port for file in PODS for port in re.findall(r"name: (\w+), containerPort: (\d+)", file.read_text(encoding="utf-8"))}
    assert ports == {("http", PUBLIC), ("management", MANAGEMENT)}
