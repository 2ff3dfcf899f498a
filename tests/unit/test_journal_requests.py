"""What is told of one request from its first byte to its end: by the log, its span and a notification, and about the same delivery."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from amo_receiver.inbox.batch import GroupCommit
from amo_receiver.inbox.endpoints import WebhookEndpoint
from amo_receiver.inbox.journal import Journal
from amo_receiver.inbox.quota import UnparsedQuota
from amo_receiver.inbox.service import Inbox, Reloadable
from amo_receiver.telemetry.tracing import Tracing
from amo_receiver.watch import load_keyring, load_mapping
from factories import form_body, lead
from fake_repository import OFFENCES, FakeRepository
from in_process import NOBODY_LISTENS, PATH, TOKEN_PATH, settings_for
from servers import signed_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from amo_receiver.notify import Kind

BODY = form_body("leads", "update", lead(id=5), lead(id=6))
WHOLE = [{"type": "http.request", "body": BODY}]
HUNG_UP = [{"type": "http.request", "body": BODY[:10], "more_body": True}, {"type": "http.disconnect"}]


@dataclass
class Place:
    """One endpoint whose database does what a test tells it, and what was told of its requests."""

    repository: FakeRepository = field(default_factory=FakeRepository)
    written: list[bytes] = field(default_factory=list)
    notified: list[tuple[Kind, str, int]] = field(default_factory=list)

    def tell(self, kind: Kind, sentence: str, count: int = 1) -> None:
        """Stand in for the notifier."""
        self.notified.append((kind, sentence, count))

    @asynccontextmanager
    async def endpoint(self) -> AsyncIterator[WebhookEndpoint]:
        settings = settings_for(NOBODY_LISTENS, answer_budget_ms=300 if self.repository.on_accept else 30_000)
        batches = GroupCommit(self.repository)  # type: ignore[arg-type]
        current = Reloadable(load_keyring(settings, None), load_mapping(settings))
        journal = Journal(10, Tracing(self.written.append), notifier=self)  # type: ignore[arg-type]
        batches.start()
        yield WebhookEndpoint(Inbox(settings, current, batches, UnparsedQuota(1_000)), journal, settings)
        self.repository.release()
        await batches.stop()

    async def post(self, messages: list[dict[str, Any]], path: str = TOKEN_PATH, headers: dict[str, str] | None = None) -> int:
        """Send one request, and return its answer's status; 0: there was none."""
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return coming.pop(0)

        coming = list(messages)
        pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        async with self.endpoint() as endpoint:
            await endpoint({"type": "http", "path": path, "headers": pairs}, receive, send)
        return sent[0]["status"] if sent else 0

    @property
    def span(self) -> Span:
        (encoded,) = self.written
        (span,) = ScopeSpans.FromString(encoded).spans
        return span

    def attributes(self) -> dict[str, Any]:
        """Return the span's attributes; lists as lists."""
        values = {each.key: each.value for each in self.span.attributes}
        lists = {key: [each.string_value for each in value.array_value.values] for key, value in values.items()}
        return {key: lists[key] or value.string_value or value.int_value for key, value in values.items()}


@pytest.fixture
def place() -> Place:
    """Return an endpoint."""
    return Place()


def lines(caplog: pytest.LogCaptureFixture, level: str) -> list[tuple[str, dict[str, Any]]]:
    return [(record.message, vars(record)["fields"]) for record in caplog.records if record.levelname == level]


