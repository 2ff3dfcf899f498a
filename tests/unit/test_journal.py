"""What the log says of deliveries: lines as users know them, and nothing secret or personal."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from amo_receiver.amocrm.events import read_body
from amo_receiver.amocrm.fields import Mapping
from amo_receiver.amocrm.keyring import Match, Source
from amo_receiver.errors import Problem
from amo_receiver.inbox.batch import Outcome
from amo_receiver.inbox.delivery import Credential, Delivery, Headers, add_events, open_delivery
from amo_receiver.inbox.endpoints import PATH
from amo_receiver.inbox.journal import Journal, outline
from amo_receiver.inbox.service import Arrival, Permit
from factories import contact, custom_field, form_body
from in_process import FORM, MISSION_BODY, REFUSED, TOKEN_PATH, running, settings_for, signed
from servers import CLIENT_SECRET, WEBHOOK_TOKEN, signed_headers

if TYPE_CHECKING:
    from pathlib import Path

AT = 1_640_995_200


@pytest.mark.asyncio(loop_scope="module")
async def test_the_log_speaks_as_users_know_it_and_tells_no_secrets(shared_url: str, tmp_path: Path) -> None:
    """The lines of a delivery have ids only; names, phones, values, signatures, secrets and tokens are in no line."""
    log_file = tmp_path / "app.log"
    secrets = [
        "Секретов",
        "+79990001122",
        "ivan@secret.test",
        "тайна",
        CLIENT_SECRET,
        WEBHOOK_TOKEN,
        signed_headers("test-account")["X-Signature"],
    ]
    person = contact(
        at=AT,
        name="Секретов",
        account_id="test-account",
        custom_fields=[custom_field(123456, "+79990001122"), custom_field(123457, "ivan@secret.test")],
    )
    async with running(settings_for(shared_url, log_file=log_file)) as client:
        await client.post(PATH, content=json.dumps(MISSION_BODY | {"x": "тайна"}), headers=signed("test-account"))
        await client.post(TOKEN_PATH, content=form_body("contacts", "add", person, account="test-account"), headers=FORM)
        await client.post(TOKEN_PATH, content=form_body("leads", "add", {"id": "Секретов", "name": "тайна"}, account="1"), headers=FORM)
        await client.post(TOKEN_PATH, content=form_body("leads", "add", {"id": 7, "updated_at": 99_999_999_999}, account="1"), headers=FORM)
        await client.post(TOKEN_PATH, content=b"ivan@secret.test=%FF", headers=FORM)
        await client.post(PATH, content=b'{"leads":{"add":[{"id":"ivan@secret.test"}]}}', headers=signed("test-account"))
        for headers, path, _ in REFUSED:
            await client.post(path, content=json.dumps(person), headers=headers)
    written = log_file.read_text()
    first, *_ = [line for line in written.splitlines() if "Received webhook" in line]
    assert re.fullmatch(
        r'\S+Z INFO     Received webhook from amoCRM: {"leads": {"add": \[{"id": 12345}\]}} delivery_id=[-0-9a-f]{36}', first
    )
    delivery_id = first.rpartition("=")[2]
    own = [line.split("Z ", 1)[1] for line in written.splitlines() if delivery_id in line]
    assert [line.partition(" delivery_id=")[0] for line in own[1:3]] == [
        "INFO     Webhook signature verified for account: test-account",
        "INFO     New lead created from amoCRM: 12345",
    ]
    assert re.fullmatch(rf"INFO     Webhook processed 1 events in \d+\.\d\ds delivery_id={delivery_id}", own[3])
    assert "New contact created from amoCRM: 20000001" in written
    assert "Webhook token verified for account: other" in written
    assert re.search(r"ERROR +Items kept as dead letters: leads\.add\[0\]\.id: .* InvalidBody\n", written)
    assert re.search(r"ERROR +Body kept as a dead letter: not UTF-8 .* Unparsable\n", written)
    assert re.search(r"WARNING +Event times over 10 minutes ahead .* events=1\n", written)
    assert written.count("Webhook refused: ") == len(REFUSED) + 1
    assert "compare it with AMOCRM_CLIENT_ID" in written
    assert [secret for secret in secrets if secret in written] == []


def delivery_of(document: dict[str, Any], account: str = "1") -> Delivery:
    made = open_delivery(account, AT, Credential("default", "token", "0" * 12), Headers(), b"{}")
    add_events(made, read_body(document, AT).items, lambda _: account, Mapping({}).for_account)
    return made


def lines(caplog: pytest.LogCaptureFixture, delivery: Delivery, outcome: Outcome, *, signed: bool = True) -> list[str]:
    """Return the lines of one accepted delivery."""
    caplog.clear()
    permit = Permit(Match(Source("acme", "c", 1, None, ()), "0" * 12, "token", "1"), "1", signed=signed)
    with caplog.at_level("INFO", "amo_receiver"):
        Journal(10, clock=lambda: AT + 0.149).accepted(Arrival(AT * 10**9, 0, PATH, permit, None, delivery), outcome)
    assert {vars(record)["fields"]["delivery_id"] for record in caplog.records} == {delivery.id}
    return [record.message for record in caplog.records]


def test_what_each_event_is_called(caplog: pytest.LogCaptureFixture) -> None:
    """New ones are created, others updated, deleted or restored; companies are called so, and what is only recorded has no line."""
    card = {"id": 5}
    document = {
        "leads": {
            "add": [card],
            "update": [card],
            "status": [card],
            "responsible": [card],
            "delete": [card],
            "restore": [card],
            "note": [card],
        },
        "contacts": {"add": [card, card | {"type": "company"}], "update": [card], "delete": [card]},
        "task": {"add": [card]},
    }
    written = lines(caplog, delivery_of(document), Outcome(12, []))
    assert written[1:] == [
        "Webhook signature verified for account: 1",
        "New lead created from amoCRM: 5",
        *["Lead updated from amoCRM: 5"] * 3,
        "Lead deleted from amoCRM: 5",
        "Lead restored from amoCRM: 5",
        "New contact created from amoCRM: 5",
        "New company created from amoCRM: 5",
        "Contact updated from amoCRM: 5",
        "Contact deleted from amoCRM: 5",
        "Webhook processed 12 events in 0.15s",
    ]


def test_only_what_is_applied_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    """An event that is not in the tables yet, or whose delivery could only be kept as a raw body, has no line of its own."""
    delivery = delivery_of({"leads": {"add": [{"id": 5}, {"id": 6}]}})
    written = lines(caplog, delivery, Outcome(1, [Problem("leads.add[0]", "not applied yet")]), signed=False)
    assert written[1:] == [
        "Webhook token verified for account: 1",
        "New lead created from amoCRM: 6",
        "Webhook processed 1 events in 0.15s",
    ]
    assert lines(caplog, delivery, Outcome(0, [Problem("", "x")]))[2:] == ["Webhook processed 0 events in 0.15s"]


def test_the_outline_of_a_body() -> None:
    """Entities, actions and ids, as the body nests them; of a large one the first twenty and a count."""
    document = {"leads": {"add": [{"id": "5", "name": "x"}, {"id": 6}]}, "talk": {"update": [{"talk_id": "7"}]}}
    assert outline(delivery_of(document).events) == '{"leads": {"add": [{"id": 5}, {"id": 6}]}, "talk": {"update": [{"id": "7"}]}}'
    many = outline(delivery_of({"leads": {"add": [{"id": number} for number in range(1, 51)]}}).events)
    assert many.endswith('{"id": 20}]}} and 30 more')
    assert outline(delivery_of({"leads": {"add": [{"id": "Иван"}]}}).events) == '{"leads": {"add": [{"id": ""}]}}'
    assert outline([]) == "{}"
