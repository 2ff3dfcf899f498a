"""The chart: what it renders by default and by values, what it refuses, and what it says of itself."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from amo_receiver.amocrm.keyring_file import parse_source
from chart.rendering import (
    CHART,
    FULLNAME,
    NAMESPACE,
    RELEASE,
    component,
    containers,
    is_hook,
    of_kind,
    one,
    pods,
    refusal,
    rendered,
)
from chart.scoreboard import COLUMNS, SCOREBOARD, broken, score, unrestricted
from chart.written import README, SCHEMA, VALUES, as_text, documented, readme, schema
from kube.operators import documented_rules

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = CHART.parents[1]
WITHOUT_OPERATOR = {"operator": {"enabled": False}}
EXTERNAL = {"database": {"existingSecret": "own-database"}}
MONITORED = {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}
FULL = {**MONITORED, "worker": {"enabled": True}, "ingress": {"enabled": True}, "otel": {"endpoint": "http://collector:4318"}}
VARIANTS = {
    "default": {},
    "everything": FULL,
    "external": EXTERNAL,
    "without-operator": WITHOUT_OPERATOR,
    "without-pooler": {"pgbouncer": {"enabled": False}},
}
REF = {"name": "crm", "clientId": "c", "clientSecretRef": {"name": "amocrm-crm"}, "urlKey": {}}


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_marks_in_every_column_of_the_scoreboard(variant: str, record_property: Callable[[str, object], None]) -> None:
    """What charts are measured by: restricted pods, requests, read-only roots, digests, rights, policies, budgets."""
    found = score(rendered(VARIANTS[variant]))
    record_property(SCOREBOARD, [variant, *(found[column].shown for column in COLUMNS)])
    assert {column: mark.missing for column, mark in found.items() if mark.missing} == {}


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_every_reference_leads_to_something(values: dict[str, Any]) -> None:
    """A Secret, ConfigMap, ServiceAccount or volume that a pod names is rendered, the operator's, or the user's own."""
    objects = rendered(values)
    there = {(each["kind"], each["metadata"]["name"]) for each in objects}
    there |= {("Secret", f"{FULLNAME}-keyring"), ("Secret", "own-database")}
    for name, pod in pods(objects):
        spec = pod["spec"]
        wanted = {("ServiceAccount", spec["serviceAccountName"])}
        for volume in spec.get("volumes", []):
            wanted |= {("Secret", volume["secret"]["secretName"])} if "secret" in volume else set()
            wanted |= {("ConfigMap", volume["configMap"]["name"])} if "configMap" in volume else set()
        volumes = {each["name"] for each in spec.get("volumes", [])} | {"data"}
        for container in containers(pod):
            sources = [each.get("valueFrom", {}) for each in container.get("env", [])]
            wanted |= {("Secret", each["secretKeyRef"]["name"]) for each in sources if "secretKeyRef" in each}
            assert {each["name"] for each in container.get("volumeMounts", [])} <= volumes, name
        assert wanted <= there, name


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_selectors_select_their_own_pods_only(values: dict[str, Any]) -> None:
    """A Service, budget or policy of a component reaches the pods of that component of this release, and each Service some pod."""
    objects = rendered(values)
    labels = [pod["metadata"]["labels"] for _, pod in pods(objects)]
    for each in of_kind(objects, "Service", "PodDisruptionBudget"):
        selector = each["spec"]["selector"].get("matchLabels", each["spec"]["selector"])
        hit = [found for found in labels if selector.items() <= found.items()]
        assert {found["app.kubernetes.io/component"] for found in hit} == {component(each)}, each["metadata"]["name"]
        assert selector["app.kubernetes.io/instance"] == RELEASE


def test_the_operator_s_role_is_the_documented_one() -> None:
    """Line by line the table of operator/README.md, for the names of this release's Secrets; nothing for the whole cluster stays."""
    names = {"secretNames": ["more-credentials"], "inputSecretNames": ["more"]}
    objects = rendered({"integrations": [REF, {"name": "shop", "clientId": "s", "urlKey": {}}], "operator": names})
    written = [f"{FULLNAME}-keyring", "crm-credentials", "shop-credentials", "more-credentials"]
    assert one(objects, "Role", f"{FULLNAME}-operator")["rules"] == documented_rules(written, ["amocrm-crm", "more"])
    (binding,) = of_kind(objects, "RoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": f"{FULLNAME}-operator", "namespace": NAMESPACE}]
    whole = of_kind(objects, "ClusterRole", "ClusterRoleBinding")
    assert whole
    assert all(is_hook(each) for each in whole)


