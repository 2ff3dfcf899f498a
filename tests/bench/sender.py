"""Load on receivers: saturation by wrk, a steady rate by an open-loop sender."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.ledger import Ledger, Run
    from bench.stand import Receiver
    from bench.templates import Template

LUA = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Measured:
    """What one run showed; latencies in milliseconds, ``cpu`` in microseconds of the receivers per request."""

    requests: int
    seconds: float
    bad: int
    p50: float
    p99: float
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return (self.requests - self.bad) / self.seconds


def wrk_program() -> str:
    """Find wrk, after installing Debian's package if there is none and we may."""
    if shutil.which("wrk") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-q", "wrk"], capture_output=True, check=False)
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("The benchmark needs wrk: install it, on Debian as root with apt-get install wrk.")
    return program


def saturate(receivers: Sequence[Receiver], template: Template, ledger: Ledger, *, seconds: int, connections: int = 64) -> Measured:
    """Send distinct bodies to every receiver at once, each as fast as they are answered over that many connections."""
    runs = [ledger.begin(template.events) for _ in receivers]
    before = sum(receiver.cpu_seconds() for receiver in receivers)
    senders = [_wrk(receiver.url, template, run, seconds, connections) for receiver, run in zip(receivers, runs, strict=True)]
    results = [_result(sender) for sender in senders]
    cpu = sum(receiver.cpu_seconds() for receiver in receivers) - before
    for run, result in zip(runs, results, strict=True):
        run.good, run.bad = result["requests"] - result["bad"], result["bad"] + result["broken"]
    requests = sum(result["requests"] for result in results)
    return Measured(
        requests,
        max(result["micros"] for result in results) / 1e6,
        sum(run.bad for run in runs),
        median(result["p50"] for result in results) / 1e3,
        max(result["p99"] for result in results) / 1e3,
        cpu / requests * 1e6,
    )


def _wrk(url: str, template: Template, run: Run, seconds: int, connections: int) -> subprocess.Popen[str]:
    environment = {
        "PATH": os.defpath,
        "BENCH_BODY": template.body.decode(),
        "BENCH_CONTENT_TYPE": template.content_type,
        "BENCH_FIRST": str(run.first - 1),  # the first one is only looked at
        "BENCH_LEADS": str(template.leads),
    }
    command = [wrk_program(), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(LUA), url]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _result(sender: subprocess.Popen[str]) -> dict[str, int]:
    said, _ = sender.communicate()
    if sender.returncode:
        raise SystemExit(f"wrk ended with {sender.returncode}: {said}")
    result: dict[str, int] = json.loads(said.rpartition("RESULT ")[2])
    return result


def send_steadily(receiver: Receiver, template: Template, ledger: Ledger, *, seconds: int, rate: int) -> Measured:
    """Send that many bodies a second, whether or not those before were answered."""
    run = ledger.begin(template.events)
    bodies = [template.numbered(run.first + index) for index in range(rate * seconds)]
    measured = asyncio.run(steady(receiver.url, bodies, rate, content_type=template.content_type))
    run.good, run.bad = measured.requests - measured.bad, measured.bad
    return measured


async def steady(url: str, bodies: list[bytes], rate: float, *, content_type: str, connections: int = 32) -> Measured:
    """Send each body at its time; the latency counts from that time."""
    address = urlsplit(url)
    latencies: list[float] = []
    bad = 0
    queue: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()

    async def client() -> None:
        nonlocal bad
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while (item := await queue.get()) is not None:
            due, body = item
            head = f"POST {address.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            await reader.readexactly(length)
            latencies.append(time.perf_counter() - due)
            bad += not answer.startswith(b"HTTP/1.1 200")
        writer.close()

    clients = [asyncio.create_task(client()) for _ in range(connections)]
    began = time.perf_counter()
    for number, body in enumerate(bodies):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        queue.put_nowait((due, body))
    for _ in clients:
        queue.put_nowait(None)
    await asyncio.gather(*clients)
    seconds = time.perf_counter() - began
    latencies.sort()
    return Measured(len(bodies), seconds, bad, latencies[len(latencies) // 2] * 1e3, latencies[int(len(latencies) * 0.99)] * 1e3)
