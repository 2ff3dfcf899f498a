"""A real Prometheus: Debian's package, which has ``promtool`` too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from amo_receiver.embedded.folder import free_port
from children import Child, one_at_a_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MISSING = "{} is not installed and cannot be: on Debian, as root, apt-get install prometheus has it"
ANSWER_SECONDS = 10.0


def program(name: str) -> str:
    """Find ``prometheus`` or ``promtool``, after installing Debian's package if it is missing and we may."""
    if shutil.which(name) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with one_at_a_time():
            if shutil.which(name) is None:
                _install()
    found = shutil.which(name)
    if found is None:
        pytest.skip(MISSING.format(name))
    return found


def _install() -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # its own daemon is not to be started
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "prometheus"]
    if subprocess.run(install, env=environment, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "update", "-q"], env=environment, capture_output=True, check=False)
        subprocess.run(install, env=environment, capture_output=True, check=False)


def promtool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``promtool``; what it says is in ``stdout`` and ``stderr``."""
    return subprocess.run([program("promtool"), *arguments], cwd=cwd, capture_output=True, text=True, check=False)


class Prometheus(Child):
    """A Prometheus that reads pages of metrics and evaluates rules, both every second; ``targets`` are host:port by job."""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]], rules: Sequence[Path] = ()) -> None:
        folder.mkdir()
        jobs = [{"job_name": job, "static_configs": [{"targets": list(addresses)}]} for job, addresses in targets.items()]
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        configuration = {"global": every, "rule_files": [str(path) for path in rules], "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(json.dumps(configuration))
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--log.level=warn",
        ]
        super().__init__(command, cwd=folder, env={"PATH": os.defpath}, log_path=folder / "log")

    def is_ready(self) -> bool:
        """Tell whether it answers queries."""
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=ANSWER_SECONDS).is_success
        except httpx.TransportError:
            return False

    def ask(self, page: str, **parameters: Any) -> Any:
        """Return the data of a page of its API, for example ``query`` with ``query=...``; what it refuses fails the test."""
        answer = httpx.get(f"{self.url}/api/v1/{page}", params=parameters, timeout=ANSWER_SECONDS)
        assert answer.is_success, answer.text
        return answer.json()["data"]
