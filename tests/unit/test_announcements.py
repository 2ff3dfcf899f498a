"""Kubernetes Events: whatever becomes of them, the work goes on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from amo_operator.announcements import Announcements
from amo_operator.metrics import Metrics

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ABOUT = {"apiVersion": "v1", "kind": "AmoIntegration", "metadata": {"name": "main", "namespace": "crm", "uid": "1"}}


class Cluster:
    """It refuses Events of one reason."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def post_event(self, manifest: dict[str, Any]) -> None:
        if manifest["reason"] == "Refused":
            raise ConnectionResetError
        self.told.append(manifest["reason"])


async def test_an_event_that_cannot_be_told_is_counted() -> None:
    """The others are told, once, and not before the end of the round."""
    cluster, metrics = Cluster(), Metrics()
    announcements = Announcements(cluster, metrics)  # type: ignore[arg-type]
    for reason in ("Promoted", "Refused", "Retired"):
        announcements.add(ABOUT, reason, "It is.", NOW)
    assert cluster.told == []
    for _ in range(2):
        await announcements.post()
        assert cluster.told == ["Promoted", "Retired"]
    assert 'amo_operator_reconciles_total{kind="Event",outcome="error"} 1.0' in metrics.page().decode()
