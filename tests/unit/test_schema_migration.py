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
from amo_operator.migration import FIRST_PAUSE, LONGEST_PAUSE, Decision, Job, Observed, decide, job_name, read_result, refused, work_hash
from amo_operator.resources import GENERATION, migration_job
from amo_operator.spec import SchemaMigrationSpec

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RESOURCE = {
    "apiVersion": "amo-webhooks.io/v1alpha1",
    "kind": "SchemaMigration",
    "metadata": {"name": "main", "namespace": "crm", "uid": "u-1", "generation": 3},
}
ON_THESE_NODES: dict[str, Any] = {
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "database", "operator": "Exists"}],
    "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
}
BLOCKER = {"pid": 7, "state": "idle in transaction", "age_seconds": 12, "query": "0a1b2c3d4e5f"}


def spec(**changes: Any) -> SchemaMigrationSpec:
    return SchemaMigrationSpec.model_validate({"image": "amo:2", "databaseSecretRef": {"name": "db"}, **changes})


def said(outcome: str, **changes: Any) -> str:
    return json.dumps({"outcome": outcome, "from": "0001", "to": "0002", "blockers": [], "error": None, **changes})


def a_job(outcome: Any = "running", failure: str = "", made_at: datetime = NOW, **changes: Any) -> Job:
    return replace(Job("j", f"uid-{made_at}", made_at, "u-1", 1, outcome, failure), **changes)


def failed(outcome: str, **changes: Any) -> Job:
    return a_job("failed", "BackoffLimitExceeded", said=said(outcome, **changes))


def follow(decision: Decision, before: Observed, seen: Job | None, **changes: Any) -> Observed:
    """Return what the next reconcile sees when the status was written."""
    return replace(before, status=decision.status | {"observedGeneration": before.generation}, job=seen, **changes)


FRESH = Observed(NOW, "u-1", 1, NOW, {"observedGeneration": -1})


def test_a_job_is_made_watched_and_its_end_written_down() -> None:
    """From nothing to Ready; afterwards neither the Job's absence nor another reconcile begins anything."""
    begun = decide(spec(), FRESH)
    assert (begun.act, begun.status["tries"], begun.standing.is_reconciling) == ("create", 1, True)
    running = follow(begun, FRESH, a_job())
    watched = decide(spec(), running)
    assert (watched.act, watched.standing.reason, watched.status["job"]) == (None, "Migrating", "j")
    ended = decide(spec(), follow(watched, running, a_job("complete", said=said("Upgraded"))))
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
    ended = decide(spec(), replace(FRESH, job=a_job("complete")))
    assert (ended.standing.is_ready, ended.status["completedHash"], "currentRevision" in ended.status) == (True, work_hash(spec()), False)


def test_a_later_schema_is_well_and_says_so() -> None:
    """An older image that still runs on it is Ready."""
    ended = decide(spec(), replace(FRESH, job=a_job("complete", said=said("SchemaIsLater", to="0009"))))
    assert (ended.standing.reason, ended.standing.is_ready) == ("SchemaIsLater", True)
    assert "0009" in ended.standing.message
    assert decide(spec(), follow(ended, FRESH, None)).standing == ended.standing


@pytest.mark.parametrize(
    ("outcome", "is_temporary", "stalls"), [("Failed", False, True), ("Failed", True, False), ("Blocked", True, False)]
)
def test_the_first_pod_that_fails_for_good_is_enough(outcome: str, is_temporary: bool, stalls: bool) -> None:
    """A person who waits learns of a failed migration before the Job has repeated it as often as it may."""
    running = a_job(said=said(outcome, temporary=is_temporary, error="42P07 exists", to=None))
    assert decide(spec(), replace(FRESH, job=running)).standing.is_stalled is stalls


