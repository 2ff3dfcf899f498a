"""The one reconcile: read everything, and for each custom resource decide, write what differs, and say how it stands.

It keeps nothing between two rounds but which pods, integrations and labels it saw: whoever runs it next goes on from what the cluster
holds.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from lightkube.core.exceptions import ApiError

from amo_operator.announcements import Announcements
from amo_operator.conditions import Standing, conditions
from amo_operator.fleet import Fleet
from amo_operator.integrations import Integrations
from amo_operator.resources import INSTANCE, foreign_release
from amo_operator.schema_migrations import SchemaMigrations
from amo_operator.spec import InvalidResource, parse_integration, parse_migration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from amo_operator.config import Config
    from amo_operator.kube import Kube
    from amo_operator.metrics import Metrics
    from amo_operator.telemetry import Tracing

log = logging.getLogger(__name__)

OBJECT_SECONDS = 30.0
"""How long one object may hold up the others."""
REFUSALS = {HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY}
KINDS = ("AmoIntegration", "SchemaMigration")


class Reconciler:
    """Brings everything a step nearer to what is wanted, each time it is called."""

    def __init__(
        self,
        kube: Kube,
        config: Config,
        metrics: Metrics,
        tracing: Tracing,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """``beat`` is called after each object: a round of many may take long."""
        self._kube = kube
        self._beat = beat
        self._metrics = metrics
        self._tracing = tracing
        self._clock = clock
        self._instance = config.instance
        self._foreign: dict[tuple[str, str], str] = {}
        """Which other release each object is labelled for that is not looked after here."""
        self._fleet = Fleet(kube)
        self._announcements = Announcements(kube, metrics)
        self._integrations = Integrations(kube, config, metrics, tracing, self._announcements)
        self._migrations = SchemaMigrations(kube, config, tracing)

    async def round(self) -> dict[str, frozenset[str]]:
        """Compare everything once; return the versions of the objects of each kind.

        An object's own trouble is shown on it and does not hold up the others; without the lists themselves nothing can be done.
        """
        found = {kind: await self._kube.resources(kind) for kind in KINDS}
        ours = self._ours(found)
        if ours["AmoIntegration"] or self._integrations.is_some_gone:
            await self._fleet.look(self._clock())
        for kind, resources in ours.items():
            for resource in resources:
                if resource["metadata"].get("deletionTimestamp") is None:
                    await self._one(kind, resource)
                    self._beat()
        with self._noted("AmoIntegration", "of a deleted one", {}):
            # Of all releases: one that was labelled for another is not gone, and its keys are in use.
            await self._integrations.revoke_orphans({resource["metadata"]["name"] for resource in found["AmoIntegration"]}, self._fleet)
        await self._announcements.post()
        present = {(kind, resource["metadata"]["name"]) for kind, resources in ours.items() for resource in resources}
        self._metrics.round_ended(self._clock(), present)
        return {kind: frozenset(resource["metadata"]["resourceVersion"] for resource in resources) for kind, resources in found.items()}

    def _ours(self, found: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
        """Keep what is this release's by its label, or anybody's because it has none; say once of each other one that it is left alone."""
        before, self._foreign = self._foreign, {}
        ours: dict[str, list[dict[str, Any]]] = {kind: [] for kind in found}
        for kind, resource in ((kind, resource) for kind, resources in found.items() for resource in resources):
            release, name = foreign_release(resource, self._instance), resource["metadata"]["name"]
            if release is None:
                ours[kind].append(resource)
                continue
            self._foreign[kind, name] = release
            if before.get((kind, name)) != release:
                log.warning("%s %s is not looked after: its label %s names another release, %s", kind, name, INSTANCE, release)
        return ours

    async def _one(self, kind: str, resource: dict[str, Any]) -> None:
        name = resource["metadata"]["name"]
        with self._metrics.reconcile(kind) as outcome, self._noted(kind, name, outcome):
            async with asyncio.timeout(OBJECT_SECONDS):
                with self._tracing.reconcile(kind, name):
                    is_changed = await self._step(kind, resource)
            outcome["outcome"] = "changed" if is_changed else "unchanged"

    @contextmanager
    def _noted(self, kind: str, name: str, outcome: dict[str, str]) -> Iterator[None]:
        try:
            yield
        except ApiError as error:
            code = error.response.status_code
            outcome["outcome"] = "conflict" if code == HTTPStatus.CONFLICT else "error"
            log.log(logging.INFO if code == HTTPStatus.CONFLICT else logging.WARNING, "%s %s: the API server answered %s", kind, name, code)
        except Exception as error:  # noqa: BLE001 - the next round tries again
            log.warning("%s %s could not be reconciled: %s", kind, name, type(error).__name__)

    async def _step(self, kind: str, resource: dict[str, Any]) -> bool:
        now = self._clock()
        wanted = {"metadata": resource["metadata"], "spec": resource["spec"]}  # the status is ours, whatever an older release made of it
        try:
            if kind == "AmoIntegration":
                status, standing = await self._integrations.reconcile(resource, parse_integration(wanted).spec, self._fleet, now)
            else:
                status, standing = await self._migrations.reconcile(resource, parse_migration(wanted).spec, now)
        except InvalidResource as error:  # only possible past the API server's own schema, with an older CRD for example
            status, standing = _without_outcome(resource), Standing("Invalid", str(error), is_stalled=True)
        except ApiError as error:
            code = error.response.status_code
            if kind != "AmoIntegration" or code not in REFUSALS:
                raise
            message = f"The API server refuses what is to be done ({code}): the Role has to name this integration's Secrets."
            status, standing = _without_outcome(resource), Standing("Refused", message, is_reconciling=True)
        return await self._show(kind, resource, status, standing, now)

    async def _show(self, kind: str, resource: dict[str, Any], status: dict[str, Any], standing: Standing, now: datetime) -> bool:
        """Write the status if it differs, and have a new reason told by an Event."""
        metadata, before = resource["metadata"], resource.get("status") or {}
        shown = before.get("conditions") or []
        wanted = {**status, "observedGeneration": metadata["generation"]}
        wanted["conditions"] = conditions(standing, shown, metadata["generation"], now)
        self._metrics.stands(kind, metadata["name"], standing, wanted["conditions"])
        if wanted == before:
            return False
        with self._tracing.change(f"apply {kind} status"):
            await self._kube.write_status(resource, wanted)
        if standing.reason not in {each.get("reason") for each in shown}:
            self._announcements.add(resource, standing.reason, standing.message, now, is_warning=standing.is_stalled)
        return True


def _without_outcome(resource: dict[str, Any]) -> dict[str, Any]:
    """Keep a status that could not be decided anew, but not as if what ended before had ended for this spec."""
    return {name: value for name, value in (resource.get("status") or {}).items() if name != "outcome"}
