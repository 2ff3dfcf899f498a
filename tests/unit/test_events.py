"""Events in a body: where they stand, who they are about, when they happened, and when two of them are the same."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from amo_receiver.amocrm.events import (
    CLOCK_TOLERANCE_SECONDS,
    IDENTITY_CHARACTERS,
    NAME_CHARACTERS,
    Item,
    changes_card,
    dedup_key,
    is_full,
    read_body,
    storable,
    storable_text,
)
from amo_receiver.amocrm.form import decode
from amo_receiver.errors import Problem, Unparsable
from factories import BODIES, body, contact, digital_pipeline_lead, form_body, http_build_query, json_body, lead, lead_v4

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
NOW = 1_700_000_000
PAST = 1_640_995_200
AFTER_ALL_BODIES = 1_796_000_000
NO_OBJECT = "is not an object"
NO_LIST = "is not a list of objects"
NO_ID = "is not a positive 64-bit integer"
EASY = settings(max_examples=100, deadline=None)

# Per body: path and entity id of its events, and their own time as seconds after 1795300000 (None: undated).
EVENTS: dict[str, list[tuple[str, str, int | None]]] = {
    "catalogs-add.form": [("catalogs.add[0]", "60000001", 2)],
    "catalogs-delete.form": [("catalogs.delete[0]", "60000001", None)],
    "contacts-add-2016.form": [("contacts.add[0]", "20000004", 125)],
    "contacts-add-company.form": [("contacts.add[0]", "20000002", 130)],
    "contacts-add.form": [("contacts.add[0]", "20000001", 120)],
    "contacts-delete-company-2016.form": [("contacts.delete[0]", "20000002", None)],
    "contacts-delete.form": [("contacts.delete[0]", "20000001", None)],
    "contacts-note-company.form": [("contacts.note[0]", "20000002", 330)],
    "contacts-update.form": [("contacts.update[0]", "20000001", 140)],
    "customers-update.form": [("customers.update[0]", "30000001", None)],
    "digital-pipeline-add.form": [("leads.add[0]", "10000001", None)],
    "digital-pipeline-mail_in.form": [("leads.mail_in[0]", "10000001", None)],
    "digital-pipeline-status.form": [("leads.status[0]", "10000001", None)],
    "leads-add-2016.form": [("leads.add[0]", "10000003", 20)],
    "leads-add-2022.form": [("leads.add[0]", "10000004", 30)],
    "leads-add-utm.form": [("leads.add[0]", "10000002", 10)],
    "leads-add.form": [("leads.add[0]", "10000001", 0)],
    "leads-delete.form": [("leads.delete[0]", "10000001", None)],
    "leads-linked-sparse-key.form": [("contacts.update[0]", "20000003", 150)],
    "leads-note-2020.form": [("leads.note[0]", "10000001", 330)],
    "leads-note.form": [("leads.note[0]", "10000001", 330)],
    "leads-responsible.form": [("leads.responsible[0]", "10000001", 100)],
    "leads-restore.form": [("leads.restore[0]", "10000001", 110)],
    "leads-status-2018.form": [("leads.status[0]", "10000008", 90)],
    "leads-status.form": [("leads.status[0]", "10000001", 80)],
    "leads-update-date-field.form": [("leads.update[0]", "10000006", 60)],
    "leads-update-many.form": [(f"leads.update[{number}]", str(10000010 + number), 70) for number in range(3)],
    "leads-update-stage-moved.form": [("leads.update[0]", "10000005", 50)],
    "leads-update-tags.form": [("leads.update[0]", "10000007", 75)],
    "leads-update.form": [("leads.update[0]", "10000001", 40)],
    "message-add-unbound.form": [("message.add[0]", "00000000-0000-4000-8000-000000000002", 5)],
    "message-add-voice.form": [("message.add[0]", "00000000-0000-4000-8000-000000000003", 9)],
    "message-add.form": [("message.add[0]", "00000000-0000-4000-8000-000000000001", 0)],
    "outgoing_message-add.form": [("outgoing_message.add[0]", "00000000-0000-4000-8000-000000000004", 20)],
    "signed-leads-add.json": [("leads.add[0]", "10000001", 0)],
    "signed-leads-contacts-update.json": [("leads.update[0]", "10000001", 500), ("contacts.update[0]", "20000001", 500)],
    "talk-add.form": [("talk.add[0]", "191", 0)],
    "talk-update.form": [("talk.update[0]", "191", 60)],
    "task-add.form": [("task.add[0]", "50000001", 0)],
    "task-delete.form": [("task.delete[0]", "50000001", None)],
    "task-update.form": [("task.update[0]", "50000001", 100)],
    "unsorted-add.form": [("unsorted.add[0]", "0f" * 30, 0)],
    "unsorted-delete.form": [("unsorted.delete[0]", "0d" * 30, None)],
    "unsorted-update.form": [("unsorted.update[0]", "0e" * 30, None)],
}


def read(document: dict[str, Any], now: float = NOW) -> list[Item]:
    return read_body(document, now).items


def one(entity: str, action: str, payload: Any, now: float = NOW) -> Item:
    (item,) = read({entity: {action: [payload]}}, now)
    return item


def problems(document: dict[str, Any]) -> list[Problem | None]:
    return [item.problem for item in read(document)]


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_the_events_of_every_family(name: str) -> None:
    """Each kind of body gives its events, in document order, with entity id and own time, and nothing is wrong with them."""
    parsed = read_body(decode(body(name), JSON if name.endswith("json") else FORM), AFTER_ALL_BODIES)
    times = [None if item.own_time is None else item.own_time - 1_795_300_000 for item in parsed.items]
    assert [(item.path, item.entity_id, moment) for item, moment in zip(parsed.items, times, strict=True)] == EVENTS[name]
    assert all(item.problem is None and not item.ahead for item in parsed.items)


def test_no_body_is_left_out() -> None:
    """The table above has every body but the widget's, which goes to another address and has no entity[action][n]."""
    assert {path.name for path in BODIES.iterdir()} == {*EVENTS, "widget-digital-pipeline.form"}
    with pytest.raises(Unparsable):
        read(decode(body("widget-digital-pipeline.form"), FORM))