@pytest.mark.parametrize(("outcome", "reason"), [("Failed", "MigrationFailed"), ("Incompatible", "Incompatible")])
def test_what_another_try_would_not_change_waits_for_another_spec(outcome: str, reason: str) -> None:
    """It is Stalled with the error, also when the Job is gone; a changed spec takes the Job away and tries again."""
    seen = replace(FRESH, job=failed(outcome, error='42P07 relation "leads" exists', to=None))
    stuck = decide(spec(), seen)
    assert (stuck.act, stuck.standing.reason, stuck.standing.is_stalled) == (None, reason, True)
    assert "42P07" in stuck.standing.message
    assert stuck.status["currentRevision"] == "0001"
    for each in (seen.job, None):
        assert decide(spec(), follow(stuck, seen, each, now=NOW + timedelta(days=1))) == stuck
    changed = follow(stuck, seen, seen.job)
    changed = replace(changed, generation=2)
    again = decide(spec(lockTimeout="1s"), changed)
    assert (again.act, again.standing.is_stalled) == ("delete", False)
    assert decide(spec(lockTimeout="1s"), follow(again, changed, a_job("ending"))).act is None
    assert decide(spec(lockTimeout="1s"), follow(again, changed, None)).act == "create"
    assert decide(spec(image="amo:3"), replace(changed, job=None)).act == "create"


def test_blocked_is_tried_again_with_a_growing_pause() -> None:
    """Who is in the way is shown, already while the Job's own tries go on; the Job is taken away when its pause is over."""
    running = decide(spec(), replace(FRESH, job=a_job(said=said("Blocked", to=None, blockers=[BLOCKER]))))
    assert (running.act, running.standing.reason, running.status["blockers"][0]["ageSeconds"]) == (None, "Blocked", 12)
    observed, pauses = FRESH, []
    for _ in range(9):
        begun = decide(spec(), replace(observed, job=None))
        assert begun.act == "create"
        ended = follow(begun, observed, replace(failed("Blocked", to=None, blockers=[BLOCKER]), made_at=observed.now))
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
    ended = decide(spec(), replace(FRESH, job=a_job("failed", "Job was active longer than specified deadline")))
    assert (ended.standing.reason, ended.standing.is_reconciling) == ("JobFailed", True)
    assert "longer than specified deadline" in ended.standing.message
    killed = decide(spec(), replace(FRESH, job=failed("Failed", temporary=True, error="The run was killed.", to=None)))
    assert (killed.standing.reason, killed.standing.is_stalled, "nextTry" in killed.status) == ("JobFailed", False, True)
    waiting = decide(spec(), replace(FRESH, job=a_job(waiting="ErrImagePull: no such image")))
    assert (waiting.standing.reason, "no such image" in waiting.standing.message) == ("JobWaits", True)


@pytest.mark.parametrize("outcome", ["complete", "failed", "running"])
def test_a_job_from_before_other_work_was_completed_is_done_again(outcome: str) -> None:
    """After 1, 2 and a rollback to 1 only a new Job tells whether 1 still runs on what 2 has left."""
    first = follow(decide(spec(), replace(FRESH, job=a_job("complete", said=said("Upgraded")))), FRESH, None, generation=2)
    second = a_job("complete", made_at=NOW + timedelta(minutes=1), said=said("Upgraded", to="0003"))
    done = decide(spec(image="amo:3"), replace(first, job=second))
    assert done.standing.is_ready, "the first one's is older, and is not in the way of the second one's"
    back = follow(done, first, replace(a_job(outcome, said=said("Upgraded"))), generation=3)
    again = decide(spec(), back)
    assert (again.act, again.standing.is_ready, again.standing.is_reconciling) == ("delete", False, True)
    assert again.status["completedHash"] == work_hash(spec(image="amo:3"))
    assert decide(spec(), follow(again, back, back.job)).act == "delete", "until it is gone"
    assert decide(spec(), follow(again, back, a_job("ending"))).act is None
    anew = decide(spec(), follow(again, back, None))
    assert (anew.act, anew.status["tries"]) == ("create", 1)
    told = a_job("complete", made_at=NOW + timedelta(minutes=2), said=said("SchemaIsLater", to="0003"))
    ended = decide(spec(), follow(anew, back, told))
    assert (ended.standing.reason, ended.status["currentRevision"]) == ("SchemaIsLater", "0003")


