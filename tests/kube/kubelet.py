"""The Job controller and the kubelet that are not here: Jobs run as processes of this machine, Secrets are mounted as folders."""

from __future__ import annotations

import base64
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from children import Child, _starter
from kube.pods import MERGE_PATCH, Mount, Pods, now, pod_status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kube.apiserver import ApiServer

PROGRAMS = {"amo-webhooks": [sys.executable, "-m", "amo_receiver"], "python3": [sys.executable], "python": [sys.executable]}
MESSAGE_BYTES = 4096
FALLBACK_BYTES = 2048
POLL_S = 0.1
REFRESH_S = 60.0
BACKOFF_S = 1.0  # times are whole seconds there, and the newest pod must be known by its own


class Container(Child):
    """The one container of a Job's pod, as a process; unlike a server's its early end is no failure to start."""

    def start(self) -> Self:
        """Start the process."""
        self._process = _starter.submit(self._spawn).result()
        return self

    @property
    def has_ended(self) -> bool:
        """Tell whether the process has ended."""
        return self.process.poll() is not None


class Attempt:
    """One pod of a Job."""

    def __init__(self, pods: Pods, job: Mapping[str, Any], number: int, folder: Path) -> None:
        self._pods = pods
        self._template = job["spec"]["template"]
        self._folder = folder
        self._message = folder / "termination-log"
        self._container: Container | None = None
        self.spec = self._template["spec"]["containers"][0]
        self.name = f"{job['metadata']['name'][:50]}-{number}-{job['metadata']['uid'][:5]}"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "controller": True, "blockOwnerDeletion": True}
        owner |= {field: job["metadata"][field] for field in ("name", "uid")}
        metadata = {**self._template.get("metadata", {}), "name": self.name, "ownerReferences": [owner]}
        pods.create({"metadata": metadata, "spec": self._template["spec"]})

    @property
    def is_started(self) -> bool:
        """Tell whether its process was started."""
        return self._container is not None

    @property
    def has_ended(self) -> bool:
        """Tell whether its process has come to an end."""
        return self._container is not None and self._container.has_ended

    def wait_for_a_node(self) -> None:
        """Say that no node takes the pod, as the scheduler does."""
        found = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available."}
        self._pods.write_status(self.name, {"phase": "Pending", "conditions": [{**found, "lastTransitionTime": now()}]})

    def wait_for_configuration(self, problem: str) -> None:
        """Say why the container cannot be created yet."""
        waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": problem}}
        self._pods.write_status(self.name, pod_status("Pending", "127.0.0.1", self.spec["name"], waiting))

    def start(self, environment: Mapping[str, str]) -> None:
        """Run the container's command here: its program is that of the tests, its termination message goes into a file of this attempt."""
        self._folder.mkdir(parents=True)
        self._message.touch()
        path = self.spec.get("terminationMessagePath", "/dev/termination-log")
        command = [each.replace(path, str(self._message)) for each in [*self.spec.get("command", []), *self.spec.get("args", [])]]
        command[:1] = PROGRAMS.get(Path(command[0]).name, command[:1])
        paths = [str(Path(sys.executable).parent), os.defpath]
        own = {"PATH": os.pathsep.join(paths), "HOME": str(self._folder), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        log = self._folder / "log"
        self._container = Container(command, cwd=self._folder, env={**own, **environment}, log_path=log).start()
        running = {"running": {"startedAt": now()}}
        self._pods.write_status(self.name, pod_status("Running", "127.0.0.1", self.spec["name"], running, ready=True))

    def settle(self) -> bool:
        """Write how the process has ended; return whether it went well."""
        assert self._container is not None, "not started"
        code = self._container.wait()
        code = 128 - code if code < 0 else code
        message = self._message.read_bytes()[:MESSAGE_BYTES].decode(errors="replace")
        if not message and code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            message = self._container.log[-FALLBACK_BYTES:]
        ended = {"exitCode": code, "message": message, "startedAt": now(), "finishedAt": now(), "reason": "Error" if code else "Completed"}
        phase = "Failed" if code else "Succeeded"
        self._pods.write_status(self.name, pod_status(phase, "127.0.0.1", self.spec["name"], {"terminated": ended}))
        print(f"--- {self.name}: {' '.join(self._container.command)}, exit code {code}\n{self._container.log}")  # noqa: T201
        return code == 0

    def end(self) -> None:
        """Ask the process to end, and see to it."""
        if self._container and not self._container.has_ended:
            self._container.end()

    def kill(self) -> None:
        """End the process without a word."""
        if self._container and not self._container.has_ended:
            self._container.kill()


class RunningJob:
    """A Job from its first pod to its end."""

    def __init__(self, kubelet: Kubelet, job: Mapping[str, Any]) -> None:
        self._kubelet = kubelet
        self.job = job
        self._failed = 0
        self._next_at = 0.0
        self._started_at = now()
        self._begun_at = time.monotonic()
        self._attempt: Attempt | None = None
        self.is_over = False

    def step(self) -> None:
        """Do the next thing that is due: begin a pod, start it, notice its end, give up."""
        deadline = self.job["spec"].get("activeDeadlineSeconds")
        if deadline and time.monotonic() - self._begun_at > deadline:
            self._end_attempt()
            self._finish("DeadlineExceeded", "Job was active longer than specified deadline")
        elif self._attempt is None:
            if time.monotonic() >= self._next_at:
                folder = self._kubelet.folder / f"{self.job['metadata']['uid']}-{self._failed + 1}"
                self._attempt = Attempt(self._kubelet.pods, self.job, self._failed + 1, folder)
                self._report(active=1)
        elif not self._attempt.is_started:
            self._start(self._attempt)
        elif self._attempt.has_ended:
            self._end_of(self._attempt)

    def abandon(self) -> None:
        """End its process and remove its pod: the Job was deleted."""
        self._end_attempt()
        self.is_over = True

    def kill(self) -> None:
        """Kill its process and leave everything else as it is."""
        if self._attempt:
            self._attempt.kill()

    def _start(self, attempt: Attempt) -> None:
        if self._kubelet.has_no_node(self.job["spec"]["template"]["spec"]):
            attempt.wait_for_a_node()
            return
        environment, problem = self._kubelet.environment(attempt.spec, attempt.name)
        if problem:
            attempt.wait_for_configuration(problem)
        else:
            attempt.start(environment)

    def _end_attempt(self) -> None:
        """End the running pod and remove it, as a cluster does with the active pods of a Job that is given up."""
        if self._attempt:
            self._attempt.end()
            self._kubelet.pods.remove(self._attempt.name)
            self._attempt = None
            self._failed += 1

    def _end_of(self, attempt: Attempt) -> None:
        self._attempt = None
        if attempt.settle():
            self._finish(None, "Reached expected number of succeeded pods")
            return
        self._failed += 1
        if self._failed > self.job["spec"].get("backoffLimit", 6):
            self._finish("BackoffLimitExceeded", "Job has reached the specified backoff limit")
        else:
            self._next_at = time.monotonic() + self._kubelet.backoff_s * 2 ** (self._failed - 1)
            self._report(active=0)

    def _report(self, **counts: int) -> None:
        status = {"startTime": self._started_at, "failed": self._failed, "ready": counts["active"], "terminating": 0, **counts}
        self._kubelet.write_job(self.job, {**status, "uncountedTerminatedPods": {}})

    def _finish(self, reason: str | None, message: str) -> None:
        """Write the end as the Job controller does: the verdict first, then what is final, in one."""
        types = ("FailureTarget", "Failed") if reason else ("SuccessCriteriaMet", "Complete")
        facts = {"status": "True", "reason": reason or "CompletionsReached", "message": message}
        times = {"lastProbeTime": now(), "lastTransitionTime": now()}
        status: dict[str, Any] = {
            "startTime": self._started_at,
            "active": 0,
            "ready": 0,
            "terminating": 0,
            "failed": self._failed,
            "conditions": [{"type": name, **facts, **times} for name in types],
            "uncountedTerminatedPods": {},
        }
        if not reason:
            status |= {"succeeded": 1, "completionTime": now()}
        self._kubelet.write_job(self.job, status)
        self.is_over = True


class Kubelet:
    """Runs the Jobs of a namespace, and keeps its mounts up to date, in a thread of its own."""

    def __init__(self, server: ApiServer, namespace: str, folder: Path, *, backoff_s: float = BACKOFF_S) -> None:
        self._server = server
        self._namespace = namespace
        self._jobs_path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._jobs: dict[str, RunningJob] = {}
        self._mounts: list[Mount] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self._problem: BaseException | None = None
        self.folder = folder
        self.backoff_s = backoff_s
        self.pods = Pods(server, namespace)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for job in self._jobs.values():
            job.kill()
        self.check()

    def check(self) -> None:
        """Raise what ended the thread: who waits for its work waits in vain."""
        if self._problem:
            raise self._problem

    def mount(self, secret: str, pod: str, *, delay_s: float = REFRESH_S) -> Path:
        """Mount a Secret into a pod, optional as the service's is; return the folder, filled when this returns."""
        folder = self.folder / "mounts" / pod / secret
        mount = Mount(self._server, self._namespace, secret, pod, folder, delay_s=delay_s)
        mount.sync()
        with self._lock:
            self._mounts.append(mount)
        return folder

    def kill(self, job: str) -> None:
        """Kill the process that a Job runs now, as a node out of memory does; its pod fails with 137."""
        for running in list(self._jobs.values()):
            if running.job["metadata"]["name"] == job:
                running.kill()

    def has_no_node(self, _pod: Mapping[str, Any]) -> bool:
        """Tell whether a pod fits on no node; here every pod does."""
        return False

    def environment(self, container: Mapping[str, Any], pod: str) -> tuple[dict[str, str], str]:
        """Return the variables of a container, and what is missing for them."""
        found: dict[str, str] = {}
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            reference = source.get("secretKeyRef")
            if reference:
                secret = self._server.ask("GET", f"/api/v1/namespaces/{self._namespace}/secrets/{reference['name']}")
                if reference["key"] not in secret.get("data", {}):
                    return {}, f"couldn't find key {reference['key']} in Secret {self._namespace}/{reference['name']}"
                found[variable["name"]] = base64.b64decode(secret["data"][reference["key"]]).decode()
            elif source:
                fields = {"metadata.name": pod, "metadata.namespace": self._namespace}
                found[variable["name"]] = fields[source["fieldRef"]["fieldPath"]]
            else:
                found[variable["name"]] = variable.get("value", "")
        return found, ""

    def write_job(self, job: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Write the status of a Job; nothing if it is gone."""
        self._server.ask("PATCH", f"{self._jobs_path}/{job['metadata']['name']}/status", {"status": status}, content_type=MERGE_PATCH)

    def _run(self) -> None:
        try:
            while not self._over.wait(POLL_S):
                self._step()
        except BaseException as error:  # noqa: BLE001 - raised where the test waits for the end
            self._problem = error

    def _step(self) -> None:
        listed = {job["metadata"]["uid"]: job for job in self._server.ask("GET", self._jobs_path).get("items", [])}
        for uid, job in listed.items():
            if uid not in self._jobs and not _is_finished(job) and not job["spec"].get("suspend"):
                self._jobs[uid] = RunningJob(self, job)
        for uid, running in self._jobs.items():
            if running.is_over:
                continue
            if uid not in listed or "deletionTimestamp" in listed[uid]["metadata"]:
                running.abandon()
            else:
                running.step()
        with self._lock:
            mounts = list(self._mounts)
        for mount in mounts:
            mount.sync()


def _is_finished(job: Mapping[str, Any]) -> bool:
    conditions = job.get("status", {}).get("conditions", [])
    return any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)
