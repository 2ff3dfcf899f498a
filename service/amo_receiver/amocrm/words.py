"""amoCRM's own words: the only ones out of a body that logs, spans, metrics and notifications show.

An authentic body may have any others in their place, a name or a phone too. Rows keep what was sent. Whoever tells of a delivery asks
here first; what writes and encodes does not ask again.
"""

from __future__ import annotations

import re

OTHER = "other"
"""Stands for a word that is not amoCRM's."""
ENTITIES = frozenset({
    "leads", "contacts", "companies", "customers", "task", "unsorted", "message", "outgoing_message", "talk", "catalogs",
    "chat_template_reviews", "unparsed",
})  # fmt: skip
ACTIONS = frozenset({
    "add", "update", "delete", "restore", "status", "responsible", "note", "mail_in", "call_in", "chat", "site_visit", "period", "",
})  # fmt: skip
"""Those of its Digital Pipeline included. An unparsed body has no action."""
BODYS_ACCOUNT = re.compile(r"[0-9]{0,9}|subdomain:[a-z0-9-]{1,63}")
"""Fewer digits than a phone has."""
CREDENTIALS_ACCOUNT = re.compile(r"[\w.:-]{0,255}", re.ASCII)


def entity_word(entity: str) -> str:
    """Return the entity if it is amoCRM's."""
    return entity if entity in ENTITIES else OTHER


def action_word(action: str) -> str:
    """Return the action if it is amoCRM's."""
    return action if action in ACTIONS else OTHER


def kind_word(entity: str, action: str) -> str:
    """Return what kind of event it is, such as ``leads.add``."""
    return f"{entity_word(entity)}.{action_word(action)}".rstrip(".")


def account_word(account_id: str, *, is_credentials: bool = False) -> str:
    """Return an account if it looks like one of amoCRM's, or is any plain word that a credential was given for: no body chose it."""
    return account_id if (CREDENTIALS_ACCOUNT if is_credentials else BODYS_ACCOUNT).fullmatch(account_id) else OTHER
