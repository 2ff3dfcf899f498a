"""Every metric: its name, type, unit, labels and meaning; the README's table and both ways out are made of these.

Names and labels are OpenTelemetry's where the semantic conventions have them, ours begin with ``amo.``. Prometheus sees them by the
usual rules: dots become underscores, the unit is spelt out at the end, and a counter ends in ``_total``. No label holds an id of anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Type: TypeAlias = Literal["counter", "gauge", "updowncounter", "histogram"]

UNITS = {"s": "seconds", "By": "bytes"}
"""How Prometheus spells the units; one in braces is a word for what is counted, and left out."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric. ``bounds`` are a histogram's upper bounds, each of which belongs to its bucket."""

    name: str
    type: Type
    unit: str
    labels: tuple[str, ...]
    help: str
    bounds: tuple[float, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """Return the name in a query; a histogram's series add ``_bucket``, ``_sum`` and ``_count``."""
        parts = [self.name.replace(".", "_"), UNITS.get(self.unit), "total" if self.type == "counter" else None]
        return "_".join(part for part in parts if part)

    @property
    def prometheus_labels(self) -> tuple[str, ...]:
        """Return the labels in a query."""
        return tuple(label.replace(".", "_") for label in self.labels)


# The conventions' own bounds, and those that our promises are about.
ANSWER_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 5.0, 7.5, 10.0)
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAG_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 7200.0, 21600.0, 86400.0, 259200.0, 604800.0, 2592000.0)
WAIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5)
LOOP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
BATCH_DELIVERIES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 500.0)

