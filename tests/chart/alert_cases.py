"""When each alert fires, and when something that looks alike does not: series as promtool writes them, a value a minute.

``1+2x10`` is 1 and ten further values, each 2 more; ``_`` is a scrape that brought nothing, ``stale`` a pod that is gone.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Case(NamedTuple):
    """What was scraped, and the minute at which the alert fires, until which it does not, or at which it does no longer."""

    minute: int
    series: dict[str, str]


class Alert(NamedTuple):
    """Cases in which an alert fires, in which it does not, and in which it has fired and does no longer, by what happened."""

    fires: dict[str, Case]
    quiet: dict[str, Case]
    over: Mapping[str, Case] = MappingProxyType({})

    def cases(self) -> Iterator[tuple[Literal["fires", "quiet", "over"], str, Case]]:
        """Return all of them with their kind."""
        yield from (("fires", *each) for each in self.fires.items())
        yield from (("quiet", *each) for each in self.quiet.items())
        yield from (("over", *each) for each in self.over.items())


A, B = 'namespace="crm", job="amo-webhooks", pod="a"', 'namespace="crm", job="amo-webhooks", pod="b"'
WORKER, OTHER = 'namespace="crm", job="amo-webhooks-worker", pod="w"', 'namespace="b"'
SIGNED, TOKEN = "/api/webhooks/amo", "/api/webhooks/amo/{token}"


def series(name: str, pod: str = A, **labels: str) -> str:
    """Write the name of a pod's series."""
    own = "".join(f', {label}="{value}"' for label, value in labels.items())
    return f"{name}{{{pod}{own}}}"


def ready(pod: str = A, role: str = "service") -> str:
    """Name the series that tells whether a pod is ready."""
    return series("amo_ready", pod, amo_role=role)


def deliveries(outcome: str, pod: str = A, route: str = TOKEN) -> str:
    """Name the series of deliveries with this outcome."""
    return series("amo_deliveries_total", pod, http_route=route, amo_outcome=outcome)


def bad(outcome: str, pod: str = A, route: str = TOKEN) -> str:
    """Name the series of bad answers that a pod remembers."""
    return series("amo_answers_bad", pod, http_route=route, amo_outcome=outcome)


def calls(error_type: str, pod: str = A) -> str:
    """Name the series of database calls that ended so."""
    return series("db_client_operation_duration_seconds_count", pod, db_operation_name="accept", error_type=error_type)


def spans(outcome: str) -> str:
    """Name the series of spans that were exported or dropped."""
    return series("amo_span_exports_total", amo_outcome=outcome)


def unexported() -> str:
    """Name the series of exports of metrics that failed."""
    return series("amo_metric_exports_total", amo_outcome="failure")


def answers(within_1_second: str, all_of_them: str, pod: str = A, status: str = "200") -> dict[str, str]:
    """Return the series of a histogram of answers."""
    bounds = {"1.0": within_1_second, "2.0": all_of_them, "+Inf": all_of_them}
    name = "http_server_request_duration_seconds_bucket"
    return {series(name, pod, http_response_status_code=status, le=bound): values for bound, values in bounds.items()}


EVERY_50_MINUTES = "0x9 1x49 2x49 3x49 4x49"
SMALL_SHOP_REFUSED = {deliveries("Unauthorized"): "0+0.3x200", bad("Unauthorized"): "0+0.3x100 30x100"}


def refused(file: str) -> str:
    """Name the series of refused changes of a file."""
    return series("amo_reloads_total", amo_file=file, amo_outcome="failure")


