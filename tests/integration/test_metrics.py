"""The metrics of a real service: what they count is what its database holds, on the page and over OTLP."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from amo_receiver.amocrm.keyring import fingerprint, url_token
from amo_receiver.telemetry.metrics import SIGNED_ROUTE, TOKEN_ROUTE
from amo_receiver.telemetry.metrics_table import DEFINITIONS
from exposition import OPENMETRICS, Sample, own, sample, samples_on
from factories import ACCOUNT, contact, form_body, lead
from in_process import FORM, JSON, PATH, TOKEN_PATH, write_keyring
from integration.load import PATIENCE_SECONDS, PATIENT
from otlp_sink import OtlpSink, eventually
from servers import CLIENT_SECRET, WEBHOOK_TOKEN, free_port, run_sql, signed_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from amo_receiver.embedded import EmbeddedPostgres
    from conftest import StartService, StartWorker
    from servers import ServiceProcess

URL_KEY = "a-url-key-of-the-tests-0123456789"
DOCKERFILE = Path(__file__).parents[2] / "service" / "Dockerfile"
CALLS = "db_client_operation_duration_seconds"
SHOWN_NUMBERS = ("le", "http_response_status_code", "service_version", "amo_schema_revision")
REFUSAL = "ALTER TABLE leads ADD CONSTRAINT refused CHECK (price <> 666)"


def shown(service: ServiceProcess, accept: str = "") -> dict[Sample, float]:
    """Read a service's page, without what Prometheus' client says of the process."""
    response = httpx.get(f"{service.url}/metrics", headers={"Accept": accept}, timeout=PATIENCE_SECONDS)
    assert response.status_code == 200
    return own(samples_on(response.content, response.headers["content-type"]))


def listens(service: ServiceProcess) -> bool:
    try:
        return bool(shown(service))
    except httpx.TransportError:
        return False


def total(samples: dict[Sample, float], name: str, **labels: str) -> float:
    """Sum up the series of a metric that have these labels."""
    return sum(value for (each, own_labels), value in samples.items() if each == name and labels.items() <= own_labels)


def post(service: ServiceProcess, body: bytes, path: str = TOKEN_PATH, **headers: str) -> int:
    return httpx.post(f"{service.url}{path}", content=body, headers=FORM | headers, timeout=PATIENCE_SECONDS).status_code


def moves_to(service: ServiceProcess, value: float, name: str, **labels: str) -> None:
    """Wait until a metric has a value."""
    eventually(lambda: total(shown(service), name, **labels) == value, f"{name} {labels} {value}")


@pytest.mark.parametrize(("revision", "shown_as"), [("205d903", "205d903"), ("unknown", "")])
def test_the_page_names_the_source_that_the_image_was_built_from(
    start_service: StartService, pooled_url: str, revision: str, shown_as: str
) -> None:
    """The image's Dockerfile gives it where the build was told, and the release and the schema are there too."""
    dockerfile = DOCKERFILE.read_text(encoding="utf-8")
    assert "\nARG REVISION=unknown\n" in dockerfile
    assert "\nENV SOURCE_REVISION=${REVISION}\n" in dockerfile
    service = start_service(pooled_url, env={"SOURCE_REVISION": revision})
    ((_, labels),) = [key for key in shown(service) if key[0] == "amo_build_info"]
    build = dict(labels)
    assert build.pop("vcs_ref_head_revision", "") == shown_as
    assert build.keys() == {"service_version", "amo_schema_revision"}


