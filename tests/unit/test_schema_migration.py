"""The steps of a SchemaMigration, decided from spec, status and Job alone."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amo_operator.conditions import conditions
from amo_operator.migration import FIRST_PAUSE, LONGEST_PAUSE, Decision, Job, Observed, decide, job_name, read_result, work_hash
from amo_operator.resources import migration_job
from amo_operator.spec import SchemaMigrationSpec

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RESOURCE = {
    "apiVersion": "amo-webhooks.io/v1alpha1",
    "kind": "SchemaMigration",
    "metadata": {"name": "main", "namespace": "crm", "uid": "u-1"},
}
BLOCKER = {"pid": 7, "state": "idle in transaction", "age_seconds": 12, "query": "0a1b2c3d4e5f"}


def spec(**changes: Any) -> SchemaMigrationSpec:
    return SchemaMigrationSpec.model_validate({"image": "amo:2", "databaseSecretRef": {"name": "db"}, **changes})


def said(outcome: str, **changes: Any) -> str:
    return json.dumps({"outcome": outcome, "from": "0001", "to": "0002", "blockers": [], "error": None, **changes})


def failed(outcome: str, **changes: Any) -> Job:
    return Job("j", "failed", "BackoffLimitExceeded", said(outcome, **changes))


def follow(decision: Decision, before: Observed, job: Job | None, **changes: Any) -> Observed:
    """Return what the next reconcile sees when the status was written."""
    return replace(before, status=decision.status | {"observedGeneration": before.generation}, job=job, **changes)


FRESH = Observed(NOW, 1, {"observedGeneration": -1})


def test_a_job_is_made_watched_and_its_end_written_down() -> None:
    """From nothing to Ready; afterwards neither the Job's absence nor another reconcile begins anything."""
    begun = decide(spec(), FRESH)
    assert (begun.act, begun.status["tries"], begun.standing.is_reconciling) == ("create", 1, True)
    running = follow(begun, FRESH, Job("j"))
    watched = decide(spec(), running)
    assert (watched.act, watched.standing.reason, watched.status["job"]) == (None, "Migrating", "j")
    ended = decide(spec(), follow(watched, running, Job("j", "complete", said=said("Upgraded"))))
    assert (ended.act, ended.standing.reason, ended.standing.is_ready) == (None, "Migrated", True)
    assert (ended.status["completedHash"], ended.status["currentRevision"], ended.status["outcome"]) == (
        work_hash(spec()),
        "0002",
        "Upgraded",
    )
    gone = follow(ended, running, None, generation=2)
    later = decide(spec(backoffLimit=1), gone)
    assert (later.act, later.standing, later.status["completedHash"]) == (None, ended.standing, work_hash(spec()))
    assert decide(spec(image="amo:3"), gone).act == "create"


def test_a_complete_job_that_says_nothing_is_complete() -> None:
    """Its pod may be gone before anybody read it."""
    ended = decide(spec(), replace(FRESH, job=Job("j", "complete")))
    assert (ended.standing.is_ready, ended.status["completedHash"], "currentRevision" in ended.status) == (True, work_hash(spec()), False)


def test_a_later_schema_is_well_and_says_so() -> None:
    """An older image that still runs on it is Ready."""
    ended = decide(spec(), replace(FRESH, job=Job("j", "complete", said=said("SchemaIsLater", to="0009"))))
    assert (ended.standing.reason, ended.standing.is_ready) == ("SchemaIsLater", True)
    assert "0009" in ended.standing.message
    assert decide(spec(), follow(ended, FRESH, None)).standing == ended.standing


@pytest.mark.parametrize(
    ("outcome", "is_temporary", "stalls"), [("Failed", False, True), ("Failed", True, False), ("Blocked", True, False)]
)
def test_the_first_pod_that_fails_for_good_is_enough(outcome: str, is_temporary: bool, stalls: bool) -> None:
    """A person who waits learns of a failed migration before the Job has repeated it as often as it may."""
    running = Job("j", said=said(outcome, temporary=is_temporary, error="42P07 exists", to=None))
    assert decide(spec(), replace(FRESH, job=running)).standing.is_stalled is stalls


