"""Alembic's environment: one transaction per migration, on the connection that the command hands over.

`amo-webhooks migrate` (amo_receiver/schema.py) opens that connection, holds the guard, sets the lock timeout and repeats a
migration that could not get its lock; this folder needs nothing else of the package and is copied into the image as it is.
"""

from __future__ import annotations

from alembic import context

config = context.config

context.configure(
    connection=config.attributes["connection"],
    target_metadata=config.attributes.get("target_metadata"),
    transaction_per_migration=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
