"""A Postgres of one's own from a pip package, for ``amo-webhooks dev`` and the tests.

The package's own server class is not used: as root it opens the permissions of every folder above the data.
"""

from __future__ import annotations

from amo_receiver.embedded.programs import unprivileged_account
from amo_receiver.embedded.server import EmbeddedPostgres, default_data_dir

__all__ = ["EmbeddedPostgres", "default_data_dir", "unprivileged_account"]
