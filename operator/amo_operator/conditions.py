"""Conditions as kstatus reads them: ``Ready``, ``Reconciling`` and ``Stalled``, each with a reason and a sentence.

kstatus (and with it ``helm --wait`` and ``kubectl wait``) takes an object for current when ``observedGeneration`` is its generation,
``Reconciling`` and ``Stalled`` are not true and ``Ready`` is; for failed when ``Stalled`` is true; for in progress otherwise.
Source: the kstatus package of kubernetes-sigs/cli-utils.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

MOST_MESSAGE_CHARS = 1024


@dataclass(frozen=True, slots=True)
class Standing:
    """How an object stands: ready or not, still moving, or stuck until a person acts; one reason and one sentence for all three."""

    reason: str
    message: str
    is_ready: bool = False
    is_reconciling: bool = False
    is_stalled: bool = False


def conditions(standing: Standing, before: Sequence[dict[str, Any]], generation: int, now: datetime) -> list[dict[str, Any]]:
    """Return the three conditions; one whose status is as before keeps the time of its last transition."""
    times = {(each["type"], each["status"]): each["lastTransitionTime"] for each in before}
    states = {"Ready": standing.is_ready, "Reconciling": standing.is_reconciling, "Stalled": standing.is_stalled}
    made = []
    for name, holds in states.items():
        status = "True" if holds else "False"
        made.append(
            {
                "type": name,
                "status": status,
                "reason": standing.reason,
                "message": standing.message[:MOST_MESSAGE_CHARS],
                "observedGeneration": generation,
                "lastTransitionTime": times.get((name, status)) or rfc3339(now),
            }
        )
    return made


def rfc3339(moment: datetime) -> str:
    """Write a time the way the API server does, in whole seconds of UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
