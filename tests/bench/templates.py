"""The bodies that are sent: each request has a number, which stands in the ids and in the price of every lead in its body."""

from __future__ import annotations

import time
from dataclasses import dataclass

from factories import form_body, json_body, lead, lead_v4

NUMBER = 999_000_999
"""What the number of a request stands in for while a body is made."""
LEAD = 888_000_888
"""What one of the leads that are there already stands in for."""
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


@dataclass(frozen=True)
class Template:
    """A body with ``@ID@`` for the number, and ``@LEAD@`` for one of ``leads`` leads."""

    name: str
    body: bytes
    events: int = 1
    content_type: str = FORM
    leads: int = 1

    @classmethod
    def of(cls, name: str, body: bytes, **options: int | str) -> Template:
        """Make one of a body with the two stand-ins."""
        return cls(name, body.replace(str(NUMBER).encode(), b"@ID@").replace(str(LEAD).encode(), b"@LEAD@"), **options)  # type: ignore[arg-type]

    def numbered(self, number: int) -> bytes:
        """Return the body of one request."""
        return self.body.replace(b"@ID@", str(number).encode())


def serial(position: int) -> int:
    """Return the number of an event: ten to a request."""
    return NUMBER * 10 + position


def single_form() -> Template:
    """One lead as amoCRM sends it, new with each request."""
    return Template.of("form, one event", form_body("leads", "update", lead(id=serial(0), price=serial(0), at=int(time.time()))))


def ten_form() -> Template:
    """Ten new leads as amoCRM sends them."""
    items = [lead(id=serial(position), price=serial(position), at=int(time.time())) for position in range(10)]
    return Template.of("form, ten events", form_body("leads", "update", *items), events=10)


def known_lead(leads: int) -> Template:
    """One of the leads 1 to ``leads``, as amoCRM sends it."""
    body = form_body("leads", "update", lead(id=LEAD, price=serial(0), at=int(time.time())))
    return Template.of("form, a known lead", body, leads=leads)


def single_json() -> Template:
    """One new lead as an integration's own sender writes it."""
    return Template.of("JSON, one event", json_body("leads", "update", _partial(0)), content_type=JSON)


def ten_json() -> Template:
    """Ten new leads as an integration's own sender writes them."""
    body = json_body("leads", "update", *map(_partial, range(10)))
    return Template.of("JSON, ten events", body, content_type=JSON, events=10)


def _partial(position: int) -> dict[str, object]:
    now = int(time.time())
    return lead_v4(id=serial(position), price=serial(position), created_at=now, updated_at=now)
