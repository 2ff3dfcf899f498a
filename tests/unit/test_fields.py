"""What the fields of a lead or contact mean: columns, custom fields in both shapes, and the mapping between them."""

from __future__ import annotations

from decimal import Decimal
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amo_receiver.amocrm.fields import MAPPABLE, Mapping, Writes, integer, number, read_fields, text
from amo_receiver.amocrm.form import decode
from amo_receiver.errors import ConfigurationError
from factories import body, contact, contact_v4, custom_field, custom_field_v4, lead, lead_v4

SHIPPED = Mapping.parse((files("amo_receiver") / "mapping.toml").read_text("utf-8"))
EASY = settings(max_examples=100, deadline=None)
MOST = 2**63 - 1


def of_lead(payload: dict[str, Any], mapping: Mapping = SHIPPED) -> Writes:
    return read_fields("leads", payload, mapping.for_account(""))


def of_contact(payload: dict[str, Any], mapping: Mapping = SHIPPED) -> Writes:
    return read_fields("contacts", payload, mapping.for_account(""))


def payload_of(name: str, entity: str, action: str) -> dict[str, Any]:
    payload: dict[str, Any] = decode(body(name), "application/x-www-form-urlencoded")[entity][action]["0"]
    return payload


def with_fields(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"custom_fields": list(fields)}


# The shipped mapping


@pytest.mark.parametrize(
    ("entity", "field_id", "code", "column"),
    [
        ("leads", 123458, "UTM_SOURCE", "utm_source"),
        ("leads", 123459, "UTM_MEDIUM", "utm_medium"),
        ("leads", 123460, "UTM_CAMPAIGN", "utm_campaign"),
        ("leads", 123461, "UTM_CONTENT", "utm_content"),
        ("leads", 123462, "UTM_TERM", "utm_term"),
        ("leads", 123463, "PROPERTY_COST", "property_cost"),
        ("leads", 123464, "COMMISSION", "commission"),
        ("contacts", 123456, "PHONE", "phone"),
        ("contacts", 123457, "EMAIL", "email"),
    ],
)
def test_the_shipped_mapping_names_every_column(entity: str, field_id: int, code: str, column: str) -> None:
    """Each column is found by its documented id, by its built-in code in any case, and by a name of that spelling."""
    for field in (
        custom_field(field_id, "7"),
        custom_field(1, "7", code=code),
        custom_field(1, "7", code=code.lower()),
        custom_field(1, "7", name=code),
    ):
        assert read_fields(entity, with_fields(field), SHIPPED.for_account("")).columns == {column: "7"}
    assert column in MAPPABLE[entity]


def test_a_lead_s_fields_are_no_contact_s() -> None:
    """The mapping is per entity."""
    assert of_contact(with_fields(custom_field(123458, "google"), custom_field(1, "x", code="UTM_TERM"))).columns == {}
    assert of_lead(with_fields(custom_field(123456, "+7"), custom_field(1, "x", code="PHONE"))).columns == {}


@pytest.mark.parametrize(
    ("status_id", "status"),
    [
        (1, "new"), (2, "contacted"), (3, "presentation"), (4, "object_selected"), (5, "reserved"), (6, "deal"), (7, "completed"),
        (142, None), (0, None), (-1, None),
    ],
)  # fmt: skip
def test_statuses(status_id: int, status: str | None) -> None:
    """Known stages get their word; an unknown one keeps its number and has none."""
    for sent in (status_id, str(status_id)):
        assert of_lead({"status_id": sent}).columns == {"status_id": status_id, "status": status}


def test_names_in_russian() -> None:
    """Names are compared without regard to case."""
    assert of_lead(with_fields(custom_field(1, "7", name="стоимость ОБЪЕКТА"))).columns == {"property_cost": "7"}
    assert of_contact(with_fields(custom_field(1, "x", name="ТЕЛЕФОН"))).columns == {"phone": "x"}


# A mapping of one's own


