"""The two webhook paths as plain ASGI: read, accept, answer. FastAPI's own route would cost two thirds of it once more."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import orjson

from amo_receiver.errors import BodyTooLarge, InvalidBody, RequestError, Unauthorized, Unavailable
from amo_receiver.inbox.delivery import Headers
from amo_receiver.inbox.effects import iso
from amo_receiver.inbox.service import Arrival

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Receive, Scope, Send

    from amo_receiver.errors import Problem
    from amo_receiver.inbox.batch import Outcome
    from amo_receiver.inbox.journal import Journal
    from amo_receiver.inbox.service import Inbox, Permit
    from amo_receiver.settings import Settings

PATH = "/api/webhooks/amo"
TOKEN_ROUTE = PATH + "/{token}"
RETRY_AFTER_READ_SECONDS = 5
MOST_PROBLEMS = 100


class ClientGone(Exception):  # noqa: N818 - nobody is left to be told
    """The sender closed the connection before its body was complete."""


def envelope(status: str, message: str, processed: int = 0, problems: Sequence[Problem] = ()) -> dict[str, Any]:
    """Return the answer every request gets, good or bad."""
    errors = [{"path": problem.path, "message": problem.message} for problem in problems[:MOST_PROBLEMS]]
    return {"status": status, "message": message, "events_processed": processed, "timestamp": timestamp(), "errors": errors or None}


def timestamp() -> str:
    """Return the time in UTC to the second."""
    return iso(int(time.time()))[:19] + "Z"


class WebhookEndpoint:
    """ASGI application behind both webhook paths."""

    def __init__(self, inbox: Inbox, journal: Journal, settings: Settings) -> None:
        self._inbox = inbox
        self._journal = journal
        self._max_body_bytes = settings.max_body_bytes
        self._budget_seconds = settings.answer_budget_ms / 1000

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrival = self._arrive(scope)
        try:
            outcome = await self._accept(arrival, scope, receive)
        except RequestError as error:
            await _answer(send, error.status, refusal(error), error.retry_after)
            self._journal.refused(arrival, error)
        except ClientGone:
            self._journal.abandoned(arrival)
        except Exception as error:  # noqa: BLE001 - a bug of ours
            await self._fail(arrival, error, send)
        else:
            await _answer(send, 200, success(outcome))
            self._journal.accepted(arrival, outcome)

    async def _fail(self, arrival: Arrival, error: Exception, send: Send) -> None:
        await _answer(send, 500, envelope("error", "Internal error; please report it."))
        self._journal.failed(arrival, error)

    def _arrive(self, scope: Scope) -> Arrival:
        deadline = asyncio.get_running_loop().time() + self._budget_seconds
        return Arrival(time.time_ns(), deadline, TOKEN_ROUTE if _token(scope) else PATH)

    async def _accept(self, arrival: Arrival, scope: Scope, receive: Receive) -> Outcome:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        arrival.agent = headers.get(b"user-agent", b"")
        arrival.permit = permit = self._verify(_token(scope), headers)
        kept = _kept(headers)
        self._journal.verified(arrival, kept)
        size = self._expected_size(headers)
        if size > self._max_body_bytes:
            raise BodyTooLarge(f"The body has more than {self._max_body_bytes} bytes.")
        with self._inbox.admit(size):
            body = await self._read(receive, arrival.deadline)
            return await self._inbox.accept(arrival, permit, kept, body)

    def _verify(self, token: str, headers: dict[bytes, bytes]) -> Permit:
        if token:
            return self._inbox.verify_token(token)
        client_uuid, signature, account_id = (_text(headers, name) or "" for name in (b"x-client-uuid", b"x-signature", b"x-account-id"))
        if not (client_uuid or signature or account_id):
            raise Unauthorized(
                f"No X-Client-UUID, X-Signature and X-Account-ID headers. If amoCRM itself is calling: it signs nothing and needs the "
                f"URL with the token, {PATH}/<token>."
            )
        return self._inbox.verify_signed(client_uuid, signature, account_id)

    def _expected_size(self, headers: dict[bytes, bytes]) -> int:
        """Return how many bytes may come: those declared, else (chunked) as many as a body may have."""
        declared = headers.get(b"content-length")
        if declared is not None and declared.isdigit():
            return int(declared)
        return self._max_body_bytes if b"transfer-encoding" in headers else 0

    async def _read(self, receive: Receive, deadline: float) -> bytes:
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
                body: bytes = message.get("body", b"")
                parts, size = [body], len(body)
                while message["type"] == "http.request" and message.get("more_body", False) and size <= self._max_body_bytes:
                    message = await receive()
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
        except TimeoutError:
            raise Unavailable("The body did not arrive in time.", RETRY_AFTER_READ_SECONDS) from None
        if message["type"] != "http.request":
            raise ClientGone
        if size > self._max_body_bytes:
            raise BodyTooLarge(f"The body has more than {self._max_body_bytes} bytes.")
        return body if len(parts) == 1 else b"".join(parts)


def _token(scope: Scope) -> str:
    path: str = scope["path"]
    return path[len(PATH) :].strip("/")


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _kept(headers: dict[bytes, bytes]) -> Headers:
    return Headers(*(_text(headers, name) for name in (b"content-type", b"user-agent", b"x-amocrm-requestid", b"traceparent")))


def success(outcome: Outcome) -> dict[str, Any]:
    """Return the body of a 200: ``partial`` where an event's effect is not in the tables."""
    status = "partial" if outcome.problems else "success"
    return envelope(status, f"Processed {outcome.processed} events", outcome.processed, outcome.problems)


def refusal(error: RequestError) -> dict[str, Any]:
    """Return the body of an error's answer."""
    return envelope("error", str(error), 0, error.problems if isinstance(error, InvalidBody) else ())


async def _answer(send: Send, status: int, document: dict[str, Any], retry_after: int | None = None) -> None:
    body = orjson.dumps(document)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
