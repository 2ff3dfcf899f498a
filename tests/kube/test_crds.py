"""The custom resources on a real API server: what it refuses and says, what it fills in, what it shows."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from amo_operator.conditions import Standing, conditions
from amo_operator.spec import parse_integration, parse_migration
from amo_operator.status import AmoIntegrationStatus, SchemaMigrationStatus
from custom_resources import (
    ALLOWED_CHANGES,
    API_VERSION,
    GENERATED,
    INTEGRATION,
    MIGRATE,
    MIGRATION,
    PLURALS,
    REF,
    REFUSED_CHANGES,
    RIGHT,
    URL,
    WRONG,
    Change,
    Example,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kube.apiserver import ApiServer

PARSERS = {INTEGRATION: parse_integration, MIGRATION: parse_migration}
TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
APPLY = {"Content-Type": "application/apply-patch+yaml"}
NOW = datetime(2026, 11, 22, 22, tzinfo=UTC)
STATUSES: dict[str, dict[str, Any]] = {
    INTEGRATION: {
        "observedGeneration": 1,
        "generation": 7,
        "keys": [
            {
                "kind": "url_key",
                "fingerprint": "0123456789ab",
                "state": "previous",
                "since": "2026-11-22T22:00:00Z",
                "notAfter": "2026-11-29T22:00:00.123456Z",
                "lastMatched": "2026-11-22T22:00:00Z",
            }
        ],
        "pods": [
            {"name": "a", "generation": 7, "inStep": True},
            {"name": "b", "inStep": False, "problem": "no answer"},
        ],
        "nextRotation": "2027-02-20T22:00:00Z",
        "action": "Enter the new URL in amoCRM.",
        "credentialsSecret": "example-credentials",
    },
    MIGRATION: {
        "observedGeneration": 1,
        "currentRevision": "0001",
        "targetRevision": "head",
        "completedHash": "0123456789ab",
        "completedAt": "2026-11-22T22:00:00Z",
        "completedJobMadeAt": "2026-11-22T21:59:50Z",
        "outcome": "Upgraded",
        "job": "amo-migrate-0123456789ab",
        "jobMadeAt": "2026-11-22T21:59:50Z",
        "tries": 2,
        "nextTry": "2026-11-22T22:00:10Z",
        "blockers": [{"pid": 1, "state": "idle in transaction", "ageSeconds": 12, "query": "0123456789ab"}],
        "lastError": "42P01: relation does not exist",
    },
}


@pytest.fixture
def http(apiserver: ApiServer, crds: list[str]) -> Iterator[httpx2.Client]:
    """Return a client of the administrator's, to which a refusal is an answer like any other."""
    with httpx2.Client(base_url=apiserver.url, verify=apiserver.client_context(), trust_env=False, timeout=30) as client:
        yield client


def collection(kind: str, namespace: str) -> str:
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURALS[kind]}"


def one(kind: str, namespace: str) -> str:
    return f"{collection(kind, namespace)}/example"


