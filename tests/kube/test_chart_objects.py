"""What the chart renders, before a real API server: valid to the last field, restricted, upgradable, and enough for the operator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from lightkube import Client, KubeConfig
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition

from amo_operator.definitions import apply
from amo_receiver.embedded.processes import wait_until
from chart.rendering import FULLNAME, is_hook, of_kind, one, pods, rendered
from custom_resources import API_VERSION, PLURALS
from kube.apiserver import kubeconfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chart.rendering import Manifest
    from kube.apiserver import ApiServer

SERVED_TIMEOUT_S = 10.0
APPLY = {"Content-Type": "application/apply-patch+yaml"}
FULL = {
    "worker": {"enabled": True},
    "ingress": {"enabled": True, "hosts": ["amo.example.com"], "tls": [{"hosts": ["amo.example.com"], "secretName": "tls"}]},
    "service": {"autoscaling": {"enabled": True}, "type": "LoadBalancer"},
    "otel": {"endpoint": "http://collector:4318", "headersSecret": "otel", "resourceAttributes": "a=b"},
    "mapping": "[leads]\n",
    "dashboards": {"enabled": True},
    "envFromSecrets": ["notify"],
    "settings": {"MAX_BODY_BYTES": 1048576},
    "imagePullSecrets": [{"name": "pull"}],
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "priorityClassName": "",
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraVolumes": [{"name": "ca", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more"}}],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": FULL,
    "without-operator": {"operator": {"enabled": False}},
    "external": {"database": {"existingSecret": "own"}, "pgbouncer": {"enabled": False}, "worker": {"enabled": True}},
    "by-digest": {"image": {"digest": f"sha256:{'a' * 64}"}, "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}},
}


@pytest.fixture
def http(apiserver: ApiServer, crds: list[str]) -> Iterator[httpx2.Client]:
    """Return the administrator's client, for answers that are errors."""
    with httpx2.Client(base_url=apiserver.url, verify=apiserver.client_context(), trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def restricted(apiserver: ApiServer, namespace: str) -> str:
    """Return a namespace that takes restricted pods only."""
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    apiserver.ask("PATCH", f"/api/v1/namespaces/{namespace}", label, content_type="application/merge-patch+json")
    return namespace


def plurals(http: httpx2.Client, versions: set[str]) -> dict[tuple[str, str], tuple[str, bool]]:
    """Return each kind's plural and whether it lives in a namespace, as the server says."""
    found = {}
    for version in versions:
        answer = http.get(f"/apis/{version}" if "/" in version else f"/api/{version}")
        assert answer.is_success, version
        found |= {
            (version, each["kind"]): (each["name"], each["namespaced"]) for each in answer.json()["resources"] if "/" not in each["name"]
        }
    return found


def applied(http: httpx2.Client, manifest: Manifest, namespace: str, names: dict[tuple[str, str], tuple[str, bool]]) -> httpx2.Response:
    """Have the server check an object as Helm 4 hands it over, to the last field, and keep nothing."""
    version = manifest["apiVersion"]
    plural, is_namespaced = names[version, manifest["kind"]]
    folder = f"/apis/{version}" if "/" in version else f"/api/{version}"
    place = f"/namespaces/{namespace}" if is_namespaced else ""
    manifest = json.loads(json.dumps(manifest).replace('"namespace": "sales"', f'"namespace": "{namespace}"'))
    query = {"dryRun": "All", "fieldManager": "helm", "fieldValidation": "Strict", "force": "true"}
    path = f"{folder}{place}/{plural}/{manifest['metadata']['name']}"
    return http.patch(path, params=query, content=json.dumps(manifest), headers=APPLY)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_is_valid_to_the_last_field(http: httpx2.Client, restricted: str, variant: str) -> None:
    """The server takes each as it is, hooks included; none has a field that it does not know, none a warning of Pod Security."""
    objects = [each for each in rendered(VARIANTS[variant]) if each["kind"] != "Pod"]  # pods themselves are for the next test
    names = plurals(http, {each["apiVersion"] for each in objects})
    answers = {f"{each['kind']} {each['metadata']['name']}": applied(http, each, restricted, names) for each in objects}
    assert {name: answer.text for name, answer in answers.items() if not answer.is_success} == {}
    assert {name: answer.headers["warning"] for name, answer in answers.items() if "warning" in answer.headers} == {}
    assert len(answers) > 20


def test_every_pod_is_admitted_where_only_restricted_ones_are(http: httpx2.Client, apiserver: ApiServer, restricted: str) -> None:
    """As the server's own admission judges them; one with a privilege is not."""
    apiserver.ask("POST", f"/api/v1/namespaces/{restricted}/serviceaccounts", {"metadata": {"name": "any"}})
    for name, pod in pods(rendered(FULL)):
        answer = admitted(http, restricted, pod)
        assert answer.status_code == HTTPStatus.CREATED, f"{name}: {answer.text}"
    spec = next(pod for _, pod in pods(rendered()))["spec"]
    worse = {"metadata": {}, "spec": {**spec, "hostNetwork": True}}
    assert admitted(http, restricted, worse).status_code == HTTPStatus.FORBIDDEN


def admitted(http: httpx2.Client, namespace: str, pod: Manifest) -> httpx2.Response:
    known = {volume["name"] for volume in pod["spec"].get("volumes", [])}
    claimed = {mount["name"] for each in pod["spec"]["containers"] for mount in each.get("volumeMounts", [])} - known
    volumes = [*pod["spec"].get("volumes", []), *({"name": name, "emptyDir": {}} for name in claimed)]
    spec = {**pod["spec"], "volumes": volumes, "serviceAccountName": "any", "priorityClassName": ""}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "pod-"}, "spec": spec}
    return http.post(f"/api/v1/namespaces/{namespace}/pods", params={"dryRun": "All", "fieldValidation": "Strict"}, json=body)


