"""The composition root: the only place that wires the parts together."""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from amo_receiver import schema
from amo_receiver.amocrm.form import Limits
from amo_receiver.connection import BoundedConnection
from amo_receiver.database import create_engine, span_attributes
from amo_receiver.documentation import WebhookApp, document, error_handlers, page_router, webhook_routes
from amo_receiver.health import Health
from amo_receiver.inbox.batch import GroupCommit
from amo_receiver.inbox.endpoints import WebhookEndpoint
from amo_receiver.inbox.journal import Journal
from amo_receiver.inbox.matches import LAG, Matches
from amo_receiver.inbox.quota import UnparsedQuota
from amo_receiver.inbox.repository import Repository
from amo_receiver.inbox.service import Inbox, Reloadable
from amo_receiver.log import configure, get_logger, set_level
from amo_receiver.management import managed, management_routes
from amo_receiver.notify import Conditions, Notifier
from amo_receiver.settings import Settings, check, load_settings
from amo_receiver.telemetry.metrics import Metrics
from amo_receiver.telemetry.metrics_page import Page
from amo_receiver.telemetry.metrics_push import set_up_push
from amo_receiver.telemetry.metrics_sources import Sources
from amo_receiver.telemetry.setup import set_up
from amo_receiver.watch import KeyringDirectory, Watch, load_keyring, load_mapping
from amo_receiver.worker.journal import AttemptJournal
from amo_receiver.worker.loop import poll
from amo_receiver.worker.maintenance import prune
from amo_receiver.worker.retry import Retry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator

    from fastapi import FastAPI
    from starlette.routing import Route

log = get_logger(__name__)

