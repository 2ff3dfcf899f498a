"""Who may import whom: the contracts of pyproject.toml are kept, and each of them can be broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_logo=True, cache_dir=None, no_cache=True))"

# Contract, a module by its path from the service's package, and an import given to it: each a thing that somebody may want to write once.
BREAKS = [
    ("service-layers", "settings.py", "from amo_receiver import log"),
    ("service-layers", "database.py", "from amo_receiver.inbox import repository"),
    ("service-layers", "inbox/service.py", "from amo_receiver.worker import retry"),
    ("service-layers", "worker/retry.py", "from amo_receiver import health"),
    ("service-layers", "embedded/server.py", "from amo_receiver import settings"),
    ("service-layers", "log.py", "if False:\n    from amo_receiver.app import create_app"),
    ("service-layers", "unplaced.py", "import json"),
    ("inbox-layers", "inbox/service.py", "from amo_receiver.inbox import endpoints"),
    ("inbox-layers", "inbox/batch.py", "from amo_receiver.inbox import service"),
    ("inbox-layers", "inbox/repository.py", "from amo_receiver.inbox import batch"),
    ("inbox-layers", "inbox/merge.py", "from amo_receiver.inbox import models"),
    ("inbox-layers", "inbox/unplaced.py", "import json"),
    ("composition-root", "__main__.py", "from amo_receiver.app import create_app"),
    ("wire", "amocrm/form.py", "from amo_receiver import settings"),
    ("wire", "amocrm/keyring.py", "from amo_receiver.inbox import states"),
    ("pure", "amocrm/form.py", "import fastapi"),
    ("pure", "amocrm/events.py", "from sqlalchemy.dialects import postgresql"),
    ("pure", "inbox/merge.py", "from opentelemetry import trace"),
    ("pure", "inbox/effects.py", "from amo_receiver.inbox import states\nimport sqlalchemy"),
    ("web", "inbox/repository.py", "from starlette.requests import Request"),
    ("web", "worker/retry.py", "import fastapi"),
    ("packages", "app.py", "import amo_operator"),
    ("packages", "../amo_operator/spec.py", "from amo_receiver.amocrm import keyring"),
    ("cluster", "health.py", "import kopf"),
    ("decisions", "../amo_operator/keyring.py", "import lightkube"),
    ("decisions", "../amo_operator/resources.py", "from amo_operator import kube"),
    ("operator-layers", "../amo_operator/kube.py", "from amo_operator import reconcile"),
    ("operator-layers", "../amo_operator/metrics.py", "from amo_operator import handlers"),
    ("operator-layers", "../amo_operator/unplaced.py", "import json"),
]


def _contracts() -> list[dict[str, object]]:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts: list[dict[str, object]] = configuration["tool"]["importlinter"]["contracts"]
    return contracts


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the packages that lie in ``folder``, or where they are installed, against this project's contracts."""
    (folder / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", RUN]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Return a folder with copies of both packages, which are imported before the installed ones."""
    for package in (ROOT / "service" / "amo_receiver", ROOT / "operator" / "amo_operator"):
        shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_contracts_are_kept(copied: Path) -> None:
    """Nothing in either package imports what it must not."""
    done = _lint(copied)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(_contracts())} kept, 0 broken." in done.stdout


@pytest.mark.parametrize(("contract", "module", "line"), BREAKS, ids=[f"{each[0]}-{each[1]}-{n}" for n, each in enumerate(BREAKS)])
def test_a_contract_fails_when_it_is_broken(copied: Path, contract: str, module: str, line: str) -> None:
    """One bad import is enough, and the contract meant for it is the one that names it."""
    path = copied / "amo_receiver" / module
    path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + f"\n{line}\n", encoding="utf-8")
    done = _lint(copied)
    assert done.returncode == 1, done.stdout + done.stderr
    name = next(str(each["name"]) for each in _contracts() if each["id"] == contract)
    assert f"{name} BROKEN" in done.stdout, done.stdout + done.stderr


def test_every_contract_is_tried() -> None:
    """A contract that nobody has seen failing may be one that cannot fail."""
    assert {each["id"] for each in _contracts()} == {contract for contract, _, _ in BREAKS}


def test_the_two_packages_are_independent() -> None:
    """A contract says that neither imports the other."""
    packages = {"amo_receiver", "amo_operator"}
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert set(configuration["root_packages"]) == packages
    assert packages in [set(each["modules"]) for each in configuration["contracts"] if each["type"] == "independence"]
