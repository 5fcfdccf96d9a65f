"""The service at several times its capacity: refusals, accepted requests, the time afterwards, and memory.

python benchmarks/serve_overload.py --workdir=RUN [--times=10] [--seconds=60] [--requests=100000]

RUN is a classifier of single texts. The service is a process of its own, without a cache; this process asks. Its load
is open: requests are due at a fixed rate whether or not earlier ones are answered, and waiting for a free connection
counts as latency. No two requests of a round are equal.
"""

import argparse
import asyncio
import collections
import dataclasses
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from research.client import Client
from research.serve.limits import Limits

CONNECTIONS = 1500  # of the open load
CLOSED = 64  # requests at the same time when the capacity is measured
REFUSED_MS = 50.0  # what a refusal may take
WARM_UP = 10_000  # requests before memory is measured first


@dataclasses.dataclass
class Sent:
    """A request: when it was due, sent and answered, in seconds, and the status of the answer (0 for none)."""

    due: float
    sent: float = 0.0
    ended: float = 0.0
    status: int = 0

    @property
    def milliseconds(self) -> float:
        """From when it was due."""
        return 1000 * (self.ended - self.due)


class Connection(asyncio.Protocol):
    """Sends one request at a time; `free` is called with it after each answer."""

    def __init__(self, free: Callable[["Connection"], None]):
        self._free = free
        self._found = b""
        self._request: Sent | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: Sent, data: bytes) -> None:
        self._request, self._found = request, b""
        assert self._transport is not None
        self._transport.write(data)
        request.sent = time.perf_counter()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._found += data
        head, separator, body = self._found.partition(b"\r\n\r\n")
        if not separator:
            return
        start = head.lower().index(b"content-length:") + 15
        if len(body) >= int(head[start:].split(b"\r\n", 1)[0]):
            request, self._request = self._request, None
            assert request is not None
            request.ended, request.status = now, int(head[9:12])
            self._free(self)

    def connection_lost(self, _: Exception | None) -> None:
        if self._request is not None:
            self._request.ended = time.perf_counter()


async def connect(port: int, free: Callable[[Connection], None]) -> Connection:
    _, found = await asyncio.get_running_loop().create_connection(lambda: Connection(free), "127.0.0.1", port)
    return found


def post(path: str, body: Any) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def predictions() -> Iterator[bytes]:
    """Requests of one short text each, all different."""
    for number in itertools.count():
        yield post("/models/m/predict", {"inputs": [f"a gripping film number {number} of a dull year"]})


def mixed() -> Iterator[bytes]:
    """Requests of every protocol, and some that are refused."""
    for number in itertools.count():
        text = f"a dull film number {number}"
        tensor = {"name": "sentence", "shape": [1], "datatype": "BYTES", "data": [text]}
        yield from (
            post("/models/m/predict", {"inputs": [text, text + " again"]}),
            post("/predict", {"inputs": [[text]]}),
            post("/v2/models/m/infer", {"inputs": [tensor]}),
            post("/tokenize", {"inputs": text}),
            post("/models/m/predict", b"{" * (number % 50)),
            post("/models/m/predict", {"inputs": [text * 100, 1]}),
            b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" if number % 50 == 0 else post("/nothing", {"number": number}),
        )


async def closed(port: int, requests: Iterator[bytes], *, count: int, at_once: int) -> list[Sent]:
    """Sends `count` requests, `at_once` at a time."""
    done: list[Sent] = []
    finished = asyncio.Event()

    def next_one(connection: Connection) -> None:
        if len(done) < count:
            done.append(Sent(time.perf_counter()))
            connection.send(done[-1], next(requests))
        elif all(request.ended for request in done):
            finished.set()

    for connection in [await connect(port, next_one) for _ in range(at_once)]:
        next_one(connection)
    await finished.wait()
    return done


async def opened(port: int, requests: Iterator[bytes], *, rate: float, seconds: float) -> tuple[list[Sent], int]:
    """Sends `rate` requests a second -> them, and the most that waited for a connection."""
    free: collections.deque[Connection] = collections.deque()
    waiting: collections.deque[tuple[Sent, bytes]] = collections.deque()
    done: list[Sent] = []
    longest = 0

    def freed(connection: Connection) -> None:
        if waiting:
            connection.send(*waiting.popleft())
        else:
            free.append(connection)

    free.extend([await connect(port, freed) for _ in range(CONNECTIONS)])
    began = time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        while len(done) < now * rate:
            request = Sent(began + len(done) / rate)
            done.append(request)
            if free:
                free.popleft().send(request, next(requests))
            else:
                waiting.append((request, next(requests)))
        longest = max(longest, len(waiting))
        await asyncio.sleep(0.001)
    while not all(request.ended for request in done) and time.perf_counter() - began < seconds + 30:
        await asyncio.sleep(0.01)
    return done, longest


