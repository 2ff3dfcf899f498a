"""What moves each metric, and what can not: every call of the facade, seen on the page that it ends on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from asyncpg import exceptions as pg
from sqlalchemy.exc import OperationalError

from amo_receiver import errors
from amo_receiver.amocrm.events import APPLIED, CARDS
from amo_receiver.amocrm.words import ACTIONS, ENTITIES
from amo_receiver.database import DatabaseTimeout
from amo_receiver.inbox import endpoints
from amo_receiver.inbox.delivery import UNPARSED
from amo_receiver.telemetry import metrics as facade
from amo_receiver.telemetry.metrics import SIGNED_ROUTE, TOKEN_ROUTE, Metrics
from amo_receiver.telemetry.metrics_counts import MOST_HISTOGRAMS, MOST_SERIES
from amo_receiver.telemetry.metrics_table import DEFINITIONS
from exposition import Sample, read, sample

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 22, 12, 0, 10, tzinfo=UTC)
TEN_SECONDS_AGO = "2026-11-22T12:00:00.000000Z"
HOUR = 3600.0


@dataclass
class Event:
    """An event, as far as it is counted."""

    id: str = "1"
    entity: str = "leads"
    action: str = "update"
    occurred_at: Any = TEN_SECONDS_AGO
    row: object | None = "its effect"
    problem: object | None = None


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    return Metrics(clock=clock, ticks=clock)


async def moved(metrics: Metrics, act: Callable[[Metrics], object]) -> dict[Sample, float]:
    """Return by how much each series has grown; those that did not are left out."""
    before = await read(metrics)
    act(metrics)
    return {key: value - before.get(key, 0) for key, value in (await read(metrics)).items() if value != before.get(key, 0)}


def plain(changes: dict[Sample, float]) -> dict[Sample, float]:
    """Leave out the buckets, which have tests of their own."""
    return {key: value for key, value in changes.items() if not key[0].endswith("_bucket")}


def request(route: str, status: str, seconds: float, **more: str) -> dict[Sample, float]:
    labels = {"http_request_method": "POST", "url_scheme": "http", "http_route": route, **more}
    labels |= {"http_response_status_code": status} if status else {}
    name = "http_server_request_duration_seconds"
    return {sample(f"{name}_count", **labels): 1, sample(f"{name}_sum", **labels): seconds}


def delivered(route: str, outcome: str) -> Sample:
    return sample("amo_deliveries_total", http_route=route, amo_outcome=outcome)


def bad(route: str, outcome: str) -> Sample:
    return sample("amo_answers_bad", http_route=route, amo_outcome=outcome)


def counted(outcome: str, entity: str = "leads", action: str = "update") -> Sample:
    return sample("amo_events_total", amo_entity=entity, amo_action=action, amo_outcome=outcome)


def lag(kind: str, seconds: float) -> dict[Sample, float]:
    name, labels = "amo_event_lag_seconds", {"amo_attempt_kind": kind}
    return {sample(f"{name}_count", **labels): 1} | ({sample(f"{name}_sum", **labels): seconds} if seconds else {})


def call(name: str, error_type: str = "") -> dict[Sample, float]:
    labels = {"db_system_name": "postgresql", "db_operation_name": name} | ({"error_type": error_type} if error_type else {})
    return {sample("db_client_operation_duration_seconds_count", **labels): 1}


BUDGET = sample("amo_answers_budget")
ATTEMPT = Event(occurred_at=datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC))

MOVES: dict[str, tuple[Callable[[Metrics], object], dict[Sample, float]]] = {
    "an answer": (
        lambda m: m.answered(TOKEN_ROUTE, 200, "success", 0.25),
        {delivered(TOKEN_ROUTE, "success"): 1, **request(TOKEN_ROUTE, "200", 0.25)},
    ),
    "a partial one": (
        lambda m: m.answered(SIGNED_ROUTE, 200, "partial", 0.25),
        {delivered(SIGNED_ROUTE, "partial"): 1, **request(SIGNED_ROUTE, "200", 0.25)},
    ),
    "a refusal": (
        lambda m: m.answered(TOKEN_ROUTE, 401, "Unauthorized", 0.5),
        {
            delivered(TOKEN_ROUTE, "Unauthorized"): 1, **request(TOKEN_ROUTE, "401", 0.5),
            bad(TOKEN_ROUTE, "Unauthorized"): 1, BUDGET: -1,
        },
    ),
    "our own trouble": (
        lambda m: m.answered(TOKEN_ROUTE, 503, "Unavailable", 1.5),
        {
            delivered(TOKEN_ROUTE, "Unavailable"): 1, **request(TOKEN_ROUTE, "503", 1.5, error_type="Unavailable"),
            bad(TOKEN_ROUTE, "Unavailable"): 1, BUDGET: -1,
        },
    ),
    "a refusal of a sender that is not amoCRM": (
        lambda m: m.answered(SIGNED_ROUTE, 400, "InvalidBody", 0.5),
        {delivered(SIGNED_ROUTE, "InvalidBody"): 1, **request(SIGNED_ROUTE, "400", 0.5), bad(SIGNED_ROUTE, "InvalidBody"): 1},
    ),
    "a bug": (
        lambda m: m.answered(SIGNED_ROUTE, 500, "KeyError", 0.5),
        {
            delivered(SIGNED_ROUTE, "other"): 1, **request(SIGNED_ROUTE, "500", 0.5, error_type="other"), bad(SIGNED_ROUTE, "other"): 1,
        },
    ),
    "a sender that hung up": (
        lambda m: m.answered(TOKEN_ROUTE, None, "ClientGone", 0.5),
        {
            delivered(TOKEN_ROUTE, "ClientGone"): 1, **request(TOKEN_ROUTE, "", 0.5, error_type="ClientGone"),
            bad(TOKEN_ROUTE, "ClientGone"): 1, BUDGET: -1,
        },
    ),
    "a late answer, which is a bad one for amoCRM": (
        lambda m: m.answered(TOKEN_ROUTE, 200, "success", 2.5),
        {delivered(TOKEN_ROUTE, "success"): 1, **request(TOKEN_ROUTE, "200", 2.5), bad(TOKEN_ROUTE, "Late"): 1, BUDGET: -1},
    ),
    "one just in time": (
        lambda m: m.answered(TOKEN_ROUTE, 200, "success", 2.0),
        {delivered(TOKEN_ROUTE, "success"): 1, **request(TOKEN_ROUTE, "200", 2.0)},
    ),
    "a key": (
        lambda m: m.matched("url_key", "abcdef012345"),
        {sample("amo_key_matches_total", amo_key_kind="url_key", amo_key_fingerprint="abcdef012345"): 1},
    ),
    "a batch": (
        lambda m: m.began(32, 0.003),
        {
            sample("amo_batch_size_count"): 1, sample("amo_batch_size_sum"): 32,
            sample("amo_batch_wait_seconds_count"): 1, sample("amo_batch_wait_seconds_sum"): 0.003,
        },
    ),
    "an applied event": (lambda m: m.stored([Event()]), {counted("applied"): 1, **lag("accept", 10)}),
    "two": (
        lambda m: m.stored([Event("1", "contacts", "add"), Event("2", "contacts", "delete", occurred_at=None)]),
        {counted("applied", "contacts", "add"): 1, counted("applied", "contacts", "delete"): 1, **lag("accept", 10)},
    ),
    "a recorded event": (lambda m: m.stored([Event("1", "task", "add", row=None)]), {counted("recorded", "task", "add"): 1}),
    "a pending event": (
        lambda m: m.stored([Event("1"), Event("2")], {"2"}), {counted("applied"): 1, counted("pending"): 1, **lag("accept", 10)},
    ),
    "a duplicate": (lambda m: m.stored([Event("1")], (), {"1"}), {counted("duplicate"): 1}),
    "a duplicate of a dead one": (lambda m: m.stored([Event("1", problem="no id")], {"1"}, {"1"}), {counted("duplicate"): 1}),
    "an unusable item": (
        lambda m: m.stored([Event("1", row=None, problem="no id")]),
        {counted("dead"): 1, sample("amo_dead_letters_total", amo_entity="leads", amo_attempt_kind="accept"): 1},
    ),
    "an unparsable body": (
        lambda m: m.stored([Event("1", UNPARSED, "", row=None, problem="not UTF-8")]),
        {
            sample("amo_events_total", amo_entity="unparsed", amo_outcome="dead"): 1,
            sample("amo_dead_letters_total", amo_entity="unparsed", amo_attempt_kind="accept"): 1,
        },
    ),
    "a clock behind the CRM's": (
        lambda m: m.stored([Event(occurred_at="2026-11-22T12:05:00.000000Z")]), {counted("applied"): 1, **lag("accept", 0)},
    ),
    "what an unparsed body held": (
        lambda m: m.stored([Event("1"), Event("2", row=None, problem="no id")], kind="replay"),
        {
            counted("applied"): 1, counted("dead"): 1, **lag("replay", 10),
            sample("amo_dead_letters_total", amo_entity="leads", amo_attempt_kind="replay"): 1,
        },
    ),
    "a retry that went through": (
        lambda m: m.attempted(ATTEMPT, "retry", "applied"),
        {sample("amo_attempts_total", amo_attempt_kind="retry", amo_outcome="applied"): 1, **lag("retry", 10)},
    ),
    "a replay of what is only recorded": (
        lambda m: m.attempted(Event("1", "task", "add", ATTEMPT.occurred_at), "replay", "applied"),
        {sample("amo_attempts_total", amo_attempt_kind="replay", amo_outcome="applied"): 1},
    ),
    "a retry of an event without a time": (
        lambda m: m.attempted(Event(occurred_at=None), "retry", "applied"),
        {sample("amo_attempts_total", amo_attempt_kind="retry", amo_outcome="applied"): 1},
    ),
    "one that was given back": (
        lambda m: m.attempted(ATTEMPT, "retry", "deferred"),
        {sample("amo_attempts_total", amo_attempt_kind="retry", amo_outcome="deferred"): 1},
    ),
    "the last one": (
        lambda m: m.attempted(ATTEMPT, "replay", "failed", is_dead=True),
        {
            sample("amo_attempts_total", amo_attempt_kind="replay", amo_outcome="failed"): 1,
            sample("amo_dead_letters_total", amo_entity="leads", amo_attempt_kind="replay"): 1,
        },
    ),
    "a new keyring": (
        lambda m: m.reloaded("keyring", is_good=True), {sample("amo_reloads_total", amo_file="keyring", amo_outcome="success"): 1},
    ),
    "a broken mapping": (
        lambda m: m.reloaded("mapping", is_good=False), {sample("amo_reloads_total", amo_file="mapping", amo_outcome="failure"): 1},
    ),
    "an export": (lambda m: m.exported(is_good=True), {sample("amo_metric_exports_total", amo_outcome="success"): 1}),
    "a failed export": (lambda m: m.exported(is_good=False), {sample("amo_metric_exports_total", amo_outcome="failure"): 1}),
}  # fmt: skip


@pytest.mark.parametrize("what", MOVES)
async def test_what_happens_moves_its_metrics_and_no_others(metrics: Metrics, what: str) -> None:
    """By exactly so much; everything else on the page stays as it was."""
    act, expected = MOVES[what]
    assert plain(await moved(metrics, act)) == pytest.approx(expected)


FAILURES = [
    (DatabaseTimeout(), "timeout"),
    (pg.DeadlockDetectedError(), "40P01"),
    (OperationalError("SELECT 1", {}, pg.AdminShutdownError()), "57P01"),
    (ConnectionRefusedError(), "unreachable"),
    (pg.InterfaceError("the connection is closed"), "unreachable"),
    (KeyError(), "other"),
    (asyncio.CancelledError(), "other"),
]


@pytest.mark.parametrize(("error", "error_type"), FAILURES)
async def test_a_call_that_fails_is_measured_by_its_error(metrics: Metrics, error: BaseException, error_type: str) -> None:
    """It goes on to whoever made the call."""

    def fail(metrics: Metrics) -> None:
        with pytest.raises(type(error)), metrics.call("claim"):
            raise error

    assert plain(await moved(metrics, fail)) == call("claim", error_type)


async def test_a_call_is_measured_from_its_beginning_to_its_end(metrics: Metrics, clock: Clock) -> None:
    """By the clock that nobody sets."""
    with metrics.call("accept"):
        clock.now += 0.75
    assert (await read(metrics))[
        sample("db_client_operation_duration_seconds_sum", db_system_name="postgresql", db_operation_name="accept")
    ] == 0.75


async def test_the_event_loops_lag_is_seen(metrics: Metrics) -> None:
    """A loop that something blocks comes back late; what was asked for is no part of the lag."""
    loop = asyncio.get_running_loop()
    asked, began = 0.1, loop.time()
    watching = asyncio.create_task(metrics.watch_loop(asked))
    count, total = sample("amo_loop_lag_seconds_count"), sample("amo_loop_lag_seconds_sum")
    try:
        for seen in range(1, 4):
            await asyncio.sleep(0)
            time.sleep(0.15)
            while (await read(metrics))[count] < seen:
                await asyncio.sleep(0)
        samples = await read(metrics)
        assert samples[total] >= 3 * 0.03
        assert samples[total] + samples[count] * asked <= loop.time() - began
    finally:
        watching.cancel()


async def test_the_age_of_the_newest_delivery_grows_until_the_next(metrics: Metrics, clock: Clock) -> None:
    """Before the first one there is none."""
    age = sample("amo_delivery_newest_age_seconds")
    assert age not in await read(metrics)
    metrics.stored([])
    clock.now += 90
    metrics.stored([], kind="retry")  # a body that came long ago
    assert (await read(metrics))[age] == 90
    metrics.stored([])
    assert (await read(metrics))[age] == 0


async def test_bad_answers_are_forgotten_after_two_hours(metrics: Metrics, clock: Clock) -> None:
    """The budget comes back as they leave the window, and never falls below nothing."""
    unavailable = bad(TOKEN_ROUTE, "Unavailable")
    for _ in range(60):
        metrics.answered(TOKEN_ROUTE, 503, "Unavailable", 0.1)
    clock.now += 1.5 * HOUR
    for _ in range(50):
        metrics.answered(TOKEN_ROUTE, 401, "Unauthorized", 0.1)
    samples = await read(metrics)
    assert (samples[unavailable], samples[BUDGET], metrics.bad_answers()) == (60, 0, 110)
    clock.now += 0.5 * HOUR
    assert (await read(metrics))[unavailable] == 60
    clock.now += 120
    samples = await read(metrics)
    assert (samples[unavailable], samples[BUDGET], metrics.bad_answers()) == (0, 50, 50)
    clock.now += 3 * HOUR
    assert (await read(metrics))[BUDGET] == 100


async def test_bad_answers_on_another_route_are_counted_too(metrics: Metrics, clock: Clock) -> None:
    """Nobody knows it beforehand; a minute's answers take one place, however many there are."""
    for _ in range(2):
        for _ in range(50):
            metrics.answered("/another", 503, "Unavailable", 0.1)
        clock.now += 60
    samples = await read(metrics)
    assert (samples[bad("/another", "Unavailable")], samples[BUDGET], len(metrics._bad._counts)) == (100, 100, 2)


