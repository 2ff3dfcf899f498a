"""The page of metrics of an operator in the midst of a rotation, with one object of each kind, for a Prometheus to read."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from amo_operator.conditions import Standing, conditions
from amo_operator.metrics import Metrics
from amo_operator.standing import KeyTimes

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

KINDS = ("AmoIntegration", "SchemaMigration")


def fill(metrics: Metrics) -> None:
    """Do to the metrics what one round of an operator does."""
    now, standing = datetime.now(UTC), Standing("Propagating", "It spreads.", is_reconciling=True)
    for kind in KINDS:
        with metrics.reconcile(kind) as outcome:
            outcome["outcome"] = "changed"
        metrics.stands(kind, "main", standing, conditions(standing, [], 1, now))
    later = {"url_key": now + timedelta(days=3)}
    metrics.keys("main", KeyTimes(expires=later, matched={"url_key": now}, late={"url_key": now}, behind=1))
    metrics.damaged("main", now)
    metrics.round_ended(now, {(kind, "main") for kind in KINDS})


class OperatorPage:
    """Serves them; each reading is a round further."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.02), name="operator page")

    @property
    def target(self) -> str:
        """Return host and port."""
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        metrics = self.metrics

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                """Answer with the page."""
                fill(metrics)
                body = metrics.page()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler
