"""A proxy before the API server: it notes every call as RBAC sees it, and breaks those that a test chooses."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from kube.access import Access, access_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from kube.apiserver import ApiServer

    When = Callable[[Access], bool]

REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"}
ALWAYS = 1_000_000
KILL_WITHIN_S = 20.0
MAX_LINE_BYTES = 1 << 23
MAX_BODY_BYTES = 1 << 24
START_TIMEOUT_S = 10.0


class Call(NamedTuple):
    """A call and what came of it: ``status`` is the one that the client got, None if the connection was cut."""

    method: str
    path: str
    query: Mapping[str, str]
    access: Access | None
    status: int | None


def is_write(access: Access) -> bool:
    """Tell whether a call changes anything."""
    return access.is_write


def anything(_access: Access) -> bool:
    """Mean every call to a resource."""
    return True


@dataclass(eq=False)
class Fault:
    """What is done to calls: to as many as ``times`` says of those that match, after ``skip`` of them were let through."""

    when: When
    skip: int = 0
    times: int = 1
    status: int | None = None
    cut: Literal["before", "after"] | None = None
    delay_s: float = 0.0
    hit: list[Access] = field(default_factory=list)

    def takes(self, access: Access) -> bool:
        """Count a call; tell whether this fault is its own."""
        if not self.when(access) or len(self.hit) >= self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.hit.append(access)
        return True


def status_body(code: int) -> bytes:
    """Return the Status that the API server answers an error with."""
    message = f"{code} on behalf of the test"
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code}
    return json.dumps({**status, "reason": REASONS.get(code, "Unknown")}).encode()


class Watch:
    """A watch that runs through the proxy."""

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self._request = request
        self._response = response

    def cut(self) -> None:
        """Cut the connection."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def expire(self) -> None:
        """End it as the API server does when the version asked for is too old: with an event of its own."""
        event = b'{"type":"ERROR","object":' + status_body(410) + b"}\n"
        with suppress(ConnectionError):
            await self._response.write(event)
            await self._response.write_eof()
        if self._request.transport is not None:
            self._request.transport.close()


