"""Which write wins: any order, any duplicates and any grouping of a card's events end in one row, the one a plain look at all gives."""

from __future__ import annotations

import itertools
from copy import deepcopy
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amo_receiver.inbox.merge import NEVER, UNWRITTEN, Row, fold, join, record
from histories import ACCOUNT, CARD_ID, EPOCH, Past, deliveries, expected, histories, seen

if TYPE_CHECKING:
    from collections.abc import Sequence

PLENTY = settings(max_examples=150, deadline=None)
SOME = settings(max_examples=80, deadline=None)
THREE = st.sampled_from(["leads", "contacts"]).flatmap(lambda entity: st.tuples(*[histories(entity=entity, most=3)] * 3))
NUMBERS = st.permutations(range(9))


def folded(history: Sequence[Past]) -> Row:
    (row,) = fold(past.row() for past in history)
    return row


def lead(number: int, action: str = "update", *, at: int | None = None, received: int = 9, full: bool = False, **told: Any) -> Row:
    """Return the effect of an event on the lead; ``told`` are payload keys as sent."""
    fields = told.pop("fields", {})
    return Past(number, "leads", action, at, received, full, {key: (sent, {}) for key, sent in told.items()}, fields).row()


def at(seconds: int) -> str:
    """Return a time of the histories as rows have it."""
    return lead(1, "delete", at=seconds).deleted_at or ""


@PLENTY
@given(st.data())
def test_any_order_and_repetition_gives_the_row_of_the_oracle(data: st.DataObject) -> None:
    """Full, partial, undated, delete and restore events in any order, each once or more often, make the same row."""
    history = data.draw(histories())
    row = folded(data.draw(deliveries(history)))
    assert seen(row, history[0].entity) == expected(history)
    assert row == folded(history)


@SOME
@given(histories(most=4))
def test_every_permutation_gives_one_row(history: list[Past]) -> None:
    """Of up to four events all orders are tried."""
    rows = [folded(order) for order in itertools.permutations(history)]
    assert all(row == rows[0] for row in rows)
    assert seen(rows[0], history[0].entity) == expected(history)


@PLENTY
@given(st.data())
def test_the_join_is_commutative_associative_and_idempotent(data: st.DataObject) -> None:
    """Rows that are joins themselves may be joined in any way, so batches, retries and processes may cut a history anywhere."""
    histories_of_one_card = data.draw(THREE)
    numbers = data.draw(NUMBERS)
    renumbered = itertools.count()
    one, two, three = (
        folded([replace(past, number=numbers[next(renumbered)] + 1) for past in history]) for history in histories_of_one_card
    )
    assert join(one, two) == join(two, one)
    assert join(join(one, two), three) == join(one, join(two, three))
    assert join(one, one) == one
    assert join(join(one, two), two) == join(one, two)


@SOME
@given(st.data())
def test_a_join_changes_neither_side(data: st.DataObject) -> None:
    """A row may be joined twice, because a join writes only into its result."""
    history = data.draw(histories(most=4))
    rows = [past.row() for past in history]
    before = deepcopy(rows)
    result = reduce(join, rows)
    kept = deepcopy(result)
    join(result, rows[0]).values["name"] = "another"
    join(rows[0], result).exceptions["name"] = (NEVER, "")
    join(result, result).fields["x"] = {}
    assert rows == before
    assert result == kept


@SOME
@given(st.data())
def test_folding_keeps_cards_apart_and_sorts_them(data: st.DataObject) -> None:
    """One row a card, sorted by account and id, whatever the order of the events: the order in which locks are taken."""
    history = data.draw(histories(entity="leads", card_ids=(7, 10, 9)))
    rows = fold(past.row() for past in history)
    assert [row.key for row in rows] == sorted({(ACCOUNT, past.card_id) for past in history})
    for row in rows:
        assert seen(row, "leads") == expected([past for past in history if past.card_id == row.id])


def test_cards_are_sorted_by_account_before_id() -> None:
    """Accounts are texts, compared as the database's "C" collation does: by code point, ids as numbers."""
    keys = [("b", 1), ("a", 10), ("a", 9), ("Я", 1), ("", 5), ("B", 2)]
    assert [row.key for row in fold(Row(account, card, {}, {}) for account, card in keys)] == [
        ("", 5), ("B", 2), ("a", 9), ("a", 10), ("b", 1), ("Я", 1),
    ]  # fmt: skip
    assert fold([]) == []


