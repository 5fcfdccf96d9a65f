"""Clients of a service in a process of their own, which send requests and time the answers. Standard library only.

Raw connections, so that the clients take little of the processor that they may share with the service. An open load
sends requests at random times whether or not earlier ones are answered, and a latency counts from the time that a
request was due: clients that wait for answers measure a slow service too kindly.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Any

_GIVE_UP_SECONDS = 20.0  # after the last request was sent


@dataclasses.dataclass(frozen=True)
class Load:
    """Requests that are sent for some seconds: `at_once` of them at any time, or at random times at a `rate`."""

    seconds: float
    at_once: int = 0
    rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """When a request was due and answered, by `perf_counter`, and its status; 0 if the connection was lost."""

    due: float
    ended: float
    status: int


def status_of(received: bytes) -> int | None:
    """The status of an HTTP answer; None while a part of it is missing."""
    head, end, body = received.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
    return int(head[9:12]) if end and len(body) >= int(length or 0) else None


class _Connection(asyncio.Protocol):
    """A connection that answers one request after the other."""

    def __init__(self, pool: "_Pool"):
        self._pool = pool
        self._buffer = b""
        self._transport: Any = None
        self._due = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, due: float, request: bytes) -> None:
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if (status := status_of(self._buffer)) is not None:
            self._buffer = b""
            self._finish(status)

    def connection_lost(self, error: Exception | None) -> None:
        self._finish(0)

    def _finish(self, status: int) -> None:
        if self._due:
            due, self._due = self._due, 0.0
            self._pool.finished(self, Answer(due, time.perf_counter(), status))

    def close(self) -> None:
        self._transport.close()


class _Pool:
    """Connections to a service, opened when all others are busy."""

    def __init__(self, port: int, requests: Iterator[bytes]):
        self.answers: list[Answer] = []
        self.sent = 0
        self._port = port
        self._requests = requests
        self._idle: deque[_Connection] = deque()
        self._all: list[_Connection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._until = 0.0  # requests are sent as answers come

    async def open(self, count: int) -> None:
        for _ in range(count):
            self._idle.append(await self._connect())

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        self._all.append(connection)
        return connection

    def send(self, due: float) -> None:
        self.sent += 1
        if self._idle:
            self._idle.popleft().send(due, next(self._requests))
            return
        task = asyncio.ensure_future(self._send_on_new(due))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _send_on_new(self, due: float) -> None:
        try:
            (await self._connect()).send(due, next(self._requests))
        except OSError:
            self.answers.append(Answer(due, time.perf_counter(), 0))

    def finished(self, connection: _Connection, answer: Answer) -> None:
        self.answers.append(answer)
        if answer.status:
            self._idle.append(connection)
            if time.perf_counter() < self._until:
                self.send(time.perf_counter())

    async def closed(self, at_once: int, seconds: float) -> None:
        await self.open(at_once)
        self._until = time.perf_counter() + seconds
        for _ in range(at_once):
            self.send(time.perf_counter())
        await asyncio.sleep(seconds)

    async def at_rate(self, rate: float, seconds: float, rng: random.Random) -> None:
        await self.open(8)
        due = began = time.perf_counter()
        while (due := due + rng.expovariate(rate)) < began + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.send(due)

    async def finish(self) -> None:
        until = time.perf_counter() + _GIVE_UP_SECONDS
        while len(self.answers) < self.sent and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        for connection in self._all:
            connection.close()


async def _run(port: int, requests: Iterator[bytes], load: Load, seed: int) -> list[Answer]:
    pool = _Pool(port, requests)
    if load.at_once:
        await pool.closed(load.at_once, load.seconds)
    else:
        await pool.at_rate(load.rate, load.seconds, random.Random(seed))
    await pool.finish()
    return pool.answers


def _work(pipe: Pipe, port: int, requests: Sequence[bytes], cores: set[int] | None) -> None:
    if cores is not None:
        os.sched_setaffinity(0, cores)
    following = itertools.cycle(requests)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        for seed in itertools.count():
            pipe.send(asyncio.run(_run(port, following, pipe.recv(), seed)))


class Clients:
    """A process that sends requests to a service on this machine, for a `with` statement."""

    def __init__(self, port: int, requests: Sequence[bytes], *, cores: set[int] | None = None):
        """
        Args:
          requests: whole requests of HTTP/1.1, which are sent in turn, again and again.
          cores: those that the process may use; by default those of this process.
        """
        context = multiprocessing.get_context("spawn")  # a fork would have the threads' locks, without the threads
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, port, requests, cores), daemon=True)

    def offer(self, load: Load) -> list[Answer]:
        """Sends the requests of a load, and waits for their answers. Raises EOFError if the process has ended."""
        self._pipe.send(load)
        while not self._pipe.poll(0.1):
            if not self._process.is_alive():
                raise EOFError("the process of the clients has ended")
        answers: list[Answer] = self._pipe.recv()
        return answers

    def __enter__(self) -> "Clients":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def post(path: str, body: bytes) -> bytes:
    """A request of HTTP/1.1 with a JSON body, as it is sent."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