MINE = """
[leads.status]
1 = "new"
2 = "contacted"
[leads.fields]
utm_source = [10, "SOURCE_CODE", "Источник"]
utm_medium = 11
utm_term = "TERM"
[contacts.fields]
phone = [20]
[accounts.777.leads.status]
2 = "called"
3 = "shown"
[accounts.777.leads.fields]
utm_source = [99]
[accounts.888.contacts.fields]
email = "MAIL"
"""


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ([custom_field(10, "by id"), custom_field(1, "by code", code="SOURCE_CODE"), custom_field(2, "by name", name="Источник")], "by id"),
        ([custom_field(2, "by name", name="Источник"), custom_field(1, "by code", code="SOURCE_CODE"), custom_field(10, "by id")], "by id"),
        ([custom_field(2, "by name", name="Источник"), custom_field(1, "by code", code="SOURCE_CODE")], "by code"),
        ([custom_field(2, "by name", name="источник")], "by name"),
        ([custom_field(10, "by id", name="Имя", code="TERM")], "by id"),
        ([custom_field(2, "first", name="Источник"), custom_field(3, "second", name="Источник")], "first"),
        ([custom_field(10), custom_field(2, "by name", name="Источник")], "by name"),
        ([custom_field(2, "by name", name="Источник"), custom_field(10)], "by name"),
        ([custom_field(10), custom_field(2, name="Источник")], None),
    ],
)
def test_an_id_wins_over_a_code_and_a_code_over_a_name(fields: list[dict[str, Any]], value: str | None) -> None:
    """In whatever order they stand; a field without a value gives way to one that has one."""
    assert of_lead(with_fields(*fields), Mapping.parse(MINE)).columns == {"utm_source": value}


def test_a_match_says_how_sure_it_is() -> None:
    """By id is the best, then by code, then by name."""
    mapping = Mapping.parse(MINE).for_account("")
    matches = [mapping.column("leads", *field) for field in (("10", None, None), ("1", "source_code", None), ("1", None, "ИСТОЧНИК"))]
    assert matches == [(rank, "utm_source") for rank in (0, 1, 2)]
    assert mapping.column("leads", "1", "x", "x") is None


def test_one_name_may_stand_without_a_list() -> None:
    """A single id, code or name needs no brackets."""
    columns = of_lead(with_fields(custom_field(11, "a"), custom_field(1, "b", code="term")), Mapping.parse(MINE)).columns
    assert columns == {"utm_medium": "a", "utm_term": "b"}


def test_an_account_s_own_table_replaces_key_by_key() -> None:
    """What it names is its own, everything else stays general; other accounts do not notice."""
    mapping = Mapping.parse(MINE)
    sent = with_fields(custom_field(10, "general"), custom_field(99, "own"), custom_field(11, "medium"))
    own, general = mapping.for_account("777"), mapping.for_account("778")
    assert read_fields("leads", sent, own).columns == {"utm_source": "own", "utm_medium": "medium"}
    assert read_fields("leads", sent, general).columns == {"utm_source": "general", "utm_medium": "medium"}
    assert [own.statuses.get(key) for key in ("1", "2", "3")] == ["new", "called", "shown"]
    assert [general.statuses.get(key) for key in ("1", "2", "3")] == ["new", "contacted", None]
    other = with_fields(custom_field(20, "+7"), custom_field(1, "a@b", code="MAIL"))
    assert read_fields("contacts", other, mapping.for_account("888")).columns == {"phone": "+7", "email": "a@b"}
    assert read_fields("contacts", other, own).columns == {"phone": "+7"}


ONLY_PHONES = "only phone, email"


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("[leads.fields]\nphone = 1", f"leads has no column 'phone' for a custom field, only {', '.join(MAPPABLE['leads'])}"),
        ("[contacts.fields]\nutm_source = 1", f"contacts has no column 'utm_source' for a custom field, {ONLY_PHONES}"),
        ("[leads.fields]\nname = 1", f"leads has no column 'name' for a custom field, only {', '.join(MAPPABLE['leads'])}"),
        ("[accounts.1.contacts.fields]\nprice = 1", f"contacts has no column 'price' for a custom field, {ONLY_PHONES}"),
        ("[leads.fields]\nutm_source = 1.5", "leads.fields.utm_source must be ids, codes or names"),
        ("[leads.fields]\nutm_source = [1, true]", "leads.fields.utm_source must be ids, codes or names"),
        ("leads = 1", "leads must be a table"),
        ("contacts = 1", "contacts must be a table"),
        ("accounts = 1", "accounts must be a table"),
        ("[accounts]\n1 = 2", "accounts.1 must be a table"),
        ("[leads]\nstatus = 'x'", "leads.status must be a table"),
        ("[leads]\nfields = 1", "leads.fields must be a table"),
        ("[contacts]\nfields = []", "contacts.fields must be a table"),
        ("[accounts.1.contacts]\nfields = 1", "contacts.fields must be a table"),
        ("[leads", r"Expected .*"),
        ("\0", r"Invalid .*"),
    ],
)
def test_an_unusable_mapping_says_so(written: str, reason: str) -> None:
    """Whatever is wrong with the file is one sentence of configuration trouble, never a crash."""
    with pytest.raises(ConfigurationError, match=rf"^The mapping file is not usable: {reason}\.$"):
        Mapping.parse(written)


