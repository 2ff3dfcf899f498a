"""What Prometheus reads of the operator; labels are names of custom resources, kinds and reasons, so their number is bounded."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from amo_operator.conditions import Standing
    from amo_operator.standing import KeyTimes


class Definition(NamedTuple):
    """One metric, as it is made here and shown in the README."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


RECONCILES = Definition(
    "amo_operator_reconciles_total",
    "counter",
    ("kind", "outcome"),
    "Reconciles by what came of them: unchanged, changed, conflict, error (also of Events).",
)
SECONDS = Definition("amo_operator_reconcile_seconds", "histogram", ("kind",), "How long a reconcile took.")
ROUND = Definition("amo_operator_last_round_seconds", "gauge", (), "When everything was compared last.")
CONDITION = Definition(
    "amo_operator_condition", "gauge", ("kind", "name", "type", "reason"), "1 for a condition that holds, else 0, with its reason."
)
NOT_READY = Definition("amo_operator_not_ready_since_seconds", "gauge", ("kind", "name"), "Since when an object is not ready.")
EXPIRY = Definition("amo_operator_key_expires_seconds", "gauge", ("name", "key_kind"), "When the earliest key with an end will be refused.")
MATCHED = Definition("amo_operator_key_matched_seconds", "gauge", ("name", "key_kind"), "When this earliest key was matched last.")
LATE = Definition(
    "amo_operator_late_match_seconds", "gauge", ("name", "key_kind"), "When a previous key was matched last, its overlap being over."
)
BEHIND = Definition("amo_operator_pods_out_of_step", "gauge", ("name",), "Service pods that do not prove the newest keyring.")
DAMAGED = Definition(
    "amo_operator_keyring_damaged_seconds", "gauge", ("name",), "When a keyring that there had been was last found missing or corrupt."
)
DEFINITIONS = (RECONCILES, SECONDS, ROUND, CONDITION, NOT_READY, EXPIRY, MATCHED, LATE, BEHIND, DAMAGED)
BOUNDS = (0.005, 0.02, 0.1, 0.5, 2, 10, 30)


def metrics_table() -> str:
    """Render all metrics as a Markdown table for the README."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for each in DEFINITIONS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.type} | {labels} | {each.help} |")
    return "\n".join(lines) + "\n"


class Metrics:
    """The operator's metrics in a registry of their own; times are Unix seconds, so that an alert subtracts them from ``time()``."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        self._registry = CollectorRegistry()
        self._reconciles = Counter(RECONCILES.name, RECONCILES.help, RECONCILES.labels, registry=self._registry)
        self._seconds = Histogram(SECONDS.name, SECONDS.help, SECONDS.labels, buckets=BOUNDS, registry=self._registry)
        gauges = [each for each in DEFINITIONS if each.type == "gauge"]
        self._gauges = {each: Gauge(each.name, each.help, each.labels, registry=self._registry) for each in gauges}
        self._shown: set[tuple[str, str]] = set()

    def page(self) -> bytes:
        """Render all of it in Prometheus' text format."""
        return generate_latest(self._registry)

    @contextmanager
    def reconcile(self, kind: str) -> Iterator[dict[str, str]]:
        """Time a reconcile; what is put into ``outcome`` inside is counted."""
        begun, outcome = time.monotonic(), {"outcome": "error"}
        try:
            yield outcome
        finally:
            self._seconds.labels(kind).observe(time.monotonic() - begun)
            self._reconciles.labels(kind, outcome["outcome"]).inc()

    def event_lost(self) -> None:
        """Count an Event that could not be told."""
        self._reconciles.labels("Event", "error").inc()

    def round_ended(self, now: datetime, present: set[tuple[str, str]]) -> None:
        """Note that everything was compared; what is shown of objects that are gone goes."""
        self._gauges[ROUND].set(now.timestamp())
        for kind, name in self._shown - present:
            self._forget({"kind": kind, "name": name}, CONDITION, NOT_READY)
            if kind == "AmoIntegration":
                self._forget({"name": name}, EXPIRY, MATCHED, LATE, BEHIND, DAMAGED)
        self._shown &= present

    def stands(self, kind: str, name: str, standing: Standing, conditions: Sequence[dict[str, Any]]) -> None:
        """Show an object's conditions, and since when it is not ready: that is in the status, and survives this process."""
        self._shown.add((kind, name))
        self._forget({"kind": kind, "name": name}, CONDITION, NOT_READY)
        for each in conditions:
            holds = each["status"] == "True"
            self._gauges[CONDITION].labels(kind, name, each["type"], standing.reason).set(int(holds))
            if each["type"] == "Ready" and not holds:
                since = datetime.fromisoformat(each["lastTransitionTime"])
                self._gauges[NOT_READY].labels(kind, name).set(since.timestamp())

    def keys(self, name: str, times: KeyTimes) -> None:
        """Show an integration's keys, and how many pods are behind."""
        for definition, by_kind in ((EXPIRY, times.expires), (MATCHED, times.matched), (LATE, times.late)):
            self._forget({"name": name}, definition)
            for kind, moment in by_kind.items():
                self._gauges[definition].labels(name, kind).set(moment.timestamp())
        self._gauges[BEHIND].labels(name).set(times.behind)

    def damaged(self, name: str, now: datetime) -> None:
        """Note that a keyring was found lost or corrupt."""
        self._gauges[DAMAGED].labels(name).set(now.timestamp())

    def _forget(self, labels: dict[str, str], *definitions: Definition) -> None:
        for each in definitions:
            self._gauges[each].remove_by_labels(labels)
