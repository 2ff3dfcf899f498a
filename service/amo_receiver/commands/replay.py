"""`replay`: have events applied again."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated
from uuid import UUID  # noqa: TC003 - read by typer at run time

import typer

from amo_receiver.commands.database import ask
from amo_receiver.commands.prune import INTERRUPTED
from amo_receiver.errors import CommandError
from amo_receiver.inbox.lookup import NIL, Lookup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

BATCH = 1_000
POLL_SECONDS = 0.5
IDLE_POLLS = 60
"""After so many polls without a change a person is asked whether a worker runs."""

Keys = dict[str, list[str]]
"""Event ids by account."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("replay")(replay)


def replay(
    ids: Annotated[list[UUID] | None, typer.Argument(metavar="ID", help="Their ids.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All dead events instead.")] = False,
    account: Annotated[str | None, typer.Option(help="Only this account's.")] = None,
    entity: Annotated[str | None, typer.Option(help="With --dead: only of this entity, for example unparsed.")] = None,
    force: Annotated[bool, typer.Option("--force", help="With ids: also those that are processed; harmless, versions decide.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until a worker has applied or given up each of them.")] = False,
) -> None:
    """Make dead events pending again, with all their attempts; the next worker that looks applies them.

    An unparsed body is parsed again, so do this after an update that can read it.

    Example: amo-webhooks replay --dead --entity unparsed --wait
    """
    if bool(ids) == dead:
        raise CommandError("Name the events to replay, or --dead for all dead ones, not both.")
    if (dead and force) or (ids and entity is not None):
        raise CommandError("--force goes with ids, --entity with --dead.")
    try:
        ask(partial(_replay, ids or [], account, entity, force, wait))
    except KeyboardInterrupt:
        typer.echo("Interrupted. What is pending again stays so, and a worker applies it; what is dead is as it was.", err=True)
        raise typer.Exit(INTERRUPTED) from None


async def _replay(ids: list[UUID], account: str | None, entity: str | None, force: bool, wait: bool, engine: AsyncEngine) -> None:
    lookup = Lookup(engine)
    if ids:
        chosen = await _check(lookup, ids, account, force)
        replayed = await _replay_named(lookup, chosen)
    else:
        chosen = replayed = await _replay_dead(lookup, account, entity)
    count, already = _count(replayed), _count(chosen) - _count(replayed)
    typer.echo(f"{_events(count)} pending again{f', {already} pending already' if already else ''}.")
    if wait:
        await _wait(lookup, chosen)


async def _check(lookup: Lookup, ids: list[UUID], account: str | None, force: bool) -> Keys:
    """Return the events by account, in the order in which everybody locks; nothing has been changed where one cannot be replayed."""
    found = await lookup.events_named(ids, account)
    missing = {str(each) for each in ids} - {event.id for event in found}
    if missing:
        raise CommandError(f"Nothing is replayed: there is no event {', '.join(sorted(missing))}.")
    processed = [event.id for event in found if event.state == "processed"]
    if processed and not force:
        raise CommandError(f"Nothing is replayed: processed already (--force replays it nevertheless): {', '.join(processed)}.")
    keys: Keys = defaultdict(list)
    for event in found:
        keys[event.account_id].append(event.id)
    return keys


async def _replay_named(lookup: Lookup, chosen: Keys) -> Keys:
    replayed: Keys = defaultdict(list)
    for account_id, ids in chosen.items():
        for part in _parts(ids):
            replayed[account_id] += await lookup.replay_named(account_id, part)
            _say(_count(replayed))
    return replayed


async def _replay_dead(lookup: Lookup, account: str | None, entity: str | None) -> Keys:
    replayed: Keys = defaultdict(list)
    for account_id in [account] if account is not None else await lookup.accounts_with_dead(entity):
        after = NIL
        while part := await lookup.replay_dead(account_id, entity, after, BATCH):
            replayed[account_id] += part
            after = part[-1]
            _say(_count(replayed))
    return replayed


async def _wait(lookup: Lookup, chosen: Keys) -> None:
    """Return when none of the events is pending.

    :raises CommandError: some are dead again.
    """
    outcomes: Counter[str] = Counter()
    pending = {account_id: list(ids) for account_id, ids in chosen.items()}
    idle = 0
    while True:
        before = outcomes.total()
        pending = {account_id: await _pending(lookup, account_id, ids, outcomes) for account_id, ids in pending.items() if ids}
        if outcomes.total() > before:
            typer.echo(f"{outcomes.total()} of {_count(chosen)}: {_outcomes(outcomes)}", err=True)
        if not _count(pending):
            break
        idle = 0 if outcomes.total() > before else idle + 1
        if idle == IDLE_POLLS:
            typer.echo("Nothing has changed for a while: is a worker running (amo-webhooks serve or work)?", err=True)
        await asyncio.sleep(POLL_SECONDS)
    if outcomes["dead"]:
        raise CommandError(f"{_outcomes(outcomes)}; amo-webhooks events list --state dead says why.")
    typer.echo(f"{_outcomes(outcomes) or 'Nothing to wait for'}.")


async def _pending(lookup: Lookup, account_id: str, ids: list[str], outcomes: Counter[str]) -> list[str]:
    """Return those still pending, and count what became of the others."""
    pending = []
    for part in _parts(ids):
        states = await lookup.states(account_id, part)
        pending += [each for each in part if states.get(each) == "pending"]
        outcomes.update(states.get(each, "pruned") for each in part if states.get(each) != "pending")
    return pending


def _parts(ids: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(ids)
    return iter(lambda: list(islice(rest, BATCH)), [])


def _count(keys: Keys) -> int:
    return sum(map(len, keys.values()))


def _say(count: int) -> None:
    if count >= BATCH:
        typer.echo(f"{count} so far ...", err=True)


def _events(count: int) -> str:
    return "1 event is" if count == 1 else f"{count} events are"


def _outcomes(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(outcomes.items()))
