"""`serve` and `work`: the service and a worker of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING, Annotated

import typer
import uvicorn

from amo_receiver.app import create_app, server_options, work
from amo_receiver.errors import CommandError, ConfigurationError
from amo_receiver.log import configure, get_logger
from amo_receiver.settings import check, load_settings

if TYPE_CHECKING:
    from amo_receiver.settings import Settings

log = get_logger(__name__)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("serve")(serve)
    app.command("work")(run_worker)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",  # noqa: S104 - a service in a pod
    port: Annotated[int, typer.Option(help="Public port.", min=1, max=65535)] = 8000,
    management_port: Annotated[
        int | None, typer.Option(help="Port for /livez, /readyz and /keyring; without it they are public.", min=1, max=65535)
    ] = None,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Leave retries to `amo-webhooks work`.")] = False,
    reload: Annotated[bool, typer.Option("--reload", help="Restart when the code changes (development).")] = False,
) -> None:
    """Serve the webhook endpoint, with a worker inside.

    Example: amo-webhooks serve --port 8000 --management-port 9000
    """
    # As environment, because with --reload another process reads them.
    if management_port is not None:
        os.environ["MANAGEMENT_PORT"], os.environ["MANAGEMENT_HOST"] = str(management_port), host
    if no_worker:
        os.environ["WORKER_ENABLED"] = "false"
    settings = load_settings()
    check(settings, dev=False)
    if settings.management_port == port:
        raise ConfigurationError(f"MANAGEMENT_PORT and the public port are both {port}: they must differ.")
    require_port(host, port)
    if settings.management_port is not None:
        require_port(settings.management_host, settings.management_port)
    if reload:
        uvicorn.run("amo_receiver.app:create_app", factory=True, host=host, port=port, reload=True, **server_options(settings))
    else:
        run_server(settings, host, port)


def run_server(settings: Settings, host: str, port: int, *, dev: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again when it is done: being told to end is no failure
    app = create_app(settings, dev=dev)
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, **server_options(settings)))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run()
    except SystemExit:
        raise ConfigurationError("The service could not start; the log says why.") from None


def require_port(host: str, port: int) -> None:
    """Refuse a port that cannot be had, in a sentence and before anything is started for nothing."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = "is not allowed to this user" if isinstance(error, PermissionError) else "is taken by another program"
        reason = "is no address of this machine" if isinstance(error, socket.gaierror) else reason
        raise CommandError(f"Port {port} on {host} {reason}: choose another one, with --port or --management-port.") from error


def run_worker() -> None:
    """Retry due events and prune old ones, without serving anything.

    Example: amo-webhooks work
    """
    settings = load_settings()
    configure(settings)
    for warning in check(settings, dev=False):
        log.warning("%s", warning)
    asyncio.run(_until_told(settings))


async def _until_told(settings: Settings) -> None:
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: task.cancel() if task else None)
    with contextlib.suppress(asyncio.CancelledError):
        await work(settings)