@pytest.mark.parametrize("ended", [failed("Failed", error="42P07 exists"), a_job("complete", said=said("Upgraded"))])
def test_what_ended_before_the_object_was_there_is_not_its_own(ended: Job) -> None:
    """The Job of a deleted object waits for the garbage collector: the new object neither stalls nor is ready by it."""
    later = replace(FRESH, made_at=NOW + timedelta(seconds=5), now=NOW + timedelta(seconds=6))
    assert decide(spec(), replace(later, job=ended)).act == "delete"
    assert decide(spec(), replace(later, job=a_job())).act is None, "one that runs will tell how the database is now"
    assert decide(spec(), replace(FRESH, job=ended)).act is None, "made within the same second"


def test_who_shares_a_job_waits_as_long_as_who_made_it() -> None:
    """A try that somebody else began counts, and its pause begins at its end, also if nobody saw it run."""
    begun = decide(spec(), FRESH)
    waiting = decide(spec(), follow(begun, FRESH, failed("Blocked", blockers=[BLOCKER])))
    due = datetime.fromisoformat(waiting.status["nextTry"])
    theirs = replace(FRESH, status=waiting.status | {"observedGeneration": 1}, now=due)
    for seen in (a_job(made_at=due), replace(failed("Blocked", blockers=[BLOCKER]), made_at=due)):
        followed = decide(spec(), replace(theirs, job=seen))
        assert (followed.act, followed.status["tries"]) == (None, 2)
        ended = replace(failed("Blocked", blockers=[BLOCKER]), made_at=due)
        paused = decide(spec(), follow(followed, theirs, ended, now=due + timedelta(seconds=5)))
        assert (paused.act, paused.status["tries"]) == (None, 2)
        assert datetime.fromisoformat(paused.status["nextTry"]) >= due + 4 * FIRST_PAUSE
    joined = decide(spec(), replace(FRESH, job=a_job()))
    assert joined.status["tries"] == 1


def test_a_job_without_a_pod_is_told() -> None:
    """A quota or an admission webhook refuses the pod and not the Job: soon after, not at the deadline, it says where to look."""
    for seconds, reason in ((29, "Migrating"), (31, "JobWaits")):
        seen = decide(spec(), replace(FRESH, job=a_job(has_pod=False), now=NOW + timedelta(seconds=seconds)))
        assert (seen.act, seen.standing.reason) == (None, reason)
    assert "kubectl describe job j" in seen.standing.message
    assert decide(spec(), replace(FRESH, job=a_job(), now=NOW + timedelta(minutes=5))).standing.reason == "Migrating"


@pytest.mark.parametrize(
    "seen", [a_job(waiting="Unschedulable: no node"), a_job(has_pod=False), failed("Failed", temporary=True), failed("Blocked")]
)
def test_a_changed_spec_is_tried_at_once_unless_a_try_runs(seen: Job) -> None:
    """A toleration that was added helps a pod without a node only in a new Job; who runs is left to its end."""
    waiting = decide(spec(), replace(FRESH, job=seen))
    assert waiting.act is None
    changed = follow(waiting, FRESH, seen)
    changed = replace(changed, generation=2)
    again = decide(spec(tolerations=[{"operator": "Exists"}]), changed)
    assert (again.act, again.standing.is_reconciling) == ("delete", True)
    assert decide(spec(), follow(again, changed, None)).act == "create"
    assert decide(spec(), replace(changed, job=a_job())).act is None
    assert decide(spec(), replace(changed, job=replace(seen, generation=2))).act is None, "made from this spec, and then the operator died"


@pytest.mark.parametrize("outcome", ["Failed", "Blocked"])
def test_a_shared_jobs_failure_is_tried_again_for_a_changed_spec_once(outcome: str) -> None:
    """Which spec of somebody else it was made from says nothing: whether it was looked at since the change does."""
    shared = replace(failed(outcome), owner="u-2", generation=7)
    seen = follow(decide(spec(), replace(FRESH, job=shared)), FRESH, shared)
    assert decide(spec(), seen).act is None
    changed = replace(seen, generation=2)
    again = decide(spec(lockTimeout="1s"), changed)
    assert again.act == "delete"
    assert decide(spec(lockTimeout="1s"), replace(follow(again, changed, shared), now=NOW + timedelta(seconds=1))).act is None


