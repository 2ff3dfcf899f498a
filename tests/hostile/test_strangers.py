"""Who has no key costs nothing: no database, no memory, and less than an empty route of the framework."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from rich.box import MARKDOWN
from rich.table import Table

from amo_receiver.health import CACHE_SECONDS
from bench.stand import UVICORN, Receiver, tree_cpu_seconds
from hostile.tap import Tap
from hostile.watched import MOST_MIB, good_body
from hostile.wire import Wire, connected, head, whole
from integration.load import PATH
from servers import signed_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from hostile.report import Report
    from hostile.watched import Watched
    from servers import Services

MIB = 1024 * 1024
ROUNDS = 5
REQUESTS = 4_000
CONNECTIONS = 16
ALLOWED_RATIO = 0.5
WRONG_TOKEN = PATH + "/test-token-of-the-tests-0123456780"
WRONG_SIGNATURE = signed_headers("32000001") | {"X-Signature": "0" * 64}
NOT_SERVED = signed_headers("32000001", client="somebody-else")


def _lines(headers: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}: {value}" for name, value in headers.items())


STRANGERS = {
    "wrong token": whole(good_body(), path=WRONG_TOKEN),
    "token of a wrong account": whole(good_body(), path=f"{PATH}/32000001.{'a' * 43}"),
    "wrong signature": whole(good_body(), *_lines(WRONG_SIGNATURE), path=PATH),
    "unknown client": whole(good_body(), *_lines(NOT_SERVED), path=PATH),
    "no headers at all": whole(good_body(), path=PATH),
}


async def send_all(url: str, request: bytes, status: int, count: int = REQUESTS) -> None:
    """Send a request again and again over some connections and require the same answer each time."""

    async def keep_asking() -> None:
        async with connected(url) as wire:
            for _ in range(count // CONNECTIONS):
                assert (await wire.ask(request)).status == status

    await asyncio.gather(*(keep_asking() for _ in range(CONNECTIONS)))


@asynccontextmanager
async def tapped(pooled_url: str, services: Services) -> AsyncIterator[tuple[Tap, str]]:
    """Start a service without a worker whose every byte to and from the database is counted; yield the counter and its URL."""
    async with Tap(pooled_url) as tap:
        service = await asyncio.to_thread(services.serve, tap.url, args=["--no-worker"])
        try:
            yield tap, service.url
        finally:
            await asyncio.to_thread(service.end)


async def test_strangers_reach_no_database(pooled_url: str, services: Services, report: Report) -> None:
    """Not one byte goes to the database for thousands of refused requests; for one that is accepted, some do."""
    async with tapped(pooled_url, services) as (tap, url):
        before = await tap.quiet()
        for request in STRANGERS.values():
            await send_all(url, request, 401, 800)
        assert await tap.quiet() == before
        async with connected(url) as wire:
            assert (await wire.ask(whole(good_body()))).status == 200
        accepted = await tap.quiet() - before
    assert accepted > 0
    report.say(f"0 bytes to the database for {800 * len(STRANGERS)} refused requests, {accepted} for one that is accepted")


async def test_the_health_page_asks_the_database_at_most_once_a_second(pooled_url: str, services: Services, report: Report) -> None:
    """It is the one page that asks it, and anybody may ask for it: however many do, each second has one question."""
    ask = head(None, method="GET", path=PATH + "/health")
    async with tapped(pooled_url, services) as (tap, url):
        await send_all(url, ask, 200, CONNECTIONS)
        before = await tap.quiet()
        await asyncio.sleep(CACHE_SECONDS)
        await send_all(url, ask, 200, CONNECTIONS)
        question = await tap.quiet() - before
        began_at = time.monotonic()
        await send_all(url, ask, 200)
        seconds = time.monotonic() - began_at
        questions = (await tap.quiet() - before - question) / question
    assert question > 0
    assert questions < seconds / CACHE_SECONDS + 2
    report.say(f"{REQUESTS} asked for the health page in {seconds:.1f} s: {questions:.1f} questions to the database")


async def test_strangers_are_refused_also_without_a_database(pooled_url: str, services: Services) -> None:
    """Where nobody listens, they are told 401 as ever, and who has a key is told 503."""
    async with tapped(pooled_url, services) as (tap, url):
        await tap.cut()
        for request in STRANGERS.values():
            await send_all(url, request, 401, 160)
        async with connected(url) as wire:
            assert (await wire.ask(whole(good_body()))).status == 503


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("lines", [(), ("Expect: 100-continue",)], ids=["", "expect"])
async def test_strangers_are_refused_before_their_body(watched: Watched, name: str, lines: tuple[str, ...]) -> None:
    """The answer comes while not a byte of the body has, however long that would be, and never a 100."""
    request = STRANGERS[name].partition(b"\r\n\r\n")[0].decode().split("\r\n")
    longest = [f"Content-Length: {1000 * MIB}" if line.startswith("Content-Length") else line for line in request]
    async with connected(watched.url) as wire:
        assert (await wire.ask("\r\n".join((*longest, *lines, "", "")).encode())).status == 401


async def test_bodies_of_strangers_are_not_kept(watched: Watched, report: Report) -> None:
    """Many of them at once, each sending megabytes: the memory stays as it is."""
    async with asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(_pour(watched.url))
    assert watched.peak_mib() <= MOST_MIB
    report.say(f"40 strangers with 20 MiB each: peak {watched.peak_mib():.0f} MiB, {watched.begun_mib:.0f} before")


async def _pour(url: str) -> None:
    wire = await Wire.to(url)
    await wire.send(head(20 * MIB, path=WRONG_TOKEN), *(b"a" * MIB for _ in range(20)))
    assert (await wire.answer()).status == 401
    wire.drop()


@pytest.mark.timeout(600)
async def test_the_processor_time_of_strangers(watched: Watched, tmp_path: Path, pooled_url: str, report: Report) -> None:
    """A figure and no behaviour: printed next to that of an empty FastAPI route, measured in turn in the same run."""
    with Receiver((*UVICORN, "bench.contenders:empty"), tmp_path / "empty", pooled_url) as empty:
        cases = {name: (watched.url, watched.service.pid, request, 401) for name, request in STRANGERS.items()}
        cases["empty FastAPI route"] = (empty.url, empty.pid, whole(good_body()), 200)
        figures: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, (url, pid, request, status) in cases.items():
                before = tree_cpu_seconds(pid)
                await send_all(url, request, status)
                figures[name].append((tree_cpu_seconds(pid) - before) / REQUESTS * 1e6)
    table = Table(
        "who",
        "µs of processor a request",
        f"of the empty route (asked: ≤ {ALLOWED_RATIO})",
        title="The cost of strangers, median of the rounds",
        box=MARKDOWN,
    )
    for name, rounds in figures.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rounds, figures["empty FastAPI route"], strict=True))
        table.add_row(name, f"{statistics.median(rounds):.0f}", f"{ratio:.2f}")
    report.show(table)