ALERTS = {
    "AmoUnavailable": Alert(
        {
            "no pod is ready": Case(8, {ready(): "1x3 0x6", ready(B): "0x9"}),
            "all pods are gone": Case(8, {ready(): "1x3 stale"}),
            "nothing was ever scraped": Case(3, {"up": "1x9"}),
            "one installation of two is gone": Case(1400, {ready(): "1x3 stale", ready(OTHER): "1x1500"}),
            "only the worker is left": Case(8, {ready(): "1x3 stale", ready(B, "worker"): "1x9"}),
            "only the worker is ready": Case(8, {ready(): "1x3 0x6", ready(B, "worker"): "1x9"}),
        },
        {
            "one pod of two is ready": Case(8, {ready(): "1x9", ready(B): "0x9"}),
            "pods were replaced": Case(8, {ready(): "1x3 stale", ready(B): "_x3 1x6"}),
            "a restart takes more than a minute": Case(8, {ready(): "1x3 0 0 1x5"}),
            "no worker is ready": Case(20, {ready(): "1x20", ready(WORKER, "worker"): "1x3 0x6 stale"}),
            "a worker that told no role is replaced": Case(
                20, {ready(): "1x20", series("amo_ready", WORKER): "1x3 stale", ready(WORKER, "worker"): "_x4 1x16"}
            ),
        },
        {"one of two was taken away": Case(1450, {ready(): "1x3 stale", ready(OTHER): "1x1500"})},
    ),
    "AmoDatabaseErrors": Alert(
        {
            "the database is away": Case(7, {calls("unreachable"): "0x2 0+4x9", calls(""): "0+60x2 120x9"}),
            "it hangs": Case(10, {calls("timeout"): "0x5 2+2x9", calls(""): "0+120x5 600x9"}),
            "every other minute": Case(9, {calls("timeout"): "0 4 4 8 8 12 12 16 16 20", calls(""): "0+10x9"}),
            "among bursts": Case(9, {calls("timeout"): "0+3.2x9", calls(""): "0 100 100 200 200 300 300 400 400 500"}),
            "each pod meets some": Case(5, {calls("timeout"): "0+2x9", calls("57P01", B): "0+2x9", calls(""): "0+50x9"}),
        },
        {
            "events that cannot be written": Case(9, {calls("22003"): "0+9x9", calls("23514"): "0+9x9", calls("54000"): "0+9x9"}),
            "two that waited for each other": Case(9, {calls("40P01"): "0+9x9", calls("40001"): "0+9x9"}),
            "a failover of a minute": Case(9, {calls("unreachable"): "0x2 20 40x9", calls(""): "0+60x9"}),
            "few calls of many": Case(9, {calls("timeout"): "0+3x9", calls(""): "0+40x9", calls("", B): "0+40x9"}),
        },
    ),
    "AmoAnswerBudgetAtRisk": Alert(
        {
            "half of it is gone": Case(40, {deliveries("Unavailable"): "0x10 0+2x30"}),
            "spent over pods and restarts": Case(
                60, {deliveries("Unavailable"): "0+0.5x30 0+0.5x40", deliveries("other", B): "0+1x30 stale"}
            ),
            "amoCRM with a wrong token": Case(80, {deliveries("Unauthorized"): "0+1x80", bad("Unauthorized"): "0+1x80"}),
            "one every two minutes": Case(115, {deliveries("Unavailable"): "0+0.5x130"}),
            "late answers": Case(5, {bad("Late"): "30x9", bad("Late", B): "30x9", deliveries("success"): "0+9x9"}),
        },
        {
            "a third of it is gone": Case(80, {deliveries("Unavailable"): "0x10 0+1x35 35x40", bad("Unavailable"): "0x10 0+1x35 35x40"}),
            "a few every hour": Case(700, {deliveries("Unavailable"): "0+0.3x700", deliveries("success"): "0+9x700"}),
            "strangers": Case(80, {deliveries("Unauthorized"): "0+9x80", bad("Unauthorized"): "0x80"}),
            "on the signed path": Case(80, {deliveries("other", route=SIGNED): "0+9x80", bad("other", route=SIGNED): "0+9x80"}),
        },
    ),
    "AmoProcessingErrors": Alert(
        {
            "every fifteenth is not applied": Case(9, {deliveries("partial"): "0+2x20", deliveries("success"): "0+28x20"}),
            "of a small shop, in two pods": Case(20, {deliveries("other"): "0+0.2x20", deliveries("Unavailable", B): "0+0.2x20"}),
            "among strangers": Case(
                20, {deliveries("partial"): "0+2x20", deliveries("success"): "0+18x20", deliveries("Unauthorized"): "0+90x20"}
            ),
        },
        {
            "few of many": Case(
                20, {deliveries("partial"): "0+2x20", deliveries("success"): "0+24x20", deliveries("success", B): "0+24x20"}
            ),
            "two of a small shop": Case(40, {deliveries("partial"): "0x14 2x40", deliveries("success"): "0+1x40"}),
            "four at once": Case(60, {deliveries("partial"): "0x20 1 1 2 2 3 3 4x40", deliveries("success"): "0+1x70"}),
            "one now and then": Case(80, {deliveries("partial"): "0+0.2x80", deliveries("success"): "0+1x80"}),
            "strangers": Case(20, {deliveries("Unauthorized"): "0+90x20", deliveries("success"): "0+9x20"}),
            "a pod that restarts": Case(30, {deliveries("partial"): "900x15 0x20", deliveries("success"): "900x15 0+9x20"}),
        },
    ),
    "AmoSlowAnswers": Alert(
        {
            "every fiftieth is slow": Case(20, answers("0+49x20", "0+50x20")),
            "each of very few": Case(16, answers("0x20", "0 0 0 0 1 1 1 1 2 2 2 2 3 3 3 3 4")),
            "in one pod of two": Case(20, answers("0+90x20", "0+100x20") | answers("0+100x20", "0+100x20", B)),
            "among strangers": Case(20, answers("0+49x20", "0+50x20") | answers("0+9000x20", "0+9000x20", status="401")),
            "of those that are 503": Case(20, answers("0+50x20", "0+50x20") | answers("0x20", "0+1x20", status="503")),
        },
        {
            "one in two hundred": Case(20, answers("0+199x20", "0+200x20")),
            "some minutes": Case(40, answers("0+10x10 109+9x3 146+10x40", "0+10x60")),
            "one slow answer of few": Case(15, answers("0+1x10 10+1x10", "0+1x10 11+1x10")),
            "nobody sends": Case(20, answers("7x20", "9x20")),
            "strangers that wait": Case(20, answers("0+50x20", "0+50x20") | answers("0x20", "0+9x20", status="401")),
        },
    ),
    "AmoDeadLetters": Alert(
        {
            "given up after the last retry": Case(65, {series("amo_dead_letters_total", amo_attempt_kind="retry"): "0x10 1x90"}),
            "the gauge alone shows it": Case(65, {series("amo_queue_dead"): "5x10 6x90"}),
            "of an entity that was not seen before": Case(
                90, {series("amo_dead_letters_total", amo_entity="task"): "_x65 1x40", series("amo_queue_dead"): "5x65 6x40"}
            ),
            "more than the gauge shows": Case(30, {series("amo_dead_letters_total"): "0+1x40", series("amo_queue_dead"): "10000x40"}),
            "the pod ended at once": Case(70, {series("amo_queue_dead"): "5x61 stale", series("amo_queue_dead", B): "_x61 6x40"}),
        },
        {
            "those of last week are kept": Case(120, {series("amo_dead_letters_total"): "4x200", series("amo_queue_dead"): "9x200"}),
            "a pod restarts": Case(90, {series("amo_dead_letters_total"): "4x80 0x40", series("amo_queue_dead"): "9x200"}),
            "they are replayed": Case(90, {series("amo_queue_dead"): "9x60 0x200"}),
        },
        {"an hour later": Case(80, {series("amo_dead_letters_total"): "0x10 1x90", series("amo_queue_dead"): "5x10 6x90"})},
    ),
    "AmoBacklog": Alert(
        {
            "no worker runs": Case(
                13, {series("amo_queue_age_seconds"): "0x5 60+60x20", series("amo_queue_age_seconds", B): "0x5 60+60x20"}
            ),
            "they do not keep up": Case(12, {series("amo_queue_age_seconds"): "0x5 150x20"}),
            "not told now and then": Case(16, {series("amo_queue_age_seconds"): "0x5 300x1 stale stale 480x1 stale stale 660x9"}),
        },
        {
            "they catch up": Case(20, {series("amo_queue_age_seconds"): "0x5 900x4 0x20"}),
            "a worker that looks twice a minute": Case(40, {series("amo_queue_age_seconds"): "80x40", series("amo_queue_due"): "9x40"}),
            "the database does not tell": Case(40, {series("amo_queue_age_seconds"): "0x5 900x1 stale"}),
        },
    ),
    "AmoBadSignatures": Alert(
        {
            "since a rotation": Case(1470, {deliveries("Unauthorized"): "0x1440 0+1x60", deliveries("success"): "0+9x1500"}),
            "in two pods, both new": Case(18, {deliveries("Unauthorized"): "0+0.5x40", deliveries("Unauthorized", B): "0+0.5x40"}),
            "four times as many as yesterday": Case(1470, {deliveries("Unauthorized"): "0+1x1440 1440+4x60"}),
            "of a small shop, all": Case(80, SMALL_SHOP_REFUSED | {deliveries("success"): "0 1 2 2x90"}),
            "of a small shop that never got through": Case(40, {bad("Unauthorized"): "0 0 0 0 0 0 3 3 3 6x40"}),
        },
        {
            "a burst": Case(60, {deliveries("Unauthorized"): "0x20 1+1x10 11x60"}),
            "one hook of two has an old token": Case(170, SMALL_SHOP_REFUSED | {deliveries("partial"): EVERY_50_MINUTES}),
            "five of amoCRM": Case(90, {bad("Unauthorized"): "0x9 5x90", deliveries("success"): "0x90"}),
            "strangers at night": Case(
                90, {deliveries("Unauthorized"): "0+0.5x90", bad("Unauthorized"): "0x90", deliveries("success"): "9x90"}
            ),
            "hardly more than yesterday, and none at night": Case(1495, {deliveries("Unauthorized"): "0+0.5x60 30x1379 31.2+1.2x60"}),
            "a few that guess": Case(60, {deliveries("Unauthorized"): "0x30 8x60", deliveries("success"): "0+9x100"}),
            "one now and then": Case(1430, {deliveries("Unauthorized"): "0+0.5x1500", deliveries("success"): "0+9x1500"}),
            "a pod restarts": Case(60, {deliveries("Unauthorized"): "90x20 0x60"}),
            "twice as many as yesterday": Case(
                1470, {deliveries("Unauthorized"): "0+0.5x1440 720+1.2x60", deliveries("success"): "0+9x1500"}
            ),
        },
    ),
    "AmoAccountsSilent": Alert(
        {"every pod sees one": Case(30, {series("amo_accounts_silent"): "0x5 1x30", series("amo_accounts_silent", B): "0x5 1x30"})},
        {
            "none is": Case(30, {series("amo_accounts_silent"): "0x40"}),
            "one was, for ten minutes": Case(50, {series("amo_accounts_silent"): "0x20 1x10 0x20"}),
        },
    ),
    "AmoReloadRefused": Alert(
        {"a broken keyring": Case(75, {refused("keyring"): "0x20 1x90"})},
        {
            "good changes": Case(
                30, {series("amo_reloads_total", amo_file="keyring", amo_outcome="success"): "0+1x40", refused("keyring"): "0x40"}
            ),
            "mended long ago, and a pod restarts": Case(120, {refused("mapping"): "1x80 0x40"}),
        },
        {"an hour later": Case(90, {refused("keyring"): "0x20 1x90"})},
    ),
    "AmoTelemetryDropped": Alert(
        {
            "spans": Case(30, {spans("dropped"): "0x5 0+7x40"}),
            "some, time and again": Case(20, {spans("dropped"): "0x7 1x7 2x7 3x7"}),
            "exports of metrics, time and again": Case(20, {series("amo_metric_exports_total", amo_outcome="failure"): "0x7 1x7 2x7 3x7"}),
            "spans, once every 50 minutes": Case(105, {spans("dropped"): EVERY_50_MINUTES}),
            "metrics, once every 50 minutes": Case(105, {unexported(): EVERY_50_MINUTES}),
            "metrics": Case(30, {series("amo_metric_exports_total", amo_outcome="failure"): "0x5 0+1x40", spans("dropped"): "0x40"}),
        },
        {
            "all arrive": Case(30, {spans("exported"): "0+9x40", series("amo_metric_exports_total", amo_outcome="success"): "0+1x40"}),
            "the collector restarts": Case(140, {spans("dropped"): "0x9 50x140", unexported(): "0x9 1x140"}),
            "again some hours later": Case(220, {spans("dropped"): "0x9 50x149 90x90", unexported(): "0x9 1x149 2x90"}),
        },
    ),
}
