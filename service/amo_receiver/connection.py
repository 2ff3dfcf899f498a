"""One HTTP connection with bounds that uvicorn's own protocol lacks; without them a stranger decides how much memory we use.

uvicorn reads on while pipelined requests wait, and httptools joins a header that comes in pieces by copying it each time: one
connection could take gigabytes in seconds, or all of a processor. A connection that stops halfway would stay open for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

MOST_HEAD_BYTES = 65_536
"""Of a request's line and headers, of a chunked body's trailers, and of anything else that is neither."""
PIECE_BYTES = 4_096
"""How much is parsed at once, so that at most as many requests wait as fit in."""
STALL_SECONDS = 10.0
"""A connection on which a request is not completed for this long is closed, at the latest after twice as long."""
MANY_CONNECTIONS = 512
CROWDED_SECONDS = 5
"""How long a connection may idle between requests while there are many of them, whatever the setting says: each costs a file descriptor."""
TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class PipelineControl(FlowControl):
    """Flow control that does not read on before what was read is under way."""

    def __init__(self, transport: asyncio.Transport, connection: BoundedConnection) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        """Read on, unless requests or unparsed bytes wait already."""
        if not self._connection.is_behind():
            super().resume_reading()


class BoundedConnection(HttpToolsProtocol):
    """What uvicorn makes for each connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._rest = b""
        self._head_bytes = 0
        self._answered = self._answered_before = 0
        self._is_whole = False
        self._keep_alive_seconds = self.timeout_keep_alive
        self._stall: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self.flow = PipelineControl(transport, self)
        self._stall = self.loop.call_later(STALL_SECONDS, self._close_if_stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._stall:
            self._stall.cancel()
        self._forsake()
        super().connection_lost(exc)

    def is_behind(self) -> bool:
        """Tell whether requests or unparsed bytes wait."""
        return bool(self.pipeline or self._rest)

    def _is_idle(self) -> bool:
        """Tell whether no request is being answered."""
        return self._running is None or self._running.response_complete

    def _is_between(self) -> bool:
        """Tell whether a request has come whole and nothing of the next one: uvicorn's own timer decides how long that may last."""
        return self._is_whole and not self._head_bytes

    def _forsake(self) -> None:
        """Keep the request that is being answered from writing to what is gone; uvicorn tells only the one that came last."""
        if self._running and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse as much as is wanted now and keep the rest."""
        if self.is_behind():
            self._rest += data
            return
        for start in range(0, len(data), PIECE_BYTES):
            if self.pipeline:
                self._rest = data[start:]
                self.flow.pause_reading()
                return
            self._parse(data[start : start + PIECE_BYTES] if len(data) > PIECE_BYTES else data)
            if self.transport.is_closing():
                return

    def _parse(self, piece: bytes) -> None:
        self._head_bytes += len(piece)
        super().data_received(piece)
        if self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            if self._is_idle():
                self.transport.write(TOO_LONG)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._is_whole = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Have all of a request; what came behind the offer of an upgrade uvicorn has dropped, so that its sender may wait in vain."""
        self._is_whole = not self.parser.should_upgrade()
        self._head_bytes = 0
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._head_bytes = 0
        super().on_body(body)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        self._answered += 1
        is_crowded = len(self.connections) > MANY_CONNECTIONS
        self.timeout_keep_alive = min(self._keep_alive_seconds, CROWDED_SECONDS) if is_crowded else self._keep_alive_seconds
        super().on_response_complete()
        if self._rest and not self.pipeline and not self.transport.is_closing():
            rest, self._rest = self._rest, b""
            self.data_received(rest)

    def _close_if_stalled(self) -> None:
        """Hang up where nothing moves: the request never becomes complete, or nobody reads the answers."""
        waits = self.flow.write_paused or (self._is_idle() and not self._is_between())
        if waits and self._answered == self._answered_before:
            self._forsake()
            self.transport.abort()
            return
        self._answered_before = self._answered
        self._stall = self.loop.call_later(STALL_SECONDS, self._close_if_stalled)