def buckets(samples: dict[Sample, float], name: str) -> dict[float, float]:
    found = {float(dict(labels)["le"]): value for (each, labels), value in samples.items() if each == f"{name}_bucket"}
    return dict(sorted(found.items()))


async def test_a_value_belongs_to_the_first_bound_that_it_does_not_exceed(metrics: Metrics) -> None:
    """The bound itself included; beyond the last there is still a place."""
    for deliveries in (1, 32, 33, 501):
        metrics.began(deliveries, 0)
    samples = await read(metrics)
    assert (samples[sample("amo_batch_size_sum")], samples[sample("amo_batch_size_count")]) == (567, 4)
    assert buckets(samples, "amo_batch_size") == {
        1: 1, 2: 1, 4: 1, 8: 1, 16: 1, 32: 2, 64: 3, 128: 3, 256: 3, 500: 3, float("inf"): 4,
    }  # fmt: skip


HOSTILE = ['"} 1\n# EOF', "\n", "{}", "\\", "ё" * 64, "leads ", "LEADS", "__proto__", "32000001", "+79991234567"]


async def test_a_bodys_words_make_no_series(metrics: Metrics) -> None:
    """Whatever an authentic body calls its entities and actions; they are counted, as other."""
    metrics.stored([Event(str(number), f"e{number}", f"a{number}") for number in range(10_000)])
    metrics.stored([Event("1", word, word) for word in HOSTILE])
    metrics.stored([Event(word, "leads", word, row=None, problem=word) for word in HOSTILE])
    metrics.attempted(Event("1", HOSTILE[0], HOSTILE[0]), "retry", "failed", is_dead=True)
    samples = await read(metrics)
    events = {key: value for key, value in samples.items() if key[0] == "amo_events_total"}
    assert events == {counted("applied", "other", "other"): 10_000 + len(HOSTILE), counted("dead", "leads", "other"): len(HOSTILE)}
    assert samples[sample("amo_dead_letters_total", amo_entity="other", amo_attempt_kind="retry")] == 1
    assert [value for _, labels in samples for _, value in labels if value in HOSTILE] == []