@pytest.mark.parametrize(("outcome", "reason"), [("Failed", "MigrationFailed"), ("Incompatible", "Incompatible")])
def test_what_another_try_would_not_change_waits_for_another_spec(outcome: str, reason: str) -> None:
    """It is Stalled with the error, also when the Job is gone; a changed spec takes the Job away and tries again."""
    seen = replace(FRESH, job=failed(outcome, error='42P07 relation "leads" exists', to=None))
    stuck = decide(spec(), seen)
    assert (stuck.act, stuck.standing.reason, stuck.standing.is_stalled) == (None, reason, True)
    assert "42P07" in stuck.standing.message
    assert stuck.status["currentRevision"] == "0001"
    for job in (seen.job, None):
        assert decide(spec(), follow(stuck, seen, job, now=NOW + timedelta(days=1))) == stuck
    changed = follow(stuck, seen, seen.job)
    changed = replace(changed, generation=2)
    again = decide(spec(lockTimeout="1s"), changed)
    assert (again.act, again.standing.is_stalled) == ("delete", False)
    assert decide(spec(lockTimeout="1s"), follow(again, changed, Job("j", "ending"))).act is None
    assert decide(spec(lockTimeout="1s"), follow(again, changed, None)).act == "create"
    assert decide(spec(image="amo:3"), replace(changed, job=None)).act == "create"


def test_blocked_is_tried_again_with_a_growing_pause() -> None:
    """Who is in the way is shown, already while the Job's own tries go on; the Job is taken away when its pause is over."""
    running = decide(spec(), replace(FRESH, job=Job("j", said=said("Blocked", to=None, blockers=[BLOCKER]))))
    assert (running.act, running.standing.reason, running.status["blockers"][0]["ageSeconds"]) == (None, "Blocked", 12)
    observed, pauses = FRESH, []
    for _ in range(9):
        begun = decide(spec(), replace(observed, job=None))
        assert begun.act == "create"
        ended = follow(begun, observed, failed("Blocked", to=None, blockers=[BLOCKER]))
        waiting = decide(spec(), ended)
        assert (waiting.act, waiting.standing.reason, waiting.standing.is_reconciling) == (None, "Blocked", True)
        assert "pid 7 (idle in transaction, 12 s)" in waiting.standing.message
        due = datetime.fromisoformat(waiting.status["nextTry"])
        pauses.append(due - ended.now)
        assert decide(spec(), follow(waiting, ended, None)).act is None, "not before it is due, whoever took the Job away"
        observed = follow(waiting, ended, ended.job, now=due)
        assert decide(spec(), observed).act == "delete"
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (2 * FIRST_PAUSE, LONGEST_PAUSE)


def test_a_job_that_fails_without_a_word_is_tried_again() -> None:
    """Nodes die, deadlines pass, images cannot be pulled: the Job's own reason is shown."""
    ended = decide(spec(), replace(FRESH, job=Job("j", "failed", "Job was active longer than specified deadline")))
    assert (ended.standing.reason, ended.standing.is_reconciling) == ("JobFailed", True)
    assert "longer than specified deadline" in ended.standing.message
    killed = decide(spec(), replace(FRESH, job=failed("Failed", temporary=True, error="The run was killed.", to=None)))
    assert (killed.standing.reason, killed.standing.is_stalled, "nextTry" in killed.status) == ("JobFailed", False, True)
    waiting = decide(spec(), replace(FRESH, job=Job("j", waiting="ErrImagePull: no such image")))
    assert (waiting.standing.reason, "no such image" in waiting.standing.message) == ("JobWaits", True)


def test_paused_makes_no_job() -> None:
    """What is complete stays so; what is not waits."""
    assert (decide(spec(paused=True), FRESH).act, decide(spec(paused=True), FRESH).standing.reason) == (None, "Paused")
    done = replace(FRESH, status={"observedGeneration": 1, "completedHash": work_hash(spec())})
    assert decide(spec(paused=True), done).standing.is_ready


