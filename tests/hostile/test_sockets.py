"""What no HTTP library would send: cut, false, endless and malformed requests on raw sockets.

After each of them the service must be the same process, still accept, have logged no error, and never have been larger than stated
in ``watched.py``. The fixture ``watched`` sees to that.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import resource
import time
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from amo_receiver.connection import MANY_CONNECTIONS, STALL_SECONDS
from hostile.watched import KEPT, MOST_MIB, good_body, post
from hostile.wire import PATIENCE_SECONDS, Wire, chunk, connected, head, whole
from integration.load import PATH, TOKEN_PATH
from servers import run_sql, signed_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hostile.report import Report
    from hostile.watched import Watched

MIB = 1024 * 1024
HALF_OPEN = 500
SILENT = 1_200
"""More connections than the files that a process may have open by default, and than are let idle for long."""
DRIBBLE_SECONDS = 0.5
PIPELINED = 300
CHUNKED = "Transfer-Encoding: chunked"
HALVES = (
    b"",
    b"POST /api/web",
    head(MIB)[:-2],
    head(MIB, path=PATH + "/wrong"),
    head(1000) + b"leads",
    head(None, CHUNKED) + b"5\r\nab",
    head(None, CHUNKED) + b"0\r\nX-Trailer: ",
)


async def require_ignored(watched: Watched, *parts: bytes, statuses: frozenset[int] = frozenset({400})) -> None:
    """Send what is no good request: answered with one of these or by hanging up, it leaves nothing behind."""
    before = stored(watched)
    async with connected(watched.url) as wire:
        assert {*await wire.converse(*parts)} <= {*statuses, 404}
    assert stored(watched) == before


def stored(watched: Watched) -> int:
    """Return how many deliveries there are."""
    return int(run_sql(watched.database_url, "SELECT count(*) FROM deliveries")[0][0])


async def test_the_pages_are_answered_however_many_ask_first(watched: Watched) -> None:
    """Also those that ask for the health page while the first one still waits for the database."""
    wires = [await Wire.to(watched.url) for _ in range(50)]
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(wire.ask(head(None, method="GET", path=PATH + "/health"))) for wire in wires]
    for wire in wires:
        await wire.close()
    assert {task.result().status for task in asked} == {200}


async def test_headers_that_dribble_in_are_taken(watched: Watched) -> None:
    """A sender that is slow with its headers is accepted, because its time begins when they are complete."""
    request = whole(good_body())
    cut = request.index(b"\r\n\r\n") + 4
    async with connected(watched.url) as wire:
        for position in range(0, cut, 8):
            await wire.send(request[position : min(position + 8, cut)])
            await asyncio.sleep(0.02)
        assert (await wire.ask(request[cut:])).status == 200


async def test_a_body_that_dribbles_past_the_budget_is_answered_503(watched: Watched) -> None:
    """The answer comes in spite of the missing rest, and the connection takes the next request once that has come."""
    body = good_body()
    async with connected(watched.url) as wire:
        await wire.send(head(len(body)))
        sent = 0
        while wire.is_quiet():
            await wire.send(body[sent : sent + 1])
            sent += 1
            await asyncio.sleep(0.05)
        late = await wire.answer()
        assert (late.status, late.headers["retry-after"]) == (503, "5")
        assert (await wire.ask(body[sent:] + whole(good_body()))).status == 200


@pytest.mark.parametrize("path", [TOKEN_PATH, PATH + "/wrong", PATH, "/api/webhooks/amo/health", "/"])
async def test_a_sender_that_hangs_up_halfway_leaves_nothing_behind(watched: Watched, path: str) -> None:
    """Half a head or half a body, closed gently or not: nothing of it is stored."""
    before = stored(watched)
    request = whole(good_body(), path=path)
    for end in range(0, len(request), 40):
        wire = await Wire.to(watched.url)
        await wire.send(request[:end])
        if end % 80:
            wire.end_sending()
            await wire.answers()
        await wire.close()
    assert post(watched.url, good_body())[0] == 200
    assert stored(watched) == before + 1


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: -5",),
        ("Content-Length: 99999999999999999999999999",),
        ("Content-Length: 0x10",),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5, 5",),
        ("Content-Length: 5", CHUNKED),
        ("Content-Length: +5",),
        ("Content-Length: ",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: \x0bchunked",),
    ],
    ids=str,
)
async def test_a_length_that_is_none_is_refused(watched: Watched, lines: tuple[str, ...]) -> None:
    """Who can make two servers disagree about where a request ends can smuggle another one past the first."""
    await require_ignored(watched, head(None, *lines), good_body())


async def test_what_follows_a_body_that_is_longer_than_declared_is_no_request(watched: Watched) -> None:
    """The declared part is a delivery of its own and the rest is refused; nothing is guessed."""
    body = good_body()
    async with connected(watched.url) as wire:
        assert {*await wire.converse(head(len(body) - 10) + body)} <= {200, 400}


async def test_a_body_shorter_than_declared_is_answered_503_in_time(watched: Watched) -> None:
    """The rest may still come, so nothing is stored, and the sender is told to come again."""
    body = good_body()
    async with connected(watched.url) as wire:
        assert (await wire.ask(head(len(body) + 10) + body)).status == 503


async def test_chunked_bodies_are_taken(watched: Watched) -> None:
    """In one chunk, in many of one byte each, with an extension and a trailer."""
    body = good_body()
    async with connected(watched.url) as wire:
        assert (await wire.ask(head(None, CHUNKED) + chunk(body) + chunk(b""))).status == 200
        single = b"".join(chunk(body[position : position + 1]) for position in range(len(body)))
        assert (await wire.ask(head(None, CHUNKED) + single + chunk(b""))).status == 200
        extended = b"%x;name=value\r\n%s\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(body), body)
        assert (await wire.ask(head(None, CHUNKED) + extended)).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"FFFFFFFFFFFFFFFFFF\r\na",
        b"-1\r\na\r\n0\r\n\r\n",
        b"zz\r\na\r\n0\r\n\r\n",
        b"1\r\nab\r\n0\r\n\r\n",
        b"\r\n\r\n",
        b"1" * 100_000,
        b"1;" + b"x" * 100_000,
    ],
    ids=lambda body: repr(body[:12]),
)
async def test_a_bad_chunk_is_refused(watched: Watched, body: bytes) -> None:
    """Nothing of it is a delivery."""
    await require_ignored(watched, head(None, CHUNKED), body, statuses=frozenset({400, 503}))


@pytest.mark.parametrize("piece", [b"a" * MIB, b"X-A: a\r\n" * (MIB // 8)], ids=["one", "many"])
async def test_endless_trailers_are_cut_off(watched: Watched, piece: bytes) -> None:
    """What follows a chunked body is no way around the bound on headers."""
    async with connected(watched.url) as wire:
        await wire.send(head(None, CHUNKED) + b"0\r\nX: ", *(piece for _ in range(100)))
        await wire.hung_up()


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
async def test_a_body_beyond_the_limit_is_answered_413(watched: Watched, chunked: bool) -> None:
    """With a length before any of it is read, without one as soon as it is too much, and the connection goes on."""
    async with connected(watched.url) as wire:
        if chunked:
            large = head(None, CHUNKED), *(chunk(b"a" * 65_536) for _ in range(32)), chunk(b"")
        else:
            large = head(2 * MIB), *(b"a" * 65_536 for _ in range(32))
        sending = asyncio.create_task(wire.send(*large))
        refused = await wire.answer()
        assert (refused.status, refused.document["status"]) == (413, "error")
        await sending
        assert (await wire.ask(whole(good_body()))).status == 200


async def test_an_endless_chunked_body_does_not_fill_the_memory(watched: Watched) -> None:
    """What comes after the 413 is thrown away as it comes."""
    async with connected(watched.url) as wire:
        sending = asyncio.create_task(wire.send(head(None, CHUNKED), *(chunk(b"a" * MIB) for _ in range(200))))
        assert (await wire.answer()).status == 413
        await sending


async def test_pipelined_requests_are_answered_in_order(watched: Watched) -> None:
    """Many requests without waiting for an answer: each is answered, in the order in which they came."""
    statuses = []
    parts = []
    for number in range(PIPELINED):
        path, status = ((TOKEN_PATH, 200), (PATH + "/wrong", 401), ("/nothing", 404))[number % 3]
        parts.append(whole(good_body(), path=path))
        statuses.append(status)
    async with connected(watched.url) as wire:
        sending = asyncio.create_task(wire.send(b"".join(parts)))
        assert [(await wire.answer()).status for _ in range(PIPELINED)] == statuses
        await sending


@pytest.mark.parametrize(
    "request_bytes",
    [head(0, path=PATH + "/wrong"), head(None, method="GET", path="/livez"), whole(b"")],
    ids=["stranger", "page", "delivery"],
)
async def test_an_endless_pipeline_does_not_fill_the_memory(watched: Watched, report: Report, request_bytes: bytes) -> None:
    """A sender that never stops to read an answer gets no more memory than one that does."""
    block = request_bytes * (MIB // len(request_bytes))
    async with connected(watched.url) as wire:
        reading = asyncio.create_task(wire.answers())
        started = time.monotonic()
        while time.monotonic() - started < 4 and not reading.done():
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await wire.send(block)
        reading.cancel()
    assert watched.peak_mib() <= MOST_MIB
    report.say(f"peak {watched.peak_mib():.0f} MiB")


async def test_senders_that_hang_up_while_they_are_answered_are_no_error(watched: Watched) -> None:
    """Whatever they had asked for in advance is forgotten, and nothing is written to a connection that is gone."""
    for count in (1, 2, 30):
        for request in (whole(good_body()), head(None, method="GET", path="/openapi.json"), head(0, path=PATH + "/wrong")):
            for _ in range(20):
                async with connected(watched.url) as wire:
                    await wire.send(request * count)
                    if count == 2:
                        await wire.answer()


async def test_answers_that_nobody_reads_do_not_fill_the_memory(watched: Watched) -> None:
    """A sender that only asks and never listens is not answered beyond what the connection holds, and is hung up on in the end."""
    request = head(None, method="GET", path="/openapi.json")
    async with connected(watched.url) as wire:
        await wire.send(*(request * 500 for _ in range(100)))
        assert watched.peak_mib() <= MOST_MIB
        await wire.hung_up()


async def test_who_stops_halfway_is_hung_up_on_and_who_goes_on_is_not(watched: Watched) -> None:
    """Connections on which nothing is completed do not pile up; one that is in use stays open beside them."""
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(connected(watched.url)) for _ in HALVES]
        steady = await stack.enter_async_context(connected(watched.url))
        for wire, half in zip(wires, HALVES, strict=True):
            await wire.send(half)
        closed = asyncio.gather(*(wire.hung_up() for wire in wires))
        while not closed.done():
            assert (await steady.ask(whole(good_body()))).status == 200
            await asyncio.sleep(0.5)
        await closed


@pytest.mark.parametrize(
    ("begun", "byte"),
    [
        (b"", b"A"),
        (head(MIB)[:-2], b"a"),
        (head(MIB), b"a"),
        (head(MIB, path=PATH + "/wrong"), b"a"),
        (head(None, CHUNKED) + b"fffff\r\n", b"a"),
    ],
    ids=["method", "headers", "body", "stranger's body", "chunk"],
)
async def test_who_dribbles_for_ever_is_hung_up_on(watched: Watched, begun: bytes, byte: bytes) -> None:
    """A byte twice a second, longer than the service waits at most: bytes are no progress, only a request that is complete."""
    async with connected(watched.url) as wire:
        await wire.send(begun)
        closed = asyncio.create_task(wire.hung_up())
        for _ in range(int(3 * STALL_SECONDS / DRIBBLE_SECONDS)):
            await wire.send(byte)
            await asyncio.wait({closed}, timeout=DRIBBLE_SECONDS)
            if closed.done():
                break
        assert closed.done()
        await closed


@pytest.mark.parametrize(("count", "answers"), [(100, [[200, 404]]), (10_000, [[431], []]), (100_000, [[431], []])])
async def test_many_headers_are_taken_or_refused(watched: Watched, count: int, answers: list[list[int]]) -> None:
    """However many there are, they cost no more than their bytes, and who sends too many is told so or hung up on."""
    lines = [f"X-{number}: {number}" for number in range(count)]
    async with connected(watched.url) as wire:
        assert await wire.converse(whole(good_body(), *lines)) in answers


@pytest.mark.parametrize("size", [8_000, 1_000_000, 100_000_000])
@pytest.mark.parametrize("place", ["name", "value", "signature", "path", "query"])
async def test_a_very_long_head_is_refused(watched: Watched, place: str, size: int) -> None:
    """Wherever the length is, it is refused before it has filled the memory."""
    before, after = {
        "name": (b"POST / HTTP/1.1\r\nHost: a\r\n", b": a\r\n\r\n"),
        "value": (b"POST / HTTP/1.1\r\nHost: a\r\nX-A: ", b"\r\n\r\n"),
        "signature": (b"POST %s HTTP/1.1\r\nHost: a\r\nX-Signature: " % PATH.encode(), b"\r\n\r\n"),
        "path": (b"POST %s/" % PATH.encode(), b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        "query": (b"POST %s?" % TOKEN_PATH.encode(), b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    }[place]
    piece = b"a" * min(size, MIB)
    async with connected(watched.url) as wire:
        assert {*await wire.converse(before, *(piece for _ in range(size // len(piece))), after)} <= {200, 400, 401, 404, 405, 414, 431}


async def test_http_1_0_is_answered_and_closed(watched: Watched) -> None:
    """Old senders expect the connection to end with the answer."""
    body = good_body()
    async with connected(watched.url) as wire:
        await wire.send(head(len(body), version="HTTP/1.0") + body)
        assert [reply.status for reply in await wire.answers()] == [200]


async def test_expect_100_continue_is_answered_before_the_body_comes(watched: Watched) -> None:
    """A sender that asks first is told to go on, and a stranger is refused instead."""
    body = good_body()
    async with connected(watched.url) as wire:
        assert (await wire.ask(head(len(body), "Expect: 100-continue"))).status == 100
        assert (await wire.ask(body)).status == 200
    async with connected(watched.url) as wire:
        assert (await wire.ask(head(len(body), "Expect: 100-continue", path=PATH + "/wrong"))).status == 401


@pytest.mark.parametrize(
    "method",
    ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PROPFIND", "TRACE", "FOO", "post", "CONNECT", "PRI", "%00", "A" * 10_000],
)
@pytest.mark.parametrize("path", [TOKEN_PATH, "*", "127.0.0.1:80"])
async def test_methods_other_than_post_store_nothing(watched: Watched, method: str, path: str) -> None:
    """Known ones are answered 405, unknown ones 400."""
    async with connected(watched.url) as wire:
        assert {*await wire.converse(head(0, path=path, method=method))} <= {400, 404, 405}


@pytest.mark.parametrize(
    "path", ["/%00", f"{TOKEN_PATH}%00", f"{PATH}/%ff%fe", f"{PATH}/\x00", f"{PATH}/\x80", f"{PATH}/../../etc/passwd", "//", "http://a b/", f"{PATH}/%",
             f"{PATH}/%ed%a0%80", f"{PATH}/{'a/' * 5_000}", f"{PATH}/.{'%2e' * 3_000}"], ids=lambda path: repr(path[-12:])
)  # fmt: skip
async def test_paths_that_are_none_lead_nowhere(watched: Watched, path: str) -> None:
    """NUL, bytes that are no text, dots and slashes match no token."""
    await require_ignored(
        watched, whole(good_body(), path=path).replace("\x80".encode(), b"\x80"), statuses=frozenset({400, 401, 404, 405})
    )


@pytest.mark.parametrize(
    "lines",
    [
        ("X: a\x00b",), ("X Y: a",), (": a",), (" folded: a",), ("X: a\rb",), ("X: a\nContent-Length: 3",), ("Content-Type: \x80\xff",),
        ("User-Agent: " + "\x80" * 5_000,), ("Host: b",), ("Connection: upgrade", "Upgrade: websocket"), ("Connection: close, keep-alive",),
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), ("Traceparent: \x7f",),
    ],
    ids=lambda lines: repr(lines[0][:20]),
)  # fmt: skip
async def test_strange_headers_are_taken_or_refused(watched: Watched, lines: tuple[str, ...]) -> None:
    """What is accepted is a delivery like any other, what is not is answered 400."""
    body = good_body()
    async with connected(watched.url) as wire:
        answers = await wire.converse(head(len(body), *lines).decode().encode("latin-1") + body)
        assert answers in ([200, 404], [200], [400], [])


async def test_an_offered_upgrade_is_ignored(watched: Watched) -> None:
    """Senders that would rather speak HTTP/2 are answered in HTTP/1.1, and go on so over the same connection."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    async with connected(watched.url) as wire:
        assert (await wire.ask(whole(good_body(), *offer))).status == 200
        assert (await wire.ask(whole(good_body(), *offer))).status == 200


