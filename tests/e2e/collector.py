"""A collector in a pod: takes OTLP over HTTP, keeps the newest spans, and shows them as JSON at /spans."""

from __future__ import annotations

import gzip
import json
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

PORT = 4318
KEPT = 20_000

spans: deque[dict[str, Any]] = deque(maxlen=KEPT)


def _read(request: ExportTraceServiceRequest) -> Iterator[dict[str, Any]]:
    for of_resource in request.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for span in (each for scope in of_resource.scope_spans for each in scope.spans):
            yield {
                "resource": resource,
                "name": span.name,
                "trace": span.trace_id.hex(),
                "span": span.span_id.hex(),
                "parent": span.parent_span_id.hex(),
                "links": [[link.trace_id.hex(), link.span_id.hex()] for link in span.links],
                "attributes": _attributes(span.attributes),
            }


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {each.key: str(getattr(each.value, each.value.WhichOneof("value") or "string_value")) for each in pairs}


class Pages(BaseHTTPRequestHandler):
    """/v1/traces takes spans, /spans shows them; everything else is taken and forgotten."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = b"".join(self._chunks())
        if self.path == "/v1/traces":
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            spans.extend(_read(ExportTraceServiceRequest.FromString(body)))
        self._answer(b"", "application/x-protobuf")

    def _chunks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers["Content-Length"]))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_GET(self) -> None:
        self._answer(json.dumps(list(spans)).encode(), "application/json")

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it is called by
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("", PORT), Pages).serve_forever()
