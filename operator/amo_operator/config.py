"""What the operator is told at start, by environment variables."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
COLLECTOR = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES")


def _own_namespace() -> str:
    return NAMESPACE_FILE.read_text(encoding="utf-8").strip() if NAMESPACE_FILE.is_file() else "default"


class Config(BaseSettings):
    """The settings of one operator, each `AMO_OPERATOR_…` in the environment."""

    model_config = SettingsConfigDict(env_prefix="AMO_OPERATOR_", env_ignore_empty=True, frozen=True)

    namespace: str = Field(default_factory=_own_namespace, description="The namespace it works in; in a pod its own.")
    instance: str = Field(
        default="amo-webhooks", description="The release: value of the label app.kubernetes.io/instance of what belongs to it."
    )
    keyring_secret: str = Field(default="amo-webhooks-keyring", description="The Secret of all keyrings, which the service's pods mount.")
    pod_selector: str = Field(
        default="app.kubernetes.io/name=amo-webhooks,app.kubernetes.io/component=service",
        description="Labels of the pods that verify requests, and of their Deployment.",
    )
    management_port: int = Field(default=9000, description="The port at which these pods serve /keyring.")
    interval_seconds: float = Field(default=3.0, gt=0, description="How often everything is compared, if nothing asks for it earlier.")
    unseen_seconds: float = Field(
        default=600.0, ge=0, description="How long after its start the keyring of an integration that it never saw is left alone."
    )
    watch_seconds: int = Field(default=60, gt=0, description="How long one watch lasts before the next begins.")
    answer_seconds: float = Field(default=2.0, gt=0, description="How long a pod may take to report its keyring.")
    request_seconds: float = Field(default=10.0, gt=0, description="How long a request to the API server may take.")
    pages_host: str = Field(default="0.0.0.0", description="Address of /livez and /metrics.")  # noqa: S104 - probes come from outside the pod
    pages_port: int = Field(default=9100, description="Port of /livez and /metrics.")

    def collector(self) -> dict[str, str]:
        """Return the variables by which a Job finds this operator's collector, without headers, which hold secrets."""
        return {name: os.environ[name] for name in COLLECTOR if os.environ.get(name)}
