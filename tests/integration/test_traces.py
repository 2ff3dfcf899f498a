"""One trace follows each event from its sender's request to its last attempt, and says nothing of a person or a secret."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from factories import contact, custom_field, form_body, lead
from in_process import FORM, JSON, PATH, TOKEN_PATH
from integration.load import PATIENCE_SECONDS, PATIENT
from integration.test_notify import Receiver
from otlp_sink import OtlpSink, eventually
from servers import CLIENT_SECRET, WEBHOOK_TOKEN, run_sql, service_environment, signed_headers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from conftest import StartService, StartWorker
    from servers import ServiceProcess

SENDERS_TRACE, SENDERS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
NOT_SAMPLED = {"traceparent": f"00-{SENDERS_TRACE}-{SENDERS_SPAN}-00"}
REFUSED_PRICE = 666
AGAIN = "UPDATE events SET state = 'pending', effect = NULL, processed_at = NULL, attempts = 2, available_at = now() RETURNING id"
REFUSAL = "ALTER TABLE leads ADD CONSTRAINT refused CHECK (price <> 666)"
MARKS = [
    "Marked-Name",
    "+79995550011",
    "79995550011",
    "marked@example.test",
    "marked-value",
    "marked_word",
    CLIENT_SECRET,
    WEBHOOK_TOKEN,
]


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    """Return a collector."""
    with OtlpSink() as collector:
        yield collector


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return a webhook that is notified."""
    with Receiver() as started:
        yield started


@pytest.fixture
def exporting(sink: OtlpSink) -> dict[str, str]:
    """Return the environment that makes a process send its spans there, soon."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_BSP_SCHEDULE_DELAY": "50", "LOG_FORMAT": "json", **PATIENT}


def named(sink: OtlpSink, name: str, count: int = 1) -> list[Span]:
    """Wait for so many spans of a name, and return them."""
    eventually(lambda: len(spans_named(sink, name)) >= count, f"{count} spans {name!r}")
    return spans_named(sink, name)


def spans_named(sink: OtlpSink, name: str) -> list[Span]:
    return [span for span in sink.spans if span.name == name]


def attributes(span: Span) -> dict[str, Any]:
    """Return a span's scalar attributes."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def traceparent(span: Span) -> str:
    return f"00-{span.trace_id.hex()}-{span.span_id.hex()}-"


def update(number: int, price: int = 1, **more: Any) -> bytes:
    return form_body("leads", "update", lead(id=number, at=int(time.time()), price=str(price), **more))