def test_the_hook_may_change_the_two_definitions_only() -> None:
    """And it is gone without `upgradeCRDs`, as everything cluster-wide is without the operator."""
    (role,) = of_kind(rendered(), "ClusterRole")
    definitions = [yaml.safe_load(path.read_text(encoding="utf-8"))["metadata"]["name"] for path in sorted((CHART / "crds").glob("*.yaml"))]
    assert role["rules"] == [
        {
            "apiGroups": ["apiextensions.k8s.io"],
            "resources": ["customresourcedefinitions"],
            "verbs": ["get", "patch"],
            "resourceNames": definitions,
        }
    ]
    for values in ({"operator": {"upgradeCRDs": False}}, WITHOUT_OPERATOR):
        assert of_kind(rendered(values), "ClusterRole", "ClusterRoleBinding") == []


def test_without_the_operator_nothing_has_any_rights() -> None:
    """No Role, no token, no custom resource; a plain Job migrates and the keys stand in a Secret that the service reads."""
    objects = rendered(WITHOUT_OPERATOR)
    assert of_kind(objects, "Role", "RoleBinding", "AmoIntegration", "SchemaMigration") == []
    assert all(pod["spec"]["automountServiceAccountToken"] is False for _, pod in pods(objects))
    (text,) = decoded(one(objects, "Secret", f"{FULLNAME}-static-keyring")).values()
    source = parse_source("default", text)
    assert (source.client_id, source.generation, {key.kind for key in source.keys}) == ("amo-webhooks", 1, {"client_secret", "url_key"})
    volumes = one(objects, "Deployment", FULLNAME)["spec"]["template"]["spec"]["volumes"]
    assert {"name": "keyring", "secret": {"secretName": f"{FULLNAME}-static-keyring", "optional": False}} in volumes


