"""What a SchemaMigration needs next, decided from its spec, its status and its Job alone; nothing here talks to anybody.

Completion is recorded in the status by a hash of what was done, so that a Job that is gone means nothing. There is one Job for each
(image, target, database), named by that hash: two operators, or two releases, make the same one. A Job tells of the database as it was
then: one that is older than what was completed last, or than the object itself, is taken away and made anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from amo_operator.conditions import Standing, rfc3339

if TYPE_CHECKING:
    from amo_operator.spec import SchemaMigrationSpec

FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=10), timedelta(minutes=10)
DONE = {"Upgraded", "Unchanged", "SchemaIsLater"}
FINAL = {"Failed": "MigrationFailed", "Incompatible": "Incompatible"}
"""Outcomes that another try would not change, with the reason of the condition."""
MEND = {
    "MigrationFailed": "Correct the migration and give `image` another value.",
    "Incompatible": "The database is ahead of this release and no longer runs it: go back to a later image.",
}
MOST_BLOCKERS = 10
POD_WITHIN = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Job:
    """A Job as far as it matters: is it over and how, what its last container said, and why a pod does not start."""

    name: str
    uid: str
    made_at: datetime
    owner: str
    """UID of the object that made it; others that want the same work share it."""
    generation: int
    """Generation of that object's spec then."""
    outcome: Literal["running", "complete", "failed", "ending"] = "running"
    failure: str = ""
    said: str = ""
    waiting: str = ""
    has_pod: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """What ``amo-webhooks migrate upgrade --result`` wrote; ``outcome`` is empty where nothing readable was written."""

    outcome: str = ""
    revision: str | None = None
    blockers: tuple[dict[str, Any], ...] = ()
    error: str | None = None
    is_temporary: bool = False
    """The same image may get through next time: no connection, no disk space, killed."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The next act (at most one), the status to be shown, and whether something happened that is worth an Event."""

    act: Literal["create", "delete"] | None
    status: dict[str, Any]
    standing: Standing


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that is known at one moment; all but ``now`` and ``job``, the one of ``job_name``, is the object's own."""

    now: datetime
    uid: str
    generation: int
    made_at: datetime
    status: dict[str, Any] = field(default_factory=dict)
    job: Job | None = None


def work_hash(spec: SchemaMigrationSpec) -> str:
    """Name what is to be done: which image takes which database to which revision."""
    reference = spec.database_secret_ref
    what = (spec.image, spec.target_revision, reference.name, reference.key)
    return hashlib.sha256("\0".join(what).encode()).hexdigest()[:12]


def job_name(spec: SchemaMigrationSpec) -> str:
    """Return the one name of the Job for this work."""
    return f"amo-migrate-{work_hash(spec)}"


def read_result(text: str) -> Result:
    """Read a container's termination message; whatever is not what we write counts as nothing said."""
    try:
        said = json.loads(text)
        blockers = tuple(
            {"pid": int(each["pid"]), "state": str(each["state"]), "ageSeconds": int(each["age_seconds"]), "query": str(each["query"])}
            for each in said.get("blockers") or ()
        )
        revision, error = said.get("to") or said.get("from"), said.get("error")
        revision, error = str(revision) if revision else None, str(error) if error else None
        return Result(str(said["outcome"]), revision, blockers[:MOST_BLOCKERS], error, said.get("temporary") is True)
    except (ValueError, TypeError, KeyError, AttributeError):
        return Result()


def decide(spec: SchemaMigrationSpec, observed: Observed) -> Decision:
    """Return the next step towards a database at the wanted revision; applied to what it led to, it settles."""
    work, status = work_hash(spec), _kept(spec, observed)
    if status.get("completedHash") == work:
        return Decision(None, status, _completed(status))
    if spec.paused:
        return Decision(None, status, _paused(status))
    if observed.job is None:
        return _start(status, observed)
    return _follow(status, work, observed.job, observed)


