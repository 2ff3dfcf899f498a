"""The file that developers start from, carried out on the cluster: as CI has it, with files copied into a running pod, with a debugger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from e2e import images
from e2e.cluster import Cluster
from e2e.pages import readme_lines, typed
from e2e.skaffold import ROOT, Skaffold, pipeline
from e2e.stranger import Stranger
from factories import ACCOUNT, form_body, lead

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hostile.report import Report

pytestmark = pytest.mark.timeout(900)

CHANGED, BEFORE, AFTER = "service/amo_receiver/documentation.py", "Receives webhooks of amoCRM", "Changed while it runs"
ATTACHES = "import socket; socket.create_connection(('127.0.0.1', 5678), timeout=3)"
ASK = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/openapi.json', timeout=5).read().decode())"
WITHOUT_JAEGER = ("--set=extraObjects=null", "--set=otel.endpoint=http://collector.e2e-ingress:4318")


@pytest.fixture(scope="module")
def skaffold(cluster: Cluster, report: Report, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Skaffold]:
    """Return what carries the file out in a namespace of its own, which goes afterwards."""
    report.say("not run: skaffold itself, which cannot be had here; e2e/skaffold.py does what it would do")
    release = pipeline().release
    own = Cluster(release["namespace"])
    try:
        yield Skaffold(own, images.Builder(tmp_path_factory.mktemp("images"), report.say), images.PREFIX, tmp_path_factory.mktemp("values"))
    finally:
        own.helm("uninstall", release["name"], "--ignore-not-found", "--no-hooks", "--wait", "--timeout", "60s", check=False)
        own.run("kubectl", "delete", "namespace", own.namespace, "--ignore-not-found", "--timeout=120s", check=False)


def test_ci_verifies_the_release_with_a_sender(skaffold: Skaffold, report: Report) -> None:
    """`skaffold build`, `deploy` and `verify`, each with `-p ci`."""
    ci = pipeline("ci")
    skaffold.build(ci)
    skaffold.deploy(ci, images.stand_ins())
    (printed,) = skaffold.verify(ci)
    report.say(f"skaffold verify: {printed.strip()}")


def test_what_the_readme_says_works(skaffold: Skaffold, tmp_path: Path) -> None:
    """Its lines for kubectl, in the namespace that they name."""
    lines = readme_lines()
    assert len(lines) > 10
    for line in lines:
        shown = f'{line}; test "$path"' if line.startswith("path=") else line
        typed(skaffold.cluster, shown, tmp_path)


def test_a_changed_file_is_taken_over_without_a_new_image(cluster: Cluster, skaffold: Skaffold, report: Report) -> None:
    """`skaffold dev`: a webhook is accepted and traced, and a file that is copied into the pod changes what it answers."""
    dev, own = pipeline("dev"), skaffold.cluster
    skaffold.build(dev)
    skaffold.deploy(dev, [*images.stand_ins(), *(WITHOUT_JAEGER if images.STAND_INS["postgres"] else ())])
    if images.STAND_INS["postgres"]:
        report.say("not run: Jaeger, whose image cannot be pulled here; the test's own collector stands in")
    path = own.secret("default-credentials")[f"url.{ACCOUNT}"]
    address = f"http://amo-amo-webhooks.{own.namespace}"
    status, _ = Stranger(cluster).post(path, {}, form_body("leads", "update", lead()), address=address)
    assert status == 200
    service = ("pods", "-l", "app.kubernetes.io/component=service")
    own.until(lambda: len(own.items(*service)) == 1, "the pods of before are gone")
    before = own.items(*service)
    changed = (ROOT / CHANGED).read_text(encoding="utf-8").replace(BEFORE, AFTER)
    assert skaffold.sync(dev, CHANGED, changed.encode()) == [each["metadata"]["name"] for each in before]
    (pod,) = own.pods("service")
    ask = ("exec", pod, "-c", "service", "--", "python3", "-c", ASK)
    seconds = own.until(lambda: AFTER in own.kubectl(*ask, check=False), "the changed file is in force")
    report.say(f"skaffold dev: a changed file is in force {seconds:.0f} s after it was copied")
    after = own.items(*service)
    assert [each["metadata"]["uid"] for each in after] == [each["metadata"]["uid"] for each in before]
    assert [each["status"]["containerStatuses"][0]["restartCount"] for each in after] == [0]


def test_a_debugger_can_attach(skaffold: Skaffold) -> None:
    """`skaffold run -p debug`: the service serves, and debugpy listens beside it."""
    debug, own = pipeline("debug"), skaffold.cluster
    skaffold.build(debug)
    skaffold.deploy(debug, images.stand_ins())
    own.kubectl("exec", own.ready_pod("service"), "-c", "service", "--", "python3", "-c", ATTACHES)