async def test_the_series_of_all_known_words_fit(metrics: Metrics) -> None:
    """amoCRM's words in every combination stay below the bound, so that none of them is counted as other."""
    words = [(entity, action) for entity in (*ENTITIES, "x") for action in (*ACTIONS, "x")]
    metrics.stored([Event("1", *each) for each in words])
    metrics.stored([Event("1", *each, row=None) for each in words])
    metrics.stored([Event("1", *each, problem="no id") for each in words])
    metrics.stored([Event("1", *each) for each in words], {"1"})
    metrics.stored([Event("1", *each) for each in words], (), {"1"})
    samples = await read(metrics)
    assert sum(key[0] == "amo_events_total" for key in samples) == 5 * len(words) <= MOST_SERIES


async def test_a_counter_is_bounded_in_any_case(metrics: Metrics) -> None:
    """What comes beyond is counted together, and nothing is lost."""
    for number in range(2 * MOST_SERIES):
        metrics.matched("url_key", f"{number:012x}")
    matches = {labels: value for (name, labels), value in (await read(metrics)).items() if name == "amo_key_matches_total"}
    assert (len(matches), sum(matches.values())) == (MOST_SERIES + 1, 2 * MOST_SERIES)
    assert matches[sample("", amo_key_kind="other", amo_key_fingerprint="other")[1]] == MOST_SERIES