def _follow(status: dict[str, Any], work: str, job: Job, observed: Observed) -> Decision:
    if job.outcome == "ending":
        return Decision(None, status, Standing("Migrating", "The Job of the last try is being removed.", is_reconciling=True))
    if _is_of_before(job, observed):
        message = "The Job of an earlier time is taken away: it does not tell how the database is now."
        return Decision("delete", status, Standing("Migrating", message, is_reconciling=True))
    result = read_result(job.said)
    seen = _with_result(_with_job(status, job), result)
    if job.outcome == "complete":
        return _complete(seen, work, result, observed.now)
    is_final = result.outcome in FINAL and not result.is_temporary  # what its next pods would say is known
    has_failed = job.outcome == "failed" or is_final
    if _is_of_older_spec(job, observed) and (has_failed or job.waiting or not job.has_pod):
        return Decision("delete", status, Standing("Migrating", "The spec was changed: trying again.", is_reconciling=True))
    if has_failed:
        return _failed(seen, result, observed)
    return Decision(None, seen, _running(job, result, observed.now))


def _is_of_before(job: Job, observed: Observed) -> bool:
    """Tell whether a Job was made before the one that completed other work, or had ended when the object was not yet there.

    Jobs are compared with each other, not with this process: times of two clocks would take away the Job that runs.
    """
    last = observed.status.get("completedJobMadeAt")
    if last and job.made_at < datetime.fromisoformat(last):
        return True
    return job.outcome != "running" and job.made_at < observed.made_at


def _is_of_older_spec(job: Job, observed: Observed) -> bool:
    """Tell whether the spec was changed since: the object's own Job says it itself, of a shared one the last look is what is known.

    The status alone would not do: an operator that dies between the Job and the status would take away what it has just made.
    """
    if job.owner == observed.uid:
        return job.generation < observed.generation
    return observed.status.get("observedGeneration") not in (observed.generation, -1, None)


def _kept(spec: SchemaMigrationSpec, observed: Observed) -> dict[str, Any]:
    """Take over from the status what still holds: after a change of the spec, failures of before do not."""
    names = {"currentRevision", "completedHash", "completedAt", "completedJobMadeAt"}
    is_same = observed.status.get("observedGeneration") == observed.generation
    if is_same or observed.status.get("outcome") in DONE:
        names |= {"outcome"}
    if is_same:
        names |= {"tries", "nextTry", "blockers", "lastError", "job", "jobMadeAt"}
    kept = {name: value for name, value in observed.status.items() if name in names}
    return {"tries": 0, "blockers": [], **kept, "targetRevision": spec.target_revision}


def _completed(status: dict[str, Any]) -> Standing:
    revision = status.get("currentRevision", "an unknown revision")
    if status.get("outcome") == "SchemaIsLater":
        return Standing("SchemaIsLater", f"The database is at {revision}, later than this image's; it runs on it.", is_ready=True)
    return Standing("Migrated", f"The database is at {revision}.", is_ready=True)


def _paused(status: dict[str, Any]) -> Standing:
    """Tell what a release finds that is not migrated: the schema of before, or, until a person acts, nothing that it could run on.

    It must be one of the two: who waits for something that is neither waits for ever.
    """
    if "completedHash" not in status:
        return Standing("Paused", "`paused` is true: no Job is made, and none was complete before.", is_stalled=True)
    revision = status.get("currentRevision", "an unknown revision")
    return Standing("Paused", f"`paused` is true: no Job is made, the database stays at {revision}.", is_ready=True)


def _start(status: dict[str, Any], observed: Observed) -> Decision:
    if reason := FINAL.get(status.get("outcome", "")):
        return Decision(None, status, _stalled(status, reason))
    if (due := status.get("nextTry")) and observed.now < datetime.fromisoformat(due):
        return Decision(None, status, _waiting(status))
    status = {name: value for name, value in status.items() if name != "nextTry"} | {"tries": status["tries"] + 1}
    return Decision("create", status, Standing("Migrating", f"Try {status['tries']} begins.", is_reconciling=True))