async def probes(port: int, requests: Iterator[bytes], count: int, pause: float = 0.02) -> list[Sent]:
    """Requests one after another."""
    answered = asyncio.Event()
    connection, found = await connect(port, lambda _: answered.set()), []
    for _ in range(count):
        answered.clear()
        found.append(Sent(time.perf_counter()))
        connection.send(found[-1], next(requests))
        await answered.wait()
        await asyncio.sleep(pause)
    return found


def quantiles(values: list[float]) -> str:
    if len(values) < 2:
        return f"{len(values)} values"
    cuts = statistics.quantiles(values, n=100)
    return f"p50 {cuts[49]:.1f}, p99 {cuts[98]:.1f}, max {max(values):.1f} ms"


def back_to_normal(after: list[Sent], normal: float, since: float) -> float | None:
    """The seconds until ten probes in a row take at most `normal` ms."""
    for i in range(len(after) - 9):
        if all(request.status == 200 and request.milliseconds <= normal for request in after[i : i + 10]):
            return after[i].due - since
    return None


def resident(pid: int) -> float:
    """MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def report(done: list[Sent], limits: Limits) -> None:
    statuses = collections.Counter(request.status for request in done)
    print("statuses: " + ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items())))
    refused = [request for request in done if request.status == 429]
    late = sum(1000 * (request.ended - request.sent) > REFUSED_MS for request in refused)
    print(f"refusals, from sending: {quantiles([1000 * (request.ended - request.sent) for request in refused])}")
    print(f"refusals, from when they were due: {quantiles([request.milliseconds for request in refused])}")
    print(f"refusals above {REFUSED_MS:g} ms from sending: {late} of {len(refused)}")
    bound = limits.queue_ms + 2 * limits.batch_ms
    accepted = [request.milliseconds for request in done if request.status == 200]
    above = sum(took > bound for took in accepted)
    print(f"accepted, from when they were due: {quantiles(accepted)}; {above} of {len(accepted)} above {bound:g} ms")


async def overload(port: int, arguments: argparse.Namespace) -> None:
    requests, limits = predictions(), Limits()
    await closed(port, requests, count=500, at_once=CLOSED)
    began = time.perf_counter()
    done = await closed(port, requests, count=arguments.measured, at_once=CLOSED)
    capacity = sum(request.status == 200 for request in done) / (time.perf_counter() - began)
    normal = statistics.quantiles([each.milliseconds for each in await probes(port, requests, 100)], n=100)[94]
    print(f"capacity: {capacity:.0f} requests/s; p95 of single requests: {normal:.1f} ms")
    rate = arguments.times * capacity
    began = time.perf_counter()
    done, longest = await opened(port, requests, rate=rate, seconds=arguments.seconds)
    print(f"open load: {rate:.0f} requests/s for {arguments.seconds:g} s; at most {longest} waited for a connection")
    lag = [1000 * (request.sent - request.due) for request in done if request.sent]
    print(f"sent after they were due: {quantiles(lag)}")
    report(done, limits)
    after = await probes(port, requests, 150)
    ended = max(request.due for request in done)
    found = back_to_normal(after, 2 * normal, ended)
    print(f"ten probes in a row within {2 * normal:.1f} ms: {'never' if found is None else f'after {found:.2f} s'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="the run of a classifier of single texts")
    parser.add_argument("--times", type=float, default=10.0, help="the load, in capacities")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the load lasts")
    parser.add_argument("--measured", type=int, default=5000, help="the requests that the capacity is measured with")
    parser.add_argument("--requests", type=int, default=100_000, help="the mixed requests for which memory is measured")
    arguments = parser.parse_args()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    flags = [f"--workdir=m={arguments.workdir}", f"--port={port}", "--cache_entries=0", "--log=none"]
    with subprocess.Popen([sys.executable, "-m", "research.serve", *flags]) as service:
        try:
            Client(f"http://127.0.0.1:{port}").wait_until_ready()
            asyncio.run(overload(port, arguments))
            asyncio.run(closed(port, mixed(), count=WARM_UP, at_once=CLOSED))
            before, began = resident(service.pid), time.perf_counter()
            done = asyncio.run(closed(port, mixed(), count=arguments.requests, at_once=CLOSED))
            seconds, after = time.perf_counter() - began, resident(service.pid)
            statuses = collections.Counter(request.status for request in done)
            print(f"{arguments.requests} mixed requests in {seconds:.0f} s: {dict(sorted(statuses.items()))}")
            print(f"memory: {before:.1f} -> {after:.1f} MiB ({100 * (after / before - 1):+.2f} %)")
        finally:
            service.terminate()


if __name__ == "__main__":
    main()
