"""The oldest revision whose code still runs: recorded by a contract migration, read by older code before it takes requests."""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import text


def record_floor(revision: str) -> None:
    """Record, in the migration's own transaction, that code which does not know ``revision`` no longer runs from here on."""
    # A misspelt one would be unknown to all code there is, and shut out every pod.
    if revision not in {script.revision for script in context.script.walk_revisions()}:
        msg = f"{revision!r} is not a revision of this folder"
        raise ValueError(msg)
    op.execute("DELETE FROM schema_floor")
    op.execute(text("INSERT INTO schema_floor (revision) VALUES (:revision)").bindparams(revision=revision))
