"""What the pages tell somebody to type, run as it stands: in a shell whose kubectl is in the release's namespace."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from integration.test_runbooks import RUNBOOKS, blocks

if TYPE_CHECKING:
    from e2e.cluster import Cluster

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", ROOT / "service" / "README.ru.md"]


def runbook_lines(names: dict[str, str]) -> list[str]:
    """Return the runbooks' lines for kubectl, each once, with the names of this release: ``names`` has one for each word before NAME."""
    lines = _lines("kubectl")
    kinds = "|".join(names)
    return sorted(re.sub(rf"\b({kinds})([ =])NAME", lambda found: f"{found[1]}{found[2]}{names[found[1]]}", line) for line in lines)


def runbook_upgrades(release: str, chart: Path) -> list[list[str]]:
    """Return the arguments of the runbooks' lines for Helm, each once, for this release and chart."""
    given = {"RELEASE": release, f"charts/{chart.name}": str(chart)}
    return [[given.get(word, word) for word in shlex.split(line)[1:]] for line in sorted(_lines("helm"))]


def _lines(program: str) -> set[str]:
    return {line for page in RUNBOOKS for block in blocks(page, f"sh {program}") for line in block.splitlines()}


def readme_lines() -> list[str]:
    """Return the lines for kubectl of the READMEs, which name their namespace."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in READMES).replace("\\\n", "")
    shell = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [line for block in shell for line in block.splitlines() if re.match(r"(path=\$\()?kubectl ", line)]


def typed(cluster: Cluster, line: str, folder: Path) -> str:
    """Run a line as somebody types it, and return what it prints; fail if it fails."""
    program = folder / "kubectl"
    if not program.exists():
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(shutil.which("kubectl") or "")} --namespace {cluster.namespace} "$@"\n')
        program.chmod(0o755)
    return cluster.run("env", f"PATH={folder}:{os.environ['PATH']}", "sh", "-e", "-c", line)