REQUEST_DURATION = Definition(
    "http.server.request.duration", "histogram", "s",
    ("http.request.method", "url.scheme", "http.route", "http.response.status_code", "error.type"),
    "Time from a webhook's first byte to its answer. error.type: the outcome of an answer from 500 on; "
    "no status code where the sender hung up.",
    ANSWER_SECONDS,
)  # fmt: skip
DELIVERIES = Definition(
    "amo.deliveries", "counter", "{delivery}", ("http.route", "amo.outcome"),
    "Webhook requests by outcome: success, partial (stored, an event is pending or dead), or why there was no 200: InvalidBody, "
    "Unauthorized, BodyTooLarge, Unavailable, ClientGone (the sender hung up), other (a bug).",
)  # fmt: skip
KEY_MATCHES = Definition(
    "amo.key.matches", "counter", "{delivery}", ("amo.key.kind", "amo.key.fingerprint"),
    "Requests that a key authenticated: client_secret, url_key or token. A retired key whose count still grows is still in use.",
)  # fmt: skip
ANSWERS_BAD = Definition(
    "amo.answers.bad", "gauge", "{answer}", ("http.route", "amo.outcome"),
    "Answers of this process in the last 2 h that count against the hook with amoCRM, by outcome (Late: a 200 after more than 2 s). "
    "Sum over the pods: amoCRM switches a hook off at 100. amoCRM itself calls the route with the token only.",
)  # fmt: skip
ANSWERS_BUDGET = Definition(
    "amo.answers.budget", "gauge", "{answer}", (),
    "Answer budget left: 100 less this process's bad answers on the route with the token, at least 0. "
    "For several pods take 100 less their summed amo.answers.bad.",
)  # fmt: skip
NEWEST_AGE = Definition(
    "amo.delivery.newest.age", "gauge", "s", (),
    "Time since the newest stored delivery of any account; take the least over the pods. Absent before the first.",
)  # fmt: skip
ACCOUNTS_SILENT = Definition(
    "amo.accounts.silent", "gauge", "{account}", (),
    "Accounts silent unusually long: nothing for 3 h or more, though the same stretch a week earlier brought 10 deliveries or more. "
    "The log names them. Forgotten after a week of silence. Read every 5 min; the same in every pod.",
)  # fmt: skip
EVENTS = Definition(
    "amo.events", "counter", "{event}", ("amo.entity", "amo.action", "amo.outcome"),
    "Events of stored deliveries, by what had become of them then: applied (or superseded by a newer one), recorded, duplicate, pending, "
    "dead. Words that are not amoCRM's are other.",
)  # fmt: skip
EVENT_LAG = Definition(
    "amo.event.lag", "histogram", "s", ("amo.attempt.kind",),
    "From an event's own time in the CRM (whole seconds) to its effect in the tables, where it has one: at accept, retry or replay.",
    LAG_SECONDS,
)  # fmt: skip
DEAD_LETTERS = Definition(
    "amo.dead_letters", "counter", "{event}", ("amo.entity", "amo.attempt.kind"),
    "Events given up on: at accept (not usable; unparsed: a whole body), or after the last retry or replay.",
)  # fmt: skip
ATTEMPTS = Definition(
    "amo.attempts", "counter", "{attempt}", ("amo.attempt.kind", "amo.outcome"),
    "The worker's attempts (retry, replay) by outcome: applied, failed (it counts), deferred (the database's trouble: given back).",
)  # fmt: skip
BATCH_SIZE = Definition("amo.batch.size", "histogram", "{delivery}", (), "Deliveries in a group commit.", BATCH_DELIVERIES)
BATCH_WAIT = Definition(
    "amo.batch.wait", "histogram", "s", (), "How long the first delivery of a group commit waited for it to begin.", WAIT_SECONDS
)
CALL_DURATION = Definition(
    "db.client.operation.duration", "histogram", "s", ("db.system.name", "db.operation.name", "error.type"),
    "Time of a database call (accept, settle, claim, fail, defer …), its connection included. "
    "error.type: SQLSTATE, timeout, unreachable, or other (a bug).",
    CALL_SECONDS,
)  # fmt: skip
CONNECTIONS = Definition(
    "db.client.connection.count", "updowncounter", "{connection}", ("db.client.connection.pool.name", "db.client.connection.state"),
    "Open connections to the database: used or idle.",
)  # fmt: skip
CONNECTIONS_MAX = Definition(
    "db.client.connection.max", "updowncounter", "{connection}", ("db.client.connection.pool.name",),
    "How many connections there may be (DB_POOL_SIZE).",
)  # fmt: skip
QUEUE_PENDING = Definition(
    "amo.queue.pending", "gauge", "{event}", (),
    "Events that are stored and not applied yet, due or not; more than 10,000 are shown as 10,000. "
    "Like the other three of amo.queue the same in every pod, at most 10 s old, and absent while the database does not answer.",
)  # fmt: skip
QUEUE_DUE = Definition(
    "amo.queue.due", "gauge", "{event}", (), "Events that a worker should have taken up; more than 10,000 are shown as 10,000."
)
QUEUE_AGE = Definition("amo.queue.age", "gauge", "s", (), "How long the oldest due event has been due; 0 where none is.")
QUEUE_DEAD = Definition("amo.queue.dead", "gauge", "{event}", (), "Dead letters that are kept; more than 10,000 are shown as 10,000.")
SPAN_EXPORTS = Definition(
    "amo.span.exports", "counter", "{span}", ("amo.outcome",),
    "Spans exported, and dropped because the collector did not take them or the queue was full.",
)  # fmt: skip
SPAN_QUEUE = Definition("amo.span.queue", "gauge", "{span}", (), "Spans waiting to be exported or on their way.")
METRIC_EXPORTS = Definition(
    "amo.metric.exports", "counter", "{export}", ("amo.outcome",), "Exports of these metrics over OTLP: success or failure."
)
RELOADS = Definition(
    "amo.reloads", "counter", "{reload}", ("amo.file", "amo.outcome"),
    "Changed files (keyring, mapping) taken over (success) or refused (failure: what was loaded stays in force).",
)  # fmt: skip
LOOP_LAG = Definition(
    "amo.loop.lag", "histogram", "s", (), "How much later than asked for the event loop came back, sampled 4 times a second.", LOOP_SECONDS
)
UP = Definition("amo.up", "gauge", "{process}", (), "1 while the process runs.")
READY = Definition(
    "amo.ready",
    "gauge",
    "{process}",
    ("amo.role",),
    "1 when ready (see /readyz), else 0. service: it accepts webhooks; worker: it does not.",
)
BUILD_INFO = Definition(
    "amo.build.info", "gauge", "{process}", ("service.version", "vcs.ref.head.revision", "amo.schema.revision"),
    "1, with this release's version, the revision of its source where it is known, and that of the database that it was made for.",
)  # fmt: skip

DEFINITIONS = tuple(value for value in globals().values() if isinstance(value, Definition))
"""In the order above."""


def metrics_table() -> str:
    """Render all metrics as a Markdown table for the README."""
    lines = ["| metric | in Prometheus | type, unit | labels | meaning |", "|---|---|---|---|---|"]
    for each in DEFINITIONS:
        labels = ", ".join(f"`{label}`" for label in each.prometheus_labels)
        lines.append(f"| `{each.name}` | `{each.prometheus_name}` | {each.type}, {each.unit} | {labels} | {each.help} |")
    return "\n".join(lines) + "\n"
