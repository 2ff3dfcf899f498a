"""How an integration stands, in its status and conditions: for programs, and for the person who has to act; pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from amo_operator.conditions import Standing, rfc3339
from amo_operator.evidence import Note, Wanted, lag, last_matched
from amo_operator.keyring import Retired
from amo_operator.spec import CREDENTIALS_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from amo_operator.evidence import Decision, Observed
    from amo_operator.keyring import KeyKind, Keyring
    from amo_operator.spec import AmoIntegrationSpec

MOST_PODS, MOST_NAMED = 50, 3


def wanted_of(spec: AmoIntegrationSpec) -> Wanted:
    """Translate a spec for the rotation."""
    rotate_every: dict[KeyKind, Any] = {}
    if spec.client_secret is not None:
        rotate_every["client_secret"] = spec.client_secret.rotate_every
    if spec.url_key is not None:
        rotate_every["url_key"] = spec.url_key.rotate_every
    return Wanted(
        client_id=spec.client_id,
        accounts=spec.accounts,
        client_secret="ref" if spec.client_secret_ref else "generate" if spec.client_secret else None,
        rotate_every=rotate_every,
        overlap=spec.overlap,
        max_overlap=spec.max_overlap,
        quiet_period=spec.quiet_period,
        revoke=frozenset(spec.revoke),
        paused=spec.paused,
    )


def known_retired(status: Mapping[str, Any]) -> tuple[Retired, ...]:
    """Return the keys that the status says are gone, in case the keyring that noted them is lost."""
    gone = [key for key in status.get("keys") or () if key["state"] in ("retired", "revoked")]
    return tuple(Retired(key["kind"], key["fingerprint"], key["state"], datetime.fromisoformat(key["since"])) for key in gone)


def known_keys(status: Mapping[str, Any]) -> frozenset[str]:
    """Return the fingerprints of the keys that the status says are accepted."""
    return frozenset(key["fingerprint"] for key in status.get("keys") or () if key["state"] not in ("retired", "revoked"))


def integration_status(wanted: Wanted, name: str, decision: Decision, observed: Observed, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the status without conditions; while there is no good keyring it remembers the keys, above all those that are gone."""
    keyring = decision.keyring
    status: dict[str, Any] = {
        "generation": keyring.generation if keyring else observed.floor or None,
        "keys": _keys(keyring, observed) if keyring else before.get("keys", []),
        "pods": _pods(keyring, observed) if keyring else [],
        "nextRotation": rfc3339(decision.next_rotation) if decision.next_rotation else None,
        "action": decision.action,
        "credentialsSecret": f"{name}{CREDENTIALS_SUFFIX}" if wanted.rotate_every and keyring else None,
    }
    return {field: value for field, value in status.items() if value is not None}


def _keys(keyring: Keyring, observed: Observed) -> list[dict[str, Any]]:
    shown = []
    for key in keyring.keys:
        entry = {"kind": key.kind, "fingerprint": key.fingerprint, "state": key.state, "since": rfc3339(key.since)}
        if key.not_after:
            entry["notAfter"] = rfc3339(key.not_after)
        if matched := last_matched(observed, key.fingerprint):
            # Whole minutes: a busy key would otherwise have the status written at each round.
            entry["lastMatched"] = rfc3339(matched.replace(second=0))
        shown.append(entry)
    gone = [
        {"kind": each.kind, "fingerprint": each.fingerprint, "state": each.reason, "since": rfc3339(each.at)} for each in keyring.retired
    ]
    return shown + gone


def _pods(keyring: Keyring, observed: Observed) -> list[dict[str, Any]]:
    shown = []
    for report in (observed.reports or ())[:MOST_PODS]:
        problem = lag(keyring, report)
        entry = {"name": report.pod, "generation": report.generation, "inStep": problem is None, "problem": problem}
        shown.append({field: value for field, value in entry.items() if value is not None})
    return shown


def standing_of(wanted: Wanted, decision: Decision, observed: Observed) -> Standing:
    """Return reason and sentence: what needs a person first, then what is under way; an overlap that merely lasts is Ready."""
    keyring, action = decision.keyring, f" {decision.action}" if decision.action else ""
    if decision.stalled:
        return Standing(decision.stalled.reason, f"{decision.stalled.message}{action}", is_stalled=True)
    if keyring is None or not keyring.keys:
        note = decision.waits or Note("NoKeys", "No key is accepted.")
        return Standing(note.reason, f"{note.message}{action}", is_reconciling=True)
    return _unproven(keyring, observed) or _proven(wanted, decision, keyring, action)


def _unproven(keyring: Keyring, observed: Observed) -> Standing | None:
    if not observed.reports:
        return Standing("NoPods", f"Generation {keyring.generation} is published; no pod runs that could have it.", is_reconciling=True)
    behind = [f"{report.pod}: {problem}" for report in observed.reports if (problem := lag(keyring, report))]
    if not behind:
        return None
    named = "; ".join(behind[:MOST_NAMED]) + ("" if len(behind) <= MOST_NAMED else f"; and {len(behind) - MOST_NAMED} more")
    return Standing("Propagating", f"Generation {keyring.generation} is not in every pod yet: {named}.", is_reconciling=True)


def _proven(wanted: Wanted, decision: Decision, keyring: Keyring, action: str) -> Standing:
    everywhere = f"All pods have generation {keyring.generation}"
    if wanted.paused:
        return Standing("Paused", f"{everywhere}; `paused` is true.{action}", is_ready=True)
    if keyring.of("client_secret", "next") or keyring.of("url_key", "next"):
        return Standing("Promoting", f"{everywhere}; its next key takes over when they have stopped changing.", is_reconciling=True)
    note = decision.waits or Note("InStep", f"{everywhere}.")
    return Standing(note.reason, f"{note.message}{action}", is_ready=True)


class KeyTimes(NamedTuple):
    """What the metrics show of an integration's keys, by kind, and how many pods are out of step."""

    expires: dict[str, datetime]
    matched: dict[str, datetime]
    """When the key that expires first was matched last."""
    late: dict[str, datetime]
    behind: int


def key_times(wanted: Wanted, decision: Decision, observed: Observed) -> KeyTimes:
    """Return each kind's earliest end and that key's last match, its last match after the overlap, and the pods out of step."""
    times, keyring = KeyTimes({}, {}, {}, 0), decision.keyring
    if keyring is None:
        return times
    ending = [(key.not_after, key) for key in keyring.keys if key.not_after]
    for not_after, key in sorted(ending, key=lambda each: each[0], reverse=True):
        times.expires[key.kind] = not_after
        times.matched.pop(key.kind, None)
        if matched := last_matched(observed, key.fingerprint):
            times.matched[key.kind] = matched
    for key in keyring.keys:
        matched = last_matched(observed, key.fingerprint)
        if key.state == "previous" and matched and matched > key.since + wanted.overlap:
            times.late[key.kind] = max(matched, times.late.get(key.kind, matched))
    return times._replace(behind=sum(lag(keyring, report) is not None for report in observed.reports or ()))