async def test_a_delivery_that_is_kept_as_a_raw_body_is_told_as_what_it_became(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The database refuses its events: the dead letter is logged, notified with the id of the event there is, and what the span counts."""
    place.repository.refuse = lambda given: OFFENCES[0] if any(not each.unparsed for each in given) else None
    assert await place.post(WHOLE) == 200
    ((kept,),) = place.repository.accepts[-1:]
    assert [str(each.problem) for each in kept.events] == ["NumericValueOutOfRangeError 22003"]
    told = [(message, fields["delivery_id"]) for message, fields in lines(caplog, "ERROR")]
    assert told == [
        ("Delivery not storable as events", kept.id),
        ("Body kept as a dead letter: NumericValueOutOfRangeError 22003", kept.id),
    ]
    ((kind, sentence, count),) = place.notified
    assert (kind, count) == ("dead letters", 1)
    assert sentence.startswith(f"1 × unparsed (Unparsable), the first is event {kept.events[0].id}.")
    attributes = place.attributes()
    assert (attributes["amo.entity_actions"], attributes["amo.events"], attributes["amo.outcome"]) == (["unparsed"], 1, "partial")


async def test_a_sender_that_hung_up_leaves_a_span_and_a_line(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody was answered, so there is no status code; the line is found by the span."""
    assert await place.post(HUNG_UP) == 0
    ((message, fields),) = lines(caplog, "WARNING")
    assert message == "The sender hung up before its body was complete"
    assert fields == {"error_type": "ClientGone", "trace_id": place.span.trace_id.hex(), "span_id": place.span.span_id.hex()}
    attributes = place.attributes()
    assert (attributes["amo.outcome"], attributes["error.type"]) == ("ClientGone", "ClientGone")
    assert attributes.keys() & {"http.response.status_code", "messaging.message.id"} == set()
    assert place.span.status.code == place.span.status.STATUS_CODE_ERROR


async def test_a_503_names_the_delivery_that_may_be_stored(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Unknown means that somebody may want to look, and this is what to look for."""
    place.repository.on_accept = [place.repository.gate()]
    assert await place.post(WHOLE) == 503
    ((asked,),) = place.repository.accepts
    ((message, fields),) = lines(caplog, "WARNING")
    assert message == "Webhook refused: The database did not answer in time."
    assert (fields["delivery_id"], fields["status"]) == (asked.id, 503)
    assert place.attributes()["messaging.message.id"] == asked.id


@pytest.mark.parametrize(
    ("account", "shown"),
    [
        ({"id": "32000001"}, "32000001"),
        ({"subdomain": "romashka"}, "subdomain:romashka"),
        ({"id": "Marked-Name"}, "other"),
        ({"id": "marked"}, "other"),
        ({"id": "79995550011"}, "other"),
        ({"subdomain": "Marked.Name"}, "other"),
    ],
    ids=str,
)
async def test_an_account_that_only_a_body_names_is_shown_if_it_looks_like_one(
    place: Place, caplog: pytest.LogCaptureFixture, account: dict[str, str], shown: str
) -> None:
    """With the token for any account a body says whose it is, and may say anything."""
    caplog.set_level("INFO")
    body = orjson.dumps({"account": account, "leads": {"add": [{"id": 5}]}})
    assert await place.post([{"type": "http.request", "body": body}]) == 200
    assert f"Webhook token verified for account: {shown}" in [message for message, _ in lines(caplog, "INFO")]
    assert place.attributes()["amo.account_id"] == shown


@pytest.mark.parametrize(
    ("account", "shown"),
    [
        ("acme-shop", "acme-shop"),
        ("79995550011", "79995550011"),
        ("Marked Name", "other"),
        ("marked@example.test", "other"),
        ("Имя", "other"),
    ],
)
async def test_an_account_that_is_signed_for_is_shown_if_it_is_a_plain_word(
    place: Place, caplog: pytest.LogCaptureFixture, account: str, shown: str
) -> None:
    """Whoever holds the secret has named it in the header, and no body; the line and the span say the same."""
    caplog.set_level("INFO")
    assert await place.post([{"type": "http.request", "body": b'{"leads":{"add":[{"id":5}]}}'}], PATH, signed_headers(account)) == 200
    assert f"Webhook signature verified for account: {shown}" in [message for message, _ in lines(caplog, "INFO")]
    assert place.attributes()["amo.account_id"] == shown
