"""Small stand-ins for pods of the service: each has an address of its own and reports the keyring that is mounted into it.

They read the files with the service's own parser and report with the service's own keyring; nothing is verified here.
"""

from __future__ import annotations

import itertools
import json
import threading
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from amo_receiver.amocrm.keyring import Keyring, Source
from amo_receiver.amocrm.keyring_file import parse_source
from amo_receiver.embedded.folder import free_port
from amo_receiver.errors import ConfigurationError
from kube.operators import SERVICE_LABELS
from kube.pods import Pods

if TYPE_CHECKING:
    from pathlib import Path

    from kube.apiserver import ApiServer

ADDRESSES_TRIED = 5
_addresses = (f"127.0.{high}.{low}" for high, low in itertools.product(range(1, 250), range(2, 250)))


class _Pages(BaseHTTPRequestHandler):
    """The management port."""

    server: _Server

    def do_GET(self) -> None:
        """Answer /keyring."""
        pod = self.server.pod
        now = datetime.now(UTC).isoformat()
        report = {"sources": pod.report(), "matches_read_at": now, "reported_at": now} if pod.is_answering else {}
        body = json.dumps(report).encode()
        self.send_response(200 if pod.is_answering and self.path == "/keyring" else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], pod: ServicePod) -> None:
        self.pod = pod
        super().__init__(address, _Pages)


class ServicePod:
    """A pod of the service, running and ready, that reads the keyring from this folder."""

    def __init__(self, server: ApiServer, namespace: str, name: str, folder: Path, port: int, **metadata: Any) -> None:
        self.name = name
        self.folder = folder
        self.is_answering = True
        self.matches: dict[str, dict[str, datetime]] = {}
        """When a key was last matched by each account, by its fingerprint."""
        self._sources: dict[str, Source] = {}
        self._pods = Pods(server, namespace)
        self._server = self._listen(port)
        address = str(self._server.server_address[0])
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.02), name=name)
        self._thread.start()
        self._pods.add(name, SERVICE_LABELS, ip=address, **metadata)

    def _listen(self, port: int) -> _Server:
        for _ in range(ADDRESSES_TRIED):
            with suppress(OSError):  # somebody was quicker
                return _Server((next(_addresses), port), self)
        raise AssertionError(f"port {port} is taken at every address")

    def keyring(self) -> Keyring:
        """Read the mounted files; one that is missing or cannot be understood leaves the last good one in force."""
        for path in sorted(self.folder.glob("*")):
            if not path.name.startswith(".."):
                with suppress(ConfigurationError, FileNotFoundError):
                    self._sources[path.name] = parse_source(path.name, path.read_bytes())
        return Keyring.build(None, self._sources, None, None)

    def report(self) -> list[dict[str, Any]]:
        """Return what the management port shows."""
        report = self.keyring().report()
        for source in report:
            is_listed = sum(key["kind"] == "url_key" for key in source["keys"]) > 1
            for key in source["keys"]:
                matched = self.matches.get(key["fingerprint"], {})
                key["last_matched_at"] = max(matched.values()).isoformat() if matched else None
                if is_listed and key["kind"] == "url_key":
                    key["accounts"] = {account: at.isoformat() for account, at in matched.items()}
                    key["accounts_complete"] = True
        return report

    def accepts(self, source: str) -> set[str]:
        """Name the keys of a source that this pod accepts now."""
        return {key["fingerprint"] for each in self.report() if each["source"] == source for key in each["keys"]}

    def terminate(self) -> None:
        """Begin to end: it stays and answers until ``end``."""
        self._pods.terminate(self.name)

    def end(self) -> None:
        """End it, and remove it."""
        self._pods.remove(self.name)
        self.close()

    def close(self) -> None:
        """Let go of its address."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def management_port() -> int:
    """Return a port for all pods of one operator."""
    return free_port()
