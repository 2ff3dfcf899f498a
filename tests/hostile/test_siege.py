"""Three services, two workers, a pooler and a Postgres under load, and everything goes wrong. HOSTILE_SEED repeats a siege."""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import pytest
from rich.box import MARKDOWN
from rich.table import Table

from hostile.clocks import Clock, library
from hostile.faults import Place
from hostile.report import SEED
from hostile.senders import CUT_OFF, LATE, Senders
from hostile.story import HOT_CARDS, Ending, Story
from hostile.watched import MOST_MIB, STUMBLES, resident_mib
from servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from amo_receiver.embedded import EmbeddedPostgres
    from hostile.faults import Fault, Step
    from hostile.report import Report
    from hostile.senders import Answer
    from integration.load import Post
    from pooler import PgBouncer
    from servers import Services

SECONDS = float(os.environ.get("HOSTILE_SECONDS", "150"))
PER_SECOND = 100.0
RECOVERY_SECONDS = 60.0
DRAINED_SECONDS = 180.0
FIRST_OFFSETS = (0, -7200, 300, 0, 0)
"""Of the clocks of the services and the workers."""
NEARLY_SECONDS = 60.0
"""So far may what a clock shows be from what it was set to; any two settings are further apart."""


@dataclass(slots=True)
class Ordeal:
    """One fault, or two at once: when it was, and how long after its end each service accepted again."""

    faults: tuple[str, ...]
    began_at: float
    ended_at: float = 0.0
    recovered_at: float = 0.0

    def touches(self, answer: Answer) -> bool:
        """Tell whether a try was under way between its begin and the recovery."""
        return answer.sent_at <= self.recovered_at and answer.answered_at >= self.began_at


@dataclass
class Siege:
    """The run of one seed."""

    place: Place
    senders: Senders
    report: Report
    ordeals: list[Ordeal] = field(default_factory=list)

    async def rage(self) -> None:
        """Draw faults until the time is over and there was each; the next one waits until every service has accepted again."""
        deck = self._deck()
        ends_at = time.monotonic() + SECONDS
        fewest = len(self.place.slight() + self.place.grave())
        while time.monotonic() < ends_at or len(self.ordeals) < fewest:
            await asyncio.sleep(self.place.pick.uniform(0.3, 1.5))
            faults = next(deck)
            ordeal = Ordeal(tuple(name for name, _ in faults), time.monotonic())
            self.ordeals.append(ordeal)
            await asyncio.gather(*(happen() for _, happen in faults))
            ordeal.ended_at = time.monotonic()
            ordeal.recovered_at = await self._recovered(ordeal)
            left = max(0.0, ends_at - time.monotonic())
            self.report.say(f"{' + '.join(ordeal.faults)}: recovered in {ordeal.recovered_at - ordeal.ended_at:.1f} s ({left:.0f} s to go)")

    def _deck(self) -> Iterator[list[Fault]]:
        """Yield every fault once before any comes again, some with a slight one beside it."""
        pick = self.place.pick
        while True:
            slight, grave = self.place.slight(), self.place.grave()
            for fault in pick.sample(slight + grave, len(slight) + len(grave)):
                beside = [other for other in slight if other[0].split()[0] != fault[0].split()[0]]
                yield [fault, pick.choice(beside)] if pick.random() < 0.3 else [fault]

    async def _recovered(self, ordeal: Ordeal) -> float:
        async with asyncio.timeout(RECOVERY_SECONDS):
            while len(good := self.senders.good_since(ordeal.ended_at)) < len(self.place.services):
                await asyncio.sleep(0.05)
        return max(good.values())

    def table(self, ending: Ending) -> Table:
        """Return what each fault cost; of two at once, both are told all."""
        table = Table(title=f"A siege of {SECONDS:.0f} s, HOSTILE_SEED={SEED}", box=MARKDOWN)
        for heading in ("fault", "count", "requests", "503", CUT_OFF, LATE, "other", "2xx but lost", "recovery s", "most"):
            table.add_column(heading, justify="left" if heading == "fault" else "right")
        names = sorted({name for ordeal in self.ordeals for name in ordeal.faults})
        for name in names:
            ordeals = [ordeal for ordeal in self.ordeals if name in ordeal.faults]
            meanwhile = [answer for answer in self.senders.answers if any(ordeal.touches(answer) for ordeal in ordeals)]
            recoveries = [ordeal.recovered_at - ordeal.ended_at for ordeal in ordeals]
            table.add_row(name, str(len(ordeals)), *_cells(meanwhile, ending), f"{median(recoveries):.1f}", f"{max(recoveries):.1f}")
        quiet = [answer for answer in self.senders.answers if not any(ordeal.touches(answer) for ordeal in self.ordeals)]
        table.add_row("none", "", *_cells(quiet, ending), "", "", end_section=True)
        table.add_row("all", str(len(self.ordeals)), *_cells(self.senders.answers, ending), "", "")
        return table


def _cells(answers: list[Answer], ending: Ending) -> list[str]:
    codes = Counter(answer.status for answer in answers)
    known = (503, CUT_OFF, LATE)
    other = sum(count for code, count in codes.items() if code not in (200, *known))
    return [str(len(answers)), *(str(codes[code]) for code in known), str(other), str(len(ending.lost(acknowledged(answers))))]


