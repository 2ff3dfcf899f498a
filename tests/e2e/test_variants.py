"""A release without the operator, with workers of its own and scaled by processor time, where only restricted pods are let in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from e2e import images
from e2e.cluster import Cluster
from e2e.release import CHART, NAME, PLAIN, values_for
from e2e.stranger import Stranger
from factories import ACCOUNT, form_body, lead

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hostile.report import Report

pytestmark = pytest.mark.timeout(900)

SERVICE = "amo-amo-webhooks"
VALUES = {
    "operator.enabled": "false",
    "worker.enabled": "true",
    "service.autoscaling.enabled": "true",
    "service.autoscaling.minReplicas": "1",
    "ingress.enabled": "false",
    "networkPolicy.ingress": "null",
}
METRICS = "/apis/metrics.k8s.io/v1beta1/nodes"


@pytest.fixture(scope="module")
def plain(cluster: Cluster) -> Iterator[Cluster]:
    """Return the namespace with the release installed; it goes afterwards."""
    own = Cluster(PLAIN)
    own.run("kubectl", "create", "namespace", PLAIN)
    try:
        own.run("kubectl", "label", "namespace", PLAIN, "pod-security.kubernetes.io/enforce=restricted")
        chosen = [part for path, value in VALUES.items() for part in ("--set", f"{path}={value}")]
        own.helm("install", NAME, str(CHART), *values_for(images.FIRST), *chosen, "--wait", "--timeout", "4m")
        yield own
    finally:
        own.helm("uninstall", NAME, "--ignore-not-found", "--no-hooks", "--wait", "--timeout", "60s", check=False)
        own.run("kubectl", "delete", "namespace", PLAIN, "--ignore-not-found", "--timeout=120s", check=False)


def test_without_the_operator_webhooks_are_accepted_all_the_same(plain: Cluster, cluster: Cluster) -> None:
    """By keys that were generated once, into a schema that a plain Job has made; nothing has any rights."""
    path = plain.kubectl("exec", plain.ready_pod("service"), "-c", "service", "--", "amo-webhooks", "url", ACCOUNT).split()[0]
    address = f"http://{SERVICE}.{PLAIN}"
    status, document = Stranger(cluster).post(path, {}, form_body("leads", "update", lead(id=1)), address=address)
    assert (status, document["status"]) == (200, "success")
    assert plain.query("SELECT count(*) FROM leads") == [[1]]
    assert plain.ready_pod("worker")
    assert plain.kubectl("get", "roles,rolebindings", "-o", "name").split() == []


def test_its_own_tests_pass(plain: Cluster) -> None:
    """`helm test` needs no operator."""
    plain.helm("test", NAME, "--timeout", "3m")


def test_it_is_scaled_by_processor_time(plain: Cluster, report: Report) -> None:
    """The autoscaler finds what it measures by."""
    if "NodeMetricsList" not in plain.run("kubectl", "get", "--raw", METRICS, check=False):
        report.say("not run: this cluster measures no pods, so that nothing can be scaled by it")
        pytest.skip("no metrics in this cluster")
    plain.until(lambda: plain.condition_of("hpa", SERVICE, "ScalingActive") == "True", "the autoscaler measures")
