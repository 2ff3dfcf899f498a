"""A collector on this machine that keeps what it is sent, and answers well or badly."""

from __future__ import annotations

import gzip
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from email.message import Message
    from types import TracebackType

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

PATIENCE_SECONDS = 60


class Received(NamedTuple):
    """One request as it came."""

    path: str
    headers: Message
    body: bytes

    @property
    def export(self) -> ExportTraceServiceRequest:
        """Return what the request says."""
        body = gzip.decompress(self.body) if self.headers.get("Content-Encoding") == "gzip" else self.body
        return ExportTraceServiceRequest.FromString(body)


class Answer(NamedTuple):
    """How one request is answered, after ``when`` if there is one; ``body`` None: everything was taken."""

    status: int = 200
    retry_after: str | None = None
    when: threading.Event | None = None
    body: bytes | None = None


class OtlpSink:
    """Answers 200, but first what is in ``answers``, one after the other; ``url`` is for OTEL_EXPORTER_OTLP_ENDPOINT."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.accepted: list[Received] = []
        self.answers: deque[Answer] = deque()
        self.always = Answer()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.sink = self
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://localhost:{self._server.server_port}" if tls else f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, name="otlp-sink", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def spans(self) -> list[Span]:
        """Return the spans that were accepted."""
        return [
            span
            for received in self.accepted
            for of_resource in received.export.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    def take(self, request: Received) -> Answer:
        """Note a request, and return its answer when it is time."""
        self.received.append(request)
        answer = self.answers.popleft() if self.answers else self.always
        if answer.when:
            answer.when.wait(PATIENCE_SECONDS)
        if answer.status == Answer().status:
            self.accepted.append(request)
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    sink: OtlpSink

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing when a client has gone or does not trust us."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.server.sink.take(Received(self.path, self.headers, body))
        content = ExportTraceServiceResponse().SerializeToString() if answer.body is None else answer.body
        self.send_response(answer.status)
        if answer.retry_after is not None:
            self.send_header("Retry-After", answer.retry_after)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it is called by
        """Say nothing."""


def eventually(condition: Callable[[], object], what: str) -> None:
    """Poll until ``condition`` holds."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {PATIENCE_SECONDS} s")
        time.sleep(0.005)