def test_an_empty_mapping_maps_nothing() -> None:
    """Nothing is required of the file."""
    assert of_lead(lead(), Mapping.parse("")).columns.keys() == {
        "name",
        "status_id",
        "status",
        "price",
        "responsible_user_id",
        "pipeline_id",
    }


# Payloads


def test_a_lead_as_amocrm_sends_it() -> None:
    """Scalars arrive as texts and become numbers; custom fields keep name, code and values as sent."""
    writes = of_lead(
        lead(custom_fields=[custom_field(123458, "google", name="utm_source"), custom_field(5, "a", "b", name="Этаж", enum=9)])
    )
    assert writes.columns == {
        "name": "Квартира на Садовой",
        "status_id": 1,
        "status": "new",
        "price": "4500000",
        "responsible_user_id": 500001,
        "pipeline_id": 700001,
        "utm_source": "google",
    }
    assert writes.fields == {
        "123458": {"name": "utm_source", "code": None, "values": [{"value": "google"}]},
        "5": {"name": "Этаж", "code": None, "values": [{"value": "a", "enum": "9"}, {"value": "b", "enum": "9"}]},
    }


def test_costs_are_numbers_and_everything_else_is_text() -> None:
    """A column of money takes a number or nothing, a text column what was sent."""
    sent = with_fields(custom_field(123463, "1e3"), custom_field(123464, "5 %"), custom_field(123462, "1e3"))
    assert of_lead(sent).columns == {"property_cost": "1000", "commission": None, "utm_term": "1e3"}
    assert of_lead(with_fields(custom_field(123464, "1e3"))).columns == {"commission": "1000"}


def test_a_lead_in_the_shape_of_api_v4() -> None:
    """custom_fields_values with field_id, field_name and field_code mean the same."""
    named = {"field_id": 7, "field_name": "Слово", "field_code": "UTM_TERM", "values": [{"value": "дом"}]}
    writes = of_lead(lead_v4(custom_fields_values=[custom_field_v4(123458, "google"), custom_field_v4(123463, 4500000), named]))
    assert writes.columns == {
        "name": "Новый лид", "status_id": 1, "status": "new", "utm_source": "google", "property_cost": "4500000", "utm_term": "дом",
    }  # fmt: skip
    assert writes.fields["7"] == {"name": "Слово", "code": "UTM_TERM", "values": [{"value": "дом"}]}
    assert writes.fields["123463"] == {"name": None, "code": None, "values": [{"value": 4500000}]}


def test_both_shapes_in_one_payload() -> None:
    """Nothing is lost where an item has both."""
    writes = of_lead(with_fields(custom_field(1, "a")) | {"custom_fields_values": [custom_field_v4(2, "b")]})
    assert set(writes.fields) == {"1", "2"}


def test_only_what_is_named_is_written() -> None:
    """A key that is absent is not written, an empty one is written as NULL."""
    assert of_lead({}) == Writes({}, {})
    assert of_contact({}) == Writes({}, {})
    empty = dict.fromkeys(("name", "status_id", "pipeline_id", "price", "responsible_user_id"), "")
    assert of_lead(empty).columns == dict.fromkeys((*empty, "status"))
    assert of_contact({"name": "", "responsible_user_id": None}).columns == {"name": None, "responsible_user_id": None}


def test_a_contact_as_amocrm_sends_it() -> None:
    """Name, type and whoever is responsible, with the phone and the address out of its custom fields."""
    assert of_contact(contact()).columns == {
        "name": "Иван Тестовый",
        "type": "contact",
        "responsible_user_id": 500001,
        "phone": "+70000000001",
        "email": "ivan@example.test",
    }