def decoded(secret: dict[str, Any]) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def test_a_migration_job_is_another_one_for_another_image() -> None:
    """A Job cannot be changed: the same work keeps its name, other work gets another."""
    names = [
        each["metadata"]["name"]
        for values in ({}, {"service": {"replicas": 5}}, {"image": {"tag": "2"}}, {"migration": {"targetRevision": "0001"}})
        for each in of_kind(rendered(WITHOUT_OPERATOR | values), "Job")
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_no_pod_waits_for_a_hook(values: dict[str, Any]) -> None:
    """Helm 3 and 4 wait for pods before post-install hooks: whatever pods need is installed beside them."""
    hooks = [each for each in rendered(values) if is_hook(each)]
    assert {each["metadata"]["annotations"]["helm.sh/hook"] for each in hooks} <= {"pre-upgrade", "test"}
    assert not of_kind(hooks, "Secret", "SchemaMigration", "AmoIntegration")
    for each in hooks:
        annotations = each["metadata"]["annotations"]
        assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
        assert (annotations["helm.sh/hook-weight"] == "0") == (each["kind"] in ("Job", "Pod")), each["metadata"]["name"]


def test_what_holds_data_or_secrets_is_kept_on_uninstall() -> None:
    """Else a reinstallation would find its volume with another password."""
    kept = {each["metadata"]["name"] for each in rendered() if "helm.sh/resource-policy" in each["metadata"].get("annotations", {})}
    assert kept == {f"{FULLNAME}-database", f"{FULLNAME}-app"}


def test_one_secret_leads_everybody_to_the_database() -> None:
    """Service and worker through the pooler, the migration directly, pgbouncer's own configuration from the same DSN."""
    objects = rendered(FULL | {"database": {"existingSecret": "own", "urlKey": "dsn"}})
    reference = {"name": "own", "key": "dsn"}
    for name in (FULLNAME, f"{FULLNAME}-worker"):
        (container,) = one(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        env = {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}
        assert (env["DB_URL"], env["DB_POOLER"]) == ({"secretKeyRef": reference}, f"{FULLNAME}-pgbouncer:6432")
    (migration,) = of_kind(objects, "SchemaMigration")
    assert migration["spec"]["databaseSecretRef"] == reference
    (begin,) = one(objects, "Deployment", f"{FULLNAME}-pgbouncer")["spec"]["template"]["spec"]["initContainers"]
    assert begin["env"] == [{"name": "DB_URL", "valueFrom": {"secretKeyRef": reference}}]
    assert of_kind(objects, "StatefulSet") == []


def test_another_database_is_another_migration() -> None:
    """A SchemaMigration cannot be turned to another database."""
    databases = ({}, EXTERNAL, {"database": {"existingSecret": "b"}}, {"database": {"existingSecret": "b", "urlKey": "x"}})
    names = [of_kind(rendered(values), "SchemaMigration")[0]["metadata"]["name"] for values in databases]
    assert len(set(names)) == 4


def test_the_service_is_replaced_gracefully() -> None:
    """Never one pod less, and a pod that ends listens on until load balancers have forgotten it."""
    spec = one(rendered(), "Deployment", FULLNAME)["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert spec["replicas"] == 2
    (container,) = spec["template"]["spec"]["containers"]
    drain = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 0 < drain < spec["template"]["spec"]["terminationGracePeriodSeconds"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "management"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "management"}
    assert "replicas" not in one(rendered({"service": {"autoscaling": {"enabled": True}}}), "Deployment", FULLNAME)["spec"]


@pytest.mark.parametrize(
    "values", [{"ingress": {"enabled": True}}, {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}}], ids=str
)
def test_only_the_api_is_led_in_from_outside(values: dict[str, Any]) -> None:
    """Nothing but `/api/`, to the Service that has no management port."""
    objects = rendered(values)
    (found,) = of_kind(objects, "Ingress", "HTTPRoute")
    assert re.findall(r"'(?:path|value)': '([^']+)'", str(found["spec"])) == ["/api/"]
    (public,) = [each for each in of_kind(objects, "Service") if each["metadata"]["name"] == FULLNAME]
    assert [each["targetPort"] for each in public["spec"]["ports"]] == ["http"]


def test_the_management_port_is_open_to_operator_and_monitoring_only() -> None:
    """Even where nobody is named who may send."""
    (policy,) = [each for each in of_kind(rendered(), "NetworkPolicy") if each["metadata"]["name"] == f"{FULLNAME}-service"]
    rules = {rule["ports"][0]["port"]: [] for rule in policy["spec"]["ingress"]}
    for rule in policy["spec"]["ingress"]:
        rules[rule["ports"][0]["port"]] += rule.get("from", ["anybody"])
    assert rules[8000] == ["anybody"]
    assert [each["podSelector"]["matchLabels"].get("app.kubernetes.io/component") for each in rules[9000]] == ["operator", None]
    assert rules.keys() == {8000, 9000}


def test_all_alerts_and_dashboards_are_installed() -> None:
    """Each file is a group of rules, whoever adds one."""
    objects = rendered(MONITORED)
    (rules,) = of_kind(objects, "PrometheusRule")
    assert [each["name"] for each in rules["spec"]["groups"]] == [path.stem for path in sorted((CHART / "alerts").iterdir())]
    shown = one(objects, "ConfigMap", f"{FULLNAME}-dashboards")["data"]
    assert len(shown) == len(list((CHART / "dashboards").glob("*.json")))
    assert all(json.loads(text)["title"] for text in shown.values())


def test_large_numbers_reach_the_service_as_they_are() -> None:
    """Helm reads numbers as floats, which print as 1.048576e+06."""
    objects = rendered({"settings": {"MAX_BODY_BYTES": 1048576, "WORKER_POLL_SECONDS": 0.5, "DOCS_ENABLED": False}})
    (container,) = one(objects, "Deployment", FULLNAME)["spec"]["template"]["spec"]["containers"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    assert (env["MAX_BODY_BYTES"], env["WORKER_POLL_SECONDS"], env["DOCS_ENABLED"]) == ("1048576", "0.5", "false")


def test_names_that_look_like_numbers_are_text() -> None:
    """Kubernetes takes no number for a label or a name."""
    objects = rendered({"integrations": [{"name": "2025", "clientId": "c", "urlKey": {}}]}, release="123")
    assert of_kind(objects, "AmoIntegration")[0]["metadata"]["name"] == "2025"
    labels = [pod["metadata"]["labels"] for _, pod in pods(objects)]
    assert {each["app.kubernetes.io/instance"] for each in labels} == {"123"}


@pytest.mark.parametrize(
    ("endpoint", "port"), [("http://collector:4318", 4318), ("https://otel.example.com", 443), ("https://otel.example.com:8443/v1", 8443)]
)
def test_the_collector_is_reached_at_its_endpoint_s_port(endpoint: str, port: int) -> None:
    """Else telemetry would be lost without a word."""
    policy = one(rendered({"otel": {"endpoint": endpoint}}), "NetworkPolicy", f"{FULLNAME}-service")
    assert [{"port": port}] in [rule["ports"] for rule in policy["spec"]["egress"]]


def test_a_plain_migration_job_waits_for_a_database_that_comes_up() -> None:
    """It is not given up on before its deadline."""
    (job,) = of_kind(rendered(WITHOUT_OPERATOR | {"migration": {"activeDeadline": "1h30m"}}), "Job")
    assert (job["spec"]["activeDeadlineSeconds"], job["spec"]["backoffLimit"]) == (5400, 20)


def test_what_is_unsafe_would_be_noticed() -> None:
    """The scoreboard sees each of these in one container of one pod."""
    name, pod = next(pods(rendered()))
    for change in (
        {"allowPrivilegeEscalation": True},
        {"capabilities": {}},
        {"runAsNonRoot": False},
        {"runAsUser": 0},
        {"privileged": True},
    ):
        assert unrestricted(broken(pod, change)), (name, change)
    assert unrestricted(pod) == []


def test_values_for_production_render() -> None:
    """As they stand, with the Secrets that they name."""
    objects = rendered(None, "--values", str(CHART / "values-prod.yaml"))
    assert of_kind(objects, "StatefulSet") == []
    assert {each["kind"] for each in objects} >= {"Ingress", "HorizontalPodAutoscaler", "ServiceMonitor", "PrometheusRule"}
    assert {column: mark.missing for column, mark in score(objects).items() if mark.missing} == {}


# What is refused


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"ingress": {"enabled": True}, "httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}}, "exclude each other"),
        ({"httpRoute": {"enabled": True}}, "needs httpRoute.parentRefs"),
        ({"service": {"autoscaling": {"enabled": True, "minReplicas": 9}}}, "minReplicas is more than"),
        ({"service": {"drainSeconds": 30}}, "killed before it has ended"),
        ({"keyring": {"existingSecret": "k"}}, "needs operator.enabled=false"),
        ({"integrations": [REF, REF]}, "has crm twice"),
        ({"podLabels": {"app.kubernetes.io/instance": "x"}}, "by which pods are selected"),
        ({"pgbouncer": {"settings": {"pool_mode": "session"}}}, "which the chart sets itself"),
        ({"extraEnv": [{"name": "LOG_FORMAT", "value": "text"}]}, "and so has settings"),
        ({"integrations": [REF | {"clientSecret": {"generate": True}}]}, "either generated or read"),
        ({"integrations": [{"name": "a", "clientId": "c"}]}, "has no key"),
        (WITHOUT_OPERATOR | {"integrations": [REF]}, "which only the operator reads"),
        (WITHOUT_OPERATOR | {"integrations": []}, "nobody could send"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_contradictions_are_refused_in_a_sentence(values: dict[str, Any], sentence: str) -> None:
    """Before anything is changed in the cluster."""
    assert sentence in refusal(values)


@pytest.mark.parametrize("name", ["httpRoute", "serviceMonitor", "prometheusRule"])
def test_a_resource_that_the_cluster_does_not_know_is_refused_in_a_sentence(name: str) -> None:
    """It says what to install first."""
    values = {name: {"enabled": True} | ({"parentRefs": [{"name": "g"}]} if name == "httpRoute" else {})}
    assert f"{name}.enabled, but the cluster knows no" in refusal(values, apis=())


@pytest.mark.parametrize(
    ("values", "path", "word"),
    [
        ({"replicas": 2}, "at ''", "replicas"),
        ({"service": {"replcas": 2}}, "at '/service'", "replcas"),
        ({"service": {"replicas": "2"}}, "at '/service/replicas'", "integer"),
        ({"settings": {"LOG_LEVL": "INFO"}}, "at '/settings'", "LOG_LEVL"),
        ({"settings": {"LOG_LEVEL": "LOUD"}}, "at '/settings/LOG_LEVEL'", "one of"),
        ({"integrations": [REF | {"acounts": []}]}, "at '/integrations/0'", "acounts"),
        ({"postgres": {"image": {"digest": "abc"}}}, "at '/postgres/image/digest'", "pattern"),
        ({"postgres": {"runAsUser": 0}}, "at '/postgres/runAsUser'", "minimum"),
        ({"networkPolicy": {"ingress": [{}]}}, "at '/networkPolicy/ingress/0'", "minProperties"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_typo_is_refused_with_its_path(values: dict[str, Any], path: str, word: str) -> None:
    """Instead of being ignored."""
    said = refusal(values)
    assert path in said
    assert word in said


# What is written twice


def test_the_readme_s_table_is_that_of_the_values() -> None:
    """`PYTHONPATH=tests python -m chart.written` writes it anew."""
    assert README.read_text(encoding="utf-8") == readme()


def test_the_schema_knows_the_service_s_settings_and_the_integration_s_fields() -> None:
    """A setting or field that is new in the code can be given by values; the same command writes them."""
    assert SCHEMA.read_text(encoding="utf-8") == as_text(schema())


def test_every_value_has_a_sentence_and_a_place_in_the_schema() -> None:
    """A value without either could not be found, or not be set."""
    described = {path: meaning for path, meaning, _ in documented(VALUES.read_text(encoding="utf-8"))}
    assert [path for path, meaning in described.items() if not re.search(r"\S{2}[.`]$", meaning)] == []
    assert list(undescribed(yaml.safe_load(VALUES.read_text(encoding="utf-8")), described)) == []
    values, known = json.loads(SCHEMA.read_text(encoding="utf-8")), described | {"global": ""}
    assert values["properties"].keys() == {path.split(".")[0] for path in known}


def undescribed(values: dict[str, Any], described: dict[str, str], above: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        path = f"{above}{name}"
        if path not in described:
            found += undescribed(value, described, f"{path}.") if isinstance(value, dict) and value else [path]
    return found


def test_the_schema_refuses_what_it_does_not_name() -> None:
    """Everywhere but in what is Kubernetes' own."""
    assert list(lax(json.loads(SCHEMA.read_text(encoding="utf-8")))) == []


def lax(part: dict[str, Any]) -> list[str]:
    found = [str(list(part["properties"]))] if "properties" in part and part.get("additionalProperties") is not False else []
    for each in part.values():
        if isinstance(each, dict):
            found += lax(each)
    return found


def test_the_chart_s_version_is_the_project_s() -> None:
    """Empty tags are the appVersion: images and chart of one release go together."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (project, project)
    (container,) = one(rendered(), "Deployment", FULLNAME)["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"amo-webhooks:{project}"