def made(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.is_success, answer.text
    return answer.json()


def refused(answer: httpx2.Response) -> list[tuple[str, str]]:
    """Return the paths and sentences of a refusal."""
    assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY, answer.text
    return [(cause["field"], cause["message"]) for cause in answer.json()["details"]["causes"]]


def dry(http: httpx2.Client, example: Example) -> httpx2.Response:
    """Let the server check an example without keeping it."""
    return http.post(collection(example.kind, "default"), params={"dryRun": "All", "fieldValidation": "Strict"}, json=example.manifest())


@pytest.mark.parametrize("example", RIGHT, ids=repr)
def test_what_models_read_is_taken_and_means_the_same(http: httpx2.Client, example: Example) -> None:
    """With its defaults filled in by the server a resource is read as it is without them, and the operator has not seen it."""
    kept = made(dry(http, example))
    parse = PARSERS[example.kind]
    assert parse(kept) == parse(example.manifest())
    assert kept["status"] == {"observedGeneration": -1}


@pytest.mark.parametrize("example", WRONG, ids=lambda each: f"{each.path} {each.said}")
def test_what_models_refuse_is_refused_with_the_same_words(http: httpx2.Client, example: Example) -> None:
    """A person reads at once, where they write it, what the operator would say later."""
    causes = refused(dry(http, example))
    assert all(path.startswith(example.path or "<nil>") or path == "<nil>" for path, _ in causes), causes
    assert any(f"Invalid value: {example.said}" in said if example.said else path.startswith(example.path) for path, said in causes), causes


@pytest.mark.parametrize("change", REFUSED_CHANGES, ids=lambda each: f"{each.path} {each.said}")
def test_some_changes_are_refused(http: httpx2.Client, namespace: str, change: Change) -> None:
    """What an object stands for stays; the refusal says what to do instead, and nothing is changed."""
    kept = made(http.post(collection(change.kind, namespace), json=Example(change.kind, change.before).manifest()))
    answer = http.put(one(change.kind, namespace), json=kept | {"spec": change.after})
    assert any(path == change.path and said.startswith(f"Invalid value: {change.said}") for path, said in refused(answer))
    assert made(http.get(one(change.kind, namespace)))["spec"] == kept["spec"]


@pytest.mark.parametrize(("before", "after"), ALLOWED_CHANGES)
def test_other_changes_are_taken(http: httpx2.Client, namespace: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """A secret may lie elsewhere from now on, and a kind of key be added, or the URL key taken away."""
    kept = made(http.post(collection(INTEGRATION, namespace), json=Example(INTEGRATION, before).manifest()))
    changed = made(http.put(one(INTEGRATION, namespace), json=kept | {"spec": after}))
    assert changed["metadata"]["generation"] == 2


def test_defaults_are_filled_in(http: httpx2.Client) -> None:
    """Whoever looks sees every duration that is in force."""
    durations = {"overlap": "1d", "maxOverlap": "7d", "quietPeriod": "1h"}
    spec = made(dry(http, Example(INTEGRATION, {**REF, "urlKey": {}})))["spec"]
    assert spec == {
        "clientId": "c0ffee",
        "clientSecretRef": {"name": "amocrm", "key": "client_secret"},
        "urlKey": {"rotateEvery": "90d"},
        "paused": False,
        **durations,
    }
    assert made(dry(http, Example(INTEGRATION, GENERATED)))["spec"]["clientSecret"] == {"generate": True, "rotateEvery": "90d"}
    assert made(dry(http, Example(MIGRATION, MIGRATE)))["spec"] == {
        "image": "amo-webhooks:1",
        "databaseSecretRef": {"name": "database", "key": "url"},
        "targetRevision": "head",
        "lockTimeout": "500ms",
        "backoffLimit": 3,
        "activeDeadline": "1h",
        "paused": False,
    }


@pytest.mark.parametrize("kind", PLURALS)
def test_spec_and_status_are_written_apart(http: httpx2.Client, namespace: str, kind: str) -> None:
    """Who may write specs cannot claim a status, and the operator's statuses neither change a spec nor its generation."""
    spec = {INTEGRATION: URL, MIGRATION: MIGRATE}[kind]
    claimed = Example(kind, spec).manifest() | {"status": STATUSES[kind]}
    kept = made(http.post(collection(kind, namespace), json=claimed))
    assert kept["status"] == {"observedGeneration": -1}
    shown = made(http.put(f"{one(kind, namespace)}/status", json=kept | {"spec": {**spec, "paused": True}, "status": STATUSES[kind]}))
    assert shown["status"] == STATUSES[kind]
    assert (shown["spec"], shown["metadata"]["generation"]) == (kept["spec"], 1)
    changed = made(http.put(one(kind, namespace), json=shown | {"spec": {**spec, "paused": True}, "status": {"observedGeneration": 9}}))
    assert (changed["status"], changed["metadata"]["generation"]) == (STATUSES[kind], 2)


@pytest.mark.parametrize(("kind", "model"), [(INTEGRATION, AmoIntegrationStatus), (MIGRATION, SchemaMigrationStatus)])
def test_a_status_is_applied_whole_and_read_again(http: httpx2.Client, namespace: str, kind: str, model: Any) -> None:
    """Server-side apply takes a full status with its conditions, and what the next one leaves out goes."""
    made(http.post(collection(kind, namespace), json=Example(kind, {INTEGRATION: URL, MIGRATION: MIGRATE}[kind]).manifest()))
    full = STATUSES[kind] | {"conditions": conditions(Standing("InStep", "All is well.", is_ready=True), [], 1, NOW)}
    assert set(full) == {field.alias for field in model.model_fields.values()}, "every field is shown here"

    def apply(status: dict[str, Any]) -> dict[str, Any]:
        manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "example"}, "status": status}
        params = {"fieldManager": "amo-operator", "force": "true", "fieldValidation": "Strict"}
        return made(http.patch(f"{one(kind, namespace)}/status", params=params, json=manifest, headers=APPLY))

    shown = apply(full)
    assert shown["status"] == full
    assert PARSERS[kind](shown).status == model.model_validate(full)
    assert apply({"observedGeneration": 1})["status"] == {"observedGeneration": 1}


