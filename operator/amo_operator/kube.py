"""The only place that talks to the API server and to the service's pods.

Each method is one call, named for the verb that the Role must allow (operator/README.md lists them with their reasons). Nothing is
cached and nothing is tried again here: the next reconcile reads afresh.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx
from httpx2 import Timeout
from lightkube import AsyncClient, KubeConfig
from lightkube.core.exceptions import ApiError
from lightkube.core.generic_client import BasicRequest
from lightkube.generic_resource import create_namespaced_resource
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.batch_v1 import Job as JobResource
from lightkube.resources.core_v1 import Event, Pod, Secret
from lightkube.types import PatchType

from amo_operator import migration
from amo_operator.resources import FIELD_MANAGER, GENERATION, NUDGE, secret_texts
from amo_operator.spec import GROUP, VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_operator.config import Config

RESOURCES = {
    "AmoIntegration": create_namespaced_resource(GROUP, VERSION, "AmoIntegration", "amointegrations"),
    "SchemaMigration": create_namespaced_resource(GROUP, VERSION, "SchemaMigration", "schemamigrations"),
}
FINISHED = {"Succeeded", "Failed"}
JOB_OF_POD = "batch.kubernetes.io/job-name"
MOST_REPORT_BYTES = 4 * 1_048_576
"""Two keys of each of many integrations, each with its 200 accounts, are over one MiB."""


@dataclass(frozen=True, slots=True)
class SecretSeen:
    """A Secret as it was read: its texts, and the version by which a write tells whether it still is so."""

    texts: Mapping[str, str]
    version: str


@dataclass(frozen=True, slots=True)
class PodSeen:
    """A service pod that is not finished; terminating ones still verify requests."""

    name: str
    uid: str
    address: str | None
    nudged: str | None


class Kube:
    """A client of one namespace."""

    def __init__(self, config: Config, kubeconfig: KubeConfig | None = None) -> None:
        self._config = config
        settings = kubeconfig or KubeConfig.from_env()
        # Any: its models say that each field may be absent, also those that the API server always fills.
        self._client: Any = AsyncClient(
            settings, namespace=config.namespace, field_manager=FIELD_MANAGER, timeout=Timeout(config.request_seconds)
        )
        self._pods = httpx.AsyncClient(timeout=config.answer_seconds, trust_env=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()
        await self._pods.aclose()

    async def resources(self, kind: str) -> list[dict[str, Any]]:
        """List the custom resources of a kind, also another release's: they are there."""
        found = [each.to_dict() async for each in self._client.list(RESOURCES[kind])]
        return [{**each, "apiVersion": f"{GROUP}/{VERSION}", "kind": kind} for each in found]

    async def write_status(self, resource: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Apply a status whole, if the resource still is as it was read: what is not in it any more goes.

        :raises ApiError: 409, it was changed meanwhile.
        """
        kind, name, version = resource["kind"], resource["metadata"]["name"], resource["metadata"]["resourceVersion"]
        metadata = {"name": name, "resourceVersion": version}
        body: dict[str, Any] = {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": metadata, "status": dict(status)}
        await self._client.apply(RESOURCES[kind].Status.from_dict(body), name=name, force=True)

    async def secret(self, name: str) -> SecretSeen | None:
        """Get a Secret by its name."""
        found = await self._get(Secret, name)
        if found is None:
            return None
        return SecretSeen(secret_texts(found.data), str(found.metadata and found.metadata.resourceVersion))

    async def _get(self, resource: Any, name: str) -> Any:
        try:
            return await self._client.get(resource, name)
        except ApiError as error:
            if error.response.status_code == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def create_secret(self, manifest: Mapping[str, Any]) -> str:
        """Create a Secret and return its version; one that is there already is a conflict.

        :raises ApiError: 409, somebody else was first.
        """
        made = await self._client.create(Secret.from_dict(dict(manifest)))
        return str(made.metadata and made.metadata.resourceVersion)

    async def apply_secret(self, manifest: Mapping[str, Any], manager: str) -> str:
        """Apply a Secret's fields as their only owner and return its version.

        With a ``resourceVersion`` in the manifest only if that is still the current one.

        :raises ApiError: 409, it was changed meanwhile.
        """
        made = await self._client.apply(Secret.from_dict(dict(manifest)), field_manager=manager, force=True)
        return str(made.metadata and made.metadata.resourceVersion)

    async def pods(self) -> list[PodSeen]:
        """List the service's pods that are not finished, by name."""
        selector = dict(part.split("=", 1) for part in self._config.pod_selector.split(","))
        seen = []
        async for pod in self._client.list(Pod, labels=selector):
            if pod.status is not None and pod.status.phase in FINISHED:
                continue
            metadata, address = pod.metadata, pod.status and pod.status.podIP
            nudged = (metadata.annotations or {}).get(NUDGE)
            seen.append(PodSeen(metadata.name, metadata.uid, address, nudged))
        return sorted(seen, key=lambda pod: pod.name)

    async def is_rolling_out(self) -> bool:
        """Tell whether a Deployment of the service is between two versions of its pods."""
        selector = dict(part.split("=", 1) for part in self._config.pod_selector.split(","))
        async for deployment in self._client.list(Deployment, labels=selector):
            status = deployment.status
            replicas = (status and status.replicas) or 0
            updated = (status and status.updatedReplicas) or 0
            if status is None or (status.observedGeneration or 0) < (deployment.metadata.generation or 0) or updated != replicas:
                return True
        return False

    async def nudge(self, pod: PodSeen, version: str) -> None:
        """Patch an annotation of a pod, so that its kubelet refreshes what it mounts; a pod that is gone meanwhile needs none."""
        try:
            patch = {"metadata": {"annotations": {NUDGE: version}}}
            await self._client.patch(Pod, pod.name, patch, patch_type=PatchType.MERGE)
        except ApiError as error:
            if error.response.status_code != HTTPStatus.NOT_FOUND:
                raise

    async def ask(self, pod: PodSeen) -> dict[str, Any] | str:
        """Return a pod's keyring report, or why it cannot be known, in words for a person."""
        if pod.address is None:
            return "it has no address yet"
        host = f"[{pod.address}]" if ":" in pod.address else pod.address
        try:
            async with asyncio.timeout(self._config.answer_seconds):
                answer = await self._pods.get(f"http://{host}:{self._config.management_port}/keyring")
            if answer.status_code != HTTPStatus.OK or len(answer.content) > MOST_REPORT_BYTES:
                return f"it answered {answer.status_code}"
            report = answer.json()
        except (httpx.HTTPError, TimeoutError) as error:
            return f"it did not answer ({type(error).__name__})"
        except ValueError:
            return "its answer is no keyring report"
        return report if isinstance(report, dict) else "its answer is no keyring report"

    async def job(self, name: str) -> migration.Job | None:
        """Get a Job with what its newest pod said."""
        job = await self._get(JobResource, name)
        if job is None:
            return None
        metadata = job.metadata
        owner = next((each.uid for each in metadata.ownerReferences or ()), "")
        generation = (metadata.annotations or {}).get(GENERATION, "")
        known = migration.Job(name, metadata.uid, metadata.creationTimestamp, owner, int(generation) if generation.isdecimal() else 0)
        if job.metadata.deletionTimestamp is not None:
            return replace(known, outcome="ending")
        held = {
            each.type: each.message or each.reason or "" for each in (job.status and job.status.conditions) or () if each.status == "True"
        }
        known = await self._with_pods(known)
        if "Complete" in held:
            return replace(known, outcome="complete")
        if "Failed" in held:
            return replace(known, outcome="failed", failure=held["Failed"])
        return known

    async def _with_pods(self, job: migration.Job) -> migration.Job:
        """Add the newest termination message of a Job's pods, and why one of them does not start."""
        messages, waiting, has_pod = [], "", False
        async for pod in self._client.list(Pod, labels={JOB_OF_POD: job.name}):
            if job.uid not in {each.uid for each in pod.metadata.ownerReferences or ()}:
                continue  # of the Job before, which had the same name
            has_pod = True
            waiting = waiting or _unscheduled(pod)
            for container in (pod.status and pod.status.containerStatuses) or ():
                state = container.state
                if state and state.terminated:
                    messages.append((str(state.terminated.finishedAt), state.terminated.message or ""))
                elif state and state.waiting and state.waiting.reason not in ("ContainerCreating", "PodInitializing", None):
                    waiting = f"{state.waiting.reason}: {state.waiting.message or ''}"
        return replace(job, said=max(messages, default=("", ""))[1], waiting=waiting, has_pod=has_pod)

    async def create_job(self, manifest: Mapping[str, Any]) -> None:
        """Create a Job; that it is there already is as good.

        :raises ApiError: 400, 403 or 422, it is not taken as it is.
        """
        await self._on_jobs("POST", "", manifest, as_good={HTTPStatus.CONFLICT})

    async def delete_job(self, job: migration.Job) -> None:
        """Delete a Job and its pods; that it is gone already is as good, also if there is another one of its name by now."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background", "preconditions": {"uid": job.uid}}
        await self._on_jobs("DELETE", f"/{job.name}", body, as_good={HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT})

    async def _on_jobs(self, method: str, path: str, body: Mapping[str, Any], *, as_good: set[HTTPStatus]) -> None:
        """Send a body as it is: lightkube's own delete knows no preconditions, and its models drop fields that are newer than they."""
        sender = self._client._client  # noqa: SLF001 - it has the connections and the credentials
        url = f"apis/batch/v1/namespaces/{self._config.namespace}/jobs{path}"
        request = BasicRequest(method, url, params={"fieldManager": FIELD_MANAGER} if method == "POST" else {}, data=body)
        try:
            sender.raise_for_status(await sender.send(sender.build_adapter_request(request)))
        except ApiError as error:
            if error.response.status_code not in as_good:
                raise

    async def post_event(self, manifest: Mapping[str, Any]) -> None:
        """Create a Kubernetes Event."""
        await self._client.create(Event.from_dict(dict(manifest)))


def _unscheduled(pod: Any) -> str:
    """Return why a pod has no node, in the scheduler's words."""
    for each in (pod.status and pod.status.conditions) or ():
        if each.type == "PodScheduled" and each.status == "False":
            return f"{each.reason}: {each.message or ''}"
    return ""