CALL_MARGIN_MS = 400
"""How much longer than a lock wait a database call may take before its connection is given up."""
GRACEFUL_SECONDS = 8
CLOSE_SECONDS = 1.0
WORKER_END_SECONDS = 5.0
PRUNE_SECONDS = 3600.0
QUOTA_SECONDS = 60.0
CONDITIONS_SECONDS = 15.0
MATCHES_SECONDS = 5.0
FASTAPI_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own is off, however the environment is set: its spans cost more than a delivery and hold the path with the token."""


@dataclass
class Service:
    """The parts of one process, and the tasks that keep them going."""

    settings: Settings
    accepts: bool = True
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _polls: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Wire the parts; nothing connects yet."""
        settings = self.settings
        self.metrics = Metrics()
        directory = None
        if settings.amocrm_keyring_dir:
            directory = KeyringDirectory(settings.amocrm_keyring_dir, on_refused=partial(self.metrics.reloaded, "keyring", is_good=False))
        self.watch = Watch()
        if directory:  # watched before it is read for the first time, or a change in between would be missed
            self.watch.add(directory.revision, lambda: self._reload_keyring(directory))
        if settings.mapping_file:
            self.watch.add(settings.mapping_file, self._reload_mapping)
        url = settings.pooled_url
        self.engine = create_engine(url, settings.db_pool_size)
        self.telemetry = set_up(span_attributes(url))
        self.push = set_up_push(self.metrics)
        self.notifier = Notifier(settings.notify_url.get_secret_value(), settings.notify_interval_seconds)
        tracing = self.telemetry.tracing
        self.current = Reloadable(load_keyring(settings, directory), load_mapping(settings))
        self.repository = Repository(
            self.engine,
            timeout_seconds=(settings.statement_timeout_ms + CALL_MARGIN_MS) / 1000,
            lock_timeout_ms=settings.statement_timeout_ms,
            tracing=tracing,
            metrics=self.metrics,
        )
        self.batches = GroupCommit(self.repository, tracing, self.metrics)
        self.quota = UnparsedQuota(settings.unparsed_quota_bytes)
        self.matches = Matches()
        self.journal = Journal(settings.log_deliveries_per_second, tracing, self.metrics, self.notifier, self.matches)
        self.inbox = Inbox(settings, self.current, self.batches, self.quota)
        revisions = schema.known_revisions(settings.migrations_dir)
        self.health = Health(self.engine, self.current, revisions)
        # A fact about the image, which its Dockerfile puts there, and nothing to be set; a build that was not told it says "unknown".
        told = os.environ.get("SOURCE_REVISION", "unknown")
        source_revision = "" if told == "unknown" else told
        spans, role = self.telemetry.span_counts, "service" if self.accepts else "worker"
        self.metrics.attach(Sources(self.engine, lambda: not self.health.obstacles(), spans, revisions[0], source_revision, role))
        self._watch_level()

    def _reload_keyring(self, directory: KeyringDirectory) -> None:
        with self._counted("keyring"):
            self.current.keyring = load_keyring(self.settings, directory)

    def _reload_mapping(self) -> None:
        with self._counted("mapping"):
            self.current.mapping = load_mapping(self.settings)
        log.info("Mapping reloaded")

    @contextmanager
    def _counted(self, file: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.metrics.reloaded(file, is_good=False)
            raise
        self.metrics.reloaded(file, is_good=True)

    def _watch_level(self) -> None:
        from pathlib import Path  # noqa: PLC0415 - only here at run time

        self.watch.add(Path(".env"), lambda: set_level(load_settings().log_level))

    def pages(self) -> list[Route]:
        """Return the routes of the pages about the process."""
        return management_routes(self.health, self.matches, Page(self.metrics))

    def start(self, *, worker: bool) -> None:
        """Begin to accept, to retry and prune (``worker``), or both."""
        self.telemetry.start()
        self.notifier.start()
        if self.push:
            self.push.start()
        self._spawn(self.metrics.watch_loop(), "loop lag")
        conditions = Conditions(self.notifier.tell, self.metrics.bad_answers, self.health.answers)
        self._spawn(poll("Conditions", conditions.look, CONDITIONS_SECONDS, self._stopping), "conditions")
        self._spawn(self.watch.run(), "watch")
        self._schema = self._spawn(self.health.watch_schema(), "schema")
        self._poll("Key matches", self._exchange_matches, MATCHES_SECONDS, at_end=True)
        if self.accepts:
            self.batches.start()
            self._poll("Quota", self._refresh_quota, QUOTA_SECONDS)
            self._poll("Journal", self._flush_journal, 1.0)
        if worker:
            self._start_worker()

    def _start_worker(self) -> None:
        settings = self.settings
        limits = Limits(settings.max_body_fields, settings.max_body_depth)
        journal = AttemptJournal(self.telemetry, self.metrics, self.notifier)
        retry = Retry(self.repository, self.current, limits, settings.worker_batch_events, journal=journal)
        self._poll("Worker", retry.run_due, settings.worker_poll_seconds)
        self._poll("Pruning", self._prune, PRUNE_SECONDS, at_once=False)

    def _poll(self, name: str, work: Callable[[], Awaitable[object]], seconds: float, **when: bool) -> None:
        """Poll once the schema fits: on an older one every event would fail."""

        async def run() -> None:
            await asyncio.shield(self._schema)
            await poll(name, work, seconds, self._stopping, **when)

        self._polls.append(self._spawn(run(), name))

    async def _refresh_quota(self) -> None:
        await self.quota.refresh(self.engine)

    async def _exchange_matches(self) -> None:
        lag = timedelta() if self._stopping.is_set() else LAG
        await self.matches.exchange(self.engine, self.current.keyring, lag)

    async def _flush_journal(self) -> None:
        self.journal.flush()
        self.batches.failures.flush()

    async def _prune(self) -> None:
        counts = await prune(self.engine, self.settings.retention_processed_days, self.settings.retention_dead_days)
        if any(counts.values()):
            log.info("Pruned", **{what.replace(" ", "_"): count for what, count in counts.items()})

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(_report_death)
        self._tasks.append(task)
        return task

    async def stop(self) -> None:
        """Commit what waits, let the worker end what it began, and close the connections."""
        self._stopping.set()
        await self.batches.stop()
        if self._polls and self._schema.done():
            # Cancelled, the attempts it has counted would be lost, and three such ends would make a dead letter.
            await asyncio.wait(self._polls, timeout=WORKER_END_SECONDS)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        self.journal.close()
        self.batches.failures.close()
        await asyncio.gather(*(asyncio.to_thread(each.stop) for each in (self.telemetry, self.notifier, self.push) if each))
        with suppress(TimeoutError):  # a server that neither answers nor hangs up would never let us go
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.engine.dispose()


def _report_death(task: asyncio.Task[None]) -> None:
    """Say so when a task that should go on for ever has ended by an error."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("A part of the service has ended", part=task.get_name(), exc_info=error)


def create_app(settings: Settings | None = None, *, dev: bool = False) -> FastAPI:
    """Build the public application; with MANAGEMENT_PORT the pages about the process are served there instead."""
    settings = settings or load_settings(dev)
    configure(settings)
    for warning in check(settings, dev):
        log.warning("%s", warning)
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _spare_the_collector()
        service.start(worker=settings.worker_enabled)
        async with managed(settings, service.pages()):
            try:
                yield
            finally:
                await service.stop()

    docs = {"docs_url": "/docs" if settings.docs_enabled else None, "openapi_url": "/openapi.json" if settings.docs_enabled else None}
    app = WebhookApp(
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        exception_handlers=error_handlers(),
        telemetry=FASTAPI_TELEMETRY,
        **docs,  # type: ignore[arg-type]
    )
    app.webhook = WebhookEndpoint(service.inbox, service.journal, settings)
    app.include_router(page_router(service.health))
    if settings.management_port is None:
        app.router.routes += service.pages()
    app.router.routes += webhook_routes(app.webhook)
    document(app, settings)
    app.state.service = service
    return app


def _spare_the_collector() -> None:
    """Keep the cyclic garbage collector away from what lives for ever; requests leave no cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def server_options(settings: Settings) -> dict[str, Any]:
    """Return uvicorn's options for the public port."""
    return {
        "http": BoundedConnection,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # nothing here asks for the client's address
        "timeout_keep_alive": settings.keep_alive_seconds,
        "timeout_graceful_shutdown": GRACEFUL_SECONDS,
        "backlog": settings.max_in_flight_requests,
    }


async def work(settings: Settings) -> None:
    """Retry and prune until cancelled, without accepting anything; with MANAGEMENT_PORT its pages are served there."""
    service = Service(settings, accepts=False)
    service.start(worker=True)
    async with managed(settings, service.pages()):
        try:
            await asyncio.Event().wait()
        finally:
            await service.stop()
