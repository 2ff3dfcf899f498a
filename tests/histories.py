"""What may happen to one lead or contact in amoCRM, and an oracle that says what its row must then be.

The oracle knows neither versions nor joins: it looks at all events at once and picks the newest write of each column.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from amo_receiver.amocrm.events import read_body
from amo_receiver.amocrm.fields import Mapping
from amo_receiver.inbox.effects import iso, row_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from amo_receiver.inbox.merge import Row

ACCOUNT = "32000001"
CARD_ID = 10000001
EPOCH = 1_640_995_200
LONG_AHEAD = EPOCH * 2
MAPPING = Mapping(
    {
        "leads": {
            "status": {"1": "new", "2": "contacted"},
            "fields": {"utm_source": [101], "utm_term": ["UTM_TERM"], "property_cost": ["Стоимость"]},
        },
        "contacts": {"fields": {"phone": ["PHONE"], "email": [202]}},
    }
).for_account(ACCOUNT)

Told = dict[str, tuple[Any, dict[str, Any]]]
"""A key of a payload as sent, and the columns it stands for."""

KEYS: dict[str, dict[str, list[tuple[Any, dict[str, Any]]]]] = {
    "leads": {
        "name": [("Квартира", {"name": "Квартира"}), ("Дом", {"name": "Дом"}), ("", {"name": None}), (" ", {"name": " "})],
        "status_id": [
            ("1", {"status_id": 1, "status": "new"}),
            (2, {"status_id": 2, "status": "contacted"}),
            ("142", {"status_id": 142, "status": None}),
            ("", {"status_id": None, "status": None}),
        ],
        "price": [
            ("4500000", {"price": Decimal(4500000)}),
            (0.1, {"price": Decimal("0.1")}),
            ("много", {"price": None}),
            ("", {"price": None}),
        ],
        "pipeline_id": [("700001", {"pipeline_id": 700001}), ("x", {"pipeline_id": None})],
        "responsible_user_id": [("500001", {"responsible_user_id": 500001}), (2**63, {"responsible_user_id": None})],
    },
    "contacts": {
        "name": [("Иван", {"name": "Иван"}), ("", {"name": None}), (None, {"name": None})],
        "type": [("company", {"type": "company"}), ("contact", {"type": "contact"}), ("", {"type": "contact"})],
        "responsible_user_id": [("500001", {"responsible_user_id": 500001}), ("", {"responsible_user_id": None})],
    },
}
FIELDS: dict[str, dict[str, tuple[dict[str, str], str | None]]] = {
    "leads": {
        "101": ({"name": "Источник"}, "utm_source"),
        "102": ({"name": "Слово", "code": "UTM_TERM"}, "utm_term"),
        "103": ({"name": "Стоимость"}, "property_cost"),
        "104": ({"name": "Этаж"}, None),
        "105": ({"name": "deleted_at"}, None),
    },
    "contacts": {
        "201": ({"name": "Телефон", "code": "PHONE"}, "phone"),
        "202": ({"name": "Почта"}, "email"),
        "203": ({"name": "Город"}, None),
    },
}
COLUMNS = {
    "leads": ("name", "status_id", "status", "price", "pipeline_id", "responsible_user_id", "utm_source", "utm_term", "property_cost"),
    "contacts": ("name", "type", "responsible_user_id", "phone", "email"),
}
NUMBERS = frozenset({"price", "property_cost"})


@dataclass(frozen=True)
class Past:
    """One event of a card's history; ``own_time`` and ``received_at`` in seconds after EPOCH, ``full`` for a full snapshot."""

    number: int
    entity: str
    action: str
    own_time: int | None
    received_at: int
    full: bool
    keys: Told = field(default_factory=dict)
    fields: dict[str, list[str]] = field(default_factory=dict)
    card_id: int = CARD_ID

    @property
    def event_id(self) -> str:
        """The event's id; a greater number was received later."""
        return f"00000000-0000-7000-8000-{self.number:012x}"

    @property
    def version(self) -> tuple[int, int]:
        """What orders its writes: its own time, else the time of its delivery, then its id."""
        return (self.received_at if self.own_time is None else self.own_time, self.number)

    def payload(self) -> dict[str, Any]:
        """Return it as amoCRM sends it."""
        moment = LONG_AHEAD if self.own_time is None else EPOCH + self.own_time
        custom_fields = [
            {"id": field_id, **FIELDS[self.entity][field_id][0], "values": [{"value": value} for value in values]}
            for field_id, values in self.fields.items()
        ]
        return {
            "id": str(self.card_id),
            **({"last_modified": moment} if self.full else {"updated_at": str(moment)}),
            **{key: sent for key, (sent, _) in self.keys.items()},
            **({"custom_fields": custom_fields} if custom_fields else {}),
        }

    def row(self) -> Row:
        """Return its effect, by the code under test."""
        received_at = EPOCH + self.received_at
        (item,) = read_body({self.entity: {self.action: [self.payload()]}}, received_at).items
        occurred_at = None if item.own_time is None else iso(item.own_time)
        row = row_of(self.event_id, ACCOUNT, item.entity, item.action, item.entity_id, item.payload, occurred_at, iso(received_at), MAPPING)
        assert row is not None
        return row

    def writes(self) -> dict[str, Any]:
        """Return what it says of columns and, as ``cf:<id>``, of custom fields: None where it says that one is empty."""
        if self.action == "delete":
            return {}
        entity_fields = FIELDS[self.entity]
        said: dict[str, Any] = {}
        if self.full:
            said = dict.fromkeys([*COLUMNS[self.entity], *(f"cf:{field_id}" for field_id in entity_fields)])
            said |= {"type": "contact"} if self.entity == "contacts" else {}
        for _, columns in self.keys.values():
            said |= columns
        for field_id, values in self.fields.items():
            kept = [value for value in values if value]
            said[f"cf:{field_id}"] = kept or None
            column = entity_fields[field_id][1]
            if column:
                said[column] = _column_value(column, kept)
        return said