def test_a_job_that_the_api_server_does_not_take_is_no_try() -> None:
    """It is told, and asked again; nothing is counted, so that the status does not change with every round."""
    begun = decide(spec(), FRESH)
    told = refused(begun, "spec.template.spec.tolerations[0].operator: Unsupported value")
    assert (told.standing.reason, told.standing.is_reconciling, told.status["tries"]) == ("JobWaits", True, 0)
    assert "tolerations[0].operator" in told.standing.message
    again = decide(spec(), follow(told, FRESH, None))
    assert (again.act, refused(again, "x").status) == ("create", told.status)


def test_paused_makes_no_job() -> None:
    """What is complete stays so; what is not is left at what was complete before, and where nothing was a person has to act."""
    never = decide(spec(paused=True), FRESH)
    assert (never.act, never.standing.reason, never.standing.is_stalled) == (None, "Paused", True)
    done = replace(FRESH, status={"observedGeneration": 1, "completedHash": work_hash(spec()), "currentRevision": "0001"})
    assert decide(spec(paused=True), done).standing.reason == "Migrated"
    later = decide(spec(paused=True, image="amo:3"), done)
    assert (later.act, later.standing.reason, later.standing.is_ready) == (None, "Paused", True)
    assert "stays at 0001" in later.standing.message
    assert decide(spec(image="amo:3"), follow(later, done, None)).act == "create"


def test_the_work_is_named_by_image_target_and_database() -> None:
    """Two releases that want the same make the same Job; how often it is tried is no part of it."""
    names = {
        job_name(spec(**each)) for each in ({}, {"image": "amo:3"}, {"targetRevision": "0001"}, {"databaseSecretRef": {"name": "other"}})
    }
    assert len(names) == 4
    assert job_name(spec(backoffLimit=0, lockTimeout="2s", paused=True)) == job_name(spec())
    assert job_name(spec(**ON_THESE_NODES)) == job_name(spec()), "a toleration does not migrate again"


@given(st.one_of(st.text(), st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["outcome", "blockers", "to", "error", "pid", "state", "age_seconds", "query"]), inner)).map(json.dumps)))  # fmt: skip
def test_any_termination_message_can_be_read(text: str) -> None:
    """What is not ours counts as nothing said, and never holds up the reconcile."""
    result = read_result(text)
    assert isinstance(result.outcome, str)
    assert decide(spec(), replace(FRESH, job=a_job("failed", said=text))).standing.reason


JOBS = st.one_of(
    st.none(),
    st.sampled_from([a_job(), a_job("ending"), a_job("complete"), a_job("failed", "OOM")]),
    st.sampled_from(["Upgraded", "Unchanged", "SchemaIsLater", "Failed", "Incompatible", "Blocked"]).map(failed),
)


@given(st.lists(st.tuples(JOBS, st.integers(0, 900), st.booleans()), max_size=12))
def test_whatever_is_seen_it_settles(history: list[tuple[Job | None, int, bool]]) -> None:
    """Any sequence of Jobs, pauses and lost statuses ends Ready, Stalled or waiting with a time; never with nothing to wait for."""
    observed = FRESH
    for seen_then, seconds, is_lost in history:
        observed = replace(observed, job=seen_then, now=observed.now + timedelta(seconds=seconds))
        decision = decide(spec(), observed)
        if not is_lost:
            observed = follow(decision, observed, seen_then)
    seen = []
    for _ in range(6):
        decision = decide(spec(), observed)
        seen.append(decision.standing)
        job = {"create": a_job(), "delete": None}.get(decision.act or "", observed.job)
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
    done = decide(spec(), replace(FRESH, job=a_job("complete"))).standing
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
    assert job["metadata"]["annotations"] == {GENERATION: "3"}
    assert pod["imagePullSecrets"] == [{"name": "pull"}]


def test_the_jobs_pod_runs_where_the_cluster_wants_it() -> None:
    """Nodes, taints and what is mounted are taken over as they are written."""
    pod = migration_job(RESOURCE, spec(**ON_THESE_NODES), "crm", {})["spec"]["template"]["spec"]
    assert {name: pod[name] for name in ("nodeSelector", "tolerations", "volumes")} == {
        name: ON_THESE_NODES[name] for name in ("nodeSelector", "tolerations", "volumes")
    }
    assert pod["containers"][0]["volumeMounts"] == ON_THESE_NODES["volumeMounts"]