def acknowledged(answers: Iterable[Answer]) -> Iterator[Post]:
    """Yield the deliveries that were answered 2xx."""
    return (answer.post for answer in answers if answer.status == 200)


def applied_at_once(answers: Iterable[Answer]) -> list[Post]:
    """Return the deliveries that were sent once, and answered that every event is in the tables."""
    tries: dict[tuple[int, ...], list[Answer]] = {}
    for answer in answers:
        tries.setdefault(answer.post.serials, []).append(answer)
    return [single[0].post for single in tries.values() if len(single) == 1 and single[0].said == "success"]


def unseen(steps: Sequence[Step], senders: Senders, ending: Ending) -> list[Step]:
    """Return the steps of services' clocks after which the service received nothing by the time that it was set to."""
    to_unix = time.time() - time.monotonic()

    def shows(step: Step) -> bool:
        until = min((later.began_at for later in steps if later.clock == step.clock and later.began_at > step.began_at), default=math.inf)
        answers = [a for a in senders.answers if a.service == step.clock and step.noticed_at <= a.sent_at and a.answered_at < until]
        ahead = [at - to_unix - answer.sent_at for answer in answers if answer.status == 200 for at in ending.received_at(answer.post)]
        return any(abs(seconds - step.seconds) < NEARLY_SECONDS for seconds in ahead)

    return [step for step in steps if step.clock < len(senders.urls) and not shows(step)]


async def besiege(place: Place, senders: Senders, report: Report) -> Siege:
    """Send and let everything go wrong until the time is over and all that is under way has been answered or given up."""
    siege = Siege(place, senders, report)
    lead = place.pick.choice(HOT_CARDS)
    report.say(f"lead {lead} is locked throughout")
    async with asyncio.TaskGroup() as group:
        group.create_task(senders.run())
        lock = group.create_task(place.keep_locked(lead))
        await siege.rage()
        senders.ended = True
        lock.cancel()
    return siege


async def drained(url: str, report: Report) -> None:
    """Return when nothing is pending; what is due only in minutes is made due now."""
    async with asyncio.timeout(DRAINED_SECONDS), connect(url) as connection:
        while pending := await connection.fetchval("SELECT count(*) FROM events WHERE state = 'pending'"):
            report.say(f"{pending} events are pending")
            await connection.execute("UPDATE events SET available_at = now() WHERE state = 'pending' AND attempts < 3")
            await asyncio.sleep(2)


def placed(services: Services, pgbouncer: PgBouncer, postgres: EmbeddedPostgres, pooled_url: str, database_url: str, folder: Path) -> Place:
    """Start everything, each program with a clock of its own where there can be one."""
    clocks = [Clock(folder / f"clock-{number}", offset) for number, offset in enumerate(FIRST_OFFSETS)]
    environments = [clock.environment() for clock in clocks]
    started = [services.serve(pooled_url, args=["--no-worker"], env=environment) for environment in environments[:3]]
    workers = [services.work(pooled_url, env=environment) for environment in environments[3:]]
    pick = random.Random(SEED)  # noqa: S311 - no secret
    return Place(started, workers, clocks if library() else [], pgbouncer, postgres, database_url, pick)


@pytest.mark.timeout(SECONDS * 4 + 600)
async def test_nothing_acknowledged_is_lost_in_a_siege(
    services: Services, pgbouncer: PgBouncer, postgres: EmbeddedPostgres, pooled_url: str, database_url: str, tmp_path: Path, report: Report
) -> None:
    """Every 2xx is stored, every stored event applied once and none given up, and the rows are what the events make."""
    report.say(f"HOSTILE_SEED={SEED}" + ("" if library() else "; not run: clock steps, because libfaketime is not installed and cannot be"))
    place = await asyncio.to_thread(placed, services, pgbouncer, postgres, pooled_url, database_url, tmp_path)
    story = Story(SEED)
    senders = Senders(story, [service.url for service in place.services], SEED, PER_SECOND)
    siege = await besiege(place, senders, report)
    await drained(database_url, report)

    async with connect(database_url) as connection:
        ending = await Ending.read(connection, story)
        report.show(siege.table(ending))
        at_once = applied_at_once(senders.answers)
        report.say(f"{ending.described(acknowledged(senders.answers))}; {senders.given_up} deliveries given up by their sender")
        report.say(f"{len(at_once)} deliveries applied at once, {len(place.steps)} clock steps")
        assert {answer.status for answer in senders.answers} <= {200, 503, CUT_OFF, LATE}
        lost = ending.lost(acknowledged(senders.answers))
        assert not lost, f"acknowledged and not stored: {sorted(lost)[:10]}"
        ending.require_each_applied_once(at_once)
        assert not place.clocks or place.steps, "no clock was stepped"
        assert unseen(place.steps, senders, ending) == []
        await ending.require_rows_of(connection)
    for process in (*place.services, *place.workers):
        assert process.process.poll() is None
        assert resident_mib(process) <= MOST_MIB
        lines = process.log_path.read_text(errors="replace").splitlines()
        assert not [line for line in lines if any(word in line for word in STUMBLES if word != "ERROR")]
