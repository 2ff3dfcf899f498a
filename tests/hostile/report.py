"""Print figures and progress while pytest captures everything else."""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 150
SEED = int(os.environ.get("HOSTILE_SEED") or random.SystemRandom().randrange(1_000_000))
"""Of everything that is drawn by chance."""


class Report:
    """The figures of one test."""

    def __init__(self, capture: Any, name: str) -> None:
        self._capture = capture
        self._name = name
        self._started = time.monotonic()

    def say(self, sentence: str) -> None:
        """Print a line with the seconds since the test began."""
        self._print(f"[{time.monotonic() - self._started:.0f} s] {sentence}")

    def show(self, table: Table) -> None:
        """Print a table."""
        self._print(table)

    def _print(self, content: Table | str) -> None:
        with self._capture.global_and_fixture_disabled() if self._capture else nullcontext():
            if self._name:
                print(f"\n{self._name}", flush=True)  # noqa: T201 - ends the line of pytest's own progress
                self._name = ""
            Console(file=sys.stdout, width=WIDTH, markup=False, highlight=False).print(content, soft_wrap=True)
