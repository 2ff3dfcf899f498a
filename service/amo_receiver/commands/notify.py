"""`notify`: tries the addresses in NOTIFY_URL."""

from __future__ import annotations

import typer

from amo_receiver.commands.tables import print_table
from amo_receiver.errors import ConfigurationError
from amo_receiver.notify import name_of, send, services
from amo_receiver.settings import load_settings

TEXT = "This is a test: dead letters, a spent answer budget and a database that is down would be told here."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("notify")(notify)


def notify() -> None:
    """Send a test message to each address in NOTIFY_URL, and say whether it was taken.

    Example: amo-webhooks notify
    """
    found = services(load_settings().notify_url.get_secret_value())
    if not found:
        raise ConfigurationError("NOTIFY_URL is not set: it says where to, as in mailto://user:password@example.com")
    problems = [send(service, "test", TEXT) for service in found]
    rows = ((number, name_of(service), problem or "sent") for number, (service, problem) in enumerate(zip(found, problems, strict=True), 1))
    print_table(("address", "service", "result"), rows)
    if any(problems):
        raise typer.Exit(1)
