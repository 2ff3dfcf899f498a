"""Processes of the service as pods, and senders that never stop: each request is a lead of its own, and every answer is kept."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

from amo_receiver.embedded.folder import free_port
from factories import ACCOUNT, form_body, json_body, lead, lead_v4
from integration.load import FORM, PATH, PATIENT, Line, Post
from servers import ServiceProcess, service_environment, signed_headers

if TYPE_CHECKING:
    from pathlib import Path

PAUSE_S = 0.1
FIRST_LEAD = 10_000_001
QUIET = {"LOG_DELIVERIES_PER_SECOND": "0"}
KEYRING_ONLY = {"AMOCRM_CLIENT_ID": None, "AMOCRM_CLIENT_SECRET": None, "AMOCRM_WEBHOOK_TOKEN": None}

Sender: TypeAlias = Callable[[int], Post]
"""Makes the request about a lead with what the sender knows at that moment."""


class ServingPod(ServiceProcess):
    """A process of the service at a pod's address, with nothing but the mounted keyring."""

    def __init__(self, name: str, address: str, management_port: int, mounted: Path, folder: Path, db_url: str) -> None:
        self.name = name
        self.address = address
        self._management_port = management_port
        self._keyrings = folder.with_name(f"{folder.name}-keyrings")
        self._keyrings.symlink_to(mounted)
        port = free_port()
        own = {"MANAGEMENT_HOST": address, "MANAGEMENT_PORT": str(management_port), "AMOCRM_KEYRING_DIR": str(self._keyrings)}
        env = service_environment(db_url, folder, {**KEYRING_ONLY, **PATIENT, **QUIET, **own})
        super().__init__(["serve", "--host", address, "--port", str(port)], folder=folder, env=env)
        self.url = f"http://{address}:{port}"

    def is_ready(self) -> bool:
        """Ask /readyz at the pod's own address."""
        with suppress(OSError):
            return self._ask("/readyz")[0] == HTTPStatus.OK
        return False

    def source(self, name: str) -> dict[str, Any]:
        """Return what the pod reports of one source; nothing of one that it does not know."""
        sources = self._ask("/keyring")[1]["sources"]
        return next((each for each in sources if each["source"] == name), {"generation": 0, "keys": []})

    def keys(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the keys of a source by fingerprint."""
        return {key["fingerprint"]: key for key in self.source(name)["keys"]}

    def cut_off(self) -> None:
        """Leave it with what is mounted now, for ever, as on a node that no longer reaches the API server."""
        frozen = self._keyrings.with_name(f"{self._keyrings.name}-frozen")
        shutil.copytree(self._keyrings, frozen, symlinks=True)
        swapped = self._keyrings.with_name(f"{self._keyrings.name}-swapped")
        swapped.symlink_to(frozen)
        swapped.replace(self._keyrings)

    def _ask(self, path: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self.address, self._management_port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


def signed(client: str, secret: str, number: int) -> Post:
    """Return a signed request about a lead."""
    headers = {"Content-Type": "application/json", **signed_headers(ACCOUNT, client, secret)}
    return Post(PATH, headers, json_body("leads", "add", lead_v4(id=number)), (number,))


def by_url(path: str, number: int) -> Post:
    """Return a request about a lead as amoCRM makes it, to a path with a token."""
    return Post(path, {"Content-Type": FORM, "User-Agent": "amoCRM-Webhooks/3.0"}, form_body("leads", "add", lead(id=number)), (number,))


class Credentials:
    """A sender of ours: the credentials Secret is mounted into its pod, and it looks there now and then."""

    def __init__(self, folder: Path, read_s: float) -> None:
        self._folder = folder
        self._read_s = read_s
        self._texts: dict[str, str] = {}
        self._read_at = -read_s

    def __getitem__(self, name: str) -> str:
        if time.monotonic() - self._read_at >= self._read_s:
            with suppress(FileNotFoundError):  # swapped while it was read: what was read before is still good
                self._texts = {path.name: path.read_text() for path in self._folder.iterdir() if not path.name.startswith("..")}
            self._read_at = time.monotonic()
        return self._texts[name]

    def signed(self, number: int) -> Post:
        """Sign with the secret that it knows."""
        return signed(self["client_id"], self["client_secret"], number)

    def by_url(self, number: int) -> Post:
        """Use the URL that it knows."""
        return by_url(self[f"url.{ACCOUNT}"], number)


class Person:
    """A sender that a person sets up: what is entered by hand is used from then on."""

    def __init__(self, client: str = "", secret: str = "", path: str = "") -> None:
        self.client, self.secret, self.path = client, secret, path

    def signed(self, number: int) -> Post:
        """Sign with the secret that was entered."""
        return signed(self.client, self.secret, number)

    def by_url(self, number: int) -> Post:
        """Use the URL that was entered."""
        return by_url(self.path, number)


class Try(NamedTuple):
    """One request and its answer: ``status`` None where none came; times are unix seconds."""

    sender: str
    pod: str
    lead: int
    sent_at: float
    status: int | None


class Traffic:
    """All senders to all pods at once, in a thread of its own; what is not accepted is sent again, as its sender knows it then."""

    def __init__(self, pods: Mapping[str, str], senders: Mapping[str, Sender], *, pause_s: float = PAUSE_S) -> None:
        self._pods = dict(pods)
        self._senders = dict(senders)
        self._pause_s = pause_s
        self._leads = itertools.count(FIRST_LEAD)
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="traffic")
        self._problem: BaseException | None = None
        self.tries: list[Try] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._problem:
            raise self._problem

    def of(self, sender: str, *, since: float = 0.0) -> list[Try]:
        """Return what a sender has sent since a moment, in the order of the answers."""
        return [each for each in list(self.tries) if each.sender == sender and each.sent_at >= since]

    def accepted(self, sender: str, *, since: float = 0.0) -> list[Try]:
        """Return what was answered 2xx."""
        return [each for each in self.of(sender, since=since) if each.status == HTTPStatus.OK]

    def rejected(self, sender: str, *, since: float = 0.0) -> list[Try]:
        """Return what was answered that it is not wanted."""
        return [each for each in self.of(sender, since=since) if each.status and 400 <= each.status < 500]

    def first_accepted(self, sender: str, *, since: float) -> dict[str, float]:
        """Return for each pod that has accepted anything sent since a moment, when the first of it was sent."""
        return {each.pod: each.sent_at for each in reversed(self.accepted(sender, since=since))}

    def is_accepted_everywhere(self, sender: str, *, since: float) -> bool:
        """Tell whether each pod has accepted something that was sent since a moment."""
        return self.first_accepted(sender, since=since).keys() == self._pods.keys()

    def refusing(self, sender: str) -> set[str]:
        """Name the pods whose last answer was a refusal."""
        last = {each.pod: each.status for each in self.of(sender)}
        return {pod for pod, status in last.items() if status == HTTPStatus.UNAUTHORIZED}

    def undelivered(self, sender: str) -> set[int]:
        """Return the leads of which no request was accepted."""
        return {each.lead for each in self.of(sender)} - {each.lead for each in self.accepted(sender)}

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for sender in self._senders:
                    for pod, url in self._pods.items():
                        group.create_task(self._keep_sending(sender, pod, Line(url)))
        except BaseException as error:  # noqa: BLE001 - raised where the test waits for the end
            self._problem = error

    async def _keep_sending(self, sender: str, pod: str, line: Line) -> None:
        try:
            while not self._over.is_set():
                number = next(self._leads)
                while not await self._is_accepted(sender, pod, number, line) and not self._over.is_set():
                    await asyncio.sleep(self._pause_s)
                await asyncio.sleep(self._pause_s)
        finally:
            line.close()

    async def _is_accepted(self, sender: str, pod: str, number: int, line: Line) -> bool:
        sent_at = time.time()  # before the request is made: it knows what its sender knew then, or more
        answer = await line.post(self._senders[sender](number))
        self.tries.append(Try(sender, pod, number, sent_at, answer.status))
        return answer.status == HTTPStatus.OK
