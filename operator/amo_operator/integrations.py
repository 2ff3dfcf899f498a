"""One AmoIntegration: read what there is, decide, write the keyring, tell senders and pods, and say how it stands."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from amo_operator.evidence import Observed, Report, lag
from amo_operator.fleet import UNREAD
from amo_operator.keyring import CorruptKeyring, Keyring, credentials, new_secret, read_keyring, write_keyring
from amo_operator.resources import FIELD_MANAGER, ROTATE, owner, secret
from amo_operator.rotation import decide
from amo_operator.spec import CREDENTIALS_SUFFIX
from amo_operator.standing import integration_status, key_times, known_keys, known_retired, standing_of, wanted_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from amo_operator.announcements import Announcements
    from amo_operator.conditions import Standing
    from amo_operator.config import Config
    from amo_operator.fleet import Fleet
    from amo_operator.kube import Kube, SecretSeen
    from amo_operator.metrics import Metrics
    from amo_operator.spec import AmoIntegrationSpec
    from amo_operator.telemetry import Tracing

MOST_REQUEST_CHARS = 100
ORPHAN_SECONDS = 10.0
"""How long an integration must be gone before its keys are revoked: it may be replaced by another one of its name."""
NOBODY = "revoked"
"""The client id of a document that nobody can read any more, and that has no keys."""


class Integrations:
    """What a reconcile of an AmoIntegration does.

    Order of writes: keyring, pods' nudge, credentials, then by the caller the status and at last Events. A key is published before any
    sender is told of it, so an operator that dies between any two of them has promised nothing that is not kept.
    """

    def __init__(
        self,
        kube: Kube,
        config: Config,
        metrics: Metrics,
        tracing: Tracing,
        announcements: Announcements,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` is in seconds of any beginning."""
        self._clock = clock
        self._kube = kube
        self._config = config
        self._metrics = metrics
        self._tracing = tracing
        self._announcements = announcements
        self._begun = clock()
        self._seen: set[str] = set()
        self._orphans: dict[str, float] = {}
        """Since when each is gone, until no pod has its keys."""
        self._settled: dict[str, str | None] = {}
        """The document of each that is gone, of which every pod has proved that it has nothing else."""

    async def reconcile(
        self, resource: dict[str, Any], spec: AmoIntegrationSpec, fleet: Fleet, now: datetime
    ) -> tuple[dict[str, Any], Standing]:
        """Bring an integration's keyring a step further; return its status without conditions, and its standing."""
        name = resource["metadata"]["name"]
        published = await self._kube.secret(self._config.keyring_secret)
        held, problem = _read(published, name)
        told = await self._kube.secret(name + CREDENTIALS_SUFFIX)
        wanted, reports, before = wanted_of(spec), fleet.reports(name), resource.get("status") or {}
        observed = Observed(
            now=now,
            keyring=held,
            problem=problem,
            input_secret=await self._input(spec),
            credentials=told.texts if told else None,
            reports=reports,
            steady=fleet.is_steady,
            rotate_request=_request(resource),
            floor=max([before.get("generation") or 0, *(report.generation or 0 for report in reports)]),
            known_retired=known_retired(before),
            known_keys=known_keys(before),
        )
        if problem and observed.floor:
            self._metrics.damaged(name, now)
        decision = decide(wanted, observed, new_secret)
        keyring = decision.keyring
        if keyring is not None:
            version = published.version if published else ""
            if keyring != held:
                version = await self._publish(name, published, keyring)
                for change in decision.changes:
                    self._announcements.add(resource, change.reason, change.message, now)
            await self._nudge(fleet, name, keyring, version)
            if wanted.rotate_every:
                await self._tell_senders(resource, credentials(keyring, is_generated=spec.client_secret is not None), told)
        status = integration_status(wanted, name, decision, observed, before)
        self._metrics.keys(name, key_times(wanted, decision, observed))
        return status, standing_of(wanted, decision, observed)

    async def _input(self, spec: AmoIntegrationSpec) -> str | None:
        if spec.client_secret_ref is None:
            return None
        found = await self._kube.secret(spec.client_secret_ref.name)
        return found.texts.get(spec.client_secret_ref.key) if found else None

    async def _publish(self, name: str, published: SecretSeen | None, keyring: Keyring) -> str:
        """Write one integration's document, if nobody wrote the Secret since it was read; return the Secret's new version."""
        data = {name: write_keyring(keyring)}
        if published is None:
            with self._tracing.change("create secrets"):
                return await self._kube.create_secret(secret(self._config.keyring_secret, self._config.instance, data))
        manifest = secret(self._config.keyring_secret, self._config.instance, data, resourceVersion=published.version)
        with self._tracing.change("patch secrets"):
            return await self._kube.apply_secret(manifest, f"{FIELD_MANAGER}-{name}")

    async def _nudge(self, fleet: Fleet, name: str, keyring: Keyring, version: str) -> None:
        """Make the kubelets of the pods that do not have this keyring refresh it now, also of those that are ending: they still verify."""
        reports = {report.uid: report for report in fleet.reports(name)}
        for pod in fleet.pods:
            if pod.nudged != version and lag(keyring, reports[pod.uid]) is not None:
                with self._tracing.change("patch pods"):
                    await self._kube.nudge(pod, version)

    async def _tell_senders(self, resource: dict[str, Any], texts: dict[str, str], seen: SecretSeen | None) -> None:
        """Write the credentials where they differ; what others have put beside them stays, or there would be no end of writing."""
        if not texts or (seen is not None and texts.items() <= seen.texts.items()):
            return
        name = resource["metadata"]["name"] + CREDENTIALS_SUFFIX
        version = seen.version if seen else await self._begin_credentials(name)
        manifest = secret(name, self._config.instance, texts, ownerReferences=[owner(resource)], resourceVersion=version)
        with self._tracing.change("patch secrets"):
            await self._kube.apply_secret(manifest, FIELD_MANAGER)

    async def _begin_credentials(self, name: str) -> str:
        """Create the Secret, without anything in it: only what is applied, an owner too, can be taken out again by applying less."""
        with self._tracing.change("create secrets"):
            return await self._kube.create_secret(secret(name, self._config.instance, {}))

    @property
    def is_some_gone(self) -> bool:
        """Tell whether the pods have to be asked although there may be no integration any more."""
        return bool(self._orphans)

    async def revoke_orphans(self, present: set[str], fleet: Fleet) -> None:
        """Empty the keyrings of integrations that are gone for some time: a file that merely disappears stays in force in the pods.

        ``present`` are those of all releases: one that is another's now is not gone. One that this process never saw may be about to be
        restored after its Secret: it is given more time.
        """
        published = await self._kube.secret(self._config.keyring_secret)
        texts, now = published.texts if published else {}, self._clock()
        self._seen |= present
        gone = self._forget_settled((self._seen | set(texts)) - present, texts)
        if now - self._begun < self._config.unseen_seconds:
            gone = {name for name in gone if name in self._seen or _is_revoked(published, name)}
        self._orphans = {name: self._orphans.get(name, now) for name in gone}
        for name, since in sorted(self._orphans.items()):
            if now - since < ORPHAN_SECONDS:
                continue
            if await self._revoke(name, published, fleet):
                return  # the version that was read is used up; the next round takes the next one
            if fleet.is_steady and is_settled(_read(published, name)[0], fleet.reports(name)):
                self._settled[name] = texts.get(name)
                del self._orphans[name]

    def _forget_settled(self, gone: set[str], texts: Mapping[str, str]) -> set[str]:
        """Leave out whom nobody has to be asked about any more; a document that came back since, from a backup, is looked at again."""
        self._settled = {name: text for name, text in self._settled.items() if name in gone and texts.get(name) == text}
        self._seen -= {name for name, text in self._settled.items() if text is None}
        return gone - self._settled.keys()

    async def _revoke(self, name: str, published: SecretSeen | None, fleet: Fleet) -> bool:
        """Publish a document without keys, unless there is one that the pods take, and nudge those without it; tell if it was written."""
        held, _ = _read(published, name)
        keyring = without_keys(held, fleet.reports(name))
        if keyring is None:
            return False
        version, is_new = published.version if published else "", keyring != held
        with self._tracing.reconcile("AmoIntegration", name):
            if is_new:
                version = await self._publish(name, published, keyring)
            await self._nudge(fleet, name, keyring, version)
        return is_new


