"""The public HTTP surface: routes, pages for people, and the OpenAPI document of what is plain ASGI.

Every answer documented here is compared with a real one by a test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Route

from amo_receiver.amocrm.keyring import MEND_CLIENT, MEND_URL
from amo_receiver.health import test_page
from amo_receiver.inbox.endpoints import PATH, WebhookEndpoint, envelope

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from amo_receiver.health import Health
    from amo_receiver.settings import Settings

CONTACT = {"name": "Support", "email": "support@asia-deals.com"}
DESCRIPTION = """Receives webhooks of amoCRM (Kommo): each delivery is verified, parsed, stored, applied to `leads` and `contacts`, and
committed before it is answered. **200** means committed; **503** means unknown: send it again."""
JSON_EXAMPLE = {
    "leads": {
        "add": [
            {
                "id": 12345,
                "name": "Новый лид",
                "status_id": 1,
                "created_at": 1640995200,
                "custom_fields_values": [{"field_id": 123458, "values": [{"value": "google"}]}],
            }
        ]
    }
}
TIMESTAMP_EXAMPLE = "2024-01-01T12:00:00Z"
FORM_EXAMPLE = "account[id]=32000001&leads[update][0][id]=12345&leads[update][0][name]=Лид&leads[update][0][last_modified]=1640995200"


class Fault(BaseModel):
    """One problem of a body, or one event that is not applied."""

    path: str = Field(description="Where in the body.", examples=["leads.add[1].id"])
    message: str = Field(description="What is wrong, without the value.", examples=["is missing"])


class Answer(BaseModel):
    """The envelope of every answer to a webhook."""

    status: Literal["success", "partial", "error"] = Field(description="partial: an event of the body is not in the tables (yet).")
    message: str
    events_processed: int = Field(description="Events of the body whose effect is in the tables.")
    timestamp: str = Field(description="UTC.", examples=[TIMESTAMP_EXAMPLE])
    errors: list[Fault] | None = None


class HealthPage(BaseModel):
    """Whether the service reaches its database."""

    status: Literal["healthy", "unhealthy"]
    timestamp: str
    database: Literal["connected", "disconnected"]
    webhook_endpoint: Literal["active"]


class LivePage(BaseModel):
    """That the process answers."""

    status: Literal["alive"]


class ReadyPage(BaseModel):
    """Whether webhooks should come here, and what stands in the way."""

    status: Literal["ready", "not ready"]
    obstacles: list[str]


class TestPage(BaseModel):
    """That this is the right address, and what it takes."""

    status: Literal["success"]
    message: str
    timestamp: str
    endpoint: str
    supported_events: list[str]


class WebhookApp(FastAPI):
    """FastAPI with the webhook paths before its middlewares and routes, which cost as much as the whole acceptance."""

    webhook: WebhookEndpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a POST on a webhook path to the endpoint, and everything else to FastAPI."""
        if scope["type"] == "http" and scope["method"] == "POST" and (scope["path"] == PATH or scope["path"].startswith(PATH + "/")):
            await self.webhook(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def webhook_routes(endpoint: WebhookEndpoint) -> list[Route]:
    """Return the webhook paths as routes, to stand last: they answer every other method with 405."""
    return [Route(path, endpoint, methods=["POST"]) for path in (PATH, PATH + "/{token:path}")]


def page_router(health: Health) -> APIRouter:
    """Return the two pages for people."""
    router = APIRouter(prefix=PATH, tags=["pages"])

    healthy = {"status": "healthy", "timestamp": TIMESTAMP_EXAMPLE, "database": "connected", "webhook_endpoint": "active"}
    unhealthy = healthy | {"status": "unhealthy", "database": "disconnected"}
    documented: dict[int | str, dict[str, Any]] = {
        200: _described("The database answers.", "HealthPage", healthy),
        503: _described("It does not.", "HealthPage", unhealthy) | {"model": HealthPage},
    }

    @router.get("/health", response_model=HealthPage, responses=documented)
    async def health_page() -> JSONResponse:
        """Tell whether the database answers; at most one second old. Not a probe: those are /livez and /readyz."""
        page = await health.page()
        return JSONResponse(page, 200 if page["status"] == "healthy" else 503)

    found = _described("This is the right address.", "TestPage", test_page() | {"timestamp": TIMESTAMP_EXAMPLE})

    @router.get("/test", response_model=TestPage, responses={200: found})
    async def test() -> dict[str, Any]:
        """Tell that this is the right address."""
        return test_page()

    return router


def error_handlers() -> dict[Any, Any]:
    """Answer unknown paths and methods in the envelope too."""

    async def http_error(_: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        message = error.detail if isinstance(error, HTTPException) else "Internal error"
        headers = error.headers if isinstance(error, HTTPException) else None
        return JSONResponse(envelope("error", message), status, headers)

    return {HTTPException: http_error}


def document(app: FastAPI, settings: Settings) -> None:
    """Add the webhook paths to the OpenAPI document, which FastAPI cannot see in plain ASGI routes."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title="amo-webhooks", version="0.1.0", description=DESCRIPTION, routes=app.routes)
            schema["info"]["contact"] = CONTACT
            for model in (Answer, Fault, LivePage, ReadyPage):
                definition = model.model_json_schema(ref_template="#/components/schemas/{model}")
                definition.pop("$defs", None)
                schema["components"]["schemas"][model.__name__] = definition
            schema["components"]["securitySchemes"] = {
                name: {"type": "apiKey", "in": "header", "name": name} for name in ("X-Client-UUID", "X-Signature", "X-Account-ID")
            }
            schema["paths"] = {PATH: {"post": _signed(settings)}, PATH + "/{token}": {"post": _by_token(settings)}} | schema["paths"]
            if settings.management_port is None:
                schema["paths"] |= _probes()
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operation(summary: str, description: str, responses: dict[str, Any], settings: Settings) -> dict[str, Any]:
    form = {"schema": {"type": "string"}, "example": FORM_EXAMPLE}
    body = {"application/json": {"schema": {"type": "object"}, "example": JSON_EXAMPLE}, "application/x-www-form-urlencoded": form}
    return {
        "tags": ["webhooks"],
        "summary": summary,
        "description": f"{description} At most {settings.max_body_bytes} bytes.",
        "requestBody": {"required": False, "content": body},
        "responses": responses,
    }


def _signed(settings: Settings) -> dict[str, Any]:
    description = (
        "`X-Signature` is the hex HMAC-SHA256 of `{X-Client-UUID}|{X-Account-ID}` keyed with the integration's client secret. "
        "The account id is text and need not be a number."
    )
    invalid = _example("error", "Invalid data: leads.add[1].id: is missing", errors=[{"path": "leads.add[1].id", "message": "is missing"}])
    responses = _answers(settings, MEND_CLIENT) | {"400": _described("Not usable; nothing of it is stored.", "Answer", invalid)}
    operation = _operation("Signed webhook", description, dict(sorted(responses.items())), settings)
    operation["operationId"] = "signed_webhook"
    operation["security"] = [{"X-Client-UUID": [], "X-Signature": [], "X-Account-ID": []}]
    return operation


def _by_token(settings: Settings) -> dict[str, Any]:
    description = (
        "What amoCRM itself calls: it signs nothing, so the URL holds a token. A body that cannot be parsed is kept as a dead letter."
    )
    operation = _operation("Webhook of amoCRM itself", description, _answers(settings, MEND_URL), settings)
    operation["operationId"] = "token_webhook"
    operation["parameters"] = [{"name": "token", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _answers(settings: Settings, mend: str) -> dict[str, Any]:
    done = _example("success", "Processed 1 events", 1)
    partial = _example("partial", "Processed 0 events", errors=[{"path": "leads.add[0]", "message": "LockNotAvailableError 55P03"}])
    large = _example("error", f"The body has more than {settings.max_body_bytes} bytes.")
    gone = _example("error", "The database is not available.")
    retry = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return {
        "200": _described("Committed; partial where an event is not in the tables (yet).", "Answer", done, partial),
        "401": _described("No active key matches, or not for this account.", "Answer", _example("error", mend)),
        "413": _described("Too large.", "Answer", large),
        "503": _described("Unknown whether it is stored: send it again.", "Answer", gone) | {"headers": retry},
    }


def _probes() -> dict[str, Any]:
    alive = {"200": _described("The process answers.", "LivePage", {"status": "alive"})}
    obstacle = {"status": "not ready", "obstacles": ["the database is not reached: ConnectionRefusedError"]}
    ready = {
        "200": _described("Schema seen, keys loaded.", "ReadyPage", {"status": "ready", "obstacles": []}),
        "503": _described("Not yet.", "ReadyPage", obstacle),
    }
    return {
        "/livez": {"get": {"tags": ["probes"], "summary": "Liveness", "operationId": "livez", "responses": alive}},
        "/readyz": {"get": {"tags": ["probes"], "summary": "Readiness", "operationId": "readyz", "responses": ready}},
    }


def _example(status: str, message: str, processed: int = 0, errors: list[dict[str, str]] | None = None) -> dict[str, Any]:
    return {"status": status, "message": message, "events_processed": processed, "timestamp": TIMESTAMP_EXAMPLE, "errors": errors}


def _described(description: str, model: str, *examples: dict[str, Any]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model}"}
    named = {str(example["status"]): {"value": example} for example in examples}
    return {"description": description, "content": {"application/json": {"schema": schema, "examples": named}}}