def test_a_contact_and_a_company() -> None:
    """Companies arrive as contacts; any type but company is a contact, and a type that is not named is not written."""
    assert of_contact(payload_of("contacts-add-company.form", "contacts", "add")).columns["type"] == "company"
    assert of_contact(payload_of("contacts-add.form", "contacts", "add")).columns["type"] == "contact"
    assert [of_contact({"type": sent}).columns["type"] for sent in ("", None, "Company", ["company"])] == ["contact"] * 4
    assert "type" not in of_contact(contact_v4()).columns


def test_the_first_value_as_sent() -> None:
    """Of several phones and addresses the first one counts, not normalised; empty ones are passed over."""
    sent = with_fields(custom_field(123456, "", " 8 (900) 000-00-01 ", "+7", code="PHONE"), custom_field(123457, "A@B.C", "d@e.f"))
    writes = of_contact(sent)
    assert writes.columns == {"phone": " 8 (900) 000-00-01 ", "email": "A@B.C"}
    assert [each["value"] for each in (writes.fields["123456"] or {})["values"]] == [" 8 (900) 000-00-01 ", "+7"]
    assert of_contact(payload_of("contacts-update.form", "contacts", "update")).columns["phone"].startswith("+7000")


def test_a_date_field_has_bare_values() -> None:
    """values[0]=1542067200 reads as one value, like any other field's."""
    mapping = Mapping.parse("[leads.fields]\nutm_term = 5")
    for sent in ({"id": 5, "values": {"0": "1542067200"}}, {"id": 5, "values": ["1542067200"]}, {"id": 5, "values": "1542067200"}):
        writes = of_lead(with_fields(sent), mapping)
        assert writes.columns == {"utm_term": "1542067200"}
        assert writes.fields["5"] == {"name": None, "code": None, "values": [{"value": "1542067200"}]}
    fields = of_lead(payload_of("leads-update-date-field.form", "leads", "update")).fields
    assert {"value": "1796000400"} in [value for field in fields.values() for value in (field or {})["values"]]


def test_a_radio_button_has_one_object() -> None:
    """values[value] and values[enum] are one value, not two."""
    writes = of_lead(with_fields({"id": "123458", "name": "x", "values": {"value": "да", "enum": "9"}}))
    assert writes.columns == {"utm_source": "да"}
    assert (writes.fields["123458"] or {})["values"] == [{"value": "да", "enum": "9"}]


def test_a_choice_without_its_text_is_kept() -> None:
    """An entry that names only its option is a value of the custom field, and no text for a column."""
    assert of_lead(with_fields({"id": 123458, "values": [{"enum_id": 9}]})) == Writes(
        {"utm_source": None}, {"123458": {"name": None, "code": None, "values": [{"enum_id": 9}]}}
    )


@pytest.mark.parametrize("values", [[], {}, "", None, [{"value": ""}], [{"value": None}], [""], {"value": ""}])
def test_a_field_without_a_value_is_emptied(values: Any) -> None:
    """It is written as NULL, in the custom fields and in its column."""
    assert of_lead(with_fields({"id": 123458, "values": values})) == Writes({"utm_source": None}, {"123458": None})
    assert of_lead(with_fields({"id": 123458})) == Writes({"utm_source": None}, {"123458": None})


def test_numbered_values_are_in_the_order_of_their_numbers() -> None:
    """Not in that of the document: a payload that comes back from the database has its keys in another."""
    for keys in (("1", "2", "10"), ("10", "2", "1"), ("2", "10", "1")):
        numbered = {key: {"value": key} for key in keys}
        assert of_lead(with_fields({"id": 123458, "values": numbered})).columns == {"utm_source": "1"}
        fields = {key: custom_field(123458, key) for key in keys}
        assert of_lead({"custom_fields": fields}).columns == {"utm_source": "1"}
        without_one = {key: value for key, value in numbered.items() if key != "1"}
        assert of_lead(with_fields({"id": 123458, "values": without_one})).columns == {"utm_source": "2"}


def test_zero_and_false_are_values() -> None:
    """Only an empty text and null are no value."""
    assert of_lead(with_fields(custom_field_as_sent(123463, 0), custom_field_as_sent(123458, "0"))).columns == {
        "property_cost": "0",
        "utm_source": "0",
    }
    assert of_lead(with_fields(custom_field_as_sent(5, False))).fields["5"] == {"name": None, "code": None, "values": [{"value": False}]}


def custom_field_as_sent(field_id: int, value: Any) -> dict[str, Any]:
    return {"id": field_id, "values": [{"value": value}]}


