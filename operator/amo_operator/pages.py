"""/livez and /metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_operator.config import Config
    from amo_operator.metrics import Metrics

ROUND_SECONDS = 60.0
"""Alive is who compared everything within this time …"""
WATCH_SECONDS = 60
"""How long one watch lasts: kopf lists everything anew when it begins the next, and each object is an event then."""
SILENCE_SECONDS = 3 * WATCH_SECONDS
"""… and whose watches brought an event of each kind that has objects within this one."""


class Pulse:
    """When the clock and the watches were last seen to work; seconds of a monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._round = self._begun = clock()
        self._seen: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def event(self, kind: str) -> None:
        """Note an event of a watch."""
        self._seen[kind] = self._clock()

    def round_ended(self, counts: dict[str, int]) -> None:
        """Note that everything was compared, and how many objects of each kind there are."""
        for kind, count in counts.items():
            if count and not self._counts.get(kind):
                self._seen[kind] = self._clock()  # it has only just appeared
        self._round, self._counts = self._clock(), counts

    def obstacles(self) -> list[str]:
        """Return why this process should be started anew; empty when it works."""
        now = self._clock()
        found = [] if now - self._round <= ROUND_SECONDS else [f"nothing was compared for {now - self._round:.0f} s"]
        for kind, count in self._counts.items():
            silence = now - self._seen.get(kind, self._begun)
            if count and silence > SILENCE_SECONDS:
                found.append(f"the watch of {kind} brought nothing for {silence:.0f} s")
        return found


async def serve(config: Config, pulse: Pulse, metrics: Metrics) -> web.AppRunner:
    """Serve both pages until the runner is cleaned up."""

    async def livez(_: web.Request) -> web.Response:
        obstacles = pulse.obstacles()
        return web.json_response({"status": "dead" if obstacles else "alive", "obstacles": obstacles}, status=503 if obstacles else 200)

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/metrics", page)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, config.pages_host, config.pages_port).start()
    return runner
