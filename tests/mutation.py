"""`poe mutate`: change the code in small ways, one at a time, and see whether its unit tests notice.

Each module is run against the tests that concern it, in a copy of the tree outside of it, where mutmut takes `src` for the root of the
packages. Module constants, patterns, decorated functions and class bodies are not mutated: that is mutmut's bound.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
MUTMUT = Path(sys.executable).with_name("mutmut")
MODULES = {
    "amocrm/keyring.py": ["keyring"],
    "amocrm/keyring_file.py": ["keyring_file"],
    "amocrm/fields.py": ["fields"],
    "amocrm/form.py": ["form", "form_bodies"],
    "amocrm/events.py": ["events"],
    "inbox/merge.py": ["merge"],
    "inbox/batch.py": ["batch", "batch_telemetry", "settling"],
}
WAITING = {"inbox/batch.py"}
"""Here a mutant often keeps a test waiting until its time is over: twice as many at once cost nothing."""
# Hypothesis' profile "ci" tries the same examples every time and keeps none, so that a score says the same tomorrow.
SETTINGS = """
[mutmut]
source_paths = src
only_mutate = src/amo_receiver/{module}
pytest_add_cli_args =
    --hypothesis-profile=ci
    -p
    no:cacheprovider
pytest_add_cli_args_test_selection =
    {tests}
use_git_change_detection = false
track_dependencies = false
timeout_multiplier = 2.0
timeout_constant = 3.0
"""
NOTICED = ("killed", "timeout", "segfault")
MOST_SHOWN = 5_000
console = Console(width=150, highlight=False)


@dataclass
class Score:
    """What became of one module's mutants."""

    statuses: Counter[str]
    seconds: float
    survivors: dict[str, str] = field(default_factory=dict)

    @property
    def noticed(self) -> int:
        """How many failed a test, or kept one from ending."""
        return sum(self.statuses[status] for status in NOTICED)

    def row(self, name: str) -> list[str]:
        """Return its line of the table."""
        total = self.statuses.total()
        share = f"{100 * self.noticed / total:.1f} %" if total else "-"
        return [name, str(total), str(self.noticed), str(self.statuses["timeout"]), str(total - self.noticed), share, f"{self.seconds:.0f}"]


def mutate(module: str, folder: Path) -> Score:
    """Run all mutants of a module in a fresh copy of the tree."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "service", folder / "src", ignore=ignored)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    tests = "\n    ".join(f"tests/unit/test_{name}.py" for name in MODULES[module])
    (folder / "setup.cfg").write_text(SETTINGS.format(module=module, tests=tests), encoding="utf-8")
    began = time.monotonic()
    mutmut(folder, "run", "--max-children", str((os.cpu_count() or 1) * (2 if module in WAITING else 1)))
    results = dict(line.strip().rsplit(": ", 1) for line in mutmut(folder, "results", "--all", "true").splitlines())
    score = Score(Counter(results.values()), time.monotonic() - began)
    for name, status in results.items():
        if status not in NOTICED:
            score.survivors[f"{name.removeprefix('amo_receiver.')} ({status})"] = mutmut(folder, "show", name)
    return score


def mutmut(folder: Path, *arguments: str) -> str:
    """Run mutmut in a folder and return what it printed; end with that where it fails."""
    done = subprocess.run([MUTMUT, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(done.stdout[-MOST_SHOWN:], done.stderr[-MOST_SHOWN:], markup=False)
        sys.exit(f"mutmut {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout


def show(score: Score) -> None:
    """Print the change of each mutant that no test noticed."""
    for name, diff in score.survivors.items():
        changes = [line for line in diff.splitlines() if line.startswith(("@@", "-", "+")) and not line.startswith(("---", "+++"))]
        console.print(f"\n{name}", style="bold")
        console.print("\n".join(changes), markup=False)


def main() -> None:
    """Run the modules that were named, all without names, and print survivors and scores."""
    known = {Path(module).stem: module for module in MODULES}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="module", help=f"{', '.join(known)}; all where none is named")
    named = parser.parse_args().modules or list(known)
    if unknown := set(named) - set(known):
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    table = Table("module", "mutants", "noticed", "of these by timeout", "survived", "score", "seconds")
    for name in named:
        with TemporaryDirectory(prefix="mutation-") as folder:
            score = mutate(known[name], Path(folder))
        show(score)
        table.add_row(*score.row(known[name]))
    console.print(table)


if __name__ == "__main__":
    main()
