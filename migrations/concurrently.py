"""CREATE INDEX CONCURRENTLY as a migration step that can be repeated."""

from __future__ import annotations

from alembic import op


def create_index(name: str, definition: str) -> None:
    """Create index ``name`` by ``definition``, a whole CREATE INDEX CONCURRENTLY statement, outside a transaction.

    A try that was interrupted leaves an invalid index behind, which is dropped first. There is no lock timeout here: this
    statement's waits queue nobody behind them.
    """
    with op.get_context().autocommit_block():
        bind = op.get_bind()
        before = bind.exec_driver_sql("SHOW lock_timeout").scalar()
        op.execute("SET lock_timeout = 0")
        leftover = bind.exec_driver_sql("SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", (name,)).scalar()
        if leftover:
            op.execute(f"DROP INDEX CONCURRENTLY {name}")
        if leftover is not False:
            op.execute(definition)
        op.execute(f"SET lock_timeout = '{before}'")