async def test_a_compressed_body_is_kept_as_unparsed(watched: Watched) -> None:
    """It is not decompressed, so that a small body never becomes a large one; on the signed path it is refused."""
    watched.expected += KEPT
    bomb = gzip.compress(b"0" * 50 * MIB)
    encoded = {"Content-Encoding": "gzip"}
    status, document = post(watched.url, bomb, headers=encoded)
    assert (status, document["status"], document["events_processed"]) == (200, "partial", 0)
    assert post(watched.url, bomb, PATH, {**encoded, **signed_headers("32000001")})[0] == 400
    rows = run_sql(
        watched.database_url,
        "SELECT d.body FROM events e JOIN deliveries d ON d.id = e.delivery_id WHERE e.entity = 'unparsed' AND e.state = 'dead'",
    )
    assert bomb in [row["body"] for row in rows]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000, b'{"a":' * 100_000, b"a[" * 500_000, b"a" + b"[0]" * 300_000 + b"=1", b"&" * MIB, b"=" * MIB, b"%" * MIB, b"a=1&" * 260_000,
        b"leads[add][999999999999999999][id]=1", b"leads[add][0][id]=" + b"9" * 1_000_000, b'{"leads":{"add":[{"id":1e400}]}}', b'{"leads":{"add":[{"id":1,"name":"\\u0000\\ud800"}]}}',
        b"leads[add][0][id]=1&leads[add][0][name]=" + b"%00" * 300_000, json.dumps({"leads": {"add": [{"id": 10**400}]}}).encode(), b'{"leads":{"add":[' + b"{}," * 300_000 + b"{}]}}",
        json.dumps({"leads": {"add": [{"id": number} for number in range(19_000)]}}).encode(), b"\xef\xbb\xbf{}", os.urandom(MIB), b"",
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
async def test_bodies_made_to_be_expensive_are_answered(watched: Watched, body: bytes) -> None:
    """Deep, long, countless or nothing: answered on both paths, and others are accepted meanwhile."""
    watched.expected += KEPT
    async with asyncio.TaskGroup() as group:
        by_token = group.create_task(asyncio.to_thread(post, watched.url, body))
        signed = group.create_task(asyncio.to_thread(post, watched.url, body, PATH, signed_headers("32000001")))
        beside = [group.create_task(asyncio.to_thread(post, watched.url, good_body())) for _ in range(5)]
    assert by_token.result()[0] == 200
    assert signed.result()[0] in {200, 400}
    assert {task.result()[0] for task in beside} == {200}