def test_events_come_in_document_order() -> None:
    """Entities, actions and items keep the body's order; numeric keys of a form are names, whatever their order."""
    document = {
        "contacts": {"update": {"7": contact(), "0": contact(id=5)}},
        "account": {"id": "1"},
        "leads": {"status": [lead()], "add": [lead()]},
    }
    assert [item.path for item in read(document)] == ["contacts.update[7]", "contacts.update[0]", "leads.status[0]", "leads.add[0]"]
    assert [item.entity_id for item in read(document)][:2] == ["20000001", "5"]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"account": {"id": "1", "subdomain": "x", "_links": {"self": "y"}}},
        {"account": "x"},
        {"leads": {"add": []}},
        {"leads": {"add": [], "update": [], "delete": []}, "contacts": {"add": [], "update": []}},
        {"leads": {"add": {}, "update": ""}},
        {"leads": {}},
        {"leads": []},
        {"leads": ""},
        {"leads": None, "contacts": {"add": None}},
        {"leads": "", "новое": ""},
        {"task": {"add": [], "update": {}}},
    ],
)
def test_a_body_with_nothing_in_it_has_no_events(document: dict[str, Any]) -> None:
    """{}, an account block alone and empty lists are 0 events, and nothing is wrong with them."""
    assert read(document) == []


@pytest.mark.parametrize(
    "document",
    [
        {"x": "1"},
        {'{"leads":{"add":[]}}': ""},
        {"hello world": ""},
        {"": ""},
        {"leads": "1"},
        {"leads": ["1"]},
        {"leads": [{"id": 1}]},
        {"leads": 0},
        {"leads": False},
        {"leads": {"mail_in": "1"}},
        {"task": {"add": "1"}},
        {"task": {"add": {"id": 1}}},
        {"add": {"0": {"id": 1}}},
        {"event": {"type": "15", "data": {"id": "1"}}, "subdomain": "romashka"},
        {"account": {"id": "1"}, "x": {"y": {"z": "1"}}},
    ],
)
def test_a_body_without_any_event_in_its_place_is_unparsable(document: dict[str, Any]) -> None:
    """Not empty and without any entity[action][n] is not amoCRM's body; the error quotes nothing of it."""
    with pytest.raises(Unparsable) as raised:
        read(document)
    assert raised.value.problem == Problem("", "no entity[action][n] in it")


