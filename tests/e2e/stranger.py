"""A pod that belongs to nobody: what it can reach, and single deliveries sent from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from e2e.cluster import Cluster

NAMESPACE = "e2e-ingress"
POST = """
import json, sys, urllib.error, urllib.request
url, headers, body = json.load(sys.stdin)
request = urllib.request.Request(url, data=body.encode(), headers=headers, method="POST")
try:
    with urllib.request.urlopen(request, timeout=10) as answer:
        print(json.dumps([answer.status, json.load(answer)]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, {}]))
"""
REACH = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def reaches(address):
    try:
        socket.create_connection(address, timeout=3).close()
    except OSError:
        return False
    return True

with ThreadPoolExecutor(32) as threads:
    print(json.dumps(list(threads.map(reaches, map(tuple, json.load(sys.stdin))))))
"""
SILENCE = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "silence", "namespace": NAMESPACE},
    "spec": {"podSelector": {"matchLabels": {"app": "collector"}}, "policyTypes": ["Egress"]},
}


class Stranger:
    """The collector's pod, which has Python and no labels that a policy of ours knows."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def post(
        self, path: str, headers: Mapping[str, str], body: bytes, *, address: str = f"http://traefik.{NAMESPACE}"
    ) -> tuple[int, dict[str, Any]]:
        """Send a delivery, through the ingress if nothing else is said; return status and document of the answer."""
        request = [f"{address}{path}", dict(headers), body.decode()]
        status, document = self._python(POST, request)
        return status, document

    def reaches(self, addresses: Iterable[tuple[str, int]]) -> list[bool]:
        """Tell for each address and port whether a connection comes about."""
        found: list[bool] = self._python(REACH, list(addresses))
        return found

    def is_enforced(self) -> bool:
        """Tell whether anything here enforces policies: an own one forbids this pod to speak at all."""
        address = self._ingress()
        assert self.reaches([address]) == [True], "the ingress controller is not reached, with no policy at all"
        self._cluster.run("kubectl", "apply", "-f", "-", stdin=json.dumps(SILENCE))
        try:
            self._cluster.until(lambda: self.reaches([address]) == [False], "an own policy is enforced", 15)
        except AssertionError:
            return False
        finally:
            self._cluster.run("kubectl", "-n", NAMESPACE, "delete", "networkpolicy", "silence")
        self._cluster.until(lambda: self.reaches([address]) == [True], "the own policy is gone")
        return True

    def _ingress(self) -> tuple[str, int]:
        pods = self._cluster.run("kubectl", "-n", NAMESPACE, "get", "pods", "-l", "app=traefik", "-o", "json")
        return json.loads(pods)["items"][0]["status"]["podIP"], 8000

    def _python(self, program: str, said: Any) -> Any:
        command = ("kubectl", "-n", NAMESPACE, "exec", "-i", "deployment/collector", "--", "python3", "-c", program)
        return json.loads(self._cluster.run(*command, stdin=json.dumps(said)).splitlines()[-1])
