"""What the hostile tests share: a place to report to, and a service that is watched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hostile.watched import Watched
from hostile.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import StartService


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """Return what prints past pytest's capture, because these tests take minutes and their figures are wanted when they pass."""
    return Report(request.config.pluginmanager.getplugin("capturemanager"), request.node.name)


@pytest.fixture
def watched(start_service: StartService, pooled_url: str, report: Report) -> Iterator[Watched]:
    """Return a started service without a worker; whatever was done to it, it must be sound afterwards."""
    service = Watched(start_service(pooled_url, args=["--no-worker"]))
    service.require_sound()
    yield service
    service.require_sound()
    report.say(f"RSS {service.first_mib:.0f} MiB at first, {service.rss_mib():.0f} MiB at the end")