def test_what_stands_beside_events_is_passed_over() -> None:
    """A body with events may have other keys, which are none."""
    assert len(read({"leads": {"add": [lead()], "x": "y"}, "z": "1", "w": ["1"]})) == 1
    assert len(read({"w": ["1"], "leads": {"x": "y", "add": [lead()]}})) == 1


def test_the_account_block_is_no_event() -> None:
    """Whatever stands in it, also in the shape of one."""
    assert read({"account": {"add": [{"id": 1}]}}) == []


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"leads": {"add": {"id": 1}}}, [Problem("leads.add", NO_LIST)]),
        ({"leads": {"delete": "12345"}}, [Problem("leads.delete", NO_LIST)]),
        ({"contacts": {"update": {"0": "x"}}}, [Problem("contacts.update", NO_LIST)]),
        ({"leads": {"add": 0}}, [Problem("leads.add", NO_LIST)]),
        ({"leads": {"add": "x", "update": [{"id": 1}]}}, [Problem("leads.add", NO_LIST), None]),
        ({"leads": {"add": [{"id": 1}, "x", None, []]}}, [None, *(Problem(f"leads.add[{n}]", NO_OBJECT) for n in (1, 2, 3))]),
        ({"leads": {"add": {"0": {"id": 1}, "x": "y"}}}, [None, Problem("leads.add[1]", NO_OBJECT)]),
        ({"leads": {"add": [{"id": 1}, {"name": "x"}]}}, [None, Problem("leads.add[1].id", "is missing")]),
        ({"leads": {"add": [{"id": ""}, {"id": None}]}}, [Problem(f"leads.add[{n}].id", "is missing") for n in (0, 1)]),
        ({"task": {"add": ["x", {}]}}, [None, None]),
        ({"leads": {"note": [{}], "mail_in": ["x"]}}, [None, None]),
        ({"companies": {"add": [{"name": "x"}]}}, [None]),
    ],
)
def test_an_unusable_item_says_what_is_wrong_and_where(document: dict[str, Any], expected: list[Problem | None]) -> None:
    """Only events that change a card can be unusable; the others of the body stay good."""
    assert problems(document) == expected


def test_an_unusable_item_keeps_what_was_sent() -> None:
    """The dead event can be found by its place, entity and action, and shows what stood there instead of an item."""
    in_list, instead_of_list = Problem("leads.add[0]", NO_OBJECT), Problem("leads.add", NO_LIST)
    assert read({"leads": {"add": ["x"]}}) == [Item("leads.add[0]", "leads", "add", "", None, None, {"value": "x"}, in_list)]
    assert read({"leads": {"add": {"id": 1}}}) == [Item("leads.add", "leads", "add", "", None, None, {"value": {"id": 1}}, instead_of_list)]
    assert read({"task": {"add": ["x"]}}) == [Item("task.add[0]", "task", "add", "", None, None, {"value": "x"}, None, ahead=False)]


@pytest.mark.parametrize(
    "identity", ["x", "0", 0, -1, "-1", 1.5, "1.5", True, [1], {"a": 1}, 2**63, str(2**63), "1" * 5000, "١", " 1", "1e3"]
)
def test_the_id_of_a_card_is_a_positive_64_bit_integer(identity: Any) -> None:
    """Anything else cannot be a key of the table; the problem does not quote it."""
    assert one("leads", "add", {"id": identity}).problem == Problem("leads.add[0].id", NO_ID)


@pytest.mark.parametrize("identity", [1, "1", "007", 2**63 - 1, str(2**63 - 1)])
def test_ids_that_fit_are_good(identity: Any) -> None:
    """Numbers and digits alike, up to the largest bigint."""
    item = one("contacts", "delete", {"id": identity})
    assert (item.problem, item.entity_id) == (None, str(identity))


