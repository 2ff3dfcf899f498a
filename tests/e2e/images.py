"""The images of the cluster test: built from this checkout, and two later releases on top of ours, one of which cannot migrate."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

BUILD = shlex.split(os.environ.get("E2E_BUILD", "docker build"))
LOAD = shlex.split(os.environ.get("E2E_LOAD_IMAGE", "kind load image-archive --name amo-webhooks"))
ROOT = Path(__file__).parents[2]
OWN = Path(__file__).parent / "images"
PREFIX = "e2e.local"
SERVICE = f"{PREFIX}/amo-webhooks"
OPERATOR, PGBOUNCER, TRAEFIK = f"{SERVICE}-operator", f"{SERVICE}-pgbouncer", f"{PREFIX}/traefik"
STAND_INS = {name: os.environ.get(f"E2E_{name.upper()}_IMAGE", "") for name in ("postgres", "telegraf")}
"""Images that are not ours, where none can be pulled; empty: the chart's own choice."""
FIRST, SECOND, BROKEN, MENDED = "e2e-1", "e2e-2", "e2e-3", "e2e-4"
MIGRATION = '''"""A change of the cluster test."""

from alembic import op

revision, down_revision, branch_labels, depends_on = {revision!r}, {before!r}, None, None


def upgrade() -> None:
    """Do it."""
    op.execute({statement!r})
'''


class Release(NamedTuple):
    """A later release: on which one it stands, its revision, and the statement that leads to it."""

    tag: str
    base: str
    revision: str
    before: str
    statement: str


def head() -> str:
    """Return the newest revision of this checkout."""
    return max(path.name for path in (ROOT / "migrations" / "versions").glob("[0-9]*.py"))[:4]


def releases() -> list[Release]:
    """Return the later releases: one that adds a column, one whose statement fails, one that has it mended."""
    return [
        Release(SECOND, FIRST, "e2e_2", head(), "ALTER TABLE leads ADD COLUMN e2e_second text"),
        Release(BROKEN, SECOND, "e2e_3", "e2e_2", "ALTER TABLE leads ADD COLUMN e2e_second text"),
        Release(MENDED, SECOND, "e2e_3", "e2e_2", "ALTER TABLE leads ADD COLUMN e2e_third text"),
    ]


class Builder:
    """Builds images and hands them to the cluster: docker and kind, or what E2E_BUILD and E2E_LOAD_IMAGE name."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say

    def all(self) -> None:
        """Build and load them all, and print their sizes."""
        self.make(f"{SERVICE}:{FIRST}", ROOT, "-f", "service/Dockerfile")
        self.make(f"{OPERATOR}:{FIRST}", ROOT, "-f", "operator/Dockerfile")
        self.make(f"{PGBOUNCER}:{FIRST}", ROOT / "charts" / "amo-webhooks" / "images" / "pgbouncer")
        self.make(f"{TRAEFIK}:e2e", OWN / "traefik")
        for release in releases():
            context = self._folder / release.tag
            context.mkdir()
            text = MIGRATION.format(revision=release.revision, before=release.before, statement=release.statement)
            (context / f"{release.revision}.py").write_text(text, encoding="utf-8")
            copied = f"FROM {SERVICE}:{release.base}\nCOPY --chmod=644 {release.revision}.py /opt/migrations/versions/\n"
            (context / "Dockerfile").write_text(copied, encoding="utf-8")
            self.make(f"{SERVICE}:{release.tag}", context)

    def make(self, name: str, context: Path, *options: str) -> None:
        """Build an image and load it."""
        _run([*BUILD, "-q", "-t", name, *options, "."], context)
        archive = self._folder / "image.tar"
        archive.unlink(missing_ok=True)
        if Path(BUILD[0]).name == "docker":
            _run(["docker", "save", "-o", str(archive), name], context)
        else:
            _run([BUILD[0], "push", "-q", name, f"docker-archive:{archive}:{name}"], context)
        self._say(f"image {name}: {archive.stat().st_size / 1e6:.0f} MB")
        _run([*LOAD, str(archive)], context)
        archive.unlink()


def stand_ins() -> list[str]:
    """Return Helm's options that name them."""
    paths = {"postgres": "postgres.image", "telegraf": "pgbouncer.exporter.image"}
    parts = {paths[name]: image.rpartition(":") for name, image in STAND_INS.items() if image}
    return [
        option
        for path, (repository, _, tag) in parts.items()
        for option in ("--set-string", f"{path}.repository={repository}", "--set-string", f"{path}.tag={tag}")
    ]


def programs_missing() -> list[str]:
    """Return the programs that are not on the PATH."""
    wanted = {"kubectl", "helm", BUILD[0], LOAD[0]}
    return sorted(name for name in wanted if not shutil.which(name))


def _run(command: list[str], folder: Path) -> None:
    said = subprocess.PIPE
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
