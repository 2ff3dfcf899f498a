"""The pages about the process, on a port of their own with MANAGEMENT_PORT: liveness, readiness, the keyring's report, metrics."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request

    from amo_receiver.health import Health
    from amo_receiver.inbox.matches import Matches
    from amo_receiver.settings import Settings
    from amo_receiver.telemetry.metrics_page import Page


def management_routes(health: Health, matches: Matches, metrics: Page) -> list[Route]:
    """Return /livez, /readyz, /keyring and /metrics; /keyring tells of accounts on a port of its own only, which strangers do not reach."""

    async def livez(_: Request) -> JSONResponse:
        return JSONResponse({"status": "alive"})

    async def readyz(_: Request) -> JSONResponse:
        obstacles = health.obstacles()
        return JSONResponse({"status": "not ready" if obstacles else "ready", "obstacles": obstacles}, 503 if obstacles else 200)

    async def keyring(request: Request) -> JSONResponse:
        return JSONResponse(matches.report(health.current.keyring, with_accounts=getattr(request.app.state, "is_private", False)))

    async def page(request: Request) -> Response:
        content, content_type = await metrics.render(request.headers.get("accept", ""))
        return Response(content, media_type=content_type)

    return [Route("/livez", livez), Route("/readyz", readyz), Route("/keyring", keyring), Route("/metrics", page)]


class SecondServer(uvicorn.Server):
    """A server beside the main one, which alone handles signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the main server."""
        yield


@asynccontextmanager
async def managed(settings: Settings, routes: list[Route]) -> AsyncIterator[None]:
    """Serve the routes on MANAGEMENT_PORT, if there is one."""
    if settings.management_port is None:
        yield
        return
    host, port = settings.management_host, settings.management_port
    app = Starlette(routes=routes)
    app.state.is_private = True
    config = uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False, lifespan="off")
    server = SecondServer(config)
    serving = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        server.should_exit = True
        await serving