async def test_many_half_open_connections_hold_up_nobody(watched: Watched, report: Report) -> None:
    """Hundreds of senders that stopped in their headers, in their body or before both, and every good request is accepted."""
    wires = [await Wire.to(watched.url) for _ in range(HALF_OPEN)]
    try:
        for number, wire in enumerate(wires):
            await wire.send(HALVES[number % len(HALVES)])
        for _ in range(50):
            assert (await asyncio.to_thread(post, watched.url, good_body()))[0] == 200
        report.say(f"{HALF_OPEN} half-open connections: {watched.rss_mib():.0f} MiB")
        async with asyncio.timeout(PATIENCE_SECONDS):
            late = [(await wire.answer()).status for number, wire in enumerate(wires) if number % len(HALVES) in (3, 4)]
        assert set(late) == {401, 503}
    finally:
        for wire in wires:
            await wire.close()


@contextmanager
def many_files(*pids: int) -> Iterator[None]:
    """Let processes have as many files open as they may be allowed; where that is too few, the test is skipped."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    if min(hard for _, hard in before.values()) < 2 * SILENT:
        pytest.skip(f"the hard limit on open files (ulimit -Hn) is below {2 * SILENT}")
    try:
        for pid, (_, hard) in before.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


async def test_many_strangers_that_are_refused_and_stay_hold_up_nobody(watched: Watched, report: Report) -> None:
    """Over a thousand that are told 401 and then say nothing: good requests are accepted, and the strangers are hung up on soon."""
    assert SILENT > 2 * MANY_CONNECTIONS
    refused = head(0, path=PATH + "/wrong")
    with many_files(os.getpid(), watched.service.pid):
        wires = [await Wire.to(watched.url) for _ in range(SILENT)]
        try:
            async with asyncio.TaskGroup() as group:
                answers = [group.create_task(wire.ask(refused)) for wire in wires]
            assert {task.result().status for task in answers} == {401}
            for _ in range(50):
                assert (await asyncio.to_thread(post, watched.url, good_body()))[0] == 200
            report.say(f"{SILENT} silent connections: {watched.rss_mib():.0f} MiB")
            assert set(await asyncio.gather(*(wire.hung_up() for wire in wires))) == {b""}
        finally:
            for wire in wires:
                await wire.close()
