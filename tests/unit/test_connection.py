"""What one connection may take, however its bytes come; a transport that only remembers stands in for the network."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from amo_receiver.connection import CROWDED_SECONDS, MANY_CONNECTIONS, MOST_HEAD_BYTES, PIECE_BYTES, BoundedConnection

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

GET = b"GET /%d HTTP/1.1\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class Remembered(asyncio.Transport):
    """What was written to the network, and what the network was asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.closed = self.aborted = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Application:
    """Answers every request with its path as soon as it may, and remembers how many were under way at most."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked: list[str] = []
        self.bytes_read = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        message = await receive()
        self.bytes_read += len(message.get("body", b""))
        while message.get("more_body"):
            message = await receive()
            self.bytes_read += len(message.get("body", b""))
        await self.may_answer.wait()
        answer = scope["path"].encode() + b";"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
        await send({"type": "http.response.body", "body": answer})


@pytest.fixture
async def application() -> Application:
    """Return an application."""
    return Application()


def connected(application: Application, state: ServerState, **options: Any) -> BoundedConnection:
    config = Config(application, http=BoundedConnection, lifespan="off", log_config=None, access_log=False, **options)
    made = BoundedConnection(config=config, server_state=state, app_state={})
    made.connection_made(Remembered())
    return made


@pytest.fixture
async def connection(application: Application) -> BoundedConnection:
    """Return a connection to it, just made."""
    return connected(application, ServerState())


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def finish(connection: BoundedConnection) -> None:
    """Let every request be answered."""
    for _ in range(10_000):
        if connection._is_idle() and not connection.is_behind():
            return
        await asyncio.sleep(0)
    pytest.fail("it never ends")


async def test_pipelined_requests_wait_as_bytes_and_are_answered_in_order(connection: BoundedConnection, application: Application) -> None:
    """However many come at once, only as many are taken apart as fit into a piece; nothing more is read; then all are answered."""
    requests = b"".join(GET % number for number in range(2_000))
    connection.data_received(requests)
    await settle()
    assert len(application.asked) == 1
    assert len(connection.pipeline) <= PIECE_BYTES // len(GET)
    assert not connection.transport.reading
    connection.data_received(GET % 2_000)  # what the network had read already
    assert len(connection.pipeline) <= PIECE_BYTES // len(GET)
    application.may_answer.set()
    await finish(connection)
    assert application.asked == [f"/{number}" for number in range(2_001)]
    answers = connection.transport.written
    assert [answers.find(f"\r\n/{number};".encode()) >= 0 for number in range(2_001)] == [True] * 2_001
    assert connection.transport.reading


async def test_half_a_request_behind_others_is_waited_for(connection: BoundedConnection, application: Application) -> None:
    """Reading goes on when what was held back turns out to be no whole request."""
    application.may_answer.set()
    long = b"GET /" + b"a" * (PIECE_BYTES // 2 - 18) + b" HTTP/1.1\r\n\r\n"
    connection.data_received(long * 2 + b"GET /half")
    await finish(connection)
    assert connection.transport.reading
    connection.data_received(b" HTTP/1.1\r\n\r\n")
    await finish(connection)
    assert application.asked[2:] == ["/half"]


async def test_a_request_that_is_cut_anywhere_is_one_request(connection: BoundedConnection, application: Application) -> None:
    """Bodies larger than a piece, one behind the other, arrive whole."""
    application.may_answer.set()
    body = b"x" * (3 * PIECE_BYTES + 5)
    request = b"POST /b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    connection.data_received(request * 3)
    await finish(connection)
    assert (application.asked, application.bytes_read) == (["/b"] * 3, 3 * len(body))


@pytest.mark.parametrize("piece", [b"a" * 1000, b"X: a\r\n" * 200])
@pytest.mark.parametrize("before", [b"", b"POST /", b"GET / HTTP/1.1\r\nX: "])
async def test_a_head_has_an_end(connection: BoundedConnection, before: bytes, piece: bytes) -> None:
    """One that is too long is refused before it is complete, by whatever pieces it comes."""
    connection.data_received(before)
    for _ in range(2 * MOST_HEAD_BYTES // len(piece)):
        if connection.transport.closed:
            break
        connection.data_received(piece)
    assert connection.transport.closed
    assert connection.transport.written.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


async def test_a_long_body_is_no_head(connection: BoundedConnection, application: Application) -> None:
    """What is handed to the application is not counted."""
    application.may_answer.set()
    connection.data_received(CHUNKED)
    for _ in range(100):
        connection.data_received(b"1000\r\n" + b"a" * 4096 + b"\r\n")
    connection.data_received(b"0\r\n\r\n")
    await finish(connection)
    assert (application.bytes_read, connection.transport.closed) == (409_600, False)


async def test_trailers_have_an_end(connection: BoundedConnection) -> None:
    """They are no way around the bound on headers."""
    connection.data_received(CHUNKED + b"0\r\n")
    for _ in range(MOST_HEAD_BYTES // 1000 + 1):
        if not connection.transport.closed:
            connection.data_received(b"X: " + b"a" * 995 + b"\r\n")
    assert connection.transport.closed


async def test_a_connection_on_which_nothing_is_completed_is_hung_up_on(connection: BoundedConnection, application: Application) -> None:
    """After an answer it has time again, and while an answer is being made it has all the time that takes."""
    connection.data_received(GET % 1)
    await settle()
    connection._close_if_stalled()
    application.may_answer.set()
    await settle()
    connection._close_if_stalled()
    assert not connection.transport.closed
    connection.data_received(b"GET / HT")
    connection._close_if_stalled()
    assert connection.transport.aborted


async def test_a_body_may_end_in_a_piece_of_its_own(connection: BoundedConnection, application: Application) -> None:
    """As proxies send the end of a chunked one; nothing of the next request has come with it."""
    application.may_answer.set()
    for piece in (CHUNKED, b"1\r\na\r\n", b"0\r\n\r\n"):
        connection.data_received(piece)
    await finish(connection)
    for _ in range(3):
        connection._close_if_stalled()
    assert not connection.transport.closed


async def test_behind_the_offer_of_an_upgrade_nobody_waits_for_long(connection: BoundedConnection, application: Application) -> None:
    """What came in the same piece is gone, and its sender waits for an answer."""
    application.may_answer.set()
    connection.data_received(b"CONNECT /1 HTTP/1.1\r\n\r\n" + GET % 2)
    await finish(connection)
    for _ in range(2):
        connection._close_if_stalled()
    assert connection.transport.aborted


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"G", CHUNKED, CHUNKED + b"1\r\na\r\n"])
async def test_between_two_requests_a_connection_may_idle(connection: BoundedConnection, application: Application, sent: bytes) -> None:
    """As long as the setting says, which is longer than load balancers keep theirs; with anything of the next request it is stalled."""
    application.may_answer.set()
    connection.data_received(GET % 1 + GET % 2)
    await finish(connection)
    for _ in range(3):
        connection._close_if_stalled()
    assert not connection.transport.closed
    connection.data_received(sent)
    application.may_answer.clear()
    for _ in range(2):
        await settle()
        if connection._running:
            connection._running.response_complete = True  # answered before all of it had come
        connection._close_if_stalled()
    assert connection.transport.aborted == bool(sent)


@pytest.mark.parametrize(("others", "seconds"), [(MANY_CONNECTIONS - 1, 620), (MANY_CONNECTIONS, CROWDED_SECONDS)])
async def test_where_many_are_connected_idle_ones_go_soon(application: Application, others: int, seconds: int) -> None:
    """Each holds a file descriptor, and whoever asks once could else keep them all."""
    state = ServerState()
    connection = connected(application, state, timeout_keep_alive=620)
    state.connections |= {connected(application, ServerState()) for _ in range(others)}
    application.may_answer.set()
    connection.data_received(GET % 1)
    await finish(connection)
    timer = connection.timeout_keep_alive_task
    assert timer
    assert seconds - 1 < timer.when() - asyncio.get_running_loop().time() <= seconds


async def test_what_is_being_answered_learns_that_nobody_listens(connection: BoundedConnection, application: Application) -> None:
    """Nothing is written to a connection that is gone, also where more requests had been sent in advance."""
    connection.data_received(GET % 1 + GET % 2)
    await settle()
    connection.transport.close()
    connection.connection_lost(ConnectionResetError())
    application.may_answer.set()
    await settle()
    assert connection.transport.written == b""
    assert application.asked == ["/1"]


async def test_answers_that_are_not_read_are_no_reason_to_wait_for_ever(connection: BoundedConnection, application: Application) -> None:
    """Where the network takes no more, the connection is hung up on like any other that stands still."""
    application.may_answer.set()
    connection.pause_writing()
    connection.data_received(GET % 1)
    await settle()
    connection._close_if_stalled()
    assert connection.transport.aborted
    connection.resume_writing()  # as some networks do once there is nothing left to write
    await settle()
    connection.connection_lost(None)
    await settle()
    assert connection.transport.written == b""