@pytest.mark.parametrize(
    ("entity", "action", "payload", "entity_id"),
    [
        ("unsorted", "add", {"uid": "0f0f", "talk_id": "5"}, "0f0f"),
        ("talk", "add", {"talk_id": 191, "contact_id": 7}, "191"),
        ("message", "add", {"id": "a-b", "talk_id": "5", "element_id": 7}, "a-b"),
        ("task", "update", {"id": "", "uid": None, "talk_id": "5"}, "5"),
        ("task", "update", {"element_id": 7}, ""),
        ("task", "update", {"id": [], "uid": "u"}, ""),
        ("catalogs", "add", {"id": 1.5}, "1.5"),
        ("leads", "note", {"note": {"id": 4, "element_id": 10}}, "10"),
        ("leads", "note", {"id": 4, "element_id": 10}, "10"),
        ("contacts", "note", {"note": {"id": 4}, "element_id": 10}, ""),
        ("leads", "add", {"id": 1, "note": {"id": 4, "element_id": 10}}, "1"),
        ("task", "add", "x", ""),
    ],
)
def test_who_an_event_is_about(entity: str, action: str, payload: Any, entity_id: str) -> None:
    """Its id, else uid, else talk_id; for a note the card it is on."""
    assert one(entity, action, payload).entity_id == entity_id


def test_names_and_ids_are_cut_to_what_indexes_hold() -> None:
    """Huge names of entity and action, ids and accounts are cut, positions shortened; the payload keeps everything."""
    huge = "ж" * 100_000
    item = one(huge, huge, {"id": huge, "account_id": huge, "name": huge})
    assert (item.entity, item.action) == (huge[:NAME_CHARACTERS], huge[:NAME_CHARACTERS])
    assert (item.entity_id, item.account_id) == (huge[:IDENTITY_CHARACTERS], huge[:IDENTITY_CHARACTERS])
    assert item.payload["name"] == huge
    assert read({"task": {"add": {"9" * 1000: {"id": 1}}}})[0].path == "task.add[0]"
    parsed = read_body({"account": {"id": huge, "subdomain": huge}}, NOW)
    assert (parsed.account_id, parsed.subdomain) == (huge[:IDENTITY_CHARACTERS], huge[:IDENTITY_CHARACTERS])


def test_names_and_ids_are_storable() -> None:
    """NUL and lone surrogates in names, ids and accounts are replaced before anything sees them."""
    item = one("le\0ads", "a\ud800", {"id": "1\0", "account_id": "\udfff"})
    assert (item.entity, item.action, item.entity_id, item.account_id) == ("le\ufffdads", "a\ufffd\ufffd\ufffd", "1\ufffd", "\ufffd" * 3)
    assert item.path == "le\ufffdads.a\ufffd\ufffd\ufffd[0]"
    positions = {"leads": {"add": {"0": {"id": 1}, "\ud800": {"id": 2}, "\0": "x"}}}
    assert [item.path for item in read(positions)] == ["leads.add[0]", "leads.add[1]", "leads.add[2]"]
    parsed = read_body({"account": {"id": "a\0", "subdomain": "b\0"}}, NOW)
    assert (parsed.account_id, parsed.subdomain) == ("a\ufffd", "b\ufffd")


@pytest.mark.parametrize(
    ("account", "account_id", "subdomain"),
    [
        ({"id": "32000001", "subdomain": "romashka"}, "32000001", "romashka"),
        ({"id": 32000001}, "32000001", None),
        ({"subdomain": "romashka"}, None, "romashka"),
        ({"id": "", "subdomain": ""}, None, None),
        ({"id": {"a": 1}, "subdomain": ["x"]}, None, None),
        ("32000001", None, None),
        ([], None, None),
    ],
)
def test_the_account_of_a_body(account: Any, account_id: str | None, subdomain: str | None) -> None:
    """Id and subdomain as texts, wherever the block stands; None where it says nothing."""
    for document in ({"account": account, "leads": {"add": [lead()]}}, {"leads": {"add": [lead()]}, "account": account}):
        parsed = read_body(document, NOW)
        assert (parsed.account_id, parsed.subdomain) == (account_id, subdomain)


