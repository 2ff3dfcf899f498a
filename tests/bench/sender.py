"""Load on a contender: saturation by wrk, a steady rate by an open-loop sender."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

LUA = Path(__file__).with_name("wrk.lua")
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Measured:
    """What one run showed; latencies in milliseconds, ``cpu`` in microseconds of the service process per request."""

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


def wrk_program() -> str | None:
    """Find wrk, after installing Debian's package if there is none and we may."""
    if shutil.which("wrk") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-q", "wrk"], capture_output=True, check=False)
    return shutil.which("wrk")


def saturate(url: str, body: Path, *, first_id: int, seconds: int, connections: int = 64, content_type: str = FORM) -> Measured:
    """Send distinct bodies as fast as they are answered."""
    program = wrk_program()
    if program is None:
        raise SystemExit("The benchmark needs wrk: install it, on Debian as root with apt-get install wrk.")
    environment = {
        "PATH": os.defpath,
        "BENCH_BODY": str(body),
        "BENCH_FIRST_ID": str(first_id),
        "BENCH_THREADS": "1",
        "BENCH_CONTENT_TYPE": content_type,
    }
    command = [program, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(LUA), url]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    result = json.loads(said.rpartition("RESULT ")[2])
    return Measured(result["requests"], result["micros"] / 1e6, result["bad"] + result["broken"], result["p50"] / 1e3, result["p99"] / 1e3)


async def steady(url: str, bodies: list[bytes], rate: float, connections: int = 32) -> Measured:
    """Send each body at its time whether or not the one before was answered; the latency counts from that time."""
    address = urlsplit(url)
    latencies: list[float] = []
    bad = 0
    queue: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()

    async def client() -> None:
        nonlocal bad
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while (item := await queue.get()) is not None:
            due, body = item
            head = f"POST {address.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
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