def test_the_later_received_of_two_equal_times_wins() -> None:
    """At one and the same time the greater event id decides, for columns, snapshots and the tombstone alike."""
    partial = join(lead(2, at=3, name="б"), lead(1, at=3, name="а"))
    assert partial.values["name"] == "б"
    assert join(lead(1, at=3, full=True, name="а"), lead(2, at=3, full=True, name="б")).values["name"] == "б"
    assert join(lead(2, at=3, name="б"), lead(1, at=3, full=True, name="а")).values["name"] == "б"
    assert join(lead(1, at=3, name="б"), lead(2, at=3, full=True, name="а")).values["name"] == "а"
    assert join(lead(1, "delete", at=3), lead(2, "restore", at=3)).deleted_at is None
    assert join(lead(2, "delete", at=3), lead(1, "restore", at=3)).deleted_at == at(3)


def test_a_full_snapshot_empties_what_it_leaves_out() -> None:
    """Columns and custom fields that a newer full snapshot does not have are empty; an older one empties nothing."""
    row = lead(1, at=1, name="а", price="5", status_id="1", fields={"101": ["google"], "104": ["3"]})
    emptied = join(row, lead(2, at=2, full=True, name="б"))
    assert {column: value for column, value in emptied.values.items() if value is not None} == {"name": "б"}
    assert emptied.fields == {}
    assert emptied.exceptions == {}
    kept = join(row, lead(2, at=0, full=True, price="9"))
    assert (kept.values["name"], kept.values["price"], kept.values["utm_source"]) == ("а", "5", "google")
    assert set(kept.fields) == {"101", "104"}


def test_a_partial_event_changes_its_own_fields_only() -> None:
    """Each column and each custom field of a partial event is a register of its own."""
    row = reduce(join, [
        lead(1, at=1, full=True, name="а", price="5", fields={"101": ["google"], "104": ["3"]}),
        lead(2, at=3, price="6", fields={"104": []}),
        lead(3, at=2, name="б", price="7", fields={"101": ["yandex"], "104": ["4"]}),
    ])  # fmt: skip
    assert (row.values["name"], row.values["price"], row.values["utm_source"]) == ("б", "6", "yandex")
    assert set(row.fields) == {"101"}
    assert {register: version[0] for register, version in row.exceptions.items()} == {
        "name": at(2), "price": at(3), "cf:101": at(2), "utm_source": at(2), "cf:104": at(3),
    }  # fmt: skip


def test_empty_texts_and_bad_numbers_are_null() -> None:
    """An empty text is NULL, a number that does not parse is NULL, and both are writes like any other."""
    row = join(
        lead(1, at=1, full=True, name="а", price="5", status_id="1", fields={"103": ["100"]}),
        lead(2, at=2, name="", price="пять", status_id="", fields={"103": ["сто"]}),
    )
    assert [row.values[column] for column in ("name", "price", "status_id", "status", "property_cost")] == [None] * 5
    assert row.fields["103"]["values"] == [{"value": "сто"}]


