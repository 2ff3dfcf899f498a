"""The operator may do what its README says, needs all of it, and does nothing else."""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from kube.access import Access, is_allowed, unused
from kube.kubelet import PROGRAMS
from kube.operators import KEYRING, documented_rules, integration, schema_migration
from kube.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kube.apiserver import ApiServer
    from kube.conftest import KubeconfigFor
    from kube.kubelet import Kubelet
    from kube.proxy import Proxy

NAME, INPUT, MIGRATION = "crm-main", "crm-input", "SchemaMigration"
SECRETS = [KEYRING, f"{NAME}-credentials"]
FAILED = {"outcome": "Failed", "from": None, "to": None, "blockers": [], "error": "42P01: no such table"}
FAIL = f"import sys; open(sys.argv[-1], 'w').write({json.dumps(json.dumps(FAILED))}); sys.exit(1)"
ACCOUNT = "amo-operator"
HARD_TO_MISS = {"create events"}
"""What is refused here, and watches, does not keep keys and databases from what they need: people and the clock notice later."""
DENIALS, DENIED_WITHIN_S = 3, 60.0
"""After so many the rounds go on without this right, and what is settled by then did not need it."""
_numbers = count(1)


@pytest.fixture
def scene(
    apiserver: ApiServer, crds: list[str], namespace: str, kubelet: Kubelet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    """Return a namespace where every migration fails, so that its Job has to be taken away too."""
    monkeypatch.setitem(PROGRAMS, "amo-webhooks", [sys.executable, "-c", FAIL])
    with Scene(apiserver, namespace, tmp_path, kubelet) as scene:
        scene.write_secret("database", url="postgresql://nobody@127.0.0.1:1/none")
        scene.write_secret(INPUT, client_secret="the-secret-of-amocrm")
        scene.pod("pod-a")
        yield scene


def without(rules: list[dict[str, Any]], verb: str, group: str, resource: str) -> list[dict[str, Any]]:
    """Return the rules with one verb on one resource taken out, in whatever rules it stands."""
    left = []
    for rule in rules:
        for each in rule["resources"]:
            verbs = [one for one in rule["verbs"] if (one, rule["apiGroups"][0], each) != (verb, group, resource)]
            left.append({**rule, "resources": [each], "verbs": verbs})
    return [rule for rule in left if rule["verbs"]]


def everything(rules: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return each verb on each resource once."""
    return sorted({(verb, rule["apiGroups"][0], resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]})


def begin(scene: Scene) -> None:
    """Create both custom resources and wait for what becomes of them."""
    scene.apply(integration(NAME, clientSecretRef={"name": INPUT}, urlKey={}))
    scene.apply(schema_migration("schema", backoffLimit=0))
    scene.until(lambda: is_settled(scene))


def is_settled(scene: Scene) -> bool:
    """Tell whether everything was done that was asked for."""
    keys = scene.keys(NAME)
    has_keys = len(keys.get(("url_key", "current"), [])) == 1 and not {key for key in keys if key[1] in ("next", "previous")}
    told = scene.secret(f"{NAME}-credentials").get("generation") == str(scene.status(NAME).get("generation"))
    stalled = scene.reason("schema", MIGRATION, "Stalled") == "True MigrationFailed"
    return has_keys and told and stalled and scene.reason(NAME) == "True InStep"


def demand_everything(scene: Scene, proxy: Proxy) -> None:
    """Give reason for every kind of call: a new keyring, lost credentials, another try of the migration, new watches."""
    (current,) = scene.keys(NAME)["url_key", "current"]
    scene.delete_secret(f"{NAME}-credentials")
    scene.change(NAME, revoke=[*scene.get(NAME)["spec"].get("revoke", []), current])
    scene.change("schema", MIGRATION, activeDeadline=f"{1000 + next(_numbers)}s")
    proxy.cut_watches()


def test_every_documented_right_is_used_and_no_other(scene: Scene, proxy: Proxy, kubeconfig_for: KubeconfigFor) -> None:
    """A run of everything uses each verb that the README's table grants, no other one, and none outside of its namespace."""
    rules = documented_rules(SECRETS, [INPUT])
    scene.operator(kubeconfig_for(ACCOUNT, rules, url=proxy.url))
    begin(scene)
    demand_everything(scene, proxy)
    scene.until(lambda: is_settled(scene) and proxy.watches() == 2)
    accesses = proxy.accesses()
    assert [access for access in accesses if not is_allowed(access, rules)] == []
    assert unused(accesses, rules) == []
    assert {access.namespace for access in accesses} == {scene.namespace}
    assert [call for call in proxy.calls if call.status == 403] == []


@pytest.mark.timeout(400)
def test_no_right_can_be_missed(scene: Scene, proxy: Proxy, kubeconfig_for: KubeconfigFor) -> None:
    """Without any one of the verbs not everything that is asked for can be done, and with it again it is."""
    rules = documented_rules(SECRETS, [INPUT])
    operator = scene.operator(kubeconfig_for(ACCOUNT, rules, url=proxy.url))
    begin(scene)
    for verb, group, resource in everything(rules):
        missing = f"{verb} {group}/{resource}"
        kubeconfig_for(ACCOUNT, without(rules, verb, group, resource))
        proxy.forget()
        demand_everything(scene, proxy)
        about = partial(is_about, verb=verb, group=group, resource=resource)
        is_hard_to_miss = f"{verb} {resource}" in HARD_TO_MISS or verb == "watch"
        wanted = 1 if is_hard_to_miss else DENIALS
        scene.until(lambda about=about, wanted=wanted: sum(map(about, denied(proxy))) >= wanted, DENIED_WITHIN_S)
        assert [each for each in denied(proxy) if not about(each)] == [], missing
        assert is_hard_to_miss or not is_settled(scene), missing
        kubeconfig_for(ACCOUNT, rules)
        if operator.process.poll() is not None:  # the cluster starts it anew
            operator.start()
        scene.until(lambda: is_settled(scene) and proxy.watches() == 2)


def denied(proxy: Proxy) -> list[Access]:
    """Return every call that was refused."""
    return [call.access for call in proxy.calls if call.status == 403 and call.access]


def is_about(access: Access, verb: str, group: str, resource: str) -> bool:
    """Tell whether a call needs this right; an apply that would make its object needs ``create`` too."""
    is_verb = access.verb == verb or (verb == "create" and access.verb == "patch")
    return is_verb and (access.group, access.ruled) == (group, resource)


def test_a_secret_that_the_role_does_not_name_is_told(scene: Scene, kubeconfig_for: KubeconfigFor) -> None:
    """An integration that was added past the chart says what it lacks, and does not hold up the others."""
    scene.operator(kubeconfig_for(ACCOUNT, documented_rules(SECRETS, [INPUT])))
    scene.apply(integration("crm-unknown"))
    scene.until(lambda: scene.reason("crm-unknown") == "False Refused")
    assert "Role" in scene.message("crm-unknown")
    begin(scene)
