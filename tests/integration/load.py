"""A bounded load: deliveries sent over a fixed number of connections, and every answer kept."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from factories import account_block, http_build_query
from servers import WEBHOOK_TOKEN, signed_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from integration.cards import Change
    from servers import ServiceProcess

PATH = "/api/webhooks/amo"
TOKEN_PATH = f"{PATH}/{WEBHOOK_TOKEN}"
FORM = "application/x-www-form-urlencoded"
PATIENCE_SECONDS = 40.0
REPEAT_PAUSE_SECONDS = 0.1
PATIENT = {"STATEMENT_TIMEOUT_MS": "10000", "ANSWER_BUDGET_MS": "30000"}
"""Settings of a service whose answers are not to depend on how fast this machine is."""


@dataclass(frozen=True, slots=True)
class Post:
    """One delivery as it goes over the wire; ``serials`` are those of its changes in document order."""

    path: str
    headers: dict[str, str]
    body: bytes
    serials: tuple[int, ...] = ()

    def request(self) -> bytes:
        """Return the whole request."""
        return self.head() + self.body

    def head(self) -> bytes:
        """Return the request without its body."""
        headers = {"Host": "127.0.0.1", "Content-Length": str(len(self.body)), **self.headers}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


def signed(account: str, body: bytes, serials: tuple[int, ...] = ()) -> Post:
    """Return a signed JSON delivery."""
    return Post(PATH, {"Content-Type": "application/json", **signed_headers(account)}, body, serials)


def by_token(body: bytes, serials: tuple[int, ...] = (), content_type: str = FORM) -> Post:
    """Return a delivery as amoCRM itself sends it."""
    return Post(TOKEN_PATH, {"Content-Type": content_type, "User-Agent": "amoCRM-Webhooks/3.0"}, body, serials)


def post_of(changes: Sequence[Change], *, form: bool) -> Post:
    """Return one delivery of changes in one account, as a form by token or as signed JSON."""
    account = changes[0].account
    document: dict[str, dict[str, list[Any]]] = {}
    for change in changes:
        document.setdefault(change.entity, {}).setdefault(change.action, []).append(change.item())
    serials = tuple(int(item["serial"]) for actions in document.values() for items in actions.values() for item in items)
    if form:
        return by_token(http_build_query({"account": account_block(account), **document}), serials)
    return signed(account, json.dumps(document, ensure_ascii=False).encode(), serials)


@dataclass(slots=True)
class Answer:
    """What came back: ``status`` None where nothing did, and then whether there was a connection at all."""

    post: Post
    status: int | None
    document: dict[str, Any]
    seconds: float
    connected: bool = True


@dataclass(slots=True)
class Line:
    """One keep-alive connection, opened when it is needed."""

    url: str
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, post: Post) -> Answer:
        """Send a delivery and return its answer, also where none comes."""
        started = time.monotonic()
        connected, status = False, None
        document: dict[str, Any] = {}
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                reader, writer = await self.open()
                connected = True
                writer.write(post.request())
                status, document = await read_answer(reader)
        except (OSError, EOFError, TimeoutError):
            self.close()
        return Answer(post, status, document, time.monotonic() - started, connected)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, unless it is connected."""
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await open_connection(self.url)
        return self._streams

    def close(self) -> None:
        """Hang up."""
        if self._streams:
            self._streams[1].close()
        self._streams = None


async def open_connection(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a service."""
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """Return status and document of one answer; EOFError where it is cut off."""
    head = await reader.readuntil(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in headers if line.lower().startswith("content-length:"))
    return int(status.split()[1]), json.loads(await reader.readexactly(length))


@dataclass(slots=True)
class Load:
    """Deliveries under way; each is sent again until it is answered 2xx, at most ``tries`` times."""

    posts: Iterator[Post]
    urls: Sequence[str]
    connections: int = 32
    tries: int = 1
    pause_seconds: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    ended: bool = False

    @property
    def accepted(self) -> list[Answer]:
        """The answers that acknowledge."""
        return [answer for answer in self.answers if answer.status == 200]

    async def run(self) -> list[Answer]:
        """Send until the deliveries are used up or ``ended`` is set, and return all answers."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(self.connections):
                group.create_task(self._keep_sending(self.urls[number % len(self.urls)]))
        rate = len(self.accepted) / (time.monotonic() - started)
        print(f"{len(self.answers)} answers, {len(self.accepted)} of them 2xx, {rate:.0f} accepted/s")  # noqa: T201
        return self.answers

    async def _keep_sending(self, url: str) -> None:
        line = Line(url)
        for post in self.posts:
            for _ in range(self.tries):
                answer = await line.post(post)
                self.answers.append(answer)
                if answer.status == 200:
                    break
                await asyncio.sleep(REPEAT_PAUSE_SECONDS)
            if self.ended:
                break
            await asyncio.sleep(self.pause_seconds)
        line.close()


async def send(posts: Iterable[Post], *urls: str, connections: int = 32, tries: int = 1) -> list[Answer]:
    """Send deliveries and return all answers."""
    return await Load(iter(posts), urls, connections, tries).run()


async def send_together(posts: Sequence[Post], service: ServiceProcess) -> list[Answer]:
    """Send each delivery over a connection of its own; the service finds them all waiting at the same moment."""
    lines = [Line(service.url) for _ in posts]
    service.pause()
    try:
        for line in lines:
            await line.open()
        sending = [asyncio.create_task(line.post(post)) for line, post in zip(lines, posts, strict=True)]
        await asyncio.sleep(0)  # each has written what it has to say
    finally:
        service.resume()
    answers = await asyncio.gather(*sending)
    for line in lines:
        line.close()
    return answers


@asynccontextmanager
async def under_load(
    posts: Iterator[Post], *urls: str, connections: int = 32, tries: int = 1, pause_seconds: float = 0.0
) -> AsyncIterator[Load]:
    """Send while the block runs; what is under way at its end is answered before this returns."""
    load = Load(posts, urls, connections, tries, pause_seconds)
    task = asyncio.create_task(load.run())
    try:
        yield load
    finally:
        load.ended = True
        await task
