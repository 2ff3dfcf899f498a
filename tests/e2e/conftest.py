"""A cluster with an ingress controller, a collector and our images in it; all of it is gone afterwards, also when interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.table import Table

from e2e.cluster import Cluster
from e2e.images import Builder, programs_missing
from e2e.release import CHART, NAME, NAMESPACE, PLAIN, Stand
from e2e.skaffold import pipeline
from e2e.traffic import Traffic
from hostile.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
MANIFESTS = HERE / "manifests"
INGRESS = "e2e-ingress"
HEADINGS = ("fault", "requests", "non-2xx", "acknowledged but lost", "applied twice", "recovery, s", "remarks")
CRDS = ("amointegrations.amo-webhooks.io", "schemamigrations.amo-webhooks.io")


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """Return what prints past pytest's capture."""
    return Report(request.config.pluginmanager.getplugin("capturemanager"), "the release on a real cluster")


@pytest.fixture(scope="session", autouse=True)
def _told_to_end() -> Iterator[None]:
    """Let SIGTERM end the tests as Ctrl-C does, so that everything is removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def kubernetes(report: Report) -> Iterator[None]:
    """Name the cluster in KUBECONFIG, or start one of kind; without both nothing of this is run."""
    missing = programs_missing()
    docker = "docker" in missing or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    if os.environ.get("KUBECONFIG") and not missing:
        yield
    elif missing or docker:
        why = f"these programs are not there: {', '.join(missing)}" if missing else "there is no KUBECONFIG, and Docker does not answer"
        report.say(f"not run: {why}")
        pytest.skip(why)
    else:
        with _kind():
            yield


@contextmanager
def _kind() -> Iterator[None]:
    subprocess.run(["kind", "create", "cluster", "--config", HERE / "kind.yaml", "--wait", "2m"], check=True)
    try:
        yield
    finally:
        subprocess.run(["kind", "delete", "cluster", "--name", "amo-webhooks"], check=True)


def require_room(cluster: Cluster) -> None:
    """Refuse a cluster in which anything is that these tests would take over, and remove in the end."""
    wanted = [
        *(f"namespace/{name}" for name in (NAMESPACE, INGRESS, PLAIN, pipeline().release["namespace"])),
        *(f"crd/{name}" for name in CRDS),
    ]
    there = cluster.run("kubectl", "get", "--ignore-not-found", "-o", "name", *wanted, "ingressclass/traefik").split()
    assert not there, f"in this cluster are already {', '.join(there)}: the tests would take them over and remove them"


@pytest.fixture(scope="session")
def cluster(kubernetes: None, report: Report, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return the cluster, with images, ingress controller and collector."""
    folder = tmp_path_factory.mktemp("images")
    found = Cluster(NAMESPACE)
    require_room(found)
    Builder(folder, report.say).all()
    try:
        found.run("kubectl", "create", "namespace", NAMESPACE)
        found.run("kubectl", "label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        found.apply(MANIFESTS / "ingress.yaml")
        found.run("kubectl", "-n", INGRESS, "create", "configmap", "collector", f"--from-file={HERE / 'collector.py'}")
        found.apply(MANIFESTS / "collector.yaml")
        for name in ("traefik", "collector"):
            found.run("kubectl", "-n", INGRESS, "rollout", "status", f"deployment/{name}", "--timeout=120s")
        yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove(found)


def _remove(cluster: Cluster) -> None:
    """Take away what was put into the cluster, as far as it is there."""
    cluster.helm("uninstall", NAME, "--ignore-not-found", "--no-hooks", "--wait", "--timeout", "60s", check=False)
    cluster.run("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s", check=False)
    cluster.run("kubectl", "delete", "--ignore-not-found", "-f", str(MANIFESTS / "ingress.yaml"), "--timeout=120s", check=False)
    # Of an upgrade that was cut off before its hooks had ended.
    hooks = "clusterrole,clusterrolebinding"
    cluster.run("kubectl", "delete", hooks, "-l", f"app.kubernetes.io/instance={NAME}", "--ignore-not-found", check=False)
    cluster.run("kubectl", "delete", "crd", *CRDS, "--ignore-not-found", "--timeout=60s", check=False)


@pytest.fixture(scope="session")
def traffic(cluster: Cluster, report: Report, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traffic]:
    """Return the senders; the table of what they were answered is printed in the end."""
    senders = Traffic(cluster, tmp_path_factory.mktemp("senders"))
    try:
        yield senders
    finally:
        senders.end()
        table = Table(title=f"{CHART.name} on a real cluster")
        for heading in HEADINGS:
            table.add_column(heading, overflow="fold")
        for window in senders.windows:
            table.add_row(*window.row())
        report.show(table)


@pytest.fixture(scope="session")
def stand(cluster: Cluster, traffic: Traffic, report: Report, tmp_path_factory: pytest.TempPathFactory) -> Stand:
    """Return the release under load; installed by the first test."""
    return Stand(cluster, traffic, report, tmp_path_factory.mktemp("stale"))