def _column_value(column: str, values: list[str]) -> Any:
    if not values:
        return None
    if column not in NUMBERS:
        return values[0]
    return Decimal(values[0]) if values[0].isdigit() else None


def expected(history: Iterable[Past]) -> dict[str, Any]:
    """Return the row that a history ends in, in whatever order and however often its events came."""
    events = list(history)
    entity = events[0].entity
    newest: dict[str, tuple[tuple[int, int], Any]] = {}
    for past in events:
        for register, value in past.writes().items():
            if register not in newest or past.version > newest[register][0]:
                newest[register] = (past.version, value)
    blank = {column: "contact" if column == "type" else None for column in COLUMNS[entity]}
    row = blank | {register: value for register, (_, value) in newest.items() if not register.startswith("cf:")}
    row["custom_fields"] = {
        register[3:]: values for register, (_, values) in newest.items() if register.startswith("cf:") and values is not None
    }
    row["deleted_at"] = _deleted_at(events)
    row["crm_updated_at"] = max((past.own_time for past in events if past.own_time is not None), default=None)
    return row


def _deleted_at(events: list[Past]) -> int | None:
    last = max((past for past in events if past.action in ("delete", "restore")), key=lambda past: past.version, default=None)
    if last is None or last.action == "restore":
        return None
    snapshots = [past.own_time for past in events if past.full and past.action != "delete" and past.own_time is not None]
    if last.own_time is None and any(moment > last.received_at for moment in snapshots):
        return None
    return last.version[0]


def seen(row: Row, entity: str) -> dict[str, Any]:
    """Return a row in the shape of the oracle's."""
    values = {column: row.values.get(column) for column in COLUMNS[entity]}
    values |= {column: Decimal(value) for column, value in values.items() if column in NUMBERS and value is not None}
    fields = {field_id: [each["value"] for each in content["values"]] for field_id, content in row.fields.items()}
    times = {"deleted_at": _seconds(row.deleted_at), "crm_updated_at": _seconds(row.crm_updated_at)}
    return values | {"custom_fields": fields} | times


def _seconds(moment: str | None) -> int | None:
    if moment in (None, "-infinity"):
        return None
    return int(datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S.%f%z").astimezone(UTC).timestamp()) - EPOCH


KINDS = [
    *[("add", False), ("add", True), ("update", False), ("update", True), ("update", True), ("status", False), ("responsible", True)],
    *[("delete", False), ("delete", False), ("delete", True), ("restore", False), ("restore", True)],
]


@st.composite
def pasts(draw: st.DrawFn, entity: str, number: int, card_ids: tuple[int, ...] = (CARD_ID,)) -> Past:
    """Draw one event; times come from a small range, so that many are equal."""
    action, full = draw(st.sampled_from(KINDS))
    keys, fields = KEYS[entity], FIELDS[entity]
    chosen = draw(st.lists(st.sampled_from(sorted(keys)), unique=True, max_size=3))
    told = {key: draw(st.sampled_from(keys[key])) for key in chosen}
    values = st.lists(st.sampled_from(["google", "7", "12", ""]), max_size=2)
    custom = draw(st.dictionaries(st.sampled_from(sorted(fields)), values, max_size=3))
    own_time = draw(st.none() | st.integers(1, 4))
    return Past(number, entity, action, own_time, draw(st.integers(1, 5)), full, told, custom, draw(st.sampled_from(card_ids)))


@st.composite
def histories(draw: st.DrawFn, *, most: int = 7, entity: str | None = None, card_ids: tuple[int, ...] = (CARD_ID,)) -> list[Past]:
    """Draw the history of one lead or contact (or of several: ``card_ids``)."""
    kind = entity or draw(st.sampled_from(["leads", "contacts"]))
    count = draw(st.integers(1, most))
    return [draw(pasts(kind, number, card_ids)) for number in draw(st.permutations(range(1, count + 1)))]


@st.composite
def deliveries(draw: st.DrawFn, history: list[Past]) -> list[Past]:
    """Draw an order in which a history's events come, each at least once and some again."""
    again = draw(st.lists(st.sampled_from(history), max_size=len(history)))
    return draw(st.permutations([*history, *again]))