async def test_a_histogram_is_bounded_in_any_case(metrics: Metrics) -> None:
    """The same for each of its combinations of labels."""
    for number in range(2 * MOST_HISTOGRAMS):
        with metrics.call(f"call {number}"):
            pass
    counts = {
        labels: value for (name, labels), value in (await read(metrics)).items() if name == "db_client_operation_duration_seconds_count"
    }
    assert (len(counts), sum(counts.values())) == (MOST_HISTOGRAMS + 1, 2 * MOST_HISTOGRAMS)


def from_the_start() -> dict[Sample, float]:
    """Return what a page shows before anything has happened, besides buckets."""
    outcomes = ("success", "partial", *facade.REFUSED)
    letters = [(entity, kind) for entity in (*CARDS, UNPARSED) for kind in ("accept", "retry", "replay")]
    attempts = [(kind, outcome) for kind in ("retry", "replay") for outcome in ("applied", "failed", "deferred")]
    results = ("success", "failure")
    unlabelled = ("amo_batch_size", "amo_batch_wait_seconds", "amo_loop_lag_seconds")
    keys = [
        *(delivered(route, outcome) for route in (SIGNED_ROUTE, TOKEN_ROUTE) for outcome in outcomes),
        *(bad(route, outcome) for route in (SIGNED_ROUTE, TOKEN_ROUTE) for outcome in (*facade.REFUSED, "Late")),
        *(key for route in (SIGNED_ROUTE, TOKEN_ROUTE) for key in request(route, "200", 0)),
        *(sample("amo_dead_letters_total", amo_entity=entity, amo_attempt_kind=kind) for entity, kind in letters),
        *(sample("amo_attempts_total", amo_attempt_kind=kind, amo_outcome=outcome) for kind, outcome in attempts),
        *(sample("amo_reloads_total", amo_file=file, amo_outcome=result) for file in ("keyring", "mapping") for result in results),
        *(sample("amo_metric_exports_total", amo_outcome=result) for result in results),
        *(key for kind in ("accept", "retry", "replay") for key in lag(kind, 1)),
        *(key for name in ("accept", "settle", "claim", "fail", "defer") for key in call(name)),
        *(sample("db_client_operation_duration_seconds_sum", **dict(key[1])) for name in facade.CALLS for key in call(name)),
        *(sample(f"{name}_{part}") for name in unlabelled for part in ("count", "sum")),
    ]  # fmt: skip
    return dict.fromkeys(keys, 0.0) | {BUDGET: 100}