def _is_revoked(published: SecretSeen | None, name: str) -> bool:
    held, _ = _read(published, name)
    return held is not None and not held.keys


def without_keys(held: Keyring | None, reports: tuple[Report, ...]) -> Keyring | None:
    """Return the document of an integration that is gone: newer than what any pod with keys has. None if nobody accepts or has anything."""
    known = max((report.generation or 0 for report in reports), default=0)
    accepted = [report.generation or 0 for report in reports if report.fingerprints]
    if held is None:
        return Keyring(known + 1, NOBODY, None) if accepted else None
    if held.keys or max(accepted, default=-1) >= held.generation:
        return replace(held, generation=max(held.generation, known) + 1, keys=())
    return held


def is_settled(held: Keyring | None, reports: tuple[Report, ...]) -> bool:
    """Tell whether every pod, and at least one, has the document of one that is gone, or knows nothing of it if there is none."""
    problems = [lag(held, report) if held else report.problem for report in reports]
    return bool(problems) and all(problem is None or (held is None and problem == UNREAD) for problem in problems)


def _request(resource: dict[str, Any]) -> str | None:
    """Return the request for a rotation, cut to what may be kept in the Secret of all keyrings: anybody may write an annotation."""
    request: str | None = (resource["metadata"].get("annotations") or {}).get(ROTATE)
    return request and request[:MOST_REQUEST_CHARS]


def _read(published: SecretSeen | None, name: str) -> tuple[Keyring | None, str | None]:
    """Return an integration's document, or why there is none."""
    if published is None or name not in published.texts:
        return None, "missing"
    try:
        return read_keyring(published.texts[name]), None
    except CorruptKeyring as error:
        return None, f"corrupt: {error}"
