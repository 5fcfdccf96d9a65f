"""The service at several times its capacity: refusals, accepted requests, the time afterwards, and memory.

python benchmarks/serve_overload.py --workdir=RUN --texts=TEXTS [--times=10] [--seconds=60] [--requests=100000]

RUN is a classifier of single texts; TEXTS a file with a text in each line, to each of which a number is added, so that
no two requests are equal. The service is a process of its own, without a cache; this process asks. Its load is open:
requests are due at a fixed rate whether or not earlier ones are answered. Refusals and answers are timed from when they
were sent; how late this process sends them is reported too, as it shares the cores.
"""

import argparse
import collections
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop
from load import Answer, ClosedPool, Pool, generate, post, quantile

from research.client import Client
from research.serve.limits import Limits

HOST = "127.0.0.1"
CONNECTIONS = 4000  # of the open load
CLOSED = 64  # requests at the same time when the capacity is measured
REFUSED_MS = 50.0  # what a refusal may take
WARM_UP = 10_000  # requests before memory is measured first


def json_post(path: str, body: Any) -> bytes:
    return post(path, body if isinstance(body, bytes) else json.dumps(body).encode())


def predictions(texts: list[str]) -> Iterator[bytes]:
    """Requests of one text each, all different."""
    for number, text in enumerate(itertools.cycle(texts)):
        yield json_post("/models/m/predict", {"inputs": [f"{text} {number}"]})


def mixed() -> Iterator[bytes]:
    """Requests of every protocol, and some that are refused."""
    for number in itertools.count():
        text = f"a dull film number {number}"
        tensor = {"name": "sentence", "shape": [1], "datatype": "BYTES", "data": [text]}
        yield from (
            json_post("/models/m/predict", {"inputs": [text, text + " again"]}),
            json_post("/predict", {"inputs": [[text]]}),
            json_post("/v2/models/m/infer", {"inputs": [tensor]}),
            json_post("/tokenize", {"inputs": text}),
            json_post("/models/m/predict", b"{" * (number % 50)),
            json_post("/models/m/predict", {"inputs": [text * 100, 1]}),
            b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
            if number % 50 == 0
            else json_post("/nothing", {"number": number}),
        )


def closed(port: int, requests: Iterator[bytes], *, count: int, at_once: int = CLOSED) -> list[Answer]:
    """Sends `count` requests, `at_once` at a time."""
    return uvloop.run(ClosedPool(HOST, port, at_once, itertools.islice(requests, count)).run(count))


def quantiles(values: list[float]) -> str:
    if not values:
        return "none"
    return f"p50 {quantile(values, 0.5):.1f}, p99 {quantile(values, 0.99):.1f}, max {max(values):.1f} ms"


def back_to_normal(after: list[Answer], normal: float, since: float) -> float | None:
    """The seconds until ten probes in a row take at most `normal` ms."""
    for i in range(len(after) - 9):
        if all(answer.status == 200 and answer.latency_ms <= normal for answer in after[i : i + 10]):
            return after[i].due - since
    return None


def resident(pid: int) -> float:
    """MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def report(answers: list[Answer], limits: Limits) -> None:
    statuses = collections.Counter(answer.status for answer in answers)
    print("statuses: " + ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items())))
    took = [1000 * (answer.ended - answer.sent) for answer in answers if answer.status == 429]
    print(f"refusals, from sending: {quantiles(took)}")
    began = min(answer.due for answer in answers)
    late = [
        answer.due - began
        for answer in answers
        if answer.status == 429 and answer.ended - answer.sent > REFUSED_MS / 1000
    ]
    after = sum(each > 1 for each in late)
    print(f"refusals above {REFUSED_MS:g} ms: {len(late)} of {len(took)}, {after} of them after the first second")
    bound = limits.queue_ms + 2 * limits.batch_ms
    accepted = [1000 * (answer.ended - answer.sent) for answer in answers if answer.status == 200]
    above = sum(each > bound for each in accepted)
    print(f"accepted, from sending: {quantiles(accepted)}; {above} of {len(accepted)} above {bound:g} ms")


def overload(port: int, arguments: argparse.Namespace) -> None:
    requests, limits = predictions(Path(arguments.texts).read_text().splitlines()), Limits()
    closed(port, requests, count=500)
    began = time.perf_counter()
    answers = closed(port, requests, count=arguments.measured)
    capacity = sum(answer.status == 200 for answer in answers) / (time.perf_counter() - began)
    single = closed(port, requests, count=100, at_once=1)
    normal = quantile([answer.latency_ms for answer in single], 0.95)
    print(f"capacity: {capacity:.0f} requests/s; p95 of single requests: {normal:.1f} ms")
    rate = arguments.times * capacity

    async def load() -> tuple[Pool, float]:
        pool = Pool(HOST, port, CONNECTIONS)
        sent = await generate(pool, requests, rate, arguments.seconds, seed=0)
        print(f"open load: {sent} requests, {rate:.0f}/s; at most {pool.waited} waited for a connection")
        return pool, max(answer.due for answer in pool.answers)

    pool, ended = uvloop.run(load())
    lag = [1000 * (answer.sent - answer.due) for answer in pool.answers if answer.sent]
    print(f"sent after they were due, by this process: {quantiles(lag)}")
    report(pool.answers, limits)
    after = closed(port, requests, count=150, at_once=1)
    found = back_to_normal(after, 2 * normal, ended)
    print(f"ten probes in a row within {2 * normal:.1f} ms: {'never' if found is None else f'after {found:.2f} s'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="the run of a classifier of single texts")
    parser.add_argument("--texts", required=True, help="a file with a text in each line")
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
            overload(port, arguments)
            closed(port, mixed(), count=WARM_UP)
            before, began = resident(service.pid), time.perf_counter()
            done = closed(port, mixed(), count=arguments.requests)
            seconds, after = time.perf_counter() - began, resident(service.pid)
            statuses = collections.Counter(request.status for request in done)
            print(f"{arguments.requests} mixed requests in {seconds:.0f} s: {dict(sorted(statuses.items()))}")
            print(f"memory: {before:.1f} -> {after:.1f} MiB ({100 * (after / before - 1):+.2f} %)")
        finally:
            service.terminate()


if __name__ == "__main__":
    main()
