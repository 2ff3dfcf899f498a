"""`url`: the path that a person enters in amoCRM, or a program posts to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from amo_receiver.amocrm.keyring import DEFAULT_SOURCE, LONGEST_ACCOUNT_CHARS, fingerprint, url_token
from amo_receiver.errors import ConfigurationError
from amo_receiver.inbox.endpoints import PATH
from amo_receiver.settings import load_settings
from amo_receiver.watch import KeyringDirectory, load_keyring

if TYPE_CHECKING:
    from collections.abc import Iterator

    from amo_receiver.amocrm.keyring import Keyring


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("url")(url)


def url(account: Annotated[str, typer.Argument(help="Id of the amoCRM account.")]) -> None:
    """Print the path with the token for an account, the source and the key's fingerprint: a line for each key that serves it.

    The path is a credential: whoever knows it can write that account's leads and contacts.

    Example: amo-webhooks url 32000001
    """
    settings = load_settings()
    directory = None
    if settings.amocrm_keyring_dir:
        directory = KeyringDirectory(settings.amocrm_keyring_dir)
        directory.load()
    found = list(tokens(load_keyring(settings, directory), account, datetime.now(UTC)))
    if not found:
        raise ConfigurationError(
            "No key serves this account: it takes a url_key in state current in a file of AMOCRM_KEYRING_DIR whose accounts are null or "
            "have this one, or AMOCRM_WEBHOOK_TOKEN with this AMOCRM_ACCOUNT_ID or none"
        )
    for token, source, name in found:
        typer.echo(f"{PATH}/{quote(token, safe='')} {source} {name}")


def tokens(keyring: Keyring, account: str, now: datetime) -> Iterator[tuple[str, str, str]]:
    """Yield token, source and fingerprint of each current key that the service accepts for the account now."""
    if not 0 < len(account) <= LONGEST_ACCOUNT_CHARS:
        return
    for source in keyring.sources:
        for key in source.keys:
            if key.kind == "url_key" and key.state == "current" and key.active(now) and source.serves(account):
                yield url_token(key.secret, account), source.name, key.fingerprint
    if keyring.plain_token is not None and keyring.plain_account in (None, account):
        yield keyring.plain_token.decode(), DEFAULT_SOURCE, fingerprint(keyring.plain_token)
