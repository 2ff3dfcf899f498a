"""What Prometheus reads of the operator; labels are names of custom resources, kinds and reasons, so their number is bounded."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from amo_operator.conditions import Standing

OBJECT = ("kind", "name")


class Metrics:
    """The operator's metrics in a registry of their own; times are Unix seconds, so that an alert subtracts them from ``time()``."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        self._reconciles = Counter(
            "amo_operator_reconciles", "Reconciles by what came of them: unchanged, changed, conflict, error.", ("kind", "outcome"),
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "amo_operator_reconcile_seconds", "How long a reconcile took.", ("kind",), registry=self._registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 30),
        )  # fmt: skip
        self._round = Gauge("amo_operator_last_round_seconds", "When everything was compared last.", registry=self._registry)
        self._standing = Gauge(
            "amo_operator_condition",
            "1 for each condition that holds, with its reason.",
            (*OBJECT, "type", "reason"),
            registry=self._registry,
        )
        self._since = Gauge(
            "amo_operator_phase_since_seconds", "Since when an object has its present reason.", (*OBJECT, "reason"), registry=self._registry
        )
        self._expiry = Gauge(
            "amo_operator_key_expires_seconds", "When the earliest key with an end is no longer accepted.", ("name", "key_kind"),
            registry=self._registry,
        )  # fmt: skip
        self._late = Gauge(
            "amo_operator_late_match_seconds", "When a previous key was matched last, its overlap being over.", ("name", "key_kind"),
            registry=self._registry,
        )  # fmt: skip
        self._behind = Gauge(
            "amo_operator_pods_out_of_step", "Service pods that do not prove the newest keyring.", ("name",), registry=self._registry
        )
        self._corrupt = Counter(
            "amo_operator_keyring_rebuilt", "Keyrings found missing or corrupt and rebuilt.", ("name",), registry=self._registry
        )
        self._shown: dict[tuple[str, str], tuple[str, float]] = {}

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

    def round_ended(self, now: datetime, present: set[tuple[str, str]]) -> None:
        """Note that everything was compared; what is shown of objects that are gone goes."""
        self._round.set(now.timestamp())
        for kind, name in set(self._shown) - present:
            del self._shown[kind, name]
            for gauge in (self._standing, self._since):
                _remove(gauge, {"kind": kind, "name": name})
            for gauge in (self._expiry, self._late, self._behind):
                _remove(gauge, {"name": name} if kind == "AmoIntegration" else {"name": ""})

    def stands(self, kind: str, name: str, standing: Standing, now: datetime) -> None:
        """Show an object's conditions and since when it has its reason."""
        before = self._shown.get((kind, name))
        since = before[1] if before and before[0] == standing.reason else now.timestamp()
        self._shown[kind, name] = (standing.reason, since)
        for gauge in (self._standing, self._since):
            _remove(gauge, {"kind": kind, "name": name})
        held = {"Ready": standing.is_ready, "Reconciling": standing.is_reconciling, "Stalled": standing.is_stalled}
        for condition, holds in held.items():
            self._standing.labels(kind, name, condition, standing.reason).set(int(holds))
        self._since.labels(kind, name, standing.reason).set(since)

    def keys(self, name: str, expiries: Mapping[str, datetime], late: Mapping[str, datetime], behind: int) -> None:
        """Show an integration's keys: earliest end and late match by kind, and how many pods are behind."""
        for gauge, times in ((self._expiry, expiries), (self._late, late)):
            _remove(gauge, {"name": name})
            for kind, moment in times.items():
                gauge.labels(name, kind).set(moment.timestamp())
        self._behind.labels(name).set(behind)

    def rebuilt(self, name: str) -> None:
        """Count a keyring that was lost or corrupt."""
        self._corrupt.labels(name).inc()


def _remove(gauge: Gauge, labels: dict[str, str]) -> None:
    gauge.remove_by_labels(labels)