def test_the_page_counts_what_the_database_holds(start_service: StartService, pooled_url: str, database_url: str) -> None:
    """Events by entity, action and what became of them; deliveries by how they were answered; keys; the queue."""
    service = start_service(pooled_url, args=["--no-worker"], env=PATIENT | {"MAX_BODY_BYTES": "16384"})
    run_sql(database_url, REFUSAL)
    statuses = [
        *(post(service, form_body("leads", "update", lead(id=number))) for number in (1, 2, 3, 3)),
        post(service, form_body("contacts", "add", contact(id=4), contact(id="none"), contact(id=5))),
        post(service, form_body("task", "add", {"id": "6"})),
        post(service, b"leads[add][0][id"),
        post(service, form_body("leads", "update", lead(id=7, price="666"))),
        post(service, b"x" * 20_000),
        post(service, form_body("leads", "add", lead()), f"{PATH}/wrong"),
        post(service, form_body("leads", "add", lead()), f"{PATH}/wrong", **{"User-Agent": "amoCRM-Webhooks/3.0"}),
        post(service, b"[1]", PATH, **JSON, **signed_headers(ACCOUNT)),
        post(service, b"{}", PATH, **JSON, **signed_headers(ACCOUNT, secret="another")),
    ]  # fmt: skip
    assert Counter(statuses) == {200: 8, 413: 1, 401: 3, 400: 1}
    eventually(lambda: total(shown(service), "amo_deliveries_total") == len(statuses), "every answer counted")
    samples = shown(service)
    stored = {
        tuple(row) for row in run_sql(database_url, "SELECT entity, action, coalesce(effect, state), count(*) FROM events GROUP BY 1, 2, 3")
    }
    assert stored == {
        ("leads", "update", "applied", 3), ("leads", "update", "pending", 1), ("contacts", "add", "applied", 2),
        ("contacts", "add", "dead", 1), ("task", "add", "recorded", 1), ("unparsed", "", "dead", 1),
    }  # fmt: skip
    duplicate = ("leads", "update", "duplicate", 1)
    counted = {
        (labels["amo_entity"], labels.get("amo_action", ""), labels["amo_outcome"], value)
        for labels, value in ((dict(labels), value) for (name, labels), value in samples.items() if name == "amo_events_total")
    }
    assert counted == stored | {duplicate}
    outcomes = {
        (labels["http_route"], labels["amo_outcome"]): value
        for labels, value in (
            (dict(labels), value) for (name, labels), value in samples.items() if name == "amo_deliveries_total" and value
        )
    }
    assert outcomes == {
        (TOKEN_ROUTE, "success"): 5, (TOKEN_ROUTE, "partial"): 3, (TOKEN_ROUTE, "BodyTooLarge"): 1, (TOKEN_ROUTE, "Unauthorized"): 2,
        (SIGNED_ROUTE, "InvalidBody"): 1, (SIGNED_ROUTE, "Unauthorized"): 1,
    }  # fmt: skip
    assert total(samples, "http_server_request_duration_seconds_count") == len(statuses)
    assert samples[sample("amo_answers_budget")] == 98
    assert total(samples, "amo_answers_bad") == 3  # those to strangers are none
    assert total(samples, "amo_dead_letters_total", amo_attempt_kind="accept") == 2
    for kind, secret, matches in (("token", WEBHOOK_TOKEN, 9), ("client_secret", CLIENT_SECRET, 1)):
        key = sample("amo_key_matches_total", amo_key_kind=kind, amo_key_fingerprint=fingerprint(secret.encode()))
        assert samples[key] == matches, kind
    assert (samples[sample("amo_queue_pending")], samples[sample("amo_queue_dead")]) == (1, 2)


def test_everything_in_the_table_is_on_the_page(start_service: StartService, pooled_url: str) -> None:
    """In both formats, once something was accepted: no query of a dashboard comes back empty."""
    service = start_service(pooled_url, env=PATIENT)
    assert post(service, form_body("leads", "update", lead())) == 200
    moves_to(service, 1, "amo_events_total")
    for accept in ("", OPENMETRICS):
        names = {name for name, _ in shown(service, accept)}
        missing = [each.name for each in DEFINITIONS if not names & {each.prometheus_name, f"{each.prometheus_name}_count"}]
        assert missing == [], accept
    samples = shown(service)
    assert (samples[sample("amo_up")], samples[sample("amo_ready", amo_role="service")]) == (1, 1)
    assert total(samples, "amo_batch_size_sum") == total(samples, "amo_event_lag_seconds_count", amo_attempt_kind="accept") == 1
    assert total(samples, f"{CALLS}_count", db_operation_name="accept") == 1
    assert total(samples, "db_client_connection_count") >= 1
    moves_to(service, 1, "amo_ready")
    eventually(lambda: total(shown(service), "amo_loop_lag_seconds_count"), "the loop's lag")
    eventually(lambda: total(shown(service), f"{CALLS}_count", db_operation_name="claim"), "the worker")