def test_the_account_of_an_item() -> None:
    """An item's own account_id; a note's stands one level deeper."""
    assert one("leads", "add", {"id": 1, "account_id": 7}).account_id == "7"
    assert one("leads", "add", {"id": 1}).account_id is None
    assert one("leads", "note", {"note": {"element_id": 1, "account_id": "7"}, "account_id": "8"}).account_id == "7"


@pytest.mark.parametrize(
    ("action", "times", "own_time"),
    [
        ("update", {"updated_at": PAST, "last_modified": 5, "date_modify": 6, "created_at": 7}, PAST),
        ("update", {"last_modified": str(PAST), "date_modify": 6, "created_at": 7}, PAST),
        ("update", {"date_modify": PAST, "created_at": 7}, PAST),
        ("update", {"created_at": PAST}, None),
        ("delete", {"created_at": PAST}, None),
        ("restore", {"created_at": PAST, "date_create": PAST}, None),
        ("add", {"created_at": PAST}, PAST),
        ("add", {"created_at": 7, "updated_at": PAST}, PAST),
        ("add", {"date_create": PAST}, None),
        ("update", {"updated_at": "2022-01-01 00:00:00", "last_modified": PAST}, PAST),
        ("update", {"updated_at": "2022-01-01 00:00:00"}, None),
        ("update", {"updated_at": "", "last_modified": PAST}, PAST),
        ("update", {"updated_at": 0, "last_modified": -5}, None),
        ("update", {"updated_at": 1}, 1),
        ("update", {"updated_at": PAST + 0.5}, None),
        ("update", {"updated_at": True}, None),
        ("update", {"updated_at": [PAST]}, None),
        ("update", {}, None),
    ],
)
def test_an_event_s_own_time(action: str, times: dict[str, Any], own_time: int | None) -> None:
    """updated_at, else last_modified, else date_modify, else (for an add only) created_at, in unix seconds; text dates are none."""
    item = one("leads", action, {"id": 1, **times})
    assert (item.own_time, item.ahead) == (own_time, False)


def test_a_note_s_time_is_its_own() -> None:
    """A note's times stand one level deeper, and its created_at is not the time of an add."""
    assert one("leads", "note", {"note": {"updated_at": PAST}, "updated_at": 5}).own_time == PAST
    assert one("leads", "note", {"note": {"created_at": PAST}}).own_time is None


@pytest.mark.parametrize(
    ("times", "own_time", "ahead"),
    [
        ({"updated_at": NOW + CLOCK_TOLERANCE_SECONDS}, NOW + CLOCK_TOLERANCE_SECONDS, False),
        ({"updated_at": NOW + CLOCK_TOLERANCE_SECONDS + 1}, None, True),
        ({"updated_at": 9_999_999_999}, None, True),
        ({"updated_at": "9223372036854775807"}, None, True),
        ({"updated_at": NOW * 1000, "last_modified": PAST}, PAST, True),
        ({"updated_at": PAST, "last_modified": NOW * 1000}, PAST, False),
    ],
)
def test_a_time_too_far_ahead_counts_as_absent(times: dict[str, Any], own_time: int | None, ahead: bool) -> None:
    """More than 10 minutes ahead of our clock a time orders nothing, the next best takes its place, and the item says so."""
    item = one("leads", "update", {"id": 1, **times})
    assert (item.own_time, item.ahead) == (own_time, ahead)
    assert CLOCK_TOLERANCE_SECONDS == 600


def test_which_events_change_a_card() -> None:
    """Adds, updates, moves, deletes and restores of leads and contacts; all else is recorded only."""
    actions = ("add", "update", "status", "responsible", "delete", "restore", "note", "mail_in", "chat", "Add", "")
    assert [action for action in actions if changes_card("leads", action)] == list(actions[:6])
    assert changes_card("contacts", "add")
    assert not any(changes_card(entity, "add") for entity in ("companies", "task", "customers", "unsorted", "Leads", ""))
    assert (one("leads", "status", {"id": 1}).is_applied, one("leads", "note", {}).is_applied) == (True, False)


