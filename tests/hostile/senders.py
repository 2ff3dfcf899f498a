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
NO_ANSWER = "no answer"


class Answer(NamedTuple):
    """What a try came to: ``status`` is what was answered or that nothing was, times are monotonic."""

    post: Post
    service: int
    sent_at: float
    answered_at: float
    status: int | str


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
        lines: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        while not self.ended:
            due = time.monotonic() + self.count / self.per_second
            post = self.story.next()
            for number in range(TRIES):
                answer = await self._try(post, pick.randrange(len(self.urls)), lines)
                self.answers.append(answer)
                if answer.status == 200:
                    break
                if number < TRIES - 1:
                    await asyncio.sleep(pick.uniform(*REPEAT_SECONDS))
            else:
                self.given_up += 1
            await asyncio.sleep(due - time.monotonic())
        for _, writer in lines.values():
            writer.close()

    async def _try(self, post: Post, service: int, lines: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> Answer:
        sent_at, status = time.monotonic(), NO_ANSWER
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if service not in lines or lines[service][0].at_eof():
                    lines[service] = await open_connection(self.urls[service])
                reader, writer = lines[service]
                writer.write(post.bytes())
                code, _ = await read_answer(reader)
                return Answer(post, service, sent_at, time.monotonic(), code)
        except (OSError, EOFError, TimeoutError):
            if service in lines:
                lines.pop(service)[1].transport.abort()
        return Answer(post, service, sent_at, time.monotonic(), status)

    def good_since(self, moment: float) -> dict[int, float]:
        """Return for each service when it first answered 200 to what was sent after a moment."""
        first: dict[int, float] = {}
        for answer in reversed(self.answers):
            if answer.answered_at < moment:
                break
            if answer.sent_at >= moment and answer.status == 200:
                first[answer.service] = min(answer.answered_at, first.get(answer.service, answer.answered_at))
        return first