def test_the_work_is_named_by_image_target_and_database() -> None:
    """Two releases that want the same make the same Job; how often it is tried is no part of it."""
    names = {
        job_name(spec(**each)) for each in ({}, {"image": "amo:3"}, {"targetRevision": "0001"}, {"databaseSecretRef": {"name": "other"}})
    }
    assert len(names) == 4
    assert job_name(spec(backoffLimit=0, lockTimeout="2s", paused=True)) == job_name(spec())


@given(st.one_of(st.text(), st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["outcome", "blockers", "to", "error", "pid", "state", "age_seconds", "query"]), inner)).map(json.dumps)))  # fmt: skip
def test_any_termination_message_can_be_read(text: str) -> None:
    """What is not ours counts as nothing said, and never holds up the reconcile."""
    result = read_result(text)
    assert isinstance(result.outcome, str)
    assert decide(spec(), replace(FRESH, job=Job("j", "failed", said=text))).standing.reason


JOBS = st.one_of(
    st.none(),
    st.sampled_from([Job("j"), Job("j", "ending"), Job("j", "complete"), Job("j", "failed", "OOM")]),
    st.sampled_from(["Upgraded", "Unchanged", "SchemaIsLater", "Failed", "Incompatible", "Blocked"]).map(failed),
)


@given(st.lists(st.tuples(JOBS, st.integers(0, 900), st.booleans()), max_size=12))
def test_whatever_is_seen_it_settles(history: list[tuple[Job | None, int, bool]]) -> None:
    """Any sequence of Jobs, pauses and lost statuses ends Ready, Stalled or waiting with a time; never with nothing to wait for."""
    observed = FRESH
    for job, seconds, is_lost in history:
        observed = replace(observed, job=job, now=observed.now + timedelta(seconds=seconds))
        decision = decide(spec(), observed)
        if not is_lost:
            observed = follow(decision, observed, job)
    seen = []
    for _ in range(6):
        decision = decide(spec(), observed)
        seen.append(decision.standing)
        job = {"create": Job("j"), "delete": None}.get(decision.act or "", observed.job)
        observed = follow(decision, observed, job)
    standing = seen[-1]
    assert seen[-2] == standing, "decided on its own outcome it does not change its mind"
    assert standing.is_ready + standing.is_stalled + standing.is_reconciling == 1
    if observed.job is None and standing.is_reconciling:
        assert "nextTry" in observed.status


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    """A new reason alone moves no time; each condition names the generation that it is about."""
    first = conditions(decide(spec(), FRESH).standing, [], 1, NOW)
    assert {each["type"]: each["status"] for each in first} == {"Ready": "False", "Reconciling": "True", "Stalled": "False"}
    done = decide(spec(), replace(FRESH, job=Job("j", "complete"))).standing
    later = conditions(done, first, 2, NOW + timedelta(hours=1))
    assert {each["type"]: each["lastTransitionTime"][11:13] for each in later} == {"Ready": "13", "Reconciling": "13", "Stalled": "12"}
    assert {each["observedGeneration"] for each in later} == {2}


def test_the_jobs_pod_has_the_rights_of_nobody() -> None:
    """Pod Security `restricted`, no token of a ServiceAccount, the DSN only by reference, and the trace that it belongs to."""
    job = migration_job(RESOURCE, spec(imagePullSecrets=["pull"]), "crm", {"TRACEPARENT": "00-1-2-01"})
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["args"][:7] == ["migrate", "upgrade", "head", "--lock-timeout", "500ms", "--lock-tries", "5"]
    assert container["args"][7:] == ["--result", container["terminationMessagePath"]]
    variables = {each["name"]: each for each in container["env"]}
    assert variables["DB_DIRECT_URL"]["valueFrom"]["secretKeyRef"] == {"name": "db", "key": "url"}
    assert variables["TRACEPARENT"]["value"] == "00-1-2-01"
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (3, 3600)
    assert (job["metadata"]["name"], job["metadata"]["ownerReferences"][0]["uid"]) == (job_name(spec()), "u-1")
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
