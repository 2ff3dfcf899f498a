"""Send signed JSON and real forms through the ingress, and write each answer down: `python -m e2e.sender FOLDER HOST:PORT …`.

FOLDER/credentials.json says how (it is read again when it changes); FOLDER/answers.jsonl gets one line for each answer. A program of its
own, because the cluster's network may be another one than the tests'. It is bounded in time by --seconds, and ends on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import itertools
import json
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factories import ACCOUNT, BODIES

PATH = "/api/webhooks/amo"
PATIENCE_S = 10.0
"""Long beyond what amoCRM waits: a 200 that comes late is an acknowledgement all the same."""
FORM, JSON = "application/x-www-form-urlencoded", "application/json"
ITEM_ID = re.compile(rb"(?P<entity>leads|contacts|task|customers)(?P<rest>%5B\w+%5D%5B0%5D%5Bid%5D=)\d+")
JSON_ID = re.compile(rb'("leads":\{"add":\[\{"id":)\d+')
REPEATED = 7
"""Every so many deliveries one comes twice, as from amoCRM; without a time of its own it would rightly be two events."""
DATED = re.compile(rb"last_modified|updated_at|date_modify|created_at")
NOTHING = 0
"""The status where no answer came."""


@dataclass(frozen=True, slots=True)
class Template:
    """A body whose first item gets a number of its own, so that none is a duplicate of another."""

    entity: str
    content_type: str
    head: bytes
    tail: bytes

    @property
    def is_dated(self) -> bool:
        """Tell whether its event has a time of its own."""
        return DATED.search(self.head + self.tail) is not None

    def numbered(self, number: int) -> bytes:
        """Return the body for that item."""
        return self.head + str(number).encode() + self.tail


def templates() -> list[Template]:
    """Return the real forms that have an item with an id and our account, each followed by a signed JSON body."""
    found = []
    account = f"account%5Bid%5D={ACCOUNT}".encode()
    signed = _template(JSON_ID, (BODIES / "signed-leads-add.json").read_bytes(), JSON)
    for path in sorted(BODIES.glob("*.form")):
        body = path.read_bytes()
        if account in body and ITEM_ID.search(body):
            found += [_template(ITEM_ID, body, FORM), signed]
    return found


def _template(pattern: re.Pattern[bytes], body: bytes, content_type: str) -> Template:
    match = pattern.search(body)
    assert match, "no such item"
    entity = match["entity"].decode() if content_type == FORM else "leads"
    digits = len(re.search(rb"\d+$", match[0])[0])  # type: ignore[index]  # the pattern ends with them
    return Template(entity, content_type, body[: match.end() - digits], body[match.end() :])


@dataclass(slots=True)
class Credentials:
    """What the sender knows itself by; new when the file is new."""

    path: Path
    _stamp: int = 0
    _read: dict[str, str] = field(default_factory=dict)

    def headers(self, template: Template) -> tuple[str, dict[str, str]]:
        """Return path and headers of a request."""
        stamp = self.path.stat().st_mtime_ns
        if stamp != self._stamp:
            self._stamp, self._read = stamp, json.loads(self.path.read_text(encoding="utf-8"))
        if template.content_type == FORM:
            return self._read["url"], {"User-Agent": "amoCRM-Webhooks/3.0"}
        text = f"{self._read['client_id']}|{ACCOUNT}"
        signature = hmac.new(self._read["client_secret"].encode(), text.encode(), hashlib.sha256).hexdigest()
        return PATH, {"X-Client-UUID": self._read["client_id"], "X-Account-ID": ACCOUNT, "X-Signature": signature}


class Line:
    """One keep-alive connection, opened when it is needed."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """Return the status of the answer."""
        fields = {"Host": "amo.example.test", "Content-Length": str(len(body)), **headers}
        head = "\r\n".join([f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""])
        try:
            async with asyncio.timeout(PATIENCE_S):
                if self._streams is None or self._streams[0].at_eof():
                    self.close()
                    self._streams = await asyncio.open_connection(*self._address)
                self._streams[1].write(head.encode() + body)
                return await self._status(self._streams[0])
        except (OSError, EOFError, TimeoutError, ValueError):
            self.close()
            return NOTHING

    async def _status(self, reader: asyncio.StreamReader) -> int:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        return int(head.split()[1])

    def close(self) -> None:
        """Hang up."""
        if self._streams:
            self._streams[1].close()
        self._streams = None


async def send(arguments: argparse.Namespace) -> None:
    """Send until the time is over or SIGTERM comes: at a rate, or with a rate of 0 as fast as the answers come."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.call_later(arguments.seconds, ended.set)
    host, port = arguments.address.rsplit(":", 1)
    numbered = zip(itertools.count(arguments.first), itertools.cycle(templates()), strict=False)
    began = loop.time()
    times = (began + number / arguments.rate if arguments.rate else 0.0 for number in itertools.count())
    credentials = Credentials(arguments.folder / "credentials.json")
    with (arguments.folder / "answers.jsonl").open("a", encoding="utf-8", buffering=1) as ledger:

        async def keep_sending() -> None:
            line = Line(host, int(port))
            while not ended.is_set():
                await asyncio.sleep(max(0.0, next(times) - loop.time()))
                number, template = next(numbered)
                for _ in range(2 if number % REPEATED == 0 and template.is_dated else 1):
                    path, headers = credentials.headers(template)
                    at = time.time()
                    status = await line.post(path, {"Content-Type": template.content_type, **headers}, template.numbered(number))
                    ledger.write(json.dumps(_noted(number, template, at, status)) + "\n")
            line.close()

        await asyncio.gather(*(keep_sending() for _ in range(arguments.connections)))


def _noted(number: int, template: Template, began: float, status: int) -> dict[str, Any]:
    return {"number": number, "entity": template.entity, "at": began, "seconds": time.time() - began, "status": status}


def main() -> None:
    """Read the arguments and send."""
    parser = argparse.ArgumentParser(prog="e2e.sender", description="Send deliveries and write down what was answered.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--first", type=int, required=True, help="number of the first delivery")
    parser.add_argument("--rate", type=float, default=20.0, help="deliveries a second; 0: each connection as fast as it is answered")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1800.0)
    asyncio.run(send(parser.parse_args()))


if __name__ == "__main__":
    main()
