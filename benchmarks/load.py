"""A load generator for one server on loopback: HTTP/1.1 over kept connections, closed loop or open.

Closed: every connection sends its next request when the last is answered; the rate is what the server can do. Open:
requests are due at random times (a Poisson process) whatever the server does, and a latency counts from when its
request was due: a server that falls behind is not spared.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Outcome:
    """What a load was answered: seconds of each answer of status 200, how often each status came, and how long it took.

    ``answers``: the bodies of status 200, by the place of their request, where they were to be kept.
    """

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    answers: dict[int, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers of status 200 a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """A percentile of the latencies, in milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


def request_of(body: Any) -> bytes:
    """The bytes of a search."""
    content = json.dumps(body, ensure_ascii=False).encode()
    head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(content)}\r\n\r\n".encode() + content


class Connection:
    """One kept connection."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; the status and the body of its answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._address.hostname, self._address.port, limit=1 << 24)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        return int(head[9:12]), await reader.readexactly(length)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


def closed(url: str, requests: Sequence[bytes], connections: int, seconds: float, *, keep: bool = False) -> Outcome:
    """Load a server from so many connections for so long; ``keep``: send each request once, and keep the answers."""
    outcome, numbers = Outcome(), iter(range(len(requests))) if keep else itertools.cycle(range(len(requests)))

    async def client(end: float) -> None:
        connection = Connection(url)
        for number in numbers:
            begin = time.perf_counter()
            if not keep and begin >= end:
                break
            status, body = await connection.ask(requests[number])
            _note(outcome, status, begin)
            if keep and status == 200:
                outcome.answers[number] = json.loads(body)
        connection.close()

    return asyncio.run(_timed(outcome, [client] * connections, seconds))


def open_loop(url: str, requests: Sequence[bytes], rate: float, connections: int, seconds: float) -> Outcome:
    """Load a server with ``rate`` requests a second, over at most so many connections at a time."""
    outcome, due = Outcome(), _due_times(rate, seconds)

    async def client(end: float) -> None:
        connection, start = Connection(url), end - seconds
        for number, offset in due:
            await asyncio.sleep(max(0.0, start + offset - time.perf_counter()))
            status, _ = await connection.ask(requests[number % len(requests)])
            _note(outcome, status, start + offset)
        connection.close()

    return asyncio.run(_timed(outcome, [client] * connections, seconds))


def _due_times(rate: float, seconds: float) -> Iterator[tuple[int, float]]:
    draw, at = random.Random(0), 0.0
    for number in itertools.count():
        at += draw.expovariate(rate)
        if at >= seconds:
            return
        yield number, at


async def _timed(outcome: Outcome, clients: Sequence[Any], seconds: float) -> Outcome:
    begin = time.perf_counter()
    await asyncio.gather(*(client(begin + seconds) for client in clients))
    outcome.seconds = time.perf_counter() - begin
    return outcome


def _note(outcome: Outcome, status: int, begin: float) -> None:
    outcome.statuses[status] += 1
    if status == 200:
        outcome.latencies.append(time.perf_counter() - begin)
