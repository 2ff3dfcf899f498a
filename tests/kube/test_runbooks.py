"""What the operator's runbooks tell somebody to type works: each kubectl command is run where there is an operator."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from chart.operator_alert_cases import ALERTS
from integration.test_runbooks import RUNBOOKS, blocks
from kube.apiserver import assets
from kube.controllers import begin_namespace, end_namespace
from kube.kubelet import Kubelet
from kube.operators import KEYRING, integration, schema_migration
from kube.pods import Pods
from kube.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kube.apiserver import ApiServer

NAMESPACE, NAME = "runbooks", "sales"
RBAC = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"
PAGES = [page for page in RUNBOOKS if page.stem in ALERTS]
OPERATOR_LABELS = {"app.kubernetes.io/name": "amo-webhooks", "app.kubernetes.io/component": "operator"}
LOGS = re.compile(r"logs (-l \S+) --tail=\d+")
COMMAND_SECONDS = 60.0


def lines(page: Path) -> list[str]:
    """Return the commands of a runbook."""
    return [line for block in blocks(page, "sh kubectl") for line in block.splitlines()]


@pytest.fixture(scope="module")
def scene(apiserver: ApiServer, crds: list[str], server_folder: Path) -> Iterator[Scene]:
    """Return a namespace with an operator, pods of the service, an integration, and a migration of the same name that waits."""
    begin_namespace(apiserver, NAMESPACE)
    folder = server_folder / NAMESPACE
    with Kubelet(apiserver, NAMESPACE, folder / "kubelet") as kubelet, Scene(apiserver, NAMESPACE, folder, kubelet) as scene:
        scene.pod("pod-a")
        for component in ("operator", "service"):
            deploy(scene, component)
        Pods(apiserver, NAMESPACE).add("operator", OPERATOR_LABELS, ip="127.0.0.1")
        apiserver.ask("POST", f"{RBAC}/roles", {"metadata": {"name": "operator"}, "rules": []})
        scene.operator()
        scene.apply(integration(NAME, accounts=["31337"]))
        scene.apply(schema_migration(NAME))
        scene.until(lambda: scene.reason(NAME) == "True InStep" and scene.reason(NAME, "SchemaMigration") == "False JobWaits")
        yield scene
    end_namespace(apiserver, NAMESPACE, force=True)


def deploy(scene: Scene, component: str) -> None:
    """Make a Deployment of the release; its pods are not made here."""
    labels = OPERATOR_LABELS | {"app.kubernetes.io/component": component}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "it", "image": "amo:1"}]}}
    body = {"metadata": {"name": component, "labels": labels}, "spec": {"selector": {"matchLabels": labels}, "template": template}}
    scene.server.ask("POST", f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments", body)


def run(scene: Scene, line: str) -> subprocess.CompletedProcess[str]:
    """Run a command as it is written; of one for logs, which only a kubelet has, see that it selects something."""
    programs = assets()
    kubectl = programs and programs / "kubectl"
    if kubectl is None or not os.access(kubectl, os.X_OK):
        pytest.skip("the folder that KUBEBUILDER_ASSETS names has no kubectl")
    command = shlex.split(LOGS.sub(r"get pods \1", line.replace("NAME", NAME)))
    access = ["--kubeconfig", str(scene.server.kubeconfig), "-n", NAMESPACE, "--cache-dir", str(scene.folder / "cache")]
    whole = [str(kubectl), *access, *command[1:]]
    return subprocess.run(whole, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_runbook_work(scene: Scene, page: Path) -> None:
    """Each ends well and has something to show; no secret is in it."""
    secrets = set(scene.secret(f"{NAME}-credentials").values()) - {"1", f"client-{NAME}"}
    assert lines(page)
    for line in lines(page):
        done = run(scene, line)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), f"{line}\n{done.stderr}"
        assert [secret for secret in secrets if secret in done.stdout] == []


@pytest.mark.parametrize("line", ["kubectl describe amoint nobody", "kubectl get nonsense", "kubectl logs -l app=nothing --tail=5"])
def test_a_command_that_does_not_work_would_be_noticed(scene: Scene, line: str) -> None:
    """It fails, or shows nothing."""
    done = run(scene, line)
    assert done.returncode != 0 or not done.stdout.strip()


def test_the_operator_tells_what_its_alerts_look_at(scene: Scene) -> None:
    """A migration that waits and a keyring that was lost are on the page of metrics of a real operator."""

    def page() -> str:
        return scene.operators[0].page("/metrics").text

    assert f'amo_operator_not_ready_since_seconds{{kind="SchemaMigration",name="{NAME}"}}' in page()
    damaged = f'amo_operator_keyring_damaged_seconds{{name="{NAME}"}}'
    assert damaged not in page()
    scene.delete_secret(KEYRING)
    scene.until(lambda: damaged in page())
    scene.until(lambda: scene.reason(NAME) == "True InStep")
    assert f'amo_operator_pods_out_of_step{{name="{NAME}"}} 0.0' in page()
    assert re.search(r'amo_operator_condition{kind="AmoIntegration",name="\w+",reason="InStep",type="Ready"} 1.0', page())
