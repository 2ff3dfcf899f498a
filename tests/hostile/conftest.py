"""What the hostile tests share: a place to report to, and a service that is watched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hostile.report import SEED, Report
from hostile.watched import Watched
from servers import Services, run_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from amo_receiver.embedded import EmbeddedPostgres
    from pooler import PgBouncer


def pytest_report_header() -> str:
    """Tell how to draw the same again."""
    return f"HOSTILE_SEED={SEED}"


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Return what prints past pytest's capture: these tests take minutes, and their figures are wanted when they pass."""
    return Report(request.config.pluginmanager.getplugin("capturemanager"), request.node.name)


@pytest.fixture(scope="module")
def lasting(
    request: pytest.FixtureRequest,
    postgres: EmbeddedPostgres,
    template: str,
    pgbouncer: PgBouncer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    """Return one service without a worker for all tests of a module, so that what one of them leaves behind is the next one's trouble."""
    name = request.module.__name__.replace(".", "_")
    run_sql(postgres.url(), f"CREATE DATABASE {name} TEMPLATE {template}")
    services = Services(tmp_path_factory.mktemp(name))
    yield Watched(services.serve(pgbouncer.url(name), args=["--no-worker"]), postgres.url(name))
    services.end()
    run_sql(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def watched(lasting: Watched, report: Report) -> Iterator[Watched]:
    """Return the module's service; whatever a test does to it, it must be sound afterwards."""
    lasting.begin()
    yield lasting
    lasting.require_sound()
    if lasting.has_grown():
        report.say(f"RSS {lasting.begun_mib:.0f} MiB before, {lasting.peak_mib():.0f} MiB at most, {lasting.rss_mib():.0f} MiB after")
