"""One SchemaMigration: look at its Job, decide, act, and say how it stands."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from lightkube.core.exceptions import ApiError

from amo_operator import migration
from amo_operator.resources import migration_job

if TYPE_CHECKING:
    from amo_operator.conditions import Standing
    from amo_operator.config import Config
    from amo_operator.kube import Kube
    from amo_operator.spec import SchemaMigrationSpec
    from amo_operator.telemetry import Tracing

REFUSALS = {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY}


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
        metadata = resource["metadata"]
        made_at = datetime.fromisoformat(metadata["creationTimestamp"])
        observed = migration.Observed(now, metadata["uid"], metadata["generation"], made_at, status, job)
        decision = migration.decide(spec, observed)
        if decision.act == "create":
            decision = await self._create(resource, spec, decision)
        elif decision.act == "delete" and job is not None:
            with self._tracing.change("delete jobs"):
                await self._kube.delete_job(job)
        return decision.status, decision.standing

    async def _create(self, resource: dict[str, Any], spec: SchemaMigrationSpec, decision: migration.Decision) -> migration.Decision:
        with self._tracing.change("create jobs"):
            environment = self._config.collector()
            if traceparent := self._tracing.traceparent():
                environment["TRACEPARENT"] = traceparent
            try:
                await self._kube.create_job(migration_job(resource, spec, self._config.instance, environment))
            except ApiError as error:
                if error.response.status_code not in REFUSALS:
                    raise
                return migration.refused(decision, error.status.message or "")
        return decision
