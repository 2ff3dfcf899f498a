"""A release can be taken away in any order: nothing of ours waits for an operator that is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kube.controllers import collect_garbage, end_namespace, stored
from kube.operators import KEYRING, integration, schema_migration
from kube.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kube.apiserver import ApiServer
    from kube.kubelet import Kubelet


@pytest.fixture
def scene(apiserver: ApiServer, crds: list[str], namespace: str, kubelet: Kubelet, tmp_path: Path) -> Iterator[Scene]:
    """Return a namespace in which everything of ours stands, and whose operator was killed."""
    with Scene(apiserver, namespace, tmp_path, kubelet) as scene:
        scene.pod("pod-a")
        operator = scene.operator()
        scene.apply(integration("crm", clientSecret={"generate": True}))
        scene.apply(schema_migration("schema"))  # its database Secret is missing: the Job's pod waits for it
        scene.until(lambda: scene.reason("crm") == "True InStep" and scene.reason("schema", "SchemaMigration") == "False JobWaits")
        operator.kill()
        yield scene


def test_nothing_holds_up_the_end_of_a_namespace(scene: Scene) -> None:
    """No object has a finalizer, so that the namespace ends without the operator."""
    objects = list(stored(scene.server, scene.namespace))
    kinds = {each.path.split("/")[-2] for each in objects}
    assert {"amointegrations", "schemamigrations", "secrets", "jobs", "pods", "events"} <= kinds
    assert [str(each) for each in objects if each.metadata.get("finalizers")] == []
    scene.end_pod("pod-a")
    assert end_namespace(scene.server, scene.namespace) == []


def test_custom_resources_are_deleted_without_the_operator(scene: Scene) -> None:
    """They are gone at once, what belongs to them goes with them, and the pods keep verifying; the next operator revokes the keys."""
    accepted = scene.pods[0].accepts("crm")
    scene.delete("crm")
    scene.delete("schema", "SchemaMigration")
    assert scene.get("crm") == scene.get("schema", "SchemaMigration") == {}
    gone = {path.split("/")[-2] + "/" + path.split("/")[-1].split("-")[0] for path in collect_garbage(scene.server, scene.namespace)}
    assert gone - {"pods/amo"} == {"secrets/crm", "jobs/amo"}, "the Job's pod may have gone before, with its kubelet"
    assert scene.secret("crm-credentials") == {}
    assert KEYRING in {each.metadata["name"] for each in stored(scene.server, scene.namespace)}
    assert accepted
    assert scene.pods[0].accepts("crm") == accepted
    scene.operator()
    scene.let_rounds_pass()
    assert scene.document("crm")["keys"], "it may be about to be restored"
    scene.operator(AMO_OPERATOR_UNSEEN_SECONDS="1")
    scene.until(lambda: scene.document("crm")["keys"] == [])
