"""`events`: which events there are, and what became of each."""

from __future__ import annotations

from base64 import b64encode
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from uuid import UUID  # noqa: TC003 - read by typer at run time

import orjson
import typer

from amo_receiver.commands.database import ask
from amo_receiver.commands.tables import print_facts, print_json, print_table, printable_lines
from amo_receiver.errors import CommandError
from amo_receiver.inbox.lookup import Filter, Lookup
from amo_receiver.inbox.states import State  # noqa: TC001 - read by typer at run time
from amo_receiver.telemetry.spans import parse_traceparent

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

app = typer.Typer(
    help="List stored events, or show what became of one. Payloads and bodies are personal data: shown only when asked for.",
    no_args_is_help=True,
)

Account = Annotated[str | None, typer.Option(help="Only this account.")]
Json = Annotated[bool, typer.Option("--json", help="JSON for scripts instead of tables.")]


class Story(NamedTuple):
    """What is known of one event; ``columns`` is what its card still has of it, ``delivery`` None once pruned."""

    event: Any
    columns: list[str]
    attempts: list[Any]
    delivery: Any


@app.command("list")
def list_events(
    state: Annotated[State | None, typer.Option(help="Only events in this state.")] = None,
    entity: Annotated[str | None, typer.Option(help="Only this entity: leads, contacts, task ... or unparsed.")] = None,
    entity_id: Annotated[str | None, typer.Option("--id", help="Only events about this lead, contact ...")] = None,
    account: Account = None,
    delivery: Annotated[UUID | None, typer.Option(help="Only events that came in this delivery.")] = None,
    limit: Annotated[int, typer.Option(help="At most this many.", min=1, max=10_000)] = 50,
    json: Json = False,
) -> None:
    """List events, the newest first.

    Example: amo-webhooks events list --entity leads --id 12345
    """
    wanted = Filter(account, state, entity, entity_id, delivery)
    events = ask(lambda engine: Lookup(engine).events(wanted, limit))
    if json:
        print_json([event._asdict() for event in events])
    elif not events:
        typer.echo("No such events.")
    else:
        print_table(
            ("id", "account", "event", "entity id", "state", "attempts", "received", "last error"),
            ((each.id, each.account_id, _name(each), each.entity_id, _state(each), each.attempts, each.received_at, each.last_error)
             for each in events),
        )  # fmt: skip
        if len(events) == limit:
            typer.echo(f"These are the newest {limit}; more with --limit.")


@app.command()
def show(
    event_id: Annotated[UUID, typer.Argument(metavar="ID", help="The event's id.")],
    account: Annotated[str | None, typer.Option(help="Its account; without it each account is asked.")] = None,
    payload: Annotated[bool, typer.Option("--payload", help="Also its decoded fields (personal data).")] = False,
    body: Annotated[bool, typer.Option("--body", help="Also the raw body it came in (personal data).")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Only the traces of its acceptance and attempts, to look up in a viewer.")] = False,
    json: Json = False,
) -> None:
    """Show an event: its attempts, the delivery and key it came by, and the columns of its card that are still as it set them.

    Example: amo-webhooks events show 01999999-aaaa-7bbb-8ccc-ddddeeeeffff --payload
    """
    story = ask(partial(_tell, event_id, account, payload, body))
    if trace:
        _print_traces(story, json=json)
    elif json:
        print_json(_document(story))
    else:
        _print(story)


async def _tell(event_id: UUID, account: str | None, payload: bool, body: bool, engine: AsyncEngine) -> Story:
    lookup = Lookup(engine)
    found = await lookup.events_named([event_id], account, payload=payload)
    if not found:
        raise CommandError(f"There is no event {event_id}{f' of account {account}' if account is not None else ''}: never was, or pruned.")
    event = found[0]
    return Story(event, await lookup.columns_set_by(event), await lookup.attempts(event), await lookup.delivery(event, body=body))


def _print(story: Story) -> None:
    event, delivery = story.event, story.delivery
    shown = {name: value for name, value in event._asdict().items() if name not in ("payload", "state", "effect", "entity", "action")}
    print_facts("Event", [("event", _name(event)), ("state", _state(event)), *shown.items(), ("columns it set", _lineage(story))])
    if delivery is None:
        typer.echo("Its delivery is pruned.\n")
    else:
        print_facts("Delivery", [(name, value) for name, value in delivery._asdict().items() if name != "body"])
    if story.attempts:
        attempts = ((each.number, each.kind, each.outcome, each.started_at, each.error, each.traceparent) for each in story.attempts)
        print_table(("attempt", "kind", "outcome", "started", "error", "traceparent"), attempts)
    if "payload" in event._fields:
        typer.echo(f"Payload\n{printable_lines(orjson.dumps(event.payload, option=orjson.OPT_INDENT_2).decode())}\n")
    if delivery is not None and "body" in delivery._fields:
        typer.echo(f"Body{_cut(delivery)}\n{printable_lines(delivery.body.decode('utf-8', 'backslashreplace'))}")


def _print_traces(story: Story, *, json: bool) -> None:
    steps = [("accept", story.event.received_at, story.event.traceparent)]
    steps += [(f"{each.kind} {each.number}", each.started_at, each.traceparent) for each in story.attempts if each.kind != "accept"]
    parsed = [(step, at, parse_traceparent(traceparent or "")) for step, at, traceparent in steps]
    rows = [(step, span and span.trace_id.hex(), span and span.span_id.hex(), at) for step, at, span in parsed]
    names = ("step", "trace_id", "span_id", "at")
    if json:
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        print_table(names, rows)


def _document(story: Story) -> dict[str, Any]:
    delivery = story.delivery._asdict() if story.delivery is not None else None
    if delivery is not None and "body" in delivery:
        delivery["body_base64"] = b64encode(delivery.pop("body")).decode()
    return {
        "event": story.event._asdict(),
        "columns_set": story.columns,
        "attempts": [attempt._asdict() for attempt in story.attempts],
        "delivery": delivery,
    }


def _lineage(story: Story) -> str:
    if story.columns:
        return ", ".join(story.columns)
    if story.event.effect == "recorded":
        return "none: events of this kind are only recorded"
    return "none: superseded by newer events" if story.event.effect == "applied" else f"none: it is {story.event.state}"


def _cut(delivery: Any) -> str:
    return f" (the first {len(delivery.body)} of {delivery.body_bytes} bytes)" if delivery.body_sha256 else ""


def _name(event: Any) -> str:
    return f"{event.entity}.{event.action}".rstrip(".")


def _state(event: Any) -> str:
    return f"{event.state} ({event.effect})" if event.effect else str(event.state)
