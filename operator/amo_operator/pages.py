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
"""Alive is whose clock went within this time …"""
SILENT_WATCHES = 3
"""… and whose watches told within the time of so many watches of each change that a list has shown. A watch of what does not change is
silent for ever, and none the worse for it."""


class Pulse:
    """When the clock and the watches were last seen to work; seconds of a monotonic clock."""

    def __init__(self, watch_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._most_silence = SILENT_WATCHES * watch_seconds
        self._begun = self._ended = clock()
        self._versions: dict[str, frozenset[str]] = {}
        self._told: dict[str, float] = {}
        self._untold: dict[str, float] = {}

    def event(self, kind: str) -> None:
        """Note an event of a watch."""
        self._told[kind] = self._clock()
        self._untold.pop(kind, None)

    def round_begins(self) -> float:
        """Return the time to hand over when the round has ended."""
        return self._clock()

    def round_ended(self, begun: float, versions: dict[str, frozenset[str]]) -> None:
        """Note that everything was compared, and which versions of each kind there are."""
        for kind, present in versions.items():
            is_changed = present != self._versions.get(kind, frozenset())
            # A change that this list shows and the one before did not is younger than that one, and so is its event.
            if is_changed and self._told.get(kind, float("-inf")) < self._begun:
                self._untold.setdefault(kind, self._clock())
        self._begun, self._ended, self._versions = begun, self._clock(), versions

    def tried(self) -> None:
        """Note that the clock goes, in the middle of a round, or though nothing could be compared: a new process would be no better off."""
        self._ended = self._clock()

    def obstacles(self) -> list[str]:
        """Return why this process should be started anew; empty when it works."""
        now = self._clock()
        found = [] if now - self._ended <= ROUND_SECONDS else [f"the clock stood still for {now - self._ended:.0f} s"]
        late = {kind: now - since for kind, since in self._untold.items() if now - since > self._most_silence}
        return found + [f"the watch of {kind} has not told of a change for {seconds:.0f} s" for kind, seconds in late.items()]


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
