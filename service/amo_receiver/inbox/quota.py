"""How many bytes of unparsable bodies each source may have in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

USED = text("SELECT source, sum(octet_length(body)) FROM deliveries WHERE unparsed AND body_sha256 IS NULL GROUP BY source")


class UnparsedQuota:
    """Bytes used per source: what the database held at the last refresh, and what this process accepted since.

    Other processes' bodies are seen at the next refresh only, so that the hot path never asks the database.
    """

    def __init__(self, quota_bytes: int) -> None:
        self._quota_bytes = quota_bytes
        self._used: dict[str, int] = {}

    def spend(self, source: str, size: int) -> bool:
        """Take ``size`` bytes of the source's quota; False when they are no longer there."""
        used = self._used.get(source, 0) + size
        if used > self._quota_bytes:
            return False
        self._used[source] = used
        return True

    async def refresh(self, engine: AsyncEngine) -> None:
        """Ask the database what is used."""
        async with engine.connect() as connection:
            self._used = {row[0]: int(row[1]) for row in await connection.execute(USED)}
