"""Requests made up from the service's own OpenAPI document, good and bad, against a real service; HOSTILE_EXAMPLES of each kind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok
from schemathesis.generation.case import Case

from amo_receiver.amocrm.keyring import LONGEST_ACCOUNT_CHARS
from factories import BODIES, http_build_query
from hostile.report import SEED
from hostile.watched import KEPT, post
from integration.load import FORM, PATH
from servers import WEBHOOK_TOKEN, signed_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemathesis.schemas import BaseSchema

    from hostile.watched import Watched

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "150"))
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
TOKEN_PATH = PATH + "/{token}"
PAGES = (PATH + "/health", PATH + "/test", "/livez", "/readyz")
load_all_checks()
NOT_ASKED = {
    "positive_data_acceptance": "an object without events fits the document and is refused",
    "negative_data_rejection": "on the token path every body is kept, so that amoCRM never hears that one is bad",
    "missing_required_header": "no header is required on both paths",
    "ignored_auth": "the tests sign, so they know what is to be refused",
    "ensure_resource_availability": "a delivery is no resource",
    "use_after_free": "nothing can be deleted",
    "max_response_time": "a time is a figure and no behaviour",
}
ASKED: list[Any] = [check for check in CHECKS.get_all() if check.__name__ not in NOT_ASKED]

texts = st.text(st.characters(codec="utf-8"), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=15)
keys = texts | st.sampled_from(
    ["id", "name", "status_id", "price", "type", "last_modified", "updated_at", "custom_fields", "custom_fields_values", "account_id"]
)
items = st.dictionaries(keys, documents, max_size=6)
almost = st.dictionaries(
    st.sampled_from(["leads", "contacts", "task", "account", "message"]) | texts,
    st.dictionaries(st.sampled_from(["add", "update", "note"]) | texts, st.lists(items | documents, max_size=4) | documents, max_size=3)
    | documents,
    max_size=3,
)
shaped = st.dictionaries(
    st.sampled_from(["leads", "contacts"]),
    st.dictionaries(
        st.sampled_from(["add", "update", "delete", "restore", "status"]),
        st.lists(st.builds(lambda item, id_: {**item, "id": id_}, items, st.integers(1, 2**63)), min_size=1, max_size=3),
        min_size=1,
        max_size=2,
    ),
    min_size=1,
)


def form_of(document: dict[str, Any]) -> bytes:
    """Return a document as PHP would send it, with numbers that are no integers as text."""
    return http_build_query(_plain(document))


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key.encode(errors="replace").decode(): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return repr(node) if isinstance(node, float) else node


@pytest.fixture(scope="module")
def schema(lasting: Watched) -> BaseSchema:
    """Return the document as the service serves it."""
    return schemathesis.openapi.from_url(lasting.url + "/openapi.json")


def made_up(schema: BaseSchema, path: str, method: str, mode: GenerationMode) -> st.SearchStrategy[Case[Any]]:
    """Return requests for an operation, by the document or against it."""
    return schema[path][method].as_strategy(generation_mode=mode)


def bounded(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with so many examples as are asked for, each of any duration."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
    phases = [Phase.explicit, Phase.generate, Phase.shrink]
    limits = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=checks, phases=phases)
    return seed(SEED)(limits(test))


def test_every_operation_is_made_up_requests_for(schema: BaseSchema) -> None:
    """What is added to the document is added here, too."""
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    documented = {(operation.method.upper(), operation.path) for operation in operations}
    assert documented == {("POST", PATH), ("POST", TOKEN_PATH), *(("GET", page) for page in PAGES)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("signature", ["right", "wrong", "made up"])
def test_the_signed_path(watched: Watched, schema: BaseSchema, signature: str, mode: GenerationMode) -> None:
    """Every answer is documented and has the documented shape; only the right signature gets past 401."""
    accounts = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=260)

    @bounded
    @given(case=made_up(schema, PATH, "POST", mode), account=accounts)
    def ask(case: Case[Any], account: str) -> None:
        if signature != "made up":
            headers = signed_headers(account)
            headers["X-Account-ID"] = account.encode().decode("latin-1")  # as bytes travel in a header
            headers["X-Signature"] = headers["X-Signature"][:: -1 if signature == "wrong" else 1]
            case.headers.update(headers)
        response = case.call(base_url=watched.url)
        case.validate_response(response, checks=ASKED)
        assert (response.status_code == 401) == (signature != "right" or len(account.encode()) > LONGEST_ACCOUNT_CHARS)

    ask()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("token", ["right", "made up"])
def test_the_token_path(watched: Watched, schema: BaseSchema, token: str, mode: GenerationMode) -> None:
    """With the right token every body is answered 200, whatever it is; every other token is answered 401."""
    watched.expected += KEPT

    @bounded
    @given(case=made_up(schema, TOKEN_PATH, "POST", mode))
    def ask(case: Case[Any]) -> None:
        if token == "right":
            case.path_parameters = {"token": WEBHOOK_TOKEN}
        response = case.call(base_url=watched.url)
        case.validate_response(response, checks=ASKED)
        assert response.status_code == (200 if token == "right" else 401)

    ask()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bodies", [shaped, almost], ids=["events", "almost events"])
@pytest.mark.parametrize("form", [False, True], ids=["json", "form"])
@pytest.mark.parametrize("signed", [False, True], ids=["by token", "signed"])
def test_bodies_that_look_like_events(watched: Watched, schema: BaseSchema, bodies: Any, form: bool, signed: bool) -> None:
    """What is nearly right is answered as documented; by token nothing but 200."""
    watched.expected += KEPT
    operation = schema[PATH if signed else TOKEN_PATH]["POST"]

    @bounded
    @given(document=bodies)
    def ask(document: dict[str, Any]) -> None:
        case = operation.Case(
            path_parameters={} if signed else {"token": WEBHOOK_TOKEN},
            headers=signed_headers("32000001") if signed else {},
            body=form_of(document).decode() if form else document,
            media_type=FORM if form else "application/json",
        )
        response = case.call(base_url=watched.url)
        case.validate_response(response, checks=ASKED)
        assert response.status_code in ({200, 400} if signed else {200})

    ask()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", PAGES)
def test_the_pages(watched: Watched, schema: BaseSchema, path: str) -> None:
    """They are answered as documented, whatever is sent along."""

    @bounded
    @given(case=made_up(schema, path, "GET", GenerationMode.POSITIVE), query=st.dictionaries(texts, texts, max_size=3), body=st.binary())
    def ask(case: Case[Any], query: dict[str, str], body: bytes) -> None:
        response = case.call(base_url=watched.url, params=query, data=body)
        case.validate_response(response, checks=ASKED)
        assert response.status_code == 200

    ask()


@pytest.mark.timeout(600)
def test_bodies_with_some_bytes_changed(watched: Watched) -> None:
    """What amoCRM really sends, with bytes lost, doubled and flipped: by token nothing but 200."""
    watched.expected += KEPT
    real = [path.read_bytes() for path in sorted(BODIES.iterdir())]

    @bounded
    @given(body=st.sampled_from(real), cut=st.integers(0, 3000), kept=st.integers(0, 40), put=st.binary(max_size=8))
    def ask(body: bytes, cut: int, kept: int, put: bytes) -> None:
        position = cut % len(body)
        status, document = post(watched.url, body[:position] + put + body[position + kept :])
        assert (status, document["status"] in ("success", "partial")) == (200, True)

    ask()
