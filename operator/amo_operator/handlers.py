"""The part that is kopf's: its watches wake the one reconcile, and its start and end are ours.

No timers, daemons, create or update handlers: those need finalizers, and an object with one cannot be deleted once the operator is gone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import kopf
from kopf._core.engines.peering import Identity

from amo_operator.config import Config
from amo_operator.kube import RESOURCES, Kube
from amo_operator.metrics import Metrics
from amo_operator.pages import Pulse, serve
from amo_operator.reconcile import Reconciler
from amo_operator.spec import GROUP, VERSION
from amo_operator.telemetry import Tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aiohttp import web

log = logging.getLogger("amo_operator")


class Operator:
    """One operator: what is wired at start, the task of the clock, and what wakes it earlier."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._wake = asyncio.Event()
        self._metrics = Metrics()
        self._tracing = Tracing()
        self._pulse = Pulse(config.watch_seconds)
        self._clock: asyncio.Task[None] | None = None
        self._kube: Kube | None = None
        self._pages: web.AppRunner | None = None

    def seen(self, kind: str) -> None:
        """Wake the clock: something of this kind may have changed."""
        self._pulse.event(kind)
        self._wake.set()

    async def start(self) -> None:
        """Begin to compare, and to serve the two pages."""
        self._kube = Kube(self.config)
        reconciler = Reconciler(self._kube, self.config, self._metrics, self._tracing, beat=self._pulse.tried)
        self._pages = await serve(self.config, self._pulse, self._metrics)
        self._clock = asyncio.create_task(self._tick(reconciler), name="clock")

    async def _tick(self, reconciler: Reconciler) -> None:
        while True:
            self._wake.clear()
            begun = self._pulse.round_begins()
            try:
                self._pulse.round_ended(begun, await reconciler.round())
            except Exception as error:  # noqa: BLE001 - the API server may be away for a while
                log.warning("Nothing could be compared: %s", describe(error))
                self._pulse.tried()
            try:
                async with asyncio.timeout(self.config.interval_seconds):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """Let go of everything; a reconcile that is cut off here is taken up by the next operator."""
        if self._clock:
            self._clock.cancel()
            await asyncio.wait({self._clock})
        if self._pages:
            await self._pages.cleanup()
        if self._kube:
            await self._kube.close()
        await asyncio.to_thread(self._tracing.close)


def describe(error: BaseException) -> str:
    """Name an error without quoting objects, which may hold secrets."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    return f"{type(error).__name__}{f' {code}' if code else ''}"


def registry(operator: Operator) -> kopf.OperatorRegistry:
    """Return the handlers: all of them only wake."""
    made = kopf.OperatorRegistry()

    @kopf.on.startup(registry=made)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.persistence.finalizer = f"{GROUP}/none"
        settings.watching.server_timeout = operator.config.watch_seconds
        settings.watching.client_timeout = operator.config.watch_seconds + 10
        settings.networking.request_timeout = 30
        await operator.start()

    @kopf.on.cleanup(registry=made)
    async def stop(**_: Any) -> None:
        await operator.stop()

    @kopf.on.login(registry=made)
    async def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)

    for kind, resource in RESOURCES.items():
        kopf.on.event(GROUP, VERSION, resource._api_info.plural, registry=made)(_waker(operator, kind))  # noqa: SLF001 - its only name
    return made


def _waker(operator: Operator, kind: str) -> Callable[..., Coroutine[Any, Any, None]]:
    async def wake(**_: Any) -> None:  # not a coroutine, it would run in a thread of its own
        operator.seen(kind)

    return wake


def run() -> None:
    """Run the operator until it is told to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for chatty in ("httpx", "httpx2", "kopf.objects"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    config = Config()

    async def operate() -> None:
        # With an identity of its own, or kopf asks for the user's name, which an arbitrary user id does not have.
        identity = Identity("amo-operator")
        await kopf.operator(registry=registry(Operator(config)), namespaces=[config.namespace], standalone=True, identity=identity)

    asyncio.run(operate())
