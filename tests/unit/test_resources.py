"""What the operator writes, as manifests."""

from __future__ import annotations

import base64

from amo_operator.resources import secret


def test_a_secret_with_keys_is_pruned_by_nobody() -> None:
    """It bears the release's label, by which Argo CD would take it for something that the chart no longer renders."""
    made = secret("keyring", "crm", {"sales": "text"}, resourceVersion="7")
    assert made["metadata"]["annotations"]["argocd.argoproj.io/sync-options"] == "Prune=false"
    assert made["metadata"]["resourceVersion"] == "7"
    assert base64.b64decode(made["data"]["sales"]) == b"text"
