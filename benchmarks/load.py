"""Sends requests to a service at a fixed rate, from a process of its own, and measures when the answers come.

python benchmarks/load.py --port=8000 --bodies=FILE --rate=200 --seconds=10     # prints one line of JSON

Open loop: requests are sent at random times (a Poisson process) whether or not earlier ones are answered, and a latency
counts from the time that a request was due. A generator that waits for answers measures a slow service too kindly.
Raw connections in uvloop, so that the generator takes little of the processor that it shares with the service.
"""

import argparse
import asyncio
import dataclasses
import itertools
import json
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

from research.serve.clients import status_of

GIVE_UP_SECONDS = 20  # after the last request


@dataclasses.dataclass
class Answer:
    """What came of a request: when it was due, sent and answered, by `perf_counter`, and its status (0: none)."""

    due: float
    sent: float
    ended: float
    status: int

    @property
    def latency_ms(self) -> float:
        """From when it was due."""
        return 1000 * (self.ended - self.due)


def post(path: str, body: bytes, content_type: str = "application/json", headers: str = "") -> bytes:
    """A request of HTTP/1.1, as it is sent."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """A connection that answers one request after the other."""

    def __init__(self, pool: "Pool"):
        self._pool = pool
        self._buffer = b""
        self._transport: Any = None
        self._due = self._sent = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._pool.free(self)

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def send(self, due: float, request: bytes) -> None:
        self._due = due
        self._transport.write(request)
        self._sent = time.perf_counter()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if (status := status_of(self._buffer)) is None:
            return
        self._buffer = b""
        due, self._due = self._due, 0.0
        self._pool.record(Answer(due, self._sent, time.perf_counter(), status))
        self._pool.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._due:
            self._pool.record(Answer(self._due, self._sent, time.perf_counter(), 0))
        self._pool.lost(self)


class Pool:
    """Connections, opened when all others are busy, up to a limit; beyond it requests wait, and their time counts.

    Attributes:
      answers: of all requests that have ended.
      waited: the most requests that waited for a connection.
    """

    def __init__(self, host: str, port: int, limit: int):
        self.answers: list[Answer] = []
        self.waited = 0
        self._address = (host, port)
        self._limit = limit
        self._open = 0
        self._idle: list[Connection] = []
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._opening: set[asyncio.Task[Any]] = set()

    def send(self, due: float, request: bytes) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                connection.send(due, request)
                return
        self._waiting.append((due, request))
        self.waited = max(self.waited, len(self._waiting))
        if self._open < self._limit:
            self._open += 1
            task = asyncio.ensure_future(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: Connection(self), *self._address)
        except OSError:
            self._open -= 1
            if self._waiting:
                self.record(Answer(self._waiting.popleft()[0], 0.0, time.perf_counter(), 0))

    def free(self, connection: Connection) -> None:
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)

    def record(self, answer: Answer) -> None:
        self.answers.append(answer)

    async def finish(self, sent: int) -> None:
        """Waits for the answers of all that was sent, at most GIVE_UP_SECONDS."""
        for _ in range(GIVE_UP_SECONDS * 100):
            if len(self.answers) >= sent:
                break
            await asyncio.sleep(0.01)


async def generate(pool: Pool, requests: Iterator[bytes], rate: float, seconds: float, seed: int) -> int:
    """Sends requests at a rate -> how many."""
    rng = random.Random(seed)
    began = time.perf_counter()
    due, sent = began, 0
    while (due := due + rng.expovariate(rate)) < began + seconds:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        elif sent % 64 == 0:  # late: answers are read meanwhile
            await asyncio.sleep(0)
        pool.send(due, next(requests))
        sent += 1
    await pool.finish(sent)
    return sent


class ClosedPool(Pool):
    """A pool that sends the next request on each connection when it is free, until there are none."""

    def __init__(self, host: str, port: int, limit: int, requests: Iterator[bytes]):
        super().__init__(host, port, limit)
        self._requests = requests

    def free(self, connection: Connection) -> None:
        request = next(self._requests, None)
        if request is not None:
            connection.send(time.perf_counter(), request)

    async def run(self, count: int) -> list[Answer]:
        """The answers of the `count` requests."""
        for _ in range(self._limit):
            await self._connect()
        while len(self.answers) < count:
            await asyncio.sleep(0.01)
        return self.answers


def quantile(values: Sequence[float], fraction: float) -> float:
    """The smallest of the values that at least this fraction of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else float("nan")


def summary(answers: Sequence[Answer], sent: int) -> dict[str, Any]:
    """Counts by status (0: the connection was lost; "none": no answer), and quantiles of the latency in ms."""
    statuses = Counter(str(answer.status) for answer in answers)
    if len(answers) < sent:
        statuses["none"] = sent - len(answers)
    good = [answer.latency_ms for answer in answers if answer.status == 200]
    span = max((answer.ended for answer in answers), default=0) - min((answer.due for answer in answers), default=0)
    return {
        "sent": sent,
        "statuses": statuses,
        "answered_per_second": len(good) / span if span else 0.0,
        "p50_ms": quantile(good, 0.5),
        "p99_ms": quantile(good, 0.99),
        "max_ms": max(good, default=float("nan")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/predict")
    parser.add_argument("--bodies", required=True, help="a file with a JSON body in each line")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    requests = [post(arguments.path, line) for line in Path(arguments.bodies).read_bytes().splitlines()]

    async def measure() -> dict[str, Any]:
        pool = Pool(arguments.host, arguments.port, arguments.connections)
        sent = await generate(pool, itertools.cycle(requests), arguments.rate, arguments.seconds, arguments.seed)
        return summary(pool.answers, sent)

    json.dump(uvloop.run(measure()), sys.stdout)
    print()


if __name__ == "__main__":
    main()
