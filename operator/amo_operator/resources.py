"""The objects that the operator makes, as plain manifests; nothing here talks to anybody."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from amo_operator.conditions import rfc3339
from amo_operator.migration import job_name
from amo_operator.spec import GROUP, VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from amo_operator.spec import SchemaMigrationSpec

API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "amo-operator"
NUDGE = f"{GROUP}/keyring-version"
"""An annotation of a service pod: its change makes the kubelet refresh the pod's volumes at once, not within 60 to 90 s."""
ROTATE = f"{GROUP}/rotate"
"""An annotation of an AmoIntegration: each new text asks for one rotation of what is generated."""
GENERATION = f"{GROUP}/generation"
"""An annotation of a Job: the generation of the spec that it was made from."""
INSTANCE = "app.kubernetes.io/instance"
LOCK_TRIES = 5
KEPT_SECONDS = 7 * 24 * 3600
RESULT_FILE = "/dev/termination-log"
RESOURCES = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}}


def labels(component: str, instance: str) -> dict[str, str]:
    """Return the labels of what belongs to this release."""
    return {
        "app.kubernetes.io/name": "amo-webhooks",
        INSTANCE: instance,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
    }


NOT_PRUNED = {
    "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
    "argocd.argoproj.io/sync-options": "Prune=false",
}
"""Argo CD takes what bears the release's label for its own, and would prune what no chart renders: all keys at once."""


def foreign_release(resource: Mapping[str, Any], instance: str) -> str | None:
    """Name the other release that a custom resource is labelled for; one without a label is anybody's."""
    label: str = (resource["metadata"].get("labels") or {}).get(INSTANCE) or instance
    return None if label == instance else label


def owner(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reference by which the cluster removes what belongs to a custom resource together with it."""
    metadata = resource["metadata"]
    return {
        "apiVersion": resource["apiVersion"],
        "kind": resource["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }


def secret(name: str, instance: str, data: Mapping[str, str], **metadata: Any) -> dict[str, Any]:
    """Return a Secret with these texts."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": labels("keyring", instance), "annotations": NOT_PRUNED, **metadata},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def secret_texts(data: Mapping[str, str] | None) -> dict[str, str]:
    """Decode a Secret's data; bytes that are no text are replaced, so that they match nothing."""
    return {key: base64.b64decode(value).decode("utf-8", "replace") for key, value in (data or {}).items()}


def migration_job(migration: Mapping[str, Any], spec: SchemaMigrationSpec, instance: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the Job of a SchemaMigration: one container of the service's image, on the direct DSN, with the rights of nobody."""
    marks = labels("migration", instance)
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "imagePullSecrets": [{"name": name} for name in spec.image_pull_secrets],
        "nodeSelector": spec.node_selector or {},
        "tolerations": list(spec.tolerations),
        "volumes": list(spec.volumes),
        "containers": [_container(spec, environment)],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(spec),
            "labels": marks,
            "annotations": {GENERATION: str(migration["metadata"]["generation"])},
            "ownerReferences": [owner(migration)],
        },
        "spec": {
            "backoffLimit": spec.backoff_limit,
            "activeDeadlineSeconds": int(spec.active_deadline.total_seconds()),
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {"metadata": {"labels": marks}, "spec": pod},
        },
    }


def _container(spec: SchemaMigrationSpec, environment: Mapping[str, str]) -> dict[str, Any]:
    reference = spec.database_secret_ref
    variables: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(environment.items())]
    variables.append({"name": "DB_DIRECT_URL", "valueFrom": {"secretKeyRef": {"name": reference.name, "key": reference.key}}})
    # Few tries for the locks in one pod: the longer pauses are the Job's and the operator's, and who is in the way is known after each.
    options = ["--lock-timeout", spec.lock_timeout_text, "--lock-tries", str(LOCK_TRIES), "--result", RESULT_FILE]
    return {
        "name": "migrate",
        "image": spec.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["amo-webhooks"],
        "args": ["migrate", "upgrade", spec.target_revision, *options],
        "env": variables,
        "resources": spec.resources or RESOURCES,
        "volumeMounts": list(spec.volume_mounts),
        "terminationMessagePath": RESULT_FILE,
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def event(about: Mapping[str, Any], reason: str, message: str, now: datetime, *, is_warning: bool = False) -> dict[str, Any]:
    """Return a Kubernetes Event about a custom resource."""
    metadata = about["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata['name']}-", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "reason": reason,
        "message": message[:1024],
        "type": "Warning" if is_warning else "Normal",
        "source": {"component": FIELD_MANAGER},
        "firstTimestamp": rfc3339(now),
        "lastTimestamp": rfc3339(now),
        "count": 1,
    }
