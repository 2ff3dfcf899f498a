"""Apply pending events, the good ones in spite of the bad: a set that fails is halved until the offenders stand alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from amo_receiver.database import describe, is_temporary, sqlstate
from amo_receiver.inbox.delivery import new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from amo_receiver.inbox.repository import Repository, Settlement

MOST_AT_ONCE = 500
LOCK_STATES = {"40001", "40P01", "55P03"}
"""Trouble with a lock: it may be one row's, so halving finds the others a way past it."""


class Failure(Exception):  # noqa: N818 - a value that also travels as an exception's text
    """Why an event could not be applied; ``temporary`` where the database was in trouble and not the event, ``bug`` where our code was."""

    bug: BaseException | None = None

    def __init__(self, error: BaseException) -> None:
        super().__init__(describe(error))
        self.sqlstate = sqlstate(error)
        self.temporary = is_temporary(error)


async def settle(
    repository: Repository, settlements: Sequence[Settlement], deadline: float, lock_timeout_ms: int | None = None
) -> dict[str, Failure | None]:
    """Return event id → None (its effect is committed) or its failure; what the deadline (loop time) left over is missing."""
    outcomes: dict[str, Failure | None] = {}
    heap = [list(settlements[at : at + MOST_AT_ONCE]) for at in reversed(range(0, len(settlements), MOST_AT_ONCE))]
    while heap and asyncio.get_running_loop().time() < deadline:
        part = heap.pop()
        try:
            await repository.settle(part, lock_timeout_ms)
        except Exception as error:  # noqa: BLE001 - every failure is an outcome here
            failure = Failure(error)
            if len(part) > 1 and (not failure.temporary or failure.sqlstate in LOCK_STATES):
                middle = len(part) // 2
                heap += [part[middle:], part[:middle]]
            else:
                outcomes.update((each.event_id, failure) for each in part)
        else:
            outcomes.update((each.event_id, None) for each in part)
    return outcomes


def attempt_record(
    account_id: str,
    event_id: str,
    number: int,
    kind: str,
    failure: Failure | None,
    started_at: str = "now",
    traceparent: str | None = None,
) -> dict[str, Any]:
    """Return a row of ``attempts``."""
    outcome = "applied" if failure is None else "deferred" if failure.temporary else "failed"
    return {
        "account_id": account_id,
        "event_id": event_id,
        "id": new_id(),
        "number": number,
        "kind": kind,
        "outcome": outcome,
        "started_at": started_at,
        "error": str(failure) if failure else None,
        "traceparent": traceparent,
    }
