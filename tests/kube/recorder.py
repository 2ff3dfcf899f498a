"""Every version that the objects of a namespace have had, as a watch tells of them."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, Self

import httpx2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kube.apiserver import ApiServer

WATCH_SECONDS = 2
TOO_EARLY = 429
"""What an API server answers while it sets up its cache for a definition that is new or changed; every client comes again."""


class Recorder:
    """Watches kinds of objects, each in a thread of its own."""

    def __init__(self, server: ApiServer, paths: Sequence[str]) -> None:
        self._server = server
        self._over = threading.Event()
        self._versions: dict[str, list[dict[str, Any]]] = {path: [] for path in paths}
        self._problem: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, args=(path,), name=path) for path in paths]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self._problem:
            raise self._problem

    def versions(self, path: str) -> list[dict[str, Any]]:
        """Return the versions so far, oldest first."""
        return list(self._versions[path])

    def _run(self, path: str) -> None:
        try:
            with httpx2.Client(base_url=self._server.url, verify=self._server.client_context(), trust_env=False, timeout=30) as client:
                position = client.get(path).raise_for_status().json()["metadata"]["resourceVersion"]
                while not self._over.is_set():
                    position = self._watch(client, path, position)
        except BaseException as error:  # noqa: BLE001 - raised where the test waits for the end
            self._problem = error

    def _watch(self, client: httpx2.Client, path: str, position: str) -> str:
        query = {"watch": "1", "resourceVersion": position, "timeoutSeconds": str(WATCH_SECONDS), "allowWatchBookmarks": "true"}
        with client.stream("GET", path, params=query) as answer:
            if answer.status_code == TOO_EARLY:
                self._over.wait(float(answer.headers.get("Retry-After", 1)))
                return position
            for line in answer.raise_for_status().iter_lines():
                event = json.loads(line)
                assert event["type"] != "ERROR", event
                if event["type"] != "BOOKMARK":
                    self._versions[path].append(event["object"])
                position = event["object"]["metadata"]["resourceVersion"]
        return position
