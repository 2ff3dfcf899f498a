"""When each key last authenticated a delivery, so that a rotation knows whether an old one is still in use.

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
    source text NOT NULL,
    kind text NOT NULL,
    fingerprint text NOT NULL,
    matched_at timestamptz NOT NULL,
    PRIMARY KEY (source, kind, fingerprint)
)
"""


def upgrade() -> None:
    """Create the table."""
    op.execute(TABLE)


def downgrade() -> None:
    """Refuse: a schema goes forward only; an older release keeps working on a newer schema."""
    msg = "the schema is never taken back; restore a backup instead"
    raise NotImplementedError(msg)
