"""Everything `amo-webhooks` can be told to do; one module for each group of commands."""

from __future__ import annotations

import typer

from amo_receiver.commands import check, dev, doctor, events, fields, migrate, notify, prune, replay, serve, url

app = typer.Typer(
    name="amo-webhooks",
    help="Receive amoCRM webhooks durably and keep leads and contacts in Postgres in step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
app.add_typer(migrate.app, name="migrate")
serve.register(app)
dev.register(app)
check.register(app)
doctor.register(app)
app.add_typer(events.app, name="events")
replay.register(app)
prune.register(app)
notify.register(app)
fields.register(app)
url.register(app)
