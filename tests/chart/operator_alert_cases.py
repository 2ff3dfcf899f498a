"""When each of the operator's alerts fires, and when something that looks alike does not."""

from __future__ import annotations

from chart.alert_cases import Alert, Case

FIRST, SECOND = ('namespace="crm", job="amo-operator", pod="o"', 'namespace="crm", job="amo-operator", pod="p"')
INTEGRATION, MIGRATION = "AmoIntegration", "SchemaMigration"
ROUND = "amo_operator_last_round_seconds"


def of(metric: str, pod: str = FIRST, /, **labels: str) -> str:
    """Write the name of an operator's series."""
    own = "".join(f', {label}="{value}"' for label, value in labels.items())
    return f"{metric}{{{pod}{own}}}"


def condition(kind: str, held: str, reason: str) -> str:
    """Name the series of a condition of an object."""
    return of("amo_operator_condition", kind=kind, name="main", type=held, reason=reason)


def not_ready(kind: str, pod: str = FIRST) -> str:
    """Name the series that tells since when an object is not ready."""
    return of("amo_operator_not_ready_since_seconds", pod, kind=kind, name="main")


def key(what: str) -> str:
    """Name the series of a time of a key."""
    return of(f"amo_operator_{what}_seconds", name="main", key_kind="url_key")


BEHIND = of("amo_operator_pods_out_of_step", name="main")
DAMAGED = of("amo_operator_keyring_damaged_seconds", name="main")
ERRORS = of("amo_operator_reconciles_total", kind=INTEGRATION, outcome="error")
READY_BUT = condition(INTEGRATION, "Ready", "SecretMissing")
BLOCKED, MIGRATING = (condition(MIGRATION, "Reconciling", reason) for reason in ("Blocked", "Migrating"))

ALERTS = {
    "AmoRotationStalled": Alert(
        {
            "a retired secret was written again": Case(2, {condition(INTEGRATION, "Stalled", "InputRetired"): "1x9"}),
            "the next key is not promoted": Case(36, {not_ready(INTEGRATION): "300x60"}),
            "the operator was replaced meanwhile": Case(
                36, {not_ready(INTEGRATION): "300x10 stale", not_ready(INTEGRATION, SECOND): "_x12 300x60"}
            ),
            "a Secret is missing": Case(70, {READY_BUT: "_x5 1x90"}),
            "a rollout does not end": Case(70, {condition(INTEGRATION, "Ready", "Retiring"): "_x5 1x90"}),
        },
        {
            "a rotation is under way": Case(35, {not_ready(INTEGRATION): "300x60", condition(INTEGRATION, "Stalled", "Promoting"): "0x60"}),
            "no pod runs": Case(90, {not_ready(INTEGRATION): "300x90", condition(INTEGRATION, "Ready", "NoPods"): "0x90"}),
            "a Secret was missing for a while": Case(70, {READY_BUT: "_x5 1x50 stale"}),
            "a migration takes long": Case(90, {not_ready(MIGRATION): "300x90"}),
            "an overlap lasts": Case(90, {condition(INTEGRATION, "Ready", "Overlap"): "1x90"}),
        },
    ),
    "AmoPropagationStuck": Alert(
        {"a pod does not take the keyring": Case(16, {BEHIND: "0x5 1x20"})},
        {"a keyring spreads": Case(30, {BEHIND: "0x5 2x3 1x3 0x20"})},
    ),
    "AmoLateMatch": Alert(
        {"a sender goes on with the previous key": Case(16, {key("late_match"): "_x5 300+60x20"})},
        {"it is retired": Case(30, {key("late_match"): "_x5 300x7 stale"}), "there is none": Case(30, {key("key_expires"): "9x30"})},
    ),
    "AmoKeyExpiresSoon": Alert(
        {
            "a sender still uses it": Case(67, {key("key_expires"): "86700x90", key("key_matched"): "0+60x90"}),
            "one that sends every 50 minutes": Case(67, {key("key_expires"): "86700x90", key("key_matched"): "0x49 3000x49"}),
        },
        {
            "not yet a day before": Case(150, {key("key_expires"): "93600x150", key("key_matched"): "0+60x150"}),
            "its sender has just switched": Case(150, {key("key_expires"): "86700x150", key("key_matched"): "300x150"}),
            "it was never used": Case(150, {key("key_expires"): "86400x150"}),
        },
    ),
    "AmoKeyringCorrupt": Alert(
        {"it was lost, and is written anew": Case(60, {DAMAGED: "_x5 360x90"})},
        {"that was longer ago": Case(90, {DAMAGED: "_x60 0x90"})},
        {"an hour later": Case(70, {DAMAGED: "_x5 360x90"})},
    ),
    "AmoMigrationFailed": Alert(
        {"it cannot get through": Case(2, {condition(MIGRATION, "Stalled", "MigrationFailed"): "1x9"})},
        {
            "it runs": Case(9, {condition(MIGRATION, "Stalled", "Migrating"): "0x9"}),
            "an integration is stalled": Case(9, {condition(INTEGRATION, "Stalled", "InputRetired"): "1x9"}),
        },
    ),
    "AmoMigrationBlocked": Alert(
        {
            "a transaction is in the way": Case(16, {not_ready(MIGRATION): "300x40", BLOCKED: "1x40"}),
            "its Job fails": Case(16, {not_ready(MIGRATION): "300x40", condition(MIGRATION, "Reconciling", "JobFailed"): "1x40"}),
            "its Job does not start": Case(16, {not_ready(MIGRATION): "300x40", condition(MIGRATION, "Reconciling", "JobWaits"): "1x40"}),
            "during the next try": Case(24, {not_ready(MIGRATION): "300x40", BLOCKED: "1x20 stale", MIGRATING: "_x20 1x20"}),
        },
        {
            "not for long": Case(15, {not_ready(MIGRATION): "300x40", BLOCKED: "1x40"}),
            "it got through": Case(40, {not_ready(MIGRATION): "300x12 stale", BLOCKED: "1x12 stale"}),
            "it runs since": Case(40, {not_ready(MIGRATION): "300x40", BLOCKED: "_x6 1 stale", MIGRATING: "_x7 1x40"}),
        },
    ),
    "AmoOperatorDown": Alert(
        {
            "it ended": Case(11, {of(ROUND): "0+60x5 stale"}),
            "two days ago": Case(2900, {of(ROUND): "0+60x5 stale"}),
            "it hangs": Case(11, {of(ROUND): "0+60x5 300x40"}),
            "it never got anything done": Case(7, {of(ROUND): "0x9"}),
        },
        {
            "there was none": Case(40, {"up": "1x40"}),
            "it works": Case(40, {of(ROUND): "0+60x40"}),
            "it is replaced": Case(40, {of(ROUND): "0+60x5 stale", of(ROUND, SECOND): "_x11 660+60x40"}),
        },
        {"it was taken away three days ago": Case(4330, {of(ROUND): "0+60x5 stale"})},
    ),
    "AmoReconcileErrors": Alert(
        {"one object cannot be written": Case(19, {ERRORS: "0x5 2+2x40"})},
        {
            "the API server was away": Case(40, {ERRORS: "0x5 3+3x3 12x60"}),
            "Events are lost": Case(40, {of("amo_operator_reconciles_total", kind="Event", outcome="error"): "0+9x40"}),
            "conflicts": Case(40, {of("amo_operator_reconciles_total", kind=INTEGRATION, outcome="conflict"): "0+9x40"}),
        },
    ),
}
