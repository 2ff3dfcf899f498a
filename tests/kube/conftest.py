"""A real API server for the tests of the operator, and accesses to it."""

from __future__ import annotations

import gc
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from lightkube import Client, KubeConfig
from lightkube.codecs import load_all_yaml
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition

from amo_receiver.embedded.processes import wait_until
from kube.apiserver import WHY_NOT, ApiServer, assets, kubeconfig
from kube.controllers import begin_namespace, end_namespace
from kube.kubelet import Kubelet
from kube.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CRDS = Path(__file__).parents[2] / "charts" / "amo-webhooks" / "crds"
SERVED_TIMEOUT_S = 10.0
TOKEN_SECONDS = 3600
UNCLOSED = r"(?s)Exception ignored in.*\nResourceWarning. unclosed (transport )?<"
"""A socket or its transport that nobody has closed; any other error that cannot be raised fails the test."""
_numbers = itertools.count(1)


class KubeconfigFor(Protocol):
    """Write the access of a ServiceAccount that may do what the rules of a Role say, to this server or to a proxy before it."""

    def __call__(self, service_account: str, rules: Sequence[Mapping[str, Any]], *, url: str | None = None) -> Path: ...


def pytest_report_header() -> str:
    """Tell which API server the tests run on."""
    return f"kube-apiserver: {os.environ.get('KUBEBUILDER_ASSETS') or WHY_NOT}"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let the tests reach all addresses of this machine: a pod has one of its own."""
    item.add_marker(pytest.mark.allow_hosts(["127.0.0.0/8", "::1", "localhost"]))
    if "proxy" in getattr(item, "fixturenames", ()):
        # The sockets that it cut are left to the garbage collector, which warns.
        item.add_marker(pytest.mark.filterwarnings(f"ignore:{UNCLOSED}:pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(scope="session")
def apiserver(server_folder: Path) -> Iterator[ApiServer]:
    """Return a running API server for all tests."""
    programs = assets()
    if programs is None:
        pytest.skip(WHY_NOT)
    server = ApiServer(programs, server_folder / "kube")
    try:
        yield server.start()
    finally:
        server.end()


@pytest.fixture
def api(apiserver: ApiServer) -> Iterator[Client]:
    """Return the administrator's client."""
    with Client(config=KubeConfig.from_file(apiserver.kubeconfig), field_manager="tests", trust_env=False) as client:
        yield client


@pytest.fixture
def namespace(apiserver: ApiServer) -> Iterator[str]:
    """Return the name of a fresh namespace; a test may end it itself."""
    name = f"test-{next(_numbers)}"
    begin_namespace(apiserver, name)
    yield name
    end_namespace(apiserver, name, force=True)


@pytest.fixture(scope="session")
def crds(apiserver: ApiServer) -> list[str]:
    """Apply the chart's CRDs; return their names when the server serves them."""
    manifests = [each for path in sorted(CRDS.glob("*.yaml")) for each in load_all_yaml(path.read_text(encoding="utf-8"))]
    assert manifests, f"no CRDs in {CRDS}"
    with Client(config=KubeConfig.from_file(apiserver.kubeconfig), field_manager="tests", trust_env=False) as client:
        for manifest in manifests:
            client.apply(manifest, force=True)
            client.wait(CustomResourceDefinition, manifest.metadata.name, for_conditions=["Established"])
    for manifest in manifests:
        spec = manifest.spec
        path = f"/apis/{spec.group}/{spec.versions[0].name}/{spec.names.plural}"
        assert wait_until(lambda path=path: apiserver.serves(path), SERVED_TIMEOUT_S), path
    return [manifest.metadata.name for manifest in manifests]


@pytest.fixture
def kubeconfig_for(apiserver: ApiServer, namespace: str, tmp_path: Path) -> KubeconfigFor:
    """Return a function that writes kubeconfig files; asked again, an account has the new rules only."""

    def write(service_account: str, rules: Sequence[Mapping[str, Any]], *, url: str | None = None) -> Path:
        core, rbac = f"/api/v1/namespaces/{namespace}", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
        subject = {"kind": "ServiceAccount", "name": service_account, "namespace": namespace}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": service_account}
        for collection, kind, content in (
            (f"{core}/serviceaccounts", "ServiceAccount", {}),
            (f"{rbac}/roles", "Role", {"rules": [dict(rule) for rule in rules]}),
            (f"{rbac}/rolebindings", "RoleBinding", {"roleRef": role, "subjects": [subject]}),
        ):
            version = "v1" if kind == "ServiceAccount" else "rbac.authorization.k8s.io/v1"
            manifest = {"apiVersion": version, "kind": kind, "metadata": {"name": service_account}, **content}
            query = "fieldManager=tests&force=true"
            apiserver.ask("PATCH", f"{collection}/{service_account}?{query}", manifest, content_type="application/apply-patch+yaml")
        request = {"spec": {"expirationSeconds": TOKEN_SECONDS}}
        token = apiserver.ask("POST", f"{core}/serviceaccounts/{service_account}/token", request)["status"]["token"]
        path = tmp_path / f"{service_account}-{next(_numbers)}.kubeconfig"
        path.write_text(kubeconfig(url or apiserver.url, apiserver.ca_path, {"token": token}, namespace=namespace), encoding="utf-8")
        return path

    return write


@pytest.fixture
def proxy(apiserver: ApiServer) -> Iterator[Proxy]:
    """Return a proxy before the API server that notes every call and can break each."""
    with Proxy(apiserver) as running:
        yield running
    gc.collect()  # its warnings belong to this test


@pytest.fixture
def kubelet(apiserver: ApiServer, namespace: str, tmp_path: Path) -> Iterator[Kubelet]:
    """Return what runs the Jobs and plays the pods of the fresh namespace."""
    with Kubelet(apiserver, namespace, tmp_path / "kubelet") as running:
        yield running
