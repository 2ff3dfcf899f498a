"""The release under test: installed and changed with Helm, watched by senders that keep sending."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e import images
from e2e.sender import FORM
from e2e.traffic import Traffic
from factories import ACCOUNT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from children import Child
    from e2e.cluster import Cluster
    from e2e.traffic import Window
    from hostile.report import Report

CHART = Path(__file__).parents[2] / "charts" / "amo-webhooks"
VALUES = Path(__file__).parent / "values.yaml"
NAME, NAMESPACE, PLAIN = "amo", "amo-e2e", "amo-e2e-plain"
"""The release, the namespace of the one under load, and that of one without the operator."""
INTEGRATION, MIGRATION = "default", "amo-amo-webhooks"
ROTATE = "amo-webhooks.io/rotate"
RATE = 20
REPLICAS = 2
STALE = 1_500_000_000
"""First number of the sender whose credentials stay what they were."""


def values_for(tag: str) -> list[str]:
    """Return Helm's options for a release of the test."""
    return ["--values", str(VALUES), "--set-string", f"image.tag={tag}", *images.stand_ins()]


class Stand:
    """The release, its senders, and a sender whose credentials stay what they were."""

    def __init__(self, cluster: Cluster, traffic: Traffic, report: Report, folder: Path) -> None:
        self.cluster = cluster
        self.traffic = traffic
        self.say = report.say
        self.stale = Traffic(cluster, folder, first=STALE)
        self._known: dict[str, str] = {}

    # Helm

    def install(self) -> float:
        """Install from nothing while senders wait for their credentials; return after how long the first delivery was acknowledged."""
        began = time.time()
        failures: list[Exception] = []
        helm = threading.Thread(target=self._install, args=(failures,))
        helm.start()
        while not self.learn():
            assert helm.is_alive() or not failures, failures
            time.sleep(1)
        self.traffic.start("--rate", str(RATE))
        helm.join()
        self.say(f"helm install --wait returned after {time.time() - began:.0f} s")
        if failures:
            raise failures[0]
        self.cluster.until(lambda: [each for each in self.traffic.answers() if each.is_good], "the first 200")
        return min(each.at + each.seconds for each in self.traffic.answers() if each.is_good) - began

    def _install(self, failures: list[Exception]) -> None:
        try:
            self.cluster.helm("install", NAME, str(CHART), *values_for(images.FIRST), "--wait", "--timeout", "5m")
        except AssertionError as error:
            failures.append(AssertionError(f"{error}\n{self.cluster.state()}"))

    def upgrade(self, tag: str, *options: str) -> str:
        """Upgrade to a release."""
        arguments = ("upgrade", NAME, str(CHART), *values_for(tag), "--wait", *(options or ("--rollback-on-failure", "--timeout", "4m")))
        return self.cluster.helm(*arguments)

    # Keys

    def learn(self) -> bool:
        """Read the credentials that the operator publishes, as a sender of ours does; tell whether there are any."""
        secret = self.cluster.secret(f"{INTEGRATION}-credentials")
        wanted = ("client_id", "client_secret", f"url.{ACCOUNT}")
        if not all(secret.get(key) for key in wanted):
            return False
        credentials = {key: secret[key] for key in wanted}
        if credentials != self._known:
            self._known = credentials
            self.traffic.know(*credentials.values())
        return True

    @contextmanager
    def keep_learning(self) -> Iterator[None]:
        """Have the senders follow their Secret while the block runs."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(1):
                self.learn()

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()

    def keys(self) -> dict[tuple[str, str], str]:
        """Return the fingerprint of each key by kind and state."""
        found = self.cluster.get("amointegration", INTEGRATION)["status"].get("keys", [])
        return {(each["kind"], each["state"]): each["fingerprint"] for each in found}

    def send_with_what_is_known(self) -> Child:
        """Start a sender that keeps to the present credentials."""
        self.stale.know(*self._known.values())
        return self.stale.start("--rate", "5")

    # Pods

    def delete_each(self, component: str) -> None:
        """Delete a component's pods one after the other, each when the one before has been replaced."""
        for pod in self.cluster.pods(component):
            self.cluster.kubectl("delete", "pod", pod)
            self.settle(component)

    def settle(self, component: str) -> None:
        """Wait until a component is as it should be."""
        (workload,) = self.cluster.kubectl(
            "get", "deployment,statefulset", "-o", "name", "-l", f"app.kubernetes.io/component={component}"
        ).split()
        self.cluster.kubectl("rollout", "status", workload, "--timeout=180s")

    def scale(self, replicas: int) -> None:
        """Scale the service, and wait until it is: by Helm, for `kubectl scale` would keep the field from the next upgrade."""
        self.cluster.helm(
            "upgrade", NAME, str(CHART), "--reuse-values", "--set", f"service.replicas={replicas}", "--wait", "--timeout", "3m"
        )
        self.cluster.until(lambda: len(self._service_pods()) == replicas, f"{replicas} pods of the service")

    def _service_pods(self) -> list[dict[str, Any]]:
        return self.cluster.items("pods", "-l", "app.kubernetes.io/component=service")

    def form(self) -> tuple[str, dict[str, str]]:
        """Return path and headers of a delivery as amoCRM sends it."""
        return self._known[f"url.{ACCOUNT}"], {"Content-Type": FORM, "User-Agent": "amoCRM-Webhooks/3.0"}

    # Spans

    def spans(self, name: str = "", *, trace: str = "", origin: list[str] | None = None) -> list[dict[str, Any]]:
        """Return what the collector has: of a name, in a trace, or linked with another span."""
        path = "/api/v1/namespaces/e2e-ingress/services/collector:4318/proxy/spans"
        found: list[dict[str, Any]] = json.loads(self.cluster.run("kubectl", "get", "--raw", path))
        return [
            each
            for each in found
            if (not name or each["name"] == name) and (not trace or each["trace"] == trace) and (origin is None or origin in each["links"])
        ]

    def span(self, name: str, *, trace: str = "", origin: list[str] | None = None) -> dict[str, Any]:
        """Wait for such a span, and return the last one."""
        self.cluster.until(lambda: self.spans(name, trace=trace, origin=origin), f"a span {name!r}")
        return self.spans(name, trace=trace, origin=origin)[-1]

    def require(self, window: Window, *, only: tuple[int, ...] = ()) -> None:
        """Fail if something acknowledged is lost or applied twice, or if there were other bad answers than these."""
        assert window.answers, "nothing was sent"
        assert (window.lost, window.twice) == (0, 0), window.row()
        assert set(window.statuses) <= set(only), window.row()
