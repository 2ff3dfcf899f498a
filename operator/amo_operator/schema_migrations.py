"""One SchemaMigration: look at its Job, decide, act, and say how it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amo_operator import migration
from amo_operator.resources import migration_job

if TYPE_CHECKING:
    from datetime import datetime

    from amo_operator.conditions import Standing
    from amo_operator.config import Config
    from amo_operator.kube import Kube
    from amo_operator.spec import SchemaMigrationSpec
    from amo_operator.telemetry import Tracing


class SchemaMigrations:
    """What a reconcile of a SchemaMigration does."""

    def __init__(self, kube: Kube, config: Config, tracing: Tracing) -> None:
        self._kube = kube
        self._config = config
        self._tracing = tracing

    async def reconcile(self, resource: dict[str, Any], spec: SchemaMigrationSpec, now: datetime) -> tuple[dict[str, Any], Standing]:
        """Make or remove the Job if that is the next step; return the status without conditions, and the standing.

        The act comes before the status is written: an operator that dies in between finds the Job, or finds it gone, and goes on.
        """
        job = await self._kube.job(migration.job_name(spec))
        status = resource.get("status") or {}
        decision = migration.decide(spec, migration.Observed(now, resource["metadata"]["generation"], status, job))
        if decision.act == "create":
            with self._tracing.change("create jobs"):
                environment = self._config.collector()
                if traceparent := self._tracing.traceparent():
                    environment["TRACEPARENT"] = traceparent
                await self._kube.create_job(migration_job(resource, spec, self._config.instance, environment))
        elif decision.act == "delete":
            with self._tracing.change("delete jobs"):
                await self._kube.delete_job(migration.job_name(spec))
        return decision.status, decision.standing
