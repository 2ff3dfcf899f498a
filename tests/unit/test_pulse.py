"""When the operator says that it should be started anew."""

from __future__ import annotations

from typing import Any

import pytest

from amo_operator.config import Config
from amo_operator.metrics import Metrics
from amo_operator.pages import ROUND_SECONDS, SILENT_WATCHES, Pulse
from amo_operator.reconcile import Reconciler
from amo_operator.telemetry import Tracing

WATCH_SECONDS = 60.0
SILENCE = SILENT_WATCHES * WATCH_SECONDS


class Clock:
    """A clock that is moved by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def passed(pulse: Pulse, clock: Clock, *versions: str, seconds: float = 3.0) -> None:
    """Let a round begin now and end ``seconds`` later."""
    begun = pulse.round_begins()
    clock.now += seconds
    pulse.round_ended(begun, {"AmoIntegration": frozenset(versions)})


def test_a_clock_that_stands_still_is_death() -> None:
    """Whatever the watches bring; an API server that is away is none: the clock goes, and a new process would not bring it back."""
    clock = Clock()
    pulse = Pulse(WATCH_SECONDS, clock)
    passed(pulse, clock)
    clock.now += ROUND_SECONDS
    assert pulse.obstacles() == []
    clock.now += 1
    pulse.event("AmoIntegration")
    (obstacle,) = pulse.obstacles()
    assert "the clock stood still for 61 s" in obstacle
    pulse.tried()
    assert pulse.obstacles() == []


def test_a_watch_of_what_does_not_change_may_be_silent() -> None:
    """Neither without objects nor with some there is anything to tell."""
    clock = Clock()
    pulse = Pulse(WATCH_SECONDS, clock)
    pulse.event("AmoIntegration")
    passed(pulse, clock, "1")
    for _ in range(100):
        passed(pulse, clock, "1")
        assert pulse.obstacles() == []


def test_a_change_of_which_no_watch_tells_is_death() -> None:
    """For as long as three watches take it may be on its way; when it is told after all, all is well."""
    clock = Clock()
    pulse = Pulse(WATCH_SECONDS, clock)
    pulse.event("AmoIntegration")
    passed(pulse, clock, "1")
    passed(pulse, clock, "1")
    passed(pulse, clock, "2")
    since = clock.now
    while clock.now + 3 <= since + SILENCE:
        passed(pulse, clock, "2")
        assert pulse.obstacles() == []
    passed(pulse, clock, "2")
    (obstacle,) = pulse.obstacles()
    assert "AmoIntegration" in obstacle
    pulse.event("AmoIntegration")
    assert pulse.obstacles() == []


@pytest.mark.parametrize("is_before", [True, False])
def test_a_change_may_be_told_before_or_after_it_is_listed(is_before: bool) -> None:
    """The event of a change that only the later of two lists shows is younger than the earlier one."""
    clock = Clock()
    pulse = Pulse(WATCH_SECONDS, clock)
    pulse.event("AmoIntegration")
    passed(pulse, clock, "1")
    if is_before:
        pulse.event("AmoIntegration")
    passed(pulse, clock, "2")
    if not is_before:
        pulse.event("AmoIntegration")
    for _ in range(100):
        passed(pulse, clock, "2")
        assert pulse.obstacles() == []


class Listed:
    """An API server that lists what nobody can understand, and takes what is written."""

    async def resources(self, kind: str) -> list[dict[str, Any]]:
        if kind == "AmoIntegration":
            return []
        metadata = {"namespace": "crm", "uid": "1", "resourceVersion": "1", "generation": 1}
        return [{"apiVersion": "v1", "kind": kind, "metadata": {**metadata, "name": name}, "spec": {}} for name in "ab"]

    async def secret(self, _: str) -> None:
        return None

    async def write_status(self, *_: object) -> None: ...

    async def post_event(self, _: object) -> None: ...


async def test_a_round_of_many_objects_beats_with_each() -> None:
    """Each may take half a minute while the API server is slow; a new process would begin the same round again."""
    beats: list[None] = []
    reconciler = Reconciler(Listed(), Config(), Metrics(), Tracing(), beat=lambda: beats.append(None))  # type: ignore[arg-type]
    await reconciler.round()
    assert len(beats) == 2