@pytest.mark.parametrize(
    ("payload", "full"),
    [
        (lead(), True),
        (contact(), True),
        ({"last_modified": "2022-01-01"}, True),
        ({"last_modified": 0}, True),
        (lead(last_modified=None), False),
        ({"last_modified": ""}, False),
        ({"last_modified": None}, False),
        (lead_v4(), False),
        (digital_pipeline_lead(), False),
        ({"updated_at": PAST}, False),
    ],
)
def test_full_or_partial(payload: dict[str, Any], full: bool) -> None:
    """A card with last_modified is a full snapshot, any other a partial one."""
    assert is_full(payload) is full


def key_of(item: Item) -> str | None:
    return dedup_key(item, storable(item.payload)[1])


def test_the_same_event_in_another_order_of_keys_is_a_duplicate() -> None:
    """The payload is hashed in canonical form: the order of keys, at any depth, does not count."""
    payload = lead(at=PAST, custom_fields=[{"id": "1", "name": "x", "values": [{"value": "a", "enum": "b"}]}])
    turned = dict(reversed(payload.items()))
    turned["custom_fields"] = [{"values": [{"enum": "b", "value": "a"}], "name": "x", "id": "1"}]
    first, second = one("leads", "update", payload), one("leads", "update", turned)
    assert key_of(first) == key_of(second) is not None
    assert len(bytes.fromhex(key_of(first) or "")) == 16


@pytest.mark.parametrize(
    ("entity", "action", "change"),
    [
        ("leads", "add", {}),
        ("contacts", "update", {}),
        ("leads", "update", {"name": "x"}),
        ("leads", "update", {"id": "10000002"}),
        ("leads", "update", {"price": 4500000}),
        ("leads", "update", {"custom_fields": []}),
        ("leads", "update", {"extra": ""}),
    ],
)
def test_any_difference_makes_another_event(entity: str, action: str, change: dict[str, Any]) -> None:
    """Entity, action, entity id and every field of the payload count."""
    payload = lead(at=PAST) | {"price": "4500000"}
    assert key_of(one("leads", "update", payload)) != key_of(one(entity, action, payload | change))


def test_names_cannot_run_into_each_other() -> None:
    """Where an entity's name ends and an action's begins counts."""
    items = [one("a", "bc", {"updated_at": PAST}), one("ab", "c", {"updated_at": PAST})]
    assert len({dedup_key(item, b"{}") for item in items}) == 2


def test_an_unusable_item_may_be_a_duplicate() -> None:
    """Undated or not, the same bad item again is the same dead letter: it would only pile up."""
    items = [one("leads", "update", {"id": "x", "name": name}) for name in ("а", "а", "б")]
    keys = [key_of(item) for item in items]
    assert keys[0] == keys[1] is not None
    assert keys[2] not in (None, keys[0])


def test_a_position_is_shown_only_while_it_is_one() -> None:
    """A number of up to eight digits stands in the path as sent; what else is in its place may be personal, and is counted instead."""
    sent = {position: {"id": 1} for position in ("5", "12345678", "+79990001122", "123456789", "Иван", "", "٧")}
    places = [item.path.removeprefix("task.add") for item in read({"task": {"add": sent}})]
    assert places == ["[5]", "[12345678]", "[2]", "[3]", "[4]", "[5]", "[6]"]


