"""When each key last authenticated a delivery, and for which account, so that a rotation knows who still uses an old one.

Expands only: code that knows nothing of the table runs on as before.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE key_matches (
    account_id text NOT NULL,
    source text NOT NULL,
    kind text NOT NULL,
    fingerprint text NOT NULL,
    matched_at timestamptz NOT NULL,
    PRIMARY KEY (account_id, source, kind, fingerprint)
)
"""


def upgrade() -> None:
    """Create the table."""
    op.execute(TABLE)


def downgrade() -> None:
    """Refuse: a schema goes forward only; an older release keeps working on a newer schema."""
    msg = "the schema is never taken back; restore a backup instead"
    raise NotImplementedError(msg)