async def test_what_is_known_beforehand_begins_at_zero(metrics: Metrics) -> None:
    """A series that appears with its first step has not grown, as Prometheus sees it: the first dead letter would raise no alarm."""
    assert plain(await read(metrics)) == from_the_start()


def test_the_facade_knows_what_others_declare() -> None:
    """Routes, refusals, words and calls are written where they belong, and once more here."""
    refusals = {error.__name__ for error in errors.RequestError.__subclasses__()} | {endpoints.ClientGone.__name__}
    assert set(facade.REFUSED) == refusals | {"other"}
    assert facade.ROUTES == (endpoints.PATH, endpoints.TOKEN_ROUTE)
    assert CARDS | {UNPARSED} <= ENTITIES
    assert APPLIED <= ACTIONS


SEEN_ELSEWHERE = {
    "test_metrics_sources.py": {
        "amo.up", "amo.ready", "amo.build.info", "db.client.connection.count", "db.client.connection.max", "amo.span.exports",
        "amo.span.queue",
    },
    "test_metrics_stored.py": {"amo.queue.pending", "amo.queue.due", "amo.queue.age", "amo.queue.dead", "amo.accounts.silent"},
}  # fmt: skip
OF_THEIR_OWN = {"amo.loop.lag", "amo.delivery.newest.age", "db.client.operation.duration"}


def test_every_metric_is_moved_by_a_test() -> None:
    """By the table above, by one of the tests below it, or by those of another module."""
    names = {key[0] for _, expected in MOVES.values() for key in expected}
    by_table = {each.name for each in DEFINITIONS if names & {each.prometheus_name, f"{each.prometheus_name}_count"}}
    assert by_table | OF_THEIR_OWN | set().union(*SEEN_ELSEWHERE.values()) == {each.name for each in DEFINITIONS}