def _with_job(status: dict[str, Any], job: Job) -> dict[str, Any]:
    """Note which Job is looked at; one that somebody else made is a try too, and has its own pause after it."""
    made = rfc3339(job.made_at)
    if status.get("jobMadeAt") != made:
        tries = max(status["tries"] + ("nextTry" in status), 1)
        status = {name: value for name, value in status.items() if name != "nextTry"} | {"tries": tries}
    return status | {"job": job.name, "jobMadeAt": made}


def _with_result(status: dict[str, Any], result: Result) -> dict[str, Any]:
    if not result.outcome:
        return status
    said: dict[str, Any] = {"blockers": list(result.blockers), "currentRevision": result.revision, "lastError": result.error}
    return {name: value for name, value in (status | said).items() if value is not None}


def _complete(status: dict[str, Any], work: str, result: Result, now: datetime) -> Decision:
    outcome = result.outcome if result.outcome in DONE else "Upgraded"
    left = {name: value for name, value in status.items() if name not in {"nextTry", "lastError"}}
    status = left | {"completedHash": work, "completedAt": rfc3339(now), "completedJobMadeAt": left["jobMadeAt"]}
    status |= {"outcome": outcome, "blockers": []}
    return Decision(None, status, _completed(status))


def _failed(status: dict[str, Any], result: Result, observed: Observed) -> Decision:
    """Give up on what another try would not change; else take the Job away when its pause is over, so that the next can be made."""
    reason = None if result.is_temporary else FINAL.get(result.outcome)
    if reason:
        status = status | {"outcome": result.outcome}
        return Decision(None, status, _stalled(status, reason))
    if not result.outcome and observed.job:
        status = status | {"lastError": observed.job.failure or "The Job failed without a word."}
    if "nextTry" not in status:
        pause = min(FIRST_PAUSE * 2 ** min(status["tries"], 10), LONGEST_PAUSE)
        status = status | {"nextTry": rfc3339(observed.now + pause)}
    is_due = observed.now >= datetime.fromisoformat(status["nextTry"])
    return Decision("delete" if is_due else None, status, _waiting(status))


def refused(decision: Decision, why: str) -> Decision:
    """Return what becomes of a Job that the API server does not take: no try has begun, and the next round asks again."""
    status = decision.status | {"tries": decision.status["tries"] - 1}
    return Decision(None, status, Standing("JobWaits", f"The API server does not take the Job: {why}", is_reconciling=True))


def _stalled(status: dict[str, Any], reason: str) -> Standing:
    return Standing(reason, f"{status.get('lastError') or 'No reason was given.'} {MEND[reason]}", is_stalled=True)


def _waiting(status: dict[str, Any]) -> Standing:
    again = f"Tried {status['tries']} times, again at {status['nextTry']}."
    if status["blockers"]:
        return Standing("Blocked", f"No lock on the tables: {_in_the_way(status['blockers'])}. {again}", is_reconciling=True)
    return Standing("JobFailed", f"{status.get('lastError', 'The Job failed.')} {again}", is_reconciling=True)


def _in_the_way(blockers: list[dict[str, Any]]) -> str:
    return ", ".join(f"pid {each['pid']} ({each['state']}, {each['ageSeconds']} s)" for each in blockers)


def _running(job: Job, result: Result, now: datetime) -> Standing:
    if result.blockers:
        return Standing("Blocked", f"No lock on the tables yet: {_in_the_way(list(result.blockers))}.", is_reconciling=True)
    if job.waiting:
        return Standing("JobWaits", f"The pod of Job {job.name} does not start: {job.waiting}.", is_reconciling=True)
    if not job.has_pod and now - job.made_at > POD_WITHIN:
        told = f"`kubectl describe job {job.name}` tells who refuses it: a quota, Pod Security, a webhook"
        return Standing("JobWaits", f"Job {job.name} has no pod; {told}.", is_reconciling=True)
    return Standing("Migrating", f"Job {job.name} runs.", is_reconciling=True)
