"""Send as amoCRM does: give up after two seconds, and repeat the same body a few times before it is forgotten."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from integration.load import open_connection, read_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hostile.story import Story
    from integration.load import Post

PATIENCE_SECONDS = 2.0
TRIES = 4
REPEAT_SECONDS = (0.2, 1.5)
CUT_OFF = "cut off"
LATE = "late"
Lines = dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]]
"""One sender's connections by service."""


class Answer(NamedTuple):
    """What a try came to: ``status`` is what was answered, or why nothing was, ``said`` the envelope's word; times are monotonic."""

    post: Post
    service: int
    sent_at: float
    answered_at: float
    status: int | str
    said: str = ""


@dataclass(slots=True)
class Senders:
    """Deliveries under way to whichever service a balancer would choose, at a bounded rate."""

    story: Story
    urls: Sequence[str]
    seed: int
    per_second: float
    count: int = 16
    answers: list[Answer] = field(default_factory=list)
    given_up: int = 0
    ended: bool = False

    async def run(self) -> None:
        """Send until ``ended`` is set; what is under way then is repeated to its end."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.count):
                group.create_task(self._keep_sending(random.Random(self.seed + number)))  # noqa: S311 - no secret

    async def _keep_sending(self, pick: random.Random) -> None:
        lines: Lines = {}
        try:
            while not self.ended:
                due = time.monotonic() + self.count / self.per_second
                await self._deliver(self.story.next(), pick, lines)
                await asyncio.sleep(due - time.monotonic())
        finally:
            for _, writer in lines.values():
                writer.transport.abort()

    async def _deliver(self, post: Post, pick: random.Random, lines: Lines) -> None:
        for number in range(TRIES):
            answer = await self._try(post, pick.randrange(len(self.urls)), lines)
            self.answers.append(answer)
            if answer.status == 200:
                return
            if number < TRIES - 1:
                await asyncio.sleep(pick.uniform(*REPEAT_SECONDS))
        self.given_up += 1

    async def _try(self, post: Post, service: int, lines: Lines) -> Answer:
        sent_at = time.monotonic()
        try:
            reader, writer = await self._line(service, lines)
            writer.write(post.request())
            async with asyncio.timeout(PATIENCE_SECONDS):
                code, document = await read_answer(reader)
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            _drop(service, lines)
            return Answer(post, service, sent_at, time.monotonic(), LATE if isinstance(error, TimeoutError) else CUT_OFF)
        return Answer(post, service, sent_at, time.monotonic(), code, str(document["status"]))

    async def _line(self, service: int, lines: Lines) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if service in lines and lines[service][0].at_eof():
            _drop(service, lines)
        if service not in lines:
            # Not below a timeout: one that strikes just then would leave the connection to nobody.
            lines[service] = await open_connection(self.urls[service])
        return lines[service]

    def good_since(self, moment: float) -> dict[int, float]:
        """Return for each service when it first answered 200 to what was sent after a moment."""
        first: dict[int, float] = {}
        for answer in reversed(self.answers):
            if answer.answered_at < moment:
                break
            if answer.sent_at >= moment and answer.status == 200:
                first[answer.service] = min(answer.answered_at, first.get(answer.service, answer.answered_at))
        return first


def _drop(service: int, lines: Lines) -> None:
    if service in lines:
        _, writer = lines.pop(service)
        writer.transport.abort()
