"""What the metrics are counted in: plain numbers, because a call of a library for each delivery would cost more than storing it.

Nothing here is locked: it is written and read by the event loop's thread alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from amo_receiver.telemetry.metrics_table import Definition

Labels: TypeAlias = tuple[str, ...]

OTHER = "other"
MOST_SERIES = 1_000
MOST_HISTOGRAMS = 100
"""What comes beyond so many combinations of labels is counted together; only a fault of ours could make so many."""
MINUTE_SECONDS = 60


class Distribution(NamedTuple):
    """What a histogram holds for one combination of labels: how many in each bucket, the last without a bound, and their sum."""

    counts: tuple[int, ...]
    total: float


class Family(NamedTuple):
    """One metric as it stands: its values by their labels' values, in the definition's order."""

    definition: Definition
    values: Mapping[Labels, float | Distribution]


class Counter:
    """A number that only grows, for each combination of labels; those that are known begin at 0, or their first step would not show."""

    def __init__(self, definition: Definition, *known: Labels) -> None:
        self._definition = definition
        self._values = dict.fromkeys(known, 0)

    def add(self, labels: Labels) -> None:
        """Count one."""
        try:
            self._values[labels] += 1
        except KeyError:
            labels = labels if len(self._values) < MOST_SERIES else (OTHER,) * len(labels)
            self._values[labels] = self._values.get(labels, 0) + 1

    def family(self) -> Family:
        """Return the numbers as they are now."""
        return Family(self._definition, self._values.copy())


class Histogram:
    """How values are distributed, for each combination of labels."""

    def __init__(self, definition: Definition, *known: Labels) -> None:
        self._definition = definition
        self._bounds = definition.bounds
        self._values: dict[Labels, list[float]] = {}
        for labels in known:
            self._open(labels)

    def observe(self, labels: Labels, value: float) -> None:
        """Take one value; one that is below 0 (clocks differ) counts as 0."""
        if value < 0:
            value = 0.0
        try:
            numbers = self._values[labels]
        except KeyError:
            numbers = self._open(labels)
        numbers[bisect_left(self._bounds, value)] += 1
        numbers[-1] += value

    def _open(self, labels: Labels) -> list[float]:
        """Return a count for each bucket, and the sum behind them."""
        labels = labels if len(self._values) < MOST_HISTOGRAMS else (OTHER,) * len(labels)
        return self._values.setdefault(labels, [0] * (len(self._bounds) + 1) + [0.0])

    def family(self) -> Family:
        """Return the distributions as they are now."""
        values = {labels: Distribution(tuple(map(int, numbers[:-1])), numbers[-1]) for labels, numbers in self._values.items()}
        return Family(self._definition, values)


class Window:
    """Counts of the last so many minutes, and the one that has begun."""

    def __init__(self, minutes: int, clock: Callable[[], float], *known: Labels) -> None:
        self._minutes = minutes
        self._clock = clock
        self._known = known
        self._counts: deque[tuple[int, dict[Labels, int]]] = deque()

    def add(self, labels: Labels) -> None:
        """Count one."""
        minute = self._forget()
        if not self._counts or self._counts[-1][0] != minute:
            self._counts.append((minute, {}))
        counts = self._counts[-1][1]
        counts[labels] = counts.get(labels, 0) + 1

    def values(self) -> dict[Labels, int]:
        """Return what was counted within the window."""
        self._forget()
        values = dict.fromkeys(self._known, 0)
        for _, counts in self._counts:
            for labels, count in counts.items():
                values[labels] = values.get(labels, 0) + count
        return values

    def _forget(self) -> int:
        """Let go of the minutes that are over, and return the one that has begun."""
        minute = int(self._clock() // MINUTE_SECONDS)
        while self._counts and self._counts[0][0] < minute - self._minutes:
            self._counts.popleft()
        return minute
