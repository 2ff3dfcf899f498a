"""What the body of every hook family decodes to, and that the factories write as PHP does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from amo_receiver.amocrm.form import decode
from factories import BODIES, body, contact, form_body, http_build_query, json_body, lead, lead_v4

if TYPE_CHECKING:
    from collections.abc import Mapping

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"

T = "1795300000"
ROMASHKA = {"account.id": "32000001", "account.subdomain": "romashka", "account._links.self": "https://romashka.example.test"}
PIPELINE = {"account.id": "32000001", "account.subdomain": "romashka", "account._links": None}
SUBDOMAIN = {"account.subdomain": "romashka", "account.id": None}
CHAT = {"chat_id": "00000000-0000-4000-8000-0000000000c1", "talk_id": "191", "contact_id": "20000001"}

# Per body: its account block, where its first item is, and leaves of that; None is an absent key.
MEANING: dict[str, tuple[Mapping[str, str | None], str, dict[str, Any]]] = {
    "catalogs-add.form": (
        ROMASHKA,
        "catalogs.add.0",
        {"date_modify": "1795300002", "custom_fields.2.values.0.value": "кг", "type": "catalog"},
    ),
    "catalogs-delete.form": (ROMASHKA, "catalogs.delete.0", {"id": "60000001", "catalog_id": "3201", "date_modify": None}),
    "contacts-add-2016.form": (SUBDOMAIN, "contacts.add.0", {"id": "20000004", "type": "contact", "account_id": None}),
    "contacts-add-company.form": (
        ROMASHKA,
        "contacts.add.0",
        {
            "name": 'ООО "Ромашка & Ко"',
            "type": "company",
            "custom_fields.0.values.0.value": "+70000000002",
            "custom_fields.2.code": "ADDRESS",
        },
    ),
    "contacts-add.form": (ROMASHKA, "contacts.add.0", {"name": "Иван Тестовый", "custom_fields": None, "updated_at": "1795300120"}),
    "contacts-delete-company-2016.form": (SUBDOMAIN, "contacts.delete.0", {"id": "20000002", "type": "company"}),
    "contacts-delete.form": (ROMASHKA, "contacts.delete.0", {"id": "20000001", "type": "contact", "updated_at": None}),
    "contacts-note-company.form": (
        ROMASHKA,
        "contacts.note.0",
        {"note.text": "Счёт &amp; договор", "note.element_id": "20000002", "type": "company"},
    ),
    "contacts-update.form": (
        ROMASHKA,
        "contacts.update.0",
        {
            "custom_fields.0.values.1.value": "+70000000003",
            "custom_fields.1.values.0.value": "ivan+spam@example.test",
            "custom_fields.2.values.0.value": "12.01.1980",
            "custom_fields.4.values": {"value": "2", "enum": "900301"},
            "old_responsible_user_id": "500001",
        },
    ),
    "customers-update.form": (ROMASHKA, "customers.update.0", {"id": "30000001", "name": "Покупатель", "next_price": "5000"}),
    "digital-pipeline-add.form": (PIPELINE, "leads.add.0", {"id": "10000001", "status_id": "2", "pipeline_id": "700001", "name": None}),
    "digital-pipeline-mail_in.form": (PIPELINE, "leads.mail_in.0", {"id": "10000001", "status_id": "2"}),
    "digital-pipeline-status.form": (
        PIPELINE,
        "leads.status.0",
        {"old_status_id": "1", "old_pipeline_id": "700001", "last_modified": None},
    ),
    "leads-add-2016.form": (
        SUBDOMAIN,
        "leads.add.0",
        {"id": "10000003", "custom_fields.0.values.0.value": "some text", "updated_at": None},
    ),
    "leads-add-2022.form": (ROMASHKA, "leads.add.0", {"id": "10000004", "name": "Студия"}),
    "leads-add-utm.form": (
        ROMASHKA,
        "leads.add.0",
        {
            "custom_fields.2.id": "123460",
            "custom_fields.2.values.0.value": "весна & лето",
            "custom_fields.3.values.0.value": "banner+1",
            "custom_fields.4.values.0.value": "купить дом",
            "custom_fields.6.values.0.value": "3%",
        },
    ),
    "leads-add.form": (
        ROMASHKA,
        "leads.add.0",
        {"id": "10000001", "name": "Квартира на Садовой", "last_modified": T, "custom_fields": None},
    ),
    "leads-delete.form": (
        ROMASHKA,
        "leads.delete.0",
        {"id": "10000001", "status_id": "143", "pipeline_id": "700001", "last_modified": None},
    ),
    "leads-linked-sparse-key.form": (
        ROMASHKA,
        "contacts.update.0",
        {"linked_leads_id": {"10000001": {"ID": "10000001"}, "99999999": {"ID": "99999999"}}, "type": "contact"},
    ),
    "leads-note-2020.form": (
        ROMASHKA,
        "leads.note.0",
        {
            "note.text": "Этажей?\nДва\n\nПлощадь, м²\n149\n\n"
            "https://forms.example.test/q?utm_source=ig&amp;utm_medium=test&amp;utm_campaign=look+quiz"
        },
    ),
    "leads-note.form": (
        ROMASHKA,
        "leads.note.0",
        {
            "note.text": "Перезвонить\nзавтра",
            "note.attachement": "",
            "note.metadata": '{"event_source":{"id":500001,"author_name":"Тест Тестов","type":1}}',
            "note.created_at": "1795300300",
        },
    ),
    "leads-responsible.form": (ROMASHKA, "leads.responsible.0", {"responsible_user_id": "500003", "old_responsible_user_id": "500001"}),
    "leads-restore.form": (ROMASHKA, "leads.restore.0", {"id": "10000001", "status_id": "2", "last_modified": "1795300110"}),
    "leads-status-2018.form": (
        SUBDOMAIN,
        "leads.status.0",
        {
            "name": "Встреча: показ и торг",
            "tags.0.name": "повторное обращение",
            "custom_fields.2.values.0": "1796086800",
            "custom_fields.4.values.0.value": "https://forms.example.test/abc?dp=Q1%2BhA%2F&x=1",
        },
    ),
    "leads-status.form": (ROMASHKA, "leads.status.0", {"status_id": "6", "old_status_id": "3", "price": "4800000"}),
    "leads-update-date-field.form": (
        ROMASHKA,
        "leads.update.0",
        {
            "name": "",
            "custom_fields.4.values": {"0": "1796000400"},
            "custom_fields.6.values.0": {"value": "Второй", "enum": "900101"},
            "custom_fields.7.values.1.value": "Б",
        },
    ),
    "leads-update-many.form": (ROMASHKA, "leads.update.0", {"id": "10000010", "name": "Сделка 0"}),
    "leads-update-stage-moved.form": (ROMASHKA, "leads.update.0", {"name": "", "status_id": "3", "old_status_id": "2", "price": None}),
    "leads-update-tags.form": (ROMASHKA, "leads.update.0", {"tags.1": {"id": "610002", "name": "a&b=c"}}),
    "leads-update.form": (ROMASHKA, "leads.update.0", {"price": "4750000", "custom_fields.0.values.0.value": "google"}),
    "message-add-unbound.form": (ROMASHKA, "message.add.0", {**CHAT, "text": "test!", "entity_id": None, "origin": "onlinechat"}),
    "message-add-voice.form": (
        ROMASHKA,
        "message.add.0",
        {**CHAT, "text": "", "attachment.file_name": "file.ogg", "author.type": "external"},
    ),
    "message-add.form": (
        ROMASHKA,
        "message.add.0",
        {**CHAT, "text": "Здравствуйте!", "entity_id": "10000001", "author.name": "Иван Тестовый"},
    ),
    "outgoing_message-add.form": (ROMASHKA, "outgoing_message.add.0", {"author.user_id": "500001", "recipient.type": "external"}),
    "signed-leads-add.json": (
        {"account": None},
        "leads.add.0",
        {"id": 10000001, "name": "Новый лид", "custom_fields_values": [{"field_id": 123458, "values": [{"value": "google"}]}]},
    ),
    "signed-leads-contacts-update.json": (
        {"account.id": "32000001"},
        "leads.update.0",
        {
            "price": 4900000,
            "name": None,
            "custom_fields_values.0.values.0.value": 7250000.5,
            "custom_fields_values.2.values": [{"value": True}],
        },
    ),
    "talk-add.form": (ROMASHKA, "talk.add.0", {"talk_id": "191", "id": None, "is_in_work": "1"}),
    "talk-update.form": (ROMASHKA, "talk.update.0", {"talk_id": "191", "is_in_work": "0", "updated_at": "1795300060"}),
    "task-add.form": (ROMASHKA, "task.add.0", {"id": "50000001", "date_create": "2026-11-21 22:26:40", "created_at": T}),
    "task-delete.form": (ROMASHKA, "task.delete.0", {"id": "50000001", "status": None}),
    "task-update.form": (ROMASHKA, "task.update.0", {"status": "1", "action_close": "1", "result.text": "Дозвонились"}),
    "unsorted-add.form": (
        ROMASHKA,
        "unsorted.add.0",
        {
            "uid": "0f" * 30,
            "source_data.from": "Заявка №510001 с формы «Обратный звонок»",
            "source_data.data.name_2.value": "Пётр",
            "data.leads.0.gso_session_uid": "null",
        },
    ),
    "unsorted-delete.form": (
        ROMASHKA,
        "unsorted.delete.0",
        {"uid": "0d" * 30, "id": None, "action": "accept", "accept_result.leads.0": "10000009"},
    ),
    "unsorted-update.form": (ROMASHKA, "unsorted.update.0", {"source": "Заявка №510002 с формы <<Форма>>", "data.leads.0.status_id": "1"}),
    "widget-digital-pipeline.form": (
        {"account": None, "account_id": "32000001", "subdomain": "romashka"},
        "",
        {"event.type_code": "lead_appeared_in_status", "event.data.status_id": "2", "action.settings.widget.settings.key": "value"},
    ),
}


def at(document: Any, path: str) -> Any:
    """Walk a dotted path; None where it ends early."""
    for name in path.split("."):
        if isinstance(document, list):
            document = document[int(name)]
        elif isinstance(document, dict):
            document = document.get(name)
        else:
            return None
    return document


@pytest.mark.parametrize("name", sorted(path.name for path in BODIES.iterdir()))
def test_every_body_decodes_to_what_it_means(name: str) -> None:
    """A body of every hook family keeps its account, its items and their values; a new body needs its meaning in the table."""
    account, place, leaves = MEANING[name]
    document = decode(body(name), JSON if name.endswith(".json") else FORM)
    item = at(document, place) if place else document

    assert {path: at(document, path) for path in account} == account
    assert {path: at(item, path) for path in leaves} == leaves


def test_the_table_names_no_body_that_is_gone() -> None:
    """Each row of the table has its file."""
    assert set(MEANING) == {path.name for path in BODIES.iterdir()}


@pytest.mark.parametrize("name", sorted(path.name for path in BODIES.glob("*.form")))
def test_a_body_encoded_again_has_the_same_bytes(name: str) -> None:
    """Nothing is lost, added or moved: order, empty values and keys survive decoding."""
    assert http_build_query(decode(body(name), FORM)) == body(name)


def test_a_body_of_many_items_has_all_of_them() -> None:
    """Cards moved together arrive in one body, in order."""
    items = decode(body("leads-update-many.form"), FORM)["leads"]["update"]
    assert [(number, item["id"]) for number, item in items.items()] == [("0", "10000010"), ("1", "10000011"), ("2", "10000012")]


def test_the_factories_encode_as_php() -> None:
    """Escapes, omissions and flags are those that PHP's own http_build_query was seen to write."""
    document = {
        "a": {"b c": "~x-_.é&=+", "n": None, "t": True, "f": False, "l": [1, "2", []], "i": -5, "k\n": "\n"},
        "x[y]": 1,
        "e": "",
        "q~": 1,
    }
    assert http_build_query(document) == (
        b"a%5Bb+c%5D=%7Ex-_.%C3%A9%26%3D%2B&a%5Bt%5D=1&a%5Bf%5D=0"
        b"&a%5Bl%5D%5B0%5D=1&a%5Bl%5D%5B1%5D=2&a%5Bi%5D=-5&a%5Bk%0A%5D=%0A&x%5By%5D=1&e=&q%7E=1"
    )
    with pytest.raises(TypeError, match="float"):
        http_build_query({"a": 1.5})


def test_the_factories_make_bodies_of_items() -> None:
    """Items arrive in order behind the account block, overridden or without a key as asked."""
    document = decode(form_body("leads", "update", lead(id=7, price=None), lead(id=8), account="5"), FORM)
    assert list(document) == ["account", "leads"]
    assert document["account"]["id"] == "5"
    assert [item["id"] for item in document["leads"]["update"].values()] == ["7", "8"]
    assert ["price" in item for item in document["leads"]["update"].values()] == [False, True]
    assert decode(form_body("contacts", "add", contact(type="company"), account=None), FORM)["contacts"]["add"]["0"]["type"] == "company"
    assert decode(json_body("leads", "add", lead_v4(id=9)), JSON) == {"leads": {"add": [lead_v4(id=9)]}}
