"""The states of an event, and how an event moves between them.

pending
    Stored, its effect not yet in the tables. Due at ``available_at``. A worker moves it on: to processed when its effect is
    committed, to dead after the third failed attempt. Trouble of the database gives the attempt back and only moves ``available_at``.
    Most events are never pending: they are stored and applied in one transaction. An outage ends, so nothing stays pending for good.

processed
    Its effect is in the tables (``applied``), or it has none besides being stored (``recorded``: tasks, notes, talks, messages …).
    Applied includes superseded: every column it wrote had a newer version already. Final, until pruned after ``RETENTION_PROCESSED_DAYS``.

dead
    Given up on: it failed three times, one item of its body was unusable, or the whole body was unparsable (``entity='unparsed'``).
    ``last_error`` says why. ``amo-webhooks replay`` makes it pending again, and so does a repeated delivery of the same event.
    Pruned after ``RETENTION_DEAD_DAYS``.
"""

from __future__ import annotations

from typing import Literal

State = Literal["pending", "processed", "dead"]
Effect = Literal["applied", "recorded"]

MAX_ATTEMPTS = 3
DELAYS_SECONDS = {1: 5, 2: 30, 3: 30}
"""How long after attempt n the event is due again; after the third it is dead, unless nobody came back from it."""
MAX_CLAIMS = 2 * MAX_ATTEMPTS
"""A worker that dies takes up to fifty claimed events along, and so does an answer of the database that is lost. One that was claimed
``MAX_ATTEMPTS`` times without an end is a suspect: it is tried alone from then on, and is dead when it killed as many processes again."""
DEFERRAL_SECONDS = 5
MAX_DEFERRAL_SECONDS = 300
"""After the database's own trouble an event is due again in 5 s, doubling up to 5 min."""
