"""Stand between a service and its database and count what passes."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Self

QUIET_SECONDS = 0.5
PATIENCE_SECONDS = 30.0


class Tap:
    """A relay to a database's URL; ``bytes_passed`` counts both ways."""

    def __init__(self, url: str) -> None:
        self._target = url
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()
        self.bytes_passed = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    @property
    def url(self) -> str:
        """The database's URL through the relay."""
        assert self._server is not None
        return re.sub(r"@127\.0\.0\.1:\d+/", f"@127.0.0.1:{self._server.sockets[0].getsockname()[1]}/", self._target)

    async def cut(self) -> None:
        """Hang up on everybody and listen no more."""
        if self._server:
            self._server.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def quiet(self) -> int:
        """Return the count when nothing has passed for a moment."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                before = self.bytes_passed
                await asyncio.sleep(QUIET_SECONDS)
                if self.bytes_passed == before:
                    return before

    def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.create_task(self._pass(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = int(self._target.rpartition(":")[2].partition("/")[0])
        there = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(self._pass_on(reader, there[1]), self._pass_on(there[0], writer))
        finally:
            for end in (writer, there[1]):
                end.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65_536):
                self.bytes_passed += len(piece)
                writer.write(piece)
                await writer.drain()
            writer.write_eof()