def test_the_custom_resources_are_understood(http: httpx2.Client, namespace: str) -> None:
    """Also one with every field; what the chart's schema lets through and the definition refuses is refused before anything runs."""
    integration = {
        "name": "crm",
        "clientId": "c",
        "accounts": ["1"],
        "clientSecretRef": {"name": "in", "key": "k"},
        "urlKey": {"rotateEvery": "30d"},
        "overlap": "2d",
        "maxOverlap": "8d",
        "quietPeriod": "2h",
        "revoke": ["0123456789ab"],
        "paused": True,
    }
    for change, is_taken in (({}, True), ({"overlap": "9d"}, False)):
        objects = rendered({"integrations": [integration | change]})
        found = one(objects, "AmoIntegration", "crm")
        answer = applied(http, found, namespace, plurals(http, {found["apiVersion"]}))
        assert answer.is_success == is_taken, answer.text


def test_the_hook_brings_the_definitions_up_to_date(apiserver: ApiServer, crds: list[str], tmp_path: Path, namespace: str) -> None:
    """With the rights that the chart gives it, and no others: an old definition is changed, a good one left alone."""
    kubeconfig = hook_access(apiserver, namespace, tmp_path)
    config = KubeConfig.from_file(apiserver.kubeconfig)
    with Client(config=config, field_manager="old", trust_env=False) as admin:
        patch = {"spec": {"names": {"shortNames": ["old"]}}}
        admin.patch(CustomResourceDefinition, crds[0], patch)
        command = [sys.executable, "-m", "amo_operator.definitions"]
        env = {"PATH": os.defpath, "HOME": str(tmp_path), "KUBECONFIG": str(kubeconfig)}
        said = [subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False) for _ in range(2)]
        assert [(each.returncode, each.stdout.strip(), each.stderr) for each in said] == [
            (0, f"Changed: {crds[0]}", ""),
            (0, "Changed: nothing", ""),
        ]
        assert admin.get(CustomResourceDefinition, crds[0]).spec.names.shortNames != ["old"]
        assert apply(admin) == []
    for plural in PLURALS.values():  # a changed kind is not served for a moment
        assert wait_until(lambda plural=plural: apiserver.serves(f"/apis/{API_VERSION}/{plural}"), SERVED_TIMEOUT_S), plural


def hook_access(apiserver: ApiServer, namespace: str, folder: Path) -> Path:
    """Install the hook's account and rights as rendered; return an access of that account."""
    hooks = [each for each in rendered() if is_hook(each)]
    text = json.dumps(of_kind(hooks, "ServiceAccount", "ClusterRole", "ClusterRoleBinding")).replace('"sales"', f'"{namespace}"')
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    for each in json.loads(text):
        kind = each["kind"]
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts" if kind == "ServiceAccount" else f"{rbac}/{kind.lower()}s"
        query = "fieldManager=helm&force=true"
        apiserver.ask("PATCH", f"{path}/{each['metadata']['name']}?{query}", each, content_type="application/apply-patch+yaml")
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/{FULLNAME}-crds/token"
    token = apiserver.ask("POST", account, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    path = folder / "hook.kubeconfig"
    path.write_text(kubeconfig(apiserver.url, apiserver.ca_path, {"token": token}, namespace=namespace), encoding="utf-8")
    return path
