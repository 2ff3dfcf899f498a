"""Every version that the objects of a namespace have had, as lists and watches tell of them."""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

import httpx2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kube.apiserver import ApiServer

WATCH_SECONDS = 2
PAUSE_S = 0.5


class Recorder:
    """Watches kinds of objects, each in a thread of its own, and comes again as every client does: a watch ends for many reasons."""

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
        """Return the versions so far, oldest first; a problem is raised here, where somebody waits for them."""
        if self._problem:
            raise self._problem
        return list(self._versions[path])

    def _run(self, path: str) -> None:
        try:
            with httpx2.Client(base_url=self._server.url, verify=self._server.client_context(), trust_env=False, timeout=30) as client:
                position: str | None = None
                while not self._over.is_set():
                    position = self._step(client, path, position)
        except BaseException as error:  # noqa: BLE001 - raised where the test waits
            self._problem = error

    def _step(self, client: httpx2.Client, path: str, position: str | None) -> str | None:
        """List, or watch on from a position; return the next position, none where the server no longer knows this one."""
        try:
            return self._list(client, path) if position is None else self._watch(client, path, position)
        except httpx2.TransportError:
            self._over.wait(PAUSE_S)
        except httpx2.HTTPStatusError as error:
            code = error.response.status_code
            if code == HTTPStatus.GONE:
                return None
            # 429: while it sets up its cache for a definition that is new or changed.
            if code != HTTPStatus.TOO_MANY_REQUESTS and code < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            self._over.wait(float(error.response.headers.get("Retry-After", PAUSE_S)))
        return position

    def _list(self, client: httpx2.Client, path: str) -> str:
        listed = client.get(path).raise_for_status().json()
        known = {each["metadata"]["resourceVersion"] for each in self._versions[path]}
        self._versions[path] += [each for each in listed["items"] if each["metadata"]["resourceVersion"] not in known]
        position: str = listed["metadata"]["resourceVersion"]
        return position

    def _watch(self, client: httpx2.Client, path: str, position: str) -> str | None:
        query = {"watch": "1", "resourceVersion": position, "timeoutSeconds": str(WATCH_SECONDS), "allowWatchBookmarks": "true"}
        with client.stream("GET", path, params=query) as answer:
            for line in answer.raise_for_status().iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    assert event["object"]["code"] == HTTPStatus.GONE, event
                    return None
                if event["type"] != "BOOKMARK":
                    self._versions[path].append(event["object"])
                position = event["object"]["metadata"]["resourceVersion"]
        return position
