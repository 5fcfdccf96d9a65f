"""Connections that send slowly, stop in the middle, or do not read what they ask for: see tests/serve_fuzz.py."""

import contextlib
import json
import random
import socket
import time
from collections.abc import Callable
from typing import Any

from research.serve.server import KEEP_ALIVE_SECONDS

_HEAD = b"POST /models/features/predict HTTP/1.1\r\nHost: x\r\n"


def _drip(connection: socket.socket, data: bytes, seconds: float = 30.0) -> None:
    """Sends byte by byte until the service closes. Raises TimeoutError if it does not."""
    began = time.monotonic()
    connection.settimeout(0.02)
    for place in range(len(data)):
        connection.sendall(data[place : place + 1])
        with contextlib.suppress(TimeoutError):
            if not connection.recv(65536):
                return
        if time.monotonic() - began > seconds:
            raise TimeoutError
    _closed(connection)


def _closed(connection: socket.socket, seconds: float = KEEP_ALIVE_SECONDS + 15.0) -> None:
    """Reads until the service closes."""
    connection.settimeout(seconds)
    while connection.recv(65536):
        pass


def slow_head(connection: socket.socket, rng: random.Random) -> None:
    _drip(connection, _HEAD + b"X: " + b"y" * 10_000)


def slow_body(connection: socket.socket, rng: random.Random) -> None:
    connection.sendall(_HEAD + b"Content-Length: 10000\r\n\r\n")
    _drip(connection, b" " * 10_000)


def slow_chunks(connection: socket.socket, rng: random.Random) -> None:
    connection.sendall(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    _drip(connection, b"1\r\n \r\n" * 5000)


def nothing(connection: socket.socket, rng: random.Random) -> None:
    _closed(connection)


def endless_head(connection: socket.socket, rng: random.Random) -> None:
    connection.sendall(_HEAD)
    part = rng.choice((b"y" * 65536, b"".join(b"x-%d: y\r\n" % i for i in range(5000))))
    connection.sendall(b"X: " if part[:1] == b"y" else b"")
    for _chunk in range(500):
        connection.sendall(part)
    _closed(connection)


def endless_trailers(connection: socket.socket, rng: random.Random) -> None:
    connection.sendall(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n0\r\nX: ")
    for _chunk in range(500):
        connection.sendall(b"y" * 65536)
    _closed(connection)


def half_closed(connection: socket.socket, rng: random.Random) -> None:
    body = rng.choice((b"", b"[", b'{"inputs": [[1,1,1,1,1,1,1,1,1,1]]}'))
    connection.sendall(_HEAD + b"Content-Length: 35\r\n\r\n" + body)
    connection.shutdown(socket.SHUT_WR)
    _closed(connection)


def closed_in_the_middle(connection: socket.socket, rng: random.Random) -> None:
    request = _HEAD + b"Content-Length: 35\r\n\r\n" + b'{"inputs": [[1,1,1,1,1,1,1,1,1,%d]]}' % rng.randrange(10)
    connection.sendall(request[: rng.randrange(len(request) + 1)])
    if rng.random() < 0.5:  # a reset
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def garbage(connection: socket.socket, rng: random.Random) -> None:
    lines = (
        b"\x16\x03\x01\x02",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0" * 1000,
    )
    heads = (b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"Content-Length: -1\r\n\r\n", b"Host : x\r\n\r\n")
    chunks = (
        b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"Transfer-Encoding: x, chunked\r\n\r\nzz\r\n",
    )
    connection.sendall(rng.choice((*lines, rng.randbytes(300), *(_HEAD + each for each in (*heads, *chunks)))))
    _closed(connection)


def pipelined(connection: socket.socket, rng: random.Random) -> None:
    connection.sendall((_HEAD + b"Content-Length: 35\r\n\r\n" + b'{"inputs": [[1,1,1,1,1,1,1,1,1,1]]}') * 200)
    _closed(connection)


def _stream(rng: random.Random, **more: Any) -> bytes:
    """A request for long texts as a stream; of all tokens with others, it is some MiB."""
    body = {"model": "chat", "prompt": "The sea", "max_tokens": 500, "n": rng.choice((1, 2, 8)), "stream": True, **more}
    data = json.dumps(body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(data), data)


def stream_closed_in_the_middle(connection: socket.socket, rng: random.Random) -> None:
    connection.sendall(_stream(rng))
    left = rng.choice((0, 1, 300, 10_000))
    while left > 0 and (part := connection.recv(min(left, 4096))):
        left -= len(part)
    if rng.random() < 0.5:  # a reset
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def stream_read_slowly(connection: socket.socket, rng: random.Random) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(_stream(rng, logprobs=20))
    until = time.monotonic() + rng.choice((1.0, 5.0, 15.0))
    while time.monotonic() < until and connection.recv(1000):
        time.sleep(0.05)


def stream_not_read(connection: socket.socket, rng: random.Random) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(_stream(rng, logprobs=20, stream=rng.random() < 0.7))
    time.sleep(rng.choice((0.5, 2.0, 15.0)))


ATTACKS: tuple[Callable[[socket.socket, random.Random], None], ...] = (
    slow_head, slow_body, slow_chunks, nothing, endless_head, endless_trailers, half_closed, closed_in_the_middle,
    garbage, pipelined, stream_closed_in_the_middle, stream_read_slowly, stream_not_read,
)  # fmt: skip