@pytest.mark.parametrize("kind", PLURALS)
def test_unknown_fields_are_refused_when_asked_to(http: httpx2.Client, namespace: str, kind: str) -> None:
    """A misspelt field is an error with kubectl's and Helm's strict validation, and dropped without; in a status as well."""
    misspelt = Example(kind, {INTEGRATION: URL, MIGRATION: MIGRATE}[kind]).manifest(pausd=True)
    answer = http.post(collection(kind, namespace), params={"fieldValidation": "Strict"}, json=misspelt)
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert 'unknown field "spec.pausd"' in answer.json()["message"]
    kept = made(http.post(collection(kind, namespace), json=misspelt))
    assert "pausd" not in kept["spec"]
    answer = http.put(f"{one(kind, namespace)}/status", params={"fieldValidation": "Strict"}, json=kept | {"status": {"redy": True}})
    assert 'unknown field "status.redy"' in answer.json()["message"]


def test_a_containers_resources_are_passed_on(http: httpx2.Client) -> None:
    """They are Kubernetes' own and not checked here."""
    resources = {"requests": {"cpu": "50m", "memory": 1}, "claims": [{"name": "x"}]}
    assert made(dry(http, Example(MIGRATION, {**MIGRATE, "resources": resources})))["spec"]["resources"] == resources


def test_the_printed_columns_say_how_it_stands(http: httpx2.Client, namespace: str) -> None:
    """``kubectl get`` shows readiness and what matters; what a person has to do is seen with ``-o wide``."""
    shown = {}
    for kind, spec in ((INTEGRATION, URL), (MIGRATION, MIGRATE)):
        kept = made(http.post(collection(kind, namespace), json=Example(kind, spec).manifest()))
        status = STATUSES[kind] | {"conditions": conditions(Standing("InStep", "All is well.", is_ready=True), [], 1, NOW)}
        made(http.put(f"{one(kind, namespace)}/status", json=kept | {"status": status}))
        table = made(http.get(collection(kind, namespace), headers=TABLE))
        names = [column["name"] + ("*" if column["priority"] else "") for column in table["columnDefinitions"]]
        shown[kind] = dict(zip(names, table["rows"][0]["cells"], strict=True))
    ages = [shown[kind].pop("Age") for kind in shown]
    assert all(age.endswith("s") for age in ages), ages
    assert shown[INTEGRATION] == {
        "Name": "example",
        "Ready": "True",
        "Reason": "InStep",
        "Keyring": 7,
        "Next rotation": "2027-02-20T22:00:00Z",
        "Action*": "Enter the new URL in amoCRM.",
    }
    assert shown[MIGRATION] == {"Name": "example", "Ready": "True", "Reason": "InStep", "Revision": "0001", "Image": "amo-webhooks:1"}


def test_short_names_and_the_category_are_served(http: httpx2.Client) -> None:
    """``kubectl get amoint``, ``kubectl get schemamig`` and ``kubectl get amo`` work."""
    found = {each["name"]: each for each in made(http.get(f"/apis/{API_VERSION}"))["resources"]}
    assert {name: (each["shortNames"], each["categories"]) for name, each in found.items() if "/" not in name} == {
        "amointegrations": (["amoint"], ["amo"]),
        "schemamigrations": (["schemamig"], ["amo"]),
    }
    assert {"amointegrations/status", "schemamigrations/status"} <= found.keys()


def test_several_people_list_accounts_together(http: httpx2.Client, namespace: str) -> None:
    """Lists of the spec are sets: what one manager applies does not take away what another one did."""
    for manager, accounts in (("one", ["1", "2"]), ("two", ["2", "3"])):
        manifest = Example(INTEGRATION, URL).manifest(accounts=accounts)
        made(http.patch(one(INTEGRATION, namespace), params={"fieldManager": manager}, json=manifest, headers=APPLY))
    assert made(http.get(one(INTEGRATION, namespace)))["spec"]["accounts"] == ["1", "2", "3"]
