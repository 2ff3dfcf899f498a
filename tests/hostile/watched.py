"""Watch a service under attack: it answers, has not stumbled, and has not grown."""

from __future__ import annotations

import http.client
import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from amo_receiver.embedded.processes import wait_until
from factories import form_body, lead
from integration.load import FORM, TOKEN_PATH

if TYPE_CHECKING:
    from children import Child
    from servers import ServiceProcess

MOST_MIB = 160
"""Resident memory that no attack may push a service beyond: about 90 MiB at rest, 32 MiB of bodies in flight, and room for both."""
STUMBLES = ("Traceback", "Bug while", "Exception in ASGI", "never retrieved", "ERROR")
KEPT = ("kept as a dead letter", "kept as dead letters", " in the last second")
"""What is logged of bodies that cannot be parsed, and only by token."""
PATIENCE_SECONDS = 30.0
_ids = itertools.count(70_000_001)


def good_body() -> bytes:
    """Return a body about a lead that no other body is about."""
    return form_body("leads", "update", lead(id=next(_ids)))


def post(url: str, body: bytes, path: str = TOKEN_PATH, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Send a body over a connection of its own, as any client would; return status and document."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("POST", path, body, {"Content-Type": FORM, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def require_accepting(url: str) -> None:
    """Require that a delivery is accepted, at the latest when what came before it has been worked off."""
    assert wait_until(lambda: accepts(url), PATIENCE_SECONDS), post(url, good_body())


def accepts(url: str) -> bool:
    """Tell whether a delivery is accepted and applied now; no other answer than a 503 is waited out."""
    status, document = post(url, good_body())
    assert status == 503 or (status, document["status"]) == (200, "success"), (status, document)
    return status == 200


def resident_mib(process: Child) -> float:
    """Return the resident memory of a process now."""
    return float(psutil.Process(process.pid).memory_info().rss) / 1024 / 1024


def forget_peak(process: Child) -> None:
    """Let the kernel count the most resident memory of a process anew."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def peak_mib(process: Child) -> float:
    """Return the most resident memory a process has had since its peak was forgotten: no short burst escapes it."""
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    assert peak
    return int(peak[1]) / 1024


class Watched:
    """A service that is looked after, and the direct URL of its database; ``expected`` names what it may log as an error."""

    def __init__(self, service: ServiceProcess, database_url: str) -> None:
        self.service = service
        self.url = service.url
        self.database_url = database_url
        self.begin()

    def begin(self) -> None:
        """Begin a test: what was before is no longer looked at."""
        self.expected: tuple[str, ...] = ()
        self.begun_mib = self.rss_mib()
        forget_peak(self.service)
        self._pid = self.service.pid
        self._read_from = self.service.log_path.stat().st_size

    def rss_mib(self) -> float:
        """Return its resident memory now."""
        return resident_mib(self.service)

    def peak_mib(self) -> float:
        """Return the most resident memory it has had in this test."""
        return peak_mib(self.service)

    def has_grown(self) -> bool:
        """Tell whether its memory has grown by as much as is worth a line."""
        return self.peak_mib() > self.begun_mib + 2

    def stumbles(self) -> list[str]:
        """Return the lines of its log that tell of an error nobody expects."""
        lines = self.service.log_path.read_bytes()[self._read_from :].decode(errors="replace").splitlines()
        return [line for line in lines if any(word in line for word in STUMBLES) and not any(word in line for word in self.expected)]

    def require_sound(self) -> None:
        """Require that it is the same process, accepts, has logged no error and was never larger than it may be."""
        assert self.service.process.poll() is None, "it has died"
        assert self.service.pid == self._pid
        require_accepting(self.url)
        assert not self.stumbles(), "\n".join(self.stumbles()[:20])
        assert self.peak_mib() <= MOST_MIB, f"{self.peak_mib():.0f} MiB at most, {self.begun_mib:.0f} MiB at first"