def run_command(database_url: str, folder: Path, exporting: dict[str, str], *arguments: str) -> str:
    """Run one of our commands, and return what it prints."""
    environment = service_environment(database_url, folder, exporting)
    command = [sys.executable, "-m", "amo_receiver", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


def log_lines(service: ServiceProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]


def test_a_trace_goes_on_where_the_sender_began_it(
    start_service: StartService, pooled_url: str, database_url: str, sink: OtlpSink, exporting: dict[str, str]
) -> None:
    """Also where the sender does not sample: accept below its span, a batch linked with it, the database call below that."""
    service = start_service(pooled_url, env=exporting)
    answer = httpx.post(service.url + TOKEN_PATH, content=update(7), headers=FORM | NOT_SAMPLED, timeout=PATIENCE_SECONDS)
    assert answer.status_code == 200
    (accept,) = named(sink, "accept")
    assert (accept.trace_id.hex(), accept.parent_span_id.hex(), accept.kind) == (SENDERS_TRACE, SENDERS_SPAN, accept.SPAN_KIND_SERVER)
    assert attributes(accept)["http.route"] == f"{PATH}/{{token}}"
    assert attributes(accept)["amo.outcome"] == "success"
    (batch,) = named(sink, "batch")
    assert [link.span_id for link in batch.links] == [accept.span_id]
    (call,) = named(sink, "SELECT accept_v1")
    assert (call.trace_id, call.parent_span_id, call.kind) == (batch.trace_id, batch.span_id, call.SPAN_KIND_CLIENT)
    assert accept.start_time_unix_nano <= batch.start_time_unix_nano <= call.start_time_unix_nano
    assert call.end_time_unix_nano <= batch.end_time_unix_nano

    ((stored,),) = run_sql(database_url, "SELECT DISTINCT d.traceparent FROM deliveries d JOIN events e USING (traceparent)")
    assert stored.startswith(traceparent(accept))
    delivery_id = attributes(accept)["messaging.message.id"]
    lines = [line for line in log_lines(service) if line.get("delivery_id") == delivery_id]
    assert {(line["trace_id"], line["span_id"]) for line in lines} == {(accept.trace_id.hex(), accept.span_id.hex())}
    assert [line for line in lines if "event_id" in line]


def test_strangers_make_no_spans(start_service: StartService, pooled_url: str, sink: OtlpSink, exporting: dict[str, str]) -> None:
    """Their traceparent is not honoured; what a verified sender does wrong is a span with its outcome."""
    service = start_service(pooled_url, env=exporting)
    with httpx.Client(base_url=service.url, timeout=PATIENCE_SECONDS) as client:
        assert client.post(f"{PATH}/wrong", content=update(1), headers=FORM | NOT_SAMPLED).status_code == 401
        assert client.post(PATH, content=b"{}", headers=JSON | signed_headers("1") | {"X-Signature": "0" * 64}).status_code == 401
        assert client.post(PATH, content=b"[1]", headers=JSON | signed_headers("1")).status_code == 400
    (accept,) = named(sink, "accept")
    assert (attributes(accept)["amo.outcome"], attributes(accept)["http.response.status_code"]) == ("InvalidBody", 400)
    assert not accept.parent_span_id
    assert not spans_named(sink, "batch")


def test_every_later_attempt_links_back(
    start_service: StartService,
    start_worker: StartWorker,
    pooled_url: str,
    database_url: str,
    sink: OtlpSink,
    exporting: dict[str, str],
    tmp_path: Path,
) -> None:
    """Retries and replays by another process are traces of their own; `events show --trace` names them all."""
    service = start_service(pooled_url, env=exporting, args=["--no-worker"])
    run_sql(database_url, REFUSAL)
    answer = httpx.post(service.url + TOKEN_PATH, content=update(8, REFUSED_PRICE), headers=FORM, timeout=PATIENCE_SECONDS)
    assert answer.json()["status"] == "partial"
    (accept,) = named(sink, "accept")
    ((event_id,),) = run_sql(database_url, "SELECT id::text FROM events")

    start_worker(pooled_url, env=exporting)
    for count in (1, 2):
        run_sql(database_url, "UPDATE events SET available_at = now()")
        named(sink, "retry", count)
    run_sql(database_url, "ALTER TABLE leads DROP CONSTRAINT refused")
    run_command(database_url, tmp_path, exporting, "replay", event_id, "--wait")
    retries, (replay,) = named(sink, "retry", 2), named(sink, "replay")
    for span in (*retries, replay):
        assert [(link.trace_id, link.span_id) for link in span.links] == [(accept.trace_id, accept.span_id)]
        assert span.trace_id != accept.trace_id
        assert attributes(span)["amo.event_id"] == event_id
    assert [attributes(span)["amo.outcome"] for span in (*retries, replay)] == ["failed", "failed", "applied"]
    assert [span.status.code == span.status.STATUS_CODE_ERROR for span in (*retries, replay)] == [True, True, False]
    assert len({link.span_id for span in spans_named(sink, "batch") for link in span.links}) == 4
    (command,) = named(sink, "amo-webhooks replay")
    assert command.status.code == command.status.STATUS_CODE_UNSET

    stored = run_sql(database_url, "SELECT traceparent FROM attempts ORDER BY id")
    assert [row[0][:-2] for row in stored] == [traceparent(span) for span in (accept, *retries, replay)]
    shown = json.loads(run_command(database_url, tmp_path, {}, "events", "show", event_id, "--trace", "--json"))
    assert [(each["trace_id"], each["span_id"]) for each in shown] == [
        (span.trace_id.hex(), span.span_id.hex()) for span in (accept, *retries, replay)
    ]
    assert "replay 1" in run_command(database_url, tmp_path, {}, "events", "show", event_id, "--trace")


def marked_bodies() -> list[tuple[bytes, dict[str, str]]]:
    """Return bodies with the marks wherever a body can have them, each with its Content-Type."""
    fields = [custom_field(1, "+79995550011"), custom_field(2, "marked@example.test"), custom_field(3, "marked-value")]
    person = contact(at=int(time.time()), name="Marked-Name", custom_fields=fields)
    return [
        (form_body("contacts", "add", person), FORM),
        (form_body("leads", "add", {"id": "Marked-Name", "name": "marked-value"}), FORM),
        (form_body("marked-value", "Marked-Name", {"id": "marked@example.test"}), FORM),
        (form_body("marked_word", "marked_word", {"id": "marked_word"}, account=None), FORM),
        (form_body("marked_word", "add", {"id": 1}, account="marked_word"), FORM),
        (form_body("leads", "marked_word", {"id": 1}, account="Marked-Name"), FORM),
        (form_body("contacts", "add", {"id": "marked_word"}, account="marked-value"), FORM),
        (form_body("leads", "update", lead(id=10), account="79995550011"), FORM),
        (update(9, REFUSED_PRICE, name="Marked-Name", custom_fields=fields), FORM),
        (b"name=Marked-Name&x=%FF", FORM),
        (json.dumps({"leads": {"add": [{"id": "marked-value"}]}}).encode(), JSON),
        (b'{"Marked-Name": [', JSON),
    ]


def test_nothing_personal_and_no_secret_leaves(
    start_service: StartService,
    start_worker: StartWorker,
    pooled_url: str,
    database_url: str,
    sink: OtlpSink,
    exporting: dict[str, str],
    tmp_path: Path,
    receiver: Receiver,
) -> None:
    """Good bodies, those that cannot be parsed or applied, refused ones: not in spans, logs, metrics, notifications, or last_error.

    Nor by a worker that attempts all of them again, until they are applied or given up on, or by a replay.
    """
    bodies = marked_bodies()
    telling = exporting | {"LOG_LEVEL": "DEBUG", "NOTIFY_URL": receiver.url, "NOTIFY_INTERVAL_SECONDS": "1", "NO_PROXY": "127.0.0.1"}
    service = start_service(pooled_url, env=telling, args=["--no-worker"])
    run_sql(database_url, REFUSAL)
    with httpx.Client(base_url=service.url, timeout=PATIENCE_SECONDS) as client:
        for content, encoding in bodies:
            client.post(TOKEN_PATH, content=content, headers=encoding)
            client.post(PATH, content=content, headers=encoding | signed_headers("32000001"))
            client.post(f"{PATH}/marked-value", content=content, headers=encoding)
        pages = client.get("/metrics").text
    named(sink, "accept", 2 * len(bodies))
    worker = start_worker(pooled_url, env=telling)
    named(sink, "retry", len(run_sql(database_url, AGAIN)))
    run_command(database_url, tmp_path, telling, "replay", "--dead")
    named(sink, "replay", 1)
    eventually(lambda: {message["title"].partition(": ")[2] for message in receiver.messages} == {"dead letters"}, "both have told")
    for process in (service, worker):
        process.terminate()
        process.end()
    errors = run_sql(database_url, "SELECT string_agg(last_error, ' ') FROM events")[0][0]
    errors += run_sql(database_url, "SELECT coalesce(string_agg(error, ' '), '') FROM attempts")[0][0]
    assert "23514" in errors
    told = {
        "spans": b"".join(each.body for each in sink.received).decode("latin-1"),
        "log": service.log,
        "log of the worker": worker.log,
        "notifications": "".join(receiver.texts),
        "errors": errors,
        "metrics": pages,
    }
    assert {(place, mark) for place, text in told.items() for mark in MARKS if mark in text} == set()
    assert "Event given up on: contacts.add" in told["log of the worker"]
    assert "Event applied on retry: other.other" in told["log of the worker"]
    assert "contacts.add" in told["notifications"]


def test_a_collector_that_is_away_costs_no_delivery(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """Everything is accepted, and the service ends as fast as ever."""
    exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    service = start_service(pooled_url, env=exporting | PATIENT)
    with httpx.Client(base_url=service.url, timeout=PATIENCE_SECONDS) as client:
        assert {client.post(TOKEN_PATH, content=update(number), headers=FORM).status_code for number in range(1, 51)} == {200}
    service.terminate()
    service.end()
    assert run_sql(database_url, "SELECT count(*) FROM leads")[0][0] == 50