def test_a_structured_value_is_kept_and_is_no_text() -> None:
    """Catalog items are objects inside value: kept in the custom fields, NULL in a column."""
    value = {"catalog_id": 1, "name": "x"}
    writes = of_lead(with_fields(custom_field_as_sent(123458, value)))
    assert writes.columns == {"utm_source": None}
    assert (writes.fields["123458"] or {})["values"] == [{"value": value}]


@pytest.mark.parametrize("fields", ["x", 5, ["x", 5, None, []], [{}], [{"name": "x", "values": [{"value": 1}]}], {"0": "x"}, [{"id": {}}]])
def test_what_is_no_field_is_passed_over(fields: Any) -> None:
    """A field needs an id or at least a code; whatever else stands in the list is nobody's."""
    assert of_lead({"custom_fields": fields}) == Writes({}, {})
    assert of_lead({"custom_fields_values": fields}) == Writes({}, {})


def test_a_field_without_an_id_goes_by_its_code() -> None:
    """Some senders name built-in fields by code only."""
    writes = of_contact({"custom_fields_values": [{"field_code": "PHONE", "values": [{"value": "+7"}]}]})
    assert writes.columns == {"phone": "+7"}
    assert set(writes.fields) == {"PHONE"}


# Scalars


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("4500000", "4500000"), (4500000, "4500000"), ("0", "0"), ("-1.50", "-1.50"), (0.1, "0.1"), (" 12 ", "12"), ("1e3", "1000"),
        ("1E-3", "0.001"), (1e22, "1" + "0" * 22), ("9" * 30, "9" * 30), ("1e30", "1" + "0" * 30), ("1e-30", "0." + "0" * 29 + "1"),
        ("", None), ("пять", None), ("12,5", None), ("1 000", None), ("0x10", None), ("NaN", None), ("sNaN", None), ("Infinity", None),
        ("-inf", None), ("1e31", None), ("1e-31", None), ("9" * 31, None), ("1e999999999", None), ("0e999999999", None),
        ("1e99999999999999999999", None), ("9" * 100_000, None), (True, None), (None, None), ([1], None), ({"a": 1}, None),
        (10**5000, None), ("1_000", None), ("１２", None), ("+5", "5"), (".5", "0.5"), ("5.", "5"),
    ],
    ids=lambda value: repr(value)[:20] if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_numbers(raw: Any, value: str | None) -> None:
    """A finite number of at most 30 digits, exactly as sent; what does not parse is NULL."""
    assert number(raw) == value
    assert of_lead({"price": raw}).columns == {"price": value}


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (5, 5), ("5", 5), ("-5", -5), ("0", 0), ("007", 7), (MOST, MOST), (str(MOST), MOST), (-MOST, -MOST),
        (MOST + 1, None), (str(MOST + 1), None), (-MOST - 1, None), ("9" * 20, None), ("1" * 5000, None), (10**5000, None),
        ("", None), ("-", None), ("+5", None), (" 5", None), ("5.0", None), (5.0, 5), (1e5, 100_000), (5.5, None), ("٥", None), ("²", None),
        (True, None),
        (None, None), ([5], None),
    ],
    ids=lambda value: repr(value)[:20] if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_integers(raw: Any, value: int | None) -> None:
    """A whole number that fits a bigint, as a number or in ASCII digits; anything else is NULL."""
    assert integer(raw) == value


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("x", "x"),
        (" ", " "),
        ("", None),
        (5, "5"),
        (0, "0"),
        (1.5, "1.5"),
        (1e22, "1" + "0" * 22),
        (1e-7, "0.0000001"),
        (True, None),
        (False, None),
        (None, None),
        ([], None),
        ({}, None),
    ],
)
def test_texts(raw: Any, value: str | None) -> None:
    """Scalars as text; an empty text, a flag and anything structured is NULL."""
    assert text(raw) == value


@EASY
@given(st.text() | st.integers() | st.floats() | st.text("0123456789.eE+- "))
def test_a_number_is_one_that_sql_reads_back(raw: Any) -> None:
    """What is not NULL is a plain decimal notation of the same value, short enough for any numeric column."""
    value = number(raw)
    if value is not None:
        assert Decimal(value) == Decimal(str(raw).strip())
        assert set(value) <= set("0123456789.-")
        assert len(value) <= 64
