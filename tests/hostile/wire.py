"""One raw connection to a service: bytes out, whatever comes back in."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from integration.load import FORM, TOKEN_PATH, open_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE_SECONDS = 40.0
"""Nothing here may take longer: an answer this late is a hang."""

FAREWELL = b"GET /farewell HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


class Reply(NamedTuple):
    """One answer: ``headers`` by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)


def head(length: int | str | None, *lines: str, path: str = TOKEN_PATH, method: str = "POST", version: str = "HTTP/1.1") -> bytes:
    """Return a request up to its body; ``lines`` are more headers."""
    declared = () if length is None else (f"Content-Length: {length}",)
    return "\r\n".join((f"{method} {path} {version}", "Host: 127.0.0.1", f"Content-Type: {FORM}", *declared, *lines, "", "")).encode()


def whole(body: bytes, *lines: str, path: str = TOKEN_PATH) -> bytes:
    """Return a request with its body."""
    return head(len(body), *lines, path=path) + body


def chunk(content: bytes) -> bytes:
    """Return a chunk of a chunked body; an empty one ends it."""
    return b"%x\r\n%s\r\n" % (len(content), content)


class Wire:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, url: str) -> Self:
        """Connect."""
        return cls(*await open_connection(url))

    async def send(self, *parts: bytes) -> None:
        """Write what the other side takes; it may have hung up, which its answer or silence tells."""
        with suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                for part in parts:
                    self._writer.write(part)
                    await self._writer.drain()

    async def answer(self) -> Reply:
        """Return the next answer; EOFError or ConnectionError where none comes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return Reply(int(lines[0].split()[1]), headers, body)

    async def answers(self) -> list[Reply]:
        """Return all answers until the other side hangs up."""
        replies = []
        with suppress(EOFError, ConnectionError):
            while True:
                replies.append(await self.answer())
        return replies

    async def ask(self, request: bytes) -> Reply:
        """Send and return the answer."""
        await self.send(request)
        return await self.answer()

    async def converse(self, *parts: bytes) -> list[int]:
        """Send, say goodbye, and return the statuses of all answers; the goodbye's, a 404, is the last unless it was taken for a body."""
        sending = asyncio.create_task(self.send(*parts, FAREWELL))
        said = await self.hung_up()
        await sending
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)]

    async def hung_up(self) -> bytes:
        """Return what the other side says until it closes the connection."""
        said = bytearray()
        with suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while piece := await self._reader.read(65_536):
                    said += piece
        return bytes(said)

    def end_sending(self) -> None:
        """Say that nothing more will come, and keep listening."""
        with suppress(OSError):
            self._writer.write_eof()

    def is_quiet(self) -> bool:
        """Tell whether nothing has come that was not read yet."""
        return not self._reader._buffer  # type: ignore[attr-defined]

    def drop(self) -> None:
        """Hang up without sending what is left."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Wire]:
    """Open a connection for the block."""
    wire = await Wire.to(url)
    try:
        yield wire
    finally:
        wire.drop()
