"""`fields`: which custom fields and statuses arrived, and what the mapping makes of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from amo_receiver.commands.database import ask
from amo_receiver.commands.tables import print_json, print_table
from amo_receiver.inbox.lookup import MODELS, Lookup
from amo_receiver.settings import load_settings
from amo_receiver.watch import load_mapping

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from amo_receiver.amocrm.fields import Mapping

MATCHED_BY = ("id", "code", "name")
"""By the rank of a match."""

Rows = list[dict[str, Any]]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("fields")(fields)


def fields(
    account: Annotated[str | None, typer.Option(help="Only this account.")] = None,
    entity: Annotated[Literal["leads", "contacts"] | None, typer.Option(help="Only the fields of this entity.")] = None,
    sample: Annotated[int, typer.Option(help="How many of each account's newest leads and contacts to look at.", min=1)] = 10_000,
    json: Annotated[bool, typer.Option("--json", help="JSON for scripts instead of tables.")] = False,
) -> None:
    """List the custom fields and statuses that arrived and what the mapping file makes of them, to write one's own by.

    Values are not shown. MAPPING_FILE names the mapping file; without it the shipped one counts.

    Example: amo-webhooks fields --account 32000001 --entity leads
    """
    mapping = load_mapping(load_settings())
    custom, statuses = ask(partial(_seen, mapping, account, [entity] if entity else list(MODELS), sample))
    if json:
        print_json({"sample": sample, "custom_fields": custom, "statuses": statuses})
        return
    typer.echo(f"From the newest {sample} leads and contacts of each account (--sample).\n")
    if not custom and not statuses:
        typer.echo("None has a custom field or a status.")
    if custom:
        print_table(
            ("account", "entity", "field", "name", "code", "cards", "column", "by"),
            ([row[key] for key in ("account_id", "entity", "id", "name", "code", "cards", "column", "matched_by")] for row in custom),
            "Custom fields",
        )
    if statuses:
        print_table(
            ("account", "status_id", "leads", "status"),
            ([row[key] for key in ("account_id", "id", "cards", "status")] for row in statuses),
            "Statuses of leads",
        )


async def _seen(mapping: Mapping, account: str | None, entities: list[str], sample: int, engine: AsyncEngine) -> tuple[Rows, Rows]:
    lookup = Lookup(engine)
    custom = [_field(mapping, entity, row) for entity in entities for row in await lookup.custom_fields(entity, account, sample)]
    statuses = [_status(mapping, row) for row in await lookup.statuses(account, sample)] if "leads" in entities else []
    return custom, statuses


def _field(mapping: Mapping, entity: str, row: Any) -> dict[str, Any]:
    target = mapping.for_account(row.account_id).column(entity, row.id, row.code, row.name)
    rank, column = target or (None, None)
    return {**row._asdict(), "entity": entity, "column": column, "matched_by": None if rank is None else MATCHED_BY[rank]}


def _status(mapping: Mapping, row: Any) -> dict[str, Any]:
    return {**row._asdict(), "status": mapping.for_account(row.account_id).statuses.get(str(row.id))}
