"""The pods that verify requests, and what each of them reports of its keyring."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from amo_operator.evidence import OTHERS, Report

if TYPE_CHECKING:
    from amo_operator.kube import Kube, PodSeen

MATCHES_AGE = timedelta(minutes=3)
"""Pods read each minute what matched in the others. Who has not for so long does not know whether a key is quiet."""

LONG_AGO = datetime.min.replace(tzinfo=UTC)
UNREAD = "it has not read this keyring yet"


@dataclass
class Fleet:
    """What one round saw; ``is_steady`` means: the same pods as the round before, and no rollout running."""

    _kube: Kube
    pods: list[PodSeen] = field(default_factory=list)
    is_steady: bool = False
    _now: datetime = LONG_AGO
    _answers: dict[str, dict[str, Any] | str] = field(default_factory=dict)
    _before: set[str] = field(default_factory=set)

    async def look(self, now: datetime) -> None:
        """List the pods and ask each for its report, all at once."""
        self._now = now
        self.pods = await self._kube.pods()
        answers = await asyncio.gather(*(self._kube.ask(pod) for pod in self.pods))
        self._answers = {pod.uid: answer for pod, answer in zip(self.pods, answers, strict=True)}
        present = {pod.uid for pod in self.pods}
        self.is_steady = present == self._before and not await self._kube.is_rolling_out()
        self._before = present

    def reports(self, source: str) -> tuple[Report, ...]:
        """Return what each pod reports of one source."""
        return tuple(_report(pod, source, self._answers[pod.uid], self._now) for pod in self.pods)


def _report(pod: PodSeen, source: str, answer: dict[str, Any] | str, now: datetime) -> Report:
    if isinstance(answer, str):
        return Report(pod.name, pod.uid, answer, None)
    try:
        # The credentials of a pod's environment have a name too, `default`, and generation 0; a keyring file is at 1 or later.
        mine = max((each for each in answer["sources"] if each["source"] == source), key=lambda each: int(each["generation"]), default=None)
        if mine is None:
            return Report(pod.name, pod.uid, UNREAD, None)
        keys, read_at = mine["keys"], answer["matches_read_at"]
        return Report(
            pod.name,
            pod.uid,
            None,
            int(mine["generation"]),
            frozenset(key["fingerprint"] for key in keys),
            {key["fingerprint"]: datetime.fromisoformat(key["last_matched_at"]) for key in keys if key["last_matched_at"]},
            knows_matches=read_at is not None and now - datetime.fromisoformat(read_at) <= MATCHES_AGE,
            accounts={key["fingerprint"]: _accounts(key) for key in keys if key["kind"] == "url_key"},
            reported_at=datetime.fromisoformat(answer["reported_at"]) if answer.get("reported_at") else None,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return Report(pod.name, pod.uid, "its answer is no keyring report", None)


def _accounts(key: dict[str, Any]) -> dict[str, datetime]:
    """Return the last match of each account; what a pod does not list, or does not know to list, are others."""
    found = {account: datetime.fromisoformat(at) for account, at in key.get("accounts", {}).items()}
    if not key.get("accounts_complete") and key["last_matched_at"]:
        found[OTHERS] = datetime.fromisoformat(key["last_matched_at"])
    return found