@pytest.mark.parametrize(
    ("rows", "deleted"),
    [
        ([lead(1, "delete", at=3)], 3),
        ([lead(1, "delete", received=3)], 3),
        ([lead(1, "delete", at=3), lead(2, at=4, full=True)], 3),
        ([lead(1, "delete", received=3), lead(2, at=4, full=True)], None),
        ([lead(1, "delete", received=3), lead(2, at=3, full=True)], 3),
        ([lead(1, "delete", received=3), lead(2, at=2, full=True)], 3),
        ([lead(1, "delete", received=3), lead(2, at=4)], 3),
        ([lead(1, "delete", received=3), lead(2, received=4, full=True)], 3),
        ([lead(1, "delete", received=3), lead(2, at=4, full=True), lead(3, at=9)], None),
        ([lead(1, "delete", received=3), lead(2, at=4, full=True), lead(3, received=9, full=True)], None),
        ([lead(1, "delete", received=3), lead(2, at=4, full=True), lead(3, "delete", received=5)], 5),
        ([lead(1, "delete", at=2), lead(2, "delete", received=3), lead(3, at=4, full=True)], None),
        ([lead(1, "delete", received=2), lead(2, "delete", at=3), lead(3, at=4, full=True)], 3),
        ([lead(1, "delete", at=3), lead(2, "restore", at=4)], None),
        ([lead(1, "delete", at=3), lead(2, "restore", at=2, full=True)], 3),
        ([lead(1, "delete", at=3), lead(2, "restore", received=9)], None),
        ([lead(1, "restore", at=3), lead(2, at=4, full=True)], None),
        ([lead(1, at=4, full=True)], None),
    ],
)
def test_a_card_is_deleted_unless_something_newer_revives_it(rows: list[Row], deleted: int | None) -> None:
    """A newer restore revives; a strictly newer dated full snapshot revives after an undated delete; nothing else does."""
    for order in itertools.permutations(rows):
        assert reduce(join, order).deleted_at == (None if deleted is None else at(deleted))


def test_a_delete_makes_a_tombstone_and_touches_nothing_else() -> None:
    """The row of a card that was only ever deleted is empty, and a delete of a known one leaves its columns."""
    tombstone = lead(1, "delete", at=3, name="а", price="5", fields={"101": ["google"]})
    assert (tombstone.values, tombstone.fields, tombstone.base) == ({}, {}, UNWRITTEN)
    row = join(lead(2, at=1, full=True, name="а"), tombstone)
    assert (row.values["name"], row.deleted_at) == ("а", at(3))
    company = Past(1, "contacts", "delete", 3, 3, False, {"type": ("company", {})}).row()
    assert company.values == {"type": "contact"}


def test_a_restore_writes_like_an_update() -> None:
    """A restore with last_modified is a full snapshot, one without is partial; both create the row where there is none."""
    full = join(lead(1, at=1, name="а", price="5"), lead(2, "restore", at=2, full=True, name="б"))
    assert (full.values["name"], full.values.get("price")) == ("б", None)
    partial = join(lead(1, at=1, name="а", price="5"), lead(2, "restore", at=2, name="б"))
    assert (partial.values["name"], partial.values["price"]) == ("б", "5")


def test_a_record_is_the_row_as_the_database_takes_it() -> None:
    """Columns under their names, versions as they are, and NULL where nothing is known."""
    row = join(lead(1, at=1, full=True, name="а"), lead(2, at=2, price="5", fields={"104": ["3"]}))
    made = record(row)
    first, second = "00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002"
    assert made == {
        "account_id": ACCOUNT,
        "id": CARD_ID,
        "name": "а",
        "price": "5",
        "custom_fields": {"104": {"name": "Этаж", "code": None, "values": [{"value": "3"}]}},
        "deleted_at": None,
        "crm_updated_at": at(2),
        "snapshot_at": at(1),
        "version_at": at(1),
        "version_event": first,
        "versions": {"price": (at(2), second), "cf:104": (at(2), second)},
    }
    bare = record(lead(1, received=1, full=True))
    assert (bare["crm_updated_at"], bare["snapshot_at"], bare["versions"]) == (None, NEVER, None)
    deleted = record(lead(1, "delete", at=1))
    assert (deleted["deleted_at"], deleted["versions"]) == (at(1), {"deleted_at": (at(1), first, "delete")})


def test_a_row_that_nothing_has_written_is_older_than_everything() -> None:
    """Its times and its version are the least that the database knows."""
    nil = "00000000-0000-0000-0000-000000000000"
    unknown = {"deleted_at": None, "crm_updated_at": None, "versions": None}
    oldest = {"snapshot_at": "-infinity", "version_at": "-infinity", "version_event": nil}
    assert record(Row("a", 1, {}, {})) == {"account_id": "a", "id": 1, "custom_fields": {}, **unknown, **oldest}


def test_times_are_texts_whose_order_is_their_order() -> None:
    """A time has a fixed width, so that Python may compare texts where the database compares times."""
    assert at(0) == "2022-01-01T00:00:00.000000Z"
    assert EPOCH == 1640995200
    assert NEVER < at(0) < at(1)