class Proxy:
    """The proxy, in a thread of its own; all methods may be called from any thread."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self.url = ""
        """Where it listens, once it runs."""
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._faults: list[Fault] = []
        self._watches: dict[int, Watch] = {}
        self._numbers = itertools.count()
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._loop = self._ready.result(START_TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    # What has been called

    @property
    def calls(self) -> list[Call]:
        """All calls that were answered or cut, in that order; a watch is one as soon as it runs."""
        with self._lock:
            return list(self._calls)

    @property
    def writes(self) -> list[Call]:
        """Those of the calls that change anything."""
        return [call for call in self.calls if call.access and call.access.is_write]

    def accesses(self) -> set[Access]:
        """Return what a Role has to allow for the calls: a patch that made its object has created it too."""
        called = [(call.access, call.status) for call in self.calls if call.access]
        created = [access for access, status in called if access.verb == "patch" and status == web.HTTPCreated.status_code]
        return {access for access, _ in called} | {access._replace(verb="create") for access in created}

    def forget(self) -> None:
        """Forget the calls so far, and do no more harm."""
        with self._lock:
            self._calls.clear()
            self._faults.clear()
        self.release_watches()

    # What goes wrong

    def cut_before(self, n: int = 1, when: When = is_write) -> Fault:
        """Cut the connection of the n-th such call from now on before the API server has heard of it."""
        return self._add(Fault(when, skip=n - 1, cut="before"))

    def cut_after(self, n: int = 1, when: When = is_write) -> Fault:
        """Cut the connection of the n-th such call from now on when the API server has done it."""
        return self._add(Fault(when, skip=n - 1, cut="after"))

    def cut_in_turn(self) -> list[Fault]:
        """Lose each write on its way, then lose its answer, then let it through, all the time; return both kinds of loss."""
        tries: Counter[Access] = Counter()

        def counted(access: Access) -> bool:
            tries[access] += access.is_write
            return False

        def nth(number: int) -> When:
            return lambda access: access.is_write and tries[access] % 3 == number

        self._add(Fault(counted))
        return [self._add(Fault(nth(1), times=ALWAYS, cut="before")), self._add(Fault(nth(2), times=ALWAYS, cut="after"))]

    def hold_writes(self) -> Callable[[], bool]:
        """Keep back the answer of each write; return what tells, once for each, that there was one: whoever wrote is to die now."""
        fault, seen = self._add(Fault(is_write, times=ALWAYS, cut="after", delay_s=KILL_WITHIN_S)), [0]

        def has_written() -> bool:
            before, seen[0] = seen[0], len(fault.hit)
            return seen[0] > before

        return has_written

    def answer(self, status: int, when: When = anything, *, times: int = 1, skip: int = 0) -> Fault:
        """Answer such calls with this status in the API server's place."""
        return self._add(Fault(when, skip=skip, times=times, status=status))

    def delay(self, seconds: float, when: When = anything, *, times: int = 1, skip: int = 0) -> Fault:
        """Keep the answers of such calls back for a while."""
        return self._add(Fault(when, skip=skip, times=times, delay_s=seconds))

    def watches(self) -> int:
        """Return how many watches run."""
        with self._lock:
            return len(self._watches)

    def cut_watches(self) -> int:
        """Cut the connections of all running watches; return how many there were."""
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            self._loop.call_soon_threadsafe(watch.cut)
        return len(watches)

    def expire_watches(self) -> int:
        """End all running watches with a 410; return how many there were."""
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            self._within(watch.expire())
        return len(watches)

    def hold_watches(self) -> None:
        """Let the watches run on, and tell them nothing more."""
        self._within(self._let_flow(flowing=False))

    def release_watches(self) -> None:
        """Tell the watches all that was held, and go on."""
        self._within(self._let_flow(flowing=True))

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def _within(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_TIMEOUT_S)

    # How it is done

    async def _let_flow(self, *, flowing: bool) -> None:
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _run(self) -> None:
        self._over, self._flowing = asyncio.Event(), asyncio.Event()
        self._flowing.set()
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._server.serving_context()).start()
            self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
            connector = aiohttp.TCPConnector(ssl=self._server.client_context(admin=False), limit=0)
            timeout = aiohttp.ClientTimeout(total=None)
            async with aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                read_bufsize=MAX_LINE_BYTES,
                timeout=timeout,
                skip_auto_headers=["Accept-Encoding", "Content-Type", "User-Agent"],
            ) as self._session:
                self._ready.set_result(asyncio.get_running_loop())
                await self._over.wait()
                for watch in self._watches.values():
                    watch.cut()
        finally:
            for connection in runner.server.connections if runner.server else ():
                if connection.transport is not None:
                    connection.transport.abort()  # to close it would wait for the other side's goodbye, and nobody waits here
            await runner.cleanup()

    def _fault_for(self, access: Access | None) -> Fault | None:
        if access is None:
            return None
        with self._lock:
            taken = [fault for fault in self._faults if fault.takes(access)]
        return taken[0] if taken else None

    def _note(self, request: web.Request, access: Access | None, status: int | None) -> None:
        with self._lock:
            self._calls.append(Call(request.method, request.path, dict(request.query), access, status))

    def _cut(self, request: web.Request, access: Access | None) -> web.StreamResponse:
        self._note(request, access, None)
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        access = access_of(request.method, request.path, request.query)
        body = await request.read()
        fault = self._fault_for(access)
        if fault and fault.cut == "before":
            return self._cut(request, access)
        if fault and fault.status is not None:
            self._note(request, access, fault.status)
            headers = {"Retry-After": "1"} if fault.status == web.HTTPTooManyRequests.status_code else {}
            return web.Response(status=fault.status, body=status_body(fault.status), content_type="application/json", headers=headers)
        try:
            return await self._pass_on(request, access, body, fault)
        except aiohttp.ClientError:  # the API server is away, or goes
            return self._cut(request, access)

    async def _pass_on(self, request: web.Request, access: Access | None, body: bytes, fault: Fault | None) -> web.StreamResponse:
        url = URL(self._server.url + request.raw_path, encoded=True)
        headers = _passed_on(request.headers)
        async with self._session.request(request.method, url, headers=headers, data=body, allow_redirects=False) as answer:
            if fault and fault.delay_s:
                await asyncio.sleep(fault.delay_s)
            if access and access.verb == "watch" and answer.ok and not (fault and fault.cut):
                return await self._stream(request, access, answer)
            content = await answer.read() if not (access and access.verb == "watch" and answer.ok) else b""
            if fault and fault.cut == "after":
                return self._cut(request, access)
            self._note(request, access, answer.status)
            return web.Response(status=answer.status, headers=_passed_on(answer.headers), body=content)

    async def _stream(self, request: web.Request, access: Access, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=_passed_on(answer.headers))
        await response.prepare(request)
        number = next(self._numbers)
        with self._lock:
            self._watches[number] = Watch(request, response)
        self._note(request, access, answer.status)
        try:
            async for line in answer.content:
                await self._flowing.wait()
                await response.write(line)
            await response.write_eof()
        except ConnectionError:
            pass  # the client has gone
        finally:
            with self._lock:
                del self._watches[number]
        return response


def _passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)
