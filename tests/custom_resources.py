"""Custom resources as people write them, right and wrong: what the API server and the operator's models must agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INTEGRATION, MIGRATION = "AmoIntegration", "SchemaMigration"
PLURALS = {INTEGRATION: "amointegrations", MIGRATION: "schemamigrations"}
API_VERSION = "amo-webhooks.io/v1alpha1"

REF = {"clientId": "c0ffee", "clientSecretRef": {"name": "amocrm"}}
GENERATED = {"clientId": "c0ffee", "clientSecret": {"generate": True}}
URL = {"clientId": "c0ffee", "urlKey": {}}
MIGRATE = {"image": "amo-webhooks:1", "databaseSecretRef": {"name": "database"}}
TOO_EARLY = "rotateEvery must be longer than maxOverlap"
ONCE = "once set, cannot be taken away"


@dataclass(frozen=True)
class Example:
    """A resource; ``path`` is where it is wrong, and ``said`` begins the sentence of the rule that it breaks, if one does."""

    kind: str
    spec: dict[str, Any]
    path: str = ""
    said: str = ""
    name: str = "example"

    def manifest(self, **spec: Any) -> dict[str, Any]:
        """Return it as it is applied."""
        return {"apiVersion": API_VERSION, "kind": self.kind, "metadata": {"name": self.name}, "spec": {**self.spec, **spec}}


@dataclass(frozen=True)
class Change:
    """An update that is refused."""

    kind: str
    before: dict[str, Any]
    after: dict[str, Any]
    path: str
    said: str


RIGHT = [
    Example(INTEGRATION, REF),
    Example(INTEGRATION, GENERATED),
    Example(INTEGRATION, URL),
    Example(
        INTEGRATION, {**REF, "urlKey": {"rotateEvery": "8d"}, "accounts": ["31337", "acme"], "revoke": ["0123456789ab"], "paused": True}
    ),
    Example(INTEGRATION, {**REF, "clientSecretRef": {"name": "crm.secrets", "key": "client-secret"}}, name="n" * 63),
    Example(INTEGRATION, {**URL, "overlap": "7d", "maxOverlap": "168h", "quietPeriod": "10080m"}),
    Example(INTEGRATION, {**URL, "overlap": "0s", "quietPeriod": "0s"}),
    Example(INTEGRATION, {**URL, "overlap": "1d12h30m5s", "maxOverlap": "36h30m5s"}),
    Example(INTEGRATION, {**URL, "urlKey": {"rotateEvery": "99999d999d"}, "maxOverlap": "99999d"}),
    Example(INTEGRATION, {**URL, "accounts": None}),
    Example(MIGRATION, MIGRATE),
    Example(
        MIGRATION, {**MIGRATE, "targetRevision": "0002", "lockTimeout": "5s", "backoffLimit": 0, "activeDeadline": "6s", "paused": True}
    ),
    Example(MIGRATION, {**MIGRATE, "lockTimeout": "100ms", "backoffLimit": 10, "imagePullSecrets": ["registry"]}),
    Example(MIGRATION, {**MIGRATE, "resources": {"requests": {"cpu": "50m"}, "limits": {"memory": "256Mi", "example.com/gpu": 1}}}),
    Example(
        MIGRATION,
        {
            **MIGRATE,
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"operator": "Exists"}],
            "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
        },
    ),
]

WRONG = [
    Example(INTEGRATION, {**URL, "clientId": "c0ffee|1"}, "spec.clientId", "clientId has visible ASCII characters only"),
    Example(INTEGRATION, {**URL, "clientId": "кофе"}, "spec.clientId", "clientId has visible ASCII characters only"),
    Example(INTEGRATION, {**GENERATED, **REF}, "spec.clientSecret", "clientSecret and clientSecretRef exclude each other"),
    Example(INTEGRATION, {"clientId": "c0ffee"}, "spec", "set clientSecretRef, clientSecret or urlKey"),
    Example(INTEGRATION, {**URL, "overlap": "8d"}, "spec.overlap", "overlap must not be longer than maxOverlap"),
    Example(INTEGRATION, {**URL, "overlap": "36h1s", "maxOverlap": "1d12h"}, "spec.overlap", "overlap must not be longer than maxOverlap"),
    Example(INTEGRATION, {**URL, "overlap": "0s", "quietPeriod": "0s", "maxOverlap": "0s"}, "spec.maxOverlap", "maxOverlap must be longer"),
    Example(INTEGRATION, {**URL, "quietPeriod": "169h"}, "spec.quietPeriod", "quietPeriod must not be longer than maxOverlap"),
    Example(INTEGRATION, {**URL, "urlKey": {"rotateEvery": "7d"}}, "spec.urlKey.rotateEvery", TOO_EARLY),
    Example(
        INTEGRATION, {**GENERATED, "clientSecret": {"generate": True, "rotateEvery": "24h"}}, "spec.clientSecret.rotateEvery", TOO_EARLY
    ),
    Example(INTEGRATION, {**GENERATED, "maxOverlap": "91d"}, "spec.clientSecret.rotateEvery", TOO_EARLY),
    Example(INTEGRATION, {**GENERATED, "clientSecret": {"generate": False}}, "spec.clientSecret.generate", "generate can only be true"),
    Example(
        INTEGRATION, {**REF, "clientSecretRef": {"name": "example-credentials"}}, "spec.clientSecretRef.name", "clientSecretRef cannot name"
    ),
    Example(INTEGRATION, URL, said="the name has at most 63 characters", name="n" * 64),
    Example(INTEGRATION, URL, said="the name must not end in .json", name="sales.json"),
    Example(INTEGRATION, {"urlKey": {}}, "spec.clientId"),
    Example(INTEGRATION, {**URL, "clientId": ""}, "spec.clientId"),
    Example(INTEGRATION, {**URL, "clientId": "c" * 256}, "spec.clientId"),
    Example(INTEGRATION, {**URL, "accounts": []}, "spec.accounts"),
    Example(INTEGRATION, {**URL, "accounts": ["1", "2", "1"]}, "spec.accounts"),
    Example(INTEGRATION, {**URL, "accounts": ["acme.amocrm.ru"]}, "spec.accounts"),
    Example(INTEGRATION, {**URL, "accounts": [str(account) for account in range(1001)]}, "spec.accounts"),
    Example(INTEGRATION, {**URL, "revoke": ["0123456789AB"]}, "spec.revoke"),
    Example(INTEGRATION, {**URL, "revoke": ["0123456789ab"] * 2}, "spec.revoke"),
    Example(INTEGRATION, {**REF, "clientSecretRef": {}}, "spec.clientSecretRef.name"),
    Example(INTEGRATION, {**REF, "clientSecretRef": {"name": "Not_A_Name"}}, "spec.clientSecretRef.name"),
    *(
        Example(INTEGRATION, {**URL, "overlap": text}, "spec.overlap")
        for text in ("", "soon", "1w", "1", "-1h", "1.5h", "1 h", "100ms", "P1D", "100000d", "1d12h30m10s", "1h\n")
    ),
    Example(MIGRATION, {**MIGRATE, "image": ""}, "spec.image"),
    Example(MIGRATION, {**MIGRATE, "image": "amo-webhooks: 1"}, "spec.image"),
    Example(MIGRATION, {"image": "amo-webhooks:1"}, "spec.databaseSecretRef"),
    Example(MIGRATION, {**MIGRATE, "targetRevision": "--sql"}, "spec.targetRevision"),
    Example(MIGRATION, {**MIGRATE, "targetRevision": ""}, "spec.targetRevision"),
    Example(MIGRATION, {**MIGRATE, "backoffLimit": 11}, "spec.backoffLimit"),
    Example(MIGRATION, {**MIGRATE, "backoffLimit": -1}, "spec.backoffLimit"),
    Example(MIGRATION, {**MIGRATE, "lockTimeout": "99ms"}, "spec.lockTimeout", "lockTimeout must be at least 100ms"),
    Example(MIGRATION, {**MIGRATE, "lockTimeout": "5001ms"}, "spec.lockTimeout", "lockTimeout must be at least 100ms"),
    Example(MIGRATION, {**MIGRATE, "lockTimeout": "1m"}, "spec.lockTimeout"),
    Example(
        MIGRATION, {**MIGRATE, "activeDeadline": "5s", "lockTimeout": "5s"}, "spec.activeDeadline", "activeDeadline must be longer than"
    ),
    Example(MIGRATION, {**MIGRATE, "resources": "small"}, "spec.resources"),
    Example(MIGRATION, {**MIGRATE, "nodeSelector": {str(number): "" for number in range(21)}}, "spec.nodeSelector"),
    Example(MIGRATION, {**MIGRATE, "tolerations": [{}] * 21}, "spec.tolerations"),
    Example(MIGRATION, {**MIGRATE, "volumes": ["ca"]}, "spec.volumes"),
    Example(MIGRATION, {**MIGRATE, "volumeMounts": "ca"}, "spec.volumeMounts"),
]

REFUSED_CHANGES = [
    Change(INTEGRATION, URL, {**URL, "clientId": "decaf"}, "spec.clientId", "clientId cannot be changed"),
    Change(INTEGRATION, REF, GENERATED, "spec.clientSecretRef", f"clientSecretRef, {ONCE}"),
    Change(INTEGRATION, {**REF, **URL}, URL, "spec.clientSecretRef", f"clientSecretRef, {ONCE}"),
    Change(INTEGRATION, GENERATED, REF, "spec.clientSecret", f"clientSecret, {ONCE}"),
    Change(INTEGRATION, {**GENERATED, **URL}, URL, "spec.clientSecret", f"clientSecret, {ONCE}"),
    Change(INTEGRATION, URL, {**URL, "overlap": "8d"}, "spec.overlap", "overlap must not be longer than maxOverlap"),
    Change(
        MIGRATION, MIGRATE, {**MIGRATE, "databaseSecretRef": {"name": "other"}}, "spec.databaseSecretRef", "databaseSecretRef cannot be"
    ),
    Change(
        MIGRATION,
        MIGRATE,
        {**MIGRATE, "databaseSecretRef": {"name": "database", "key": "dsn"}},
        "spec.databaseSecretRef",
        "databaseSecretRef cannot be changed",
    ),
]

ALLOWED_CHANGES = [
    (REF, {**REF, "clientSecretRef": {"name": "other", "key": "text"}, "urlKey": {}}),
    (URL, {**URL, **GENERATED}),
    ({**REF, **URL}, REF),
]