def test_an_undated_event_is_never_a_duplicate() -> None:
    """Without an own time there is no key: versions order such events, and applying one twice is harmless."""
    assert key_of(one("leads", "status", digital_pipeline_lead())) is None
    assert key_of(one("leads", "update", lead(at=NOW * 2))) is None


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None, categories=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(categories=None), max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@EASY
@given(st.dictionaries(st.text(st.characters(categories=None), max_size=4), JSON_VALUES, max_size=4))
@example({"a": "\0", "\0b": ["\ud800", {"\udfff": "\0"}]})
@example({"a": 2**63, "b": 2**64, "c": -(2**63) - 1, "d": [10**40]})
@example({"a": "\\u0000"})
def test_every_payload_becomes_storable(payload: dict[str, Any]) -> None:
    """Whatever JSON can say becomes JSON that Postgres takes: no NUL, no lone surrogate, no number beyond what JSON readers hold."""
    kept, dumped = storable(payload)
    assert orjson.loads(dumped) == kept
    assert "\0" not in json.dumps(kept, ensure_ascii=False)
    assert dumped == json_sorted(kept)
    dumped.decode()


def json_sorted(payload: dict[str, Any]) -> bytes:
    return orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)


def test_what_is_storable_already_stays_the_same_object() -> None:
    """An ordinary payload is neither copied nor changed."""
    payload = lead(name="Квартира на Садовой 😀")
    assert storable(payload)[0] is payload


def test_what_replaces_the_unstorable() -> None:
    """NUL and lone surrogates in keys and values become replacement characters, integers beyond 64 bits become texts."""
    kept, _ = storable({"a\0": "x\0y", "b": ["\ud800", {"\udfff": 2**64}], "c": [-(2**70), 2**63 - 1], "d": [True, None, 1.5]})
    assert kept == {
        "a\ufffd": "x\ufffdy",
        "b": ["\ufffd" * 3, {"\ufffd" * 3: str(2**64)}],
        "c": [str(-(2**70)), 2**63 - 1],
        "d": [True, None, 1.5],
    }


def test_whole_numbers_of_64_bits_stay_numbers() -> None:
    """Also beside something that must be replaced."""
    numbers = [0, -(2**63) + 1, 2**63, 2**64 - 2]
    assert storable({"a": "\0", "b": numbers})[0]["b"] == numbers


@pytest.mark.parametrize(("value", "kept"), [("a\0b", "a\ufffdb"), ("ж\0😀", "ж\ufffd😀"), ("ж\ud800", "ж\ufffd\ufffd\ufffd")])
def test_what_replaces_the_unstorable_in_a_text(value: str, kept: str) -> None:
    """One replacement character for a NUL, whatever stands beside it, and three for a lone surrogate's three bytes."""
    assert storable_text(value) == kept


@EASY
@given(st.text(st.characters(categories=None)))
def test_storable_text_is_text_that_utf8_and_postgres_hold(value: str) -> None:
    """Nothing but NUL and lone surrogates is changed."""
    result = storable_text(value)
    assert "\0" not in result
    result.encode()
    if value.isprintable():
        assert result == value


def test_both_encodings_say_the_same() -> None:
    """The same event as form and as JSON has the same path, id and time."""
    payload = lead(at=PAST)
    (as_form,) = read(decode(form_body("leads", "update", payload), FORM))
    (as_json,) = read(decode(json_body("leads", "update", payload), JSON))
    assert replace(as_form, payload={}) == replace(as_json, payload={})


def test_a_list_without_numbers_in_a_form() -> None:
    """Brackets without a number are numbered as PHP does."""
    assert [item.path for item in read(decode(b"leads[add][][id]=1&leads[add][][id]=2", FORM))] == ["leads.add[0]", "leads.add[1]"]
    sparse = {"leads": {"update": {"99999999": lead()}}}
    assert [item.path for item in read(decode(http_build_query(sparse), FORM))] == ["leads.update[99999999]"]


@EASY
@given(
    st.dictionaries(
        st.sampled_from(["leads", "contacts", "account", "task", ""]), st.dictionaries(st.sampled_from(["add", "note", ""]), JSON_VALUES)
    )
)
def test_no_document_raises_anything_else(document: dict[str, Any]) -> None:
    """Any document gives events or Unparsable; each event of a card has a usable id or a problem."""
    try:
        items = read(document)
    except Unparsable:
        return
    for item in items:
        assert not item.is_applied or item.problem or 0 < int(item.entity_id) < 2**63
        assert item.own_time is None or item.own_time <= NOW + CLOCK_TOLERANCE_SECONDS