def test_a_workers_attempts_are_counted(start_service: StartService, start_worker: StartWorker, pooled_url: str, database_url: str) -> None:
    """On its own management port: those that go through, those that fail, and those that are the last."""
    service = start_service(pooled_url, args=["--no-worker"], env=PATIENT)
    assert [post(service, form_body("leads", "update", lead(id=number))) for number in (1, 2)] == [200, 200]
    pending = "state = 'pending', effect = NULL, processed_at = NULL, available_at = now()"
    run_sql(database_url, f"UPDATE events SET {pending}", "UPDATE events SET entity_id = 'none' WHERE entity_id = '2'")
    port = free_port()
    worker = start_worker(pooled_url, env={"MANAGEMENT_PORT": str(port)})
    worker.url = f"http://127.0.0.1:{port}"
    eventually(lambda: listens(worker), "the worker's page")
    moves_to(worker, 2, "amo_attempts_total", amo_attempt_kind="retry")
    samples = shown(worker)
    assert samples[sample("amo_ready", amo_role="worker")] == 1, "AmoUnavailable is not about workers"
    assert total(samples, "amo_attempts_total", amo_outcome="applied") == total(samples, "amo_attempts_total", amo_outcome="failed") == 1
    assert total(samples, "amo_dead_letters_total", amo_entity="leads", amo_attempt_kind="retry") == 1
    assert total(samples, "amo_event_lag_seconds_count", amo_attempt_kind="retry") == 1
    assert total(samples, f"{CALLS}_count", db_operation_name="settle") == 1
    run_sql(database_url, f"UPDATE events SET {pending}, attempts = 0, replays = 1 WHERE entity_id = '1'")
    moves_to(worker, 1, "amo_attempts_total", amo_attempt_kind="replay", amo_outcome="applied")


def test_neither_senders_nor_strangers_make_series(start_service: StartService, pooled_url: str, tmp_path: Path) -> None:
    """Whatever words a body has, however many accounts, tokens and signatures there are; and no label tells an id or a secret."""
    keyring = tmp_path / "keyring"
    keyring.mkdir()
    write_keyring(keyring / "acme", 1, [("url_key", URL_KEY)])
    service = start_service(pooled_url, env=PATIENT | {"AMOCRM_KEYRING_DIR": str(keyring)})

    def send(numbers: range) -> set[int]:
        with httpx.Client(base_url=service.url, headers=FORM, timeout=PATIENCE_SECONDS) as client:
            return {
                client.post(path, content=content, headers=headers).status_code
                for number in map(str, numbers)
                for path, content, headers in (
                    (TOKEN_PATH, form_body(f"entity{number}", f"action{number}", {"id": number}), {}),
                    (f"{PATH}/{url_token(URL_KEY.encode(), number)}", form_body("leads", "add", lead(account_id=None), account=number), {}),
                    (f"{PATH}/{number}", b"", {}),
                    (f"{PATH}/{number}.{'A' * 43}", b"", {}),
                    (PATH, b"", signed_headers(number, secret=number)),
                    (PATH, b"{", JSON | signed_headers(number)),
                )
            }

    assert send(range(1, 3)) == {200, 400, 401}
    eventually(lambda: total(shown(service), "amo_deliveries_total") == 12, "the first answers")
    eventually(lambda: total(shown(service), f"{CALLS}_count", db_operation_name="claim"), "the worker")
    before = shown(service).keys()
    assert send(range(3, 60)) == {200, 400, 401}
    eventually(lambda: total(shown(service), "amo_deliveries_total") == 12 + 6 * 57, "all answers")
    after = shown(service)
    assert after.keys() - before == set()
    numbered = {value for _, labels in after for label, value in labels if label not in SHOWN_NUMBERS and re.search(r"\d", value)}
    assert numbered <= {fingerprint(secret.encode()) for secret in (URL_KEY, WEBHOOK_TOKEN, CLIENT_SECRET)}
    assert total(after, "amo_events_total", amo_entity="other", amo_action="other", amo_outcome="recorded") == 59
    assert total(after, "amo_key_matches_total", amo_key_fingerprint=fingerprint(URL_KEY.encode())) == 59


def test_reloads_are_counted(start_service: StartService, pooled_url: str, tmp_path: Path) -> None:
    """Keyrings and mappings that are taken over, and those that are not."""
    keyring, mapping = tmp_path / "keyring", tmp_path / "mapping.toml"
    keyring.mkdir()
    write_keyring(keyring / "acme", 1, [("url_key", URL_KEY)])
    mapping.write_text("")
    service = start_service(pooled_url, env={"AMOCRM_KEYRING_DIR": str(keyring), "MAPPING_FILE": str(mapping)})
    assert total(shown(service), "amo_reloads_total") == 0
    write_keyring(keyring / "acme", 2, [("url_key", URL_KEY)])
    moves_to(service, 1, "amo_reloads_total", amo_file="keyring", amo_outcome="success")
    (keyring / "acme").write_text("{")
    moves_to(service, 1, "amo_reloads_total", amo_file="keyring", amo_outcome="failure")
    mapping.write_text("[leads")
    moves_to(service, 1, "amo_reloads_total", amo_file="mapping", amo_outcome="failure")
    mapping.write_text("# nothing\n")
    moves_to(service, 1, "amo_reloads_total", amo_file="mapping", amo_outcome="success")
    assert total(shown(service), "amo_reloads_total") == 4


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    """Return a collector."""
    with OtlpSink() as collector:
        yield collector


def pushed(sink: OtlpSink, name: str) -> float:
    """Return the sum of a counter in the newest push."""
    requests = [received for received in sink.accepted if received.path == "/v1/metrics"]
    if not requests:
        return 0
    body, zipped = requests[-1].body, requests[-1].headers.get("Content-Encoding") == "gzip"
    (of_resource,) = ExportMetricsServiceRequest.FromString(gzip.decompress(body) if zipped else body).resource_metrics
    (metric,) = [metric for metric in of_resource.scope_metrics[0].metrics if metric.name == name]
    return sum(point.as_int for point in metric.sum.data_points)


def test_the_last_push_has_what_was_counted_last(start_service: StartService, pooled_url: str, sink: OtlpSink) -> None:
    """A service pushes while it runs, and once more when it is told to end; the page shows the same."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_METRIC_EXPORT_INTERVAL": "100", **PATIENT}
    service = start_service(pooled_url, env=environment)
    assert post(service, form_body("leads", "update", lead(id=1))) == 200
    eventually(lambda: pushed(sink, "amo.deliveries") == 1, "the delivery, pushed")
    assert total(shown(service), "amo_metric_exports_total", amo_outcome="failure") == 0
    assert post(service, form_body("leads", "update", lead(id=2))) == 200
    service.terminate()
    assert service.wait() == 0
    assert pushed(sink, "amo.deliveries") == pushed(sink, "amo.events") == 2


def test_an_outage_shows_on_the_page(start_service: StartService, pooled_url: str, postgres: EmbeddedPostgres) -> None:
    """The page comes all the same: calls that failed, bad answers, and no queue until the database is back."""
    service = start_service(pooled_url, args=["--no-worker"])
    moves_to(service, 0, "amo_queue_due")
    postgres.stop("immediate")
    assert post(service, form_body("leads", "update", lead())) == 503
    eventually(lambda: sample("amo_queue_due") not in shown(service), "the queue is no longer told")
    samples = shown(service)
    calls = {dict(labels).get("error_type", ""): value for (name, labels), value in samples.items() if name == f"{CALLS}_count"}
    assert sum(value for error_type, value in calls.items() if error_type) >= 1, calls
    assert samples[sample("amo_answers_bad", http_route=TOKEN_ROUTE, amo_outcome="Unavailable")] == 1
    assert (samples[sample("amo_up")], samples[sample("amo_ready", amo_role="service")]) == (1, 1)
    postgres.start()
    eventually(lambda: sample("amo_queue_due") in shown(service), "the queue is told again")
