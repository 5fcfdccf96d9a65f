"""A service of a decoder at several times its capacity: refusals, accepted texts, the time afterwards, and memory.

python benchmarks/generate_overload.py --weights=FOLDER [--times=10] [--seconds=60] [--requests=20000]

FOLDER is a decoder with a chat template, or, with --tiny, is written first: a decoder of a few thousand parameters. The
service is a process of its own; this process asks. Its load is open: requests are due at a fixed rate whether or not
earlier ones are answered. Then memory is compared before and after mixed requests: texts, chats, streams that are read,
closed in the middle or not read for a while, and requests that are refused.
"""

import argparse
import collections
import itertools
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop
from load import Answer, Pool, generate, post, quantile
from serve_overload import HOST, closed, quantiles, resident

from research.client import Client

CONNECTIONS = 2000  # of the open load
CLOSED = 16  # requests at the same time when the capacity is measured
CLIENTS = 16  # of the mixed requests
WARM_UP = 8000  # mixed requests before memory is measured first
PARTS = 5  # of the mixed requests, after each of which memory is measured
TOKENS = 24


def completions() -> Iterator[bytes]:
    """Requests of one text each, all different. No streams, whose end the client of the open load does not know."""
    for number in itertools.count():
        body = {"prompt": f"The sea {number}", "max_tokens": TOKENS, "seed": number}
        yield post("/v1/completions", json.dumps(body).encode())


def mixed(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """The path and the body of a request."""
    body: dict[str, Any] = {
        "max_tokens": rng.choice((1, 8, TOKENS)),
        "temperature": rng.choice((0, 0.8)),
        "stream": rng.random() < 0.5,
        "n": rng.choice((1, 1, 1, 2, 4, 99)),
    }
    if rng.random() < 0.2:
        body |= {"top_p": 0.9, "repetition_penalty": 1.2, "stop": ["e", "ab"]}
    if rng.random() < 0.5:
        messages = [{"role": "user", "content": "x" * rng.choice((1, 20, 100, 10_000))}] * rng.choice((1, 1, 3))
        return "/v1/chat/completions", {
            **body,
            "messages": messages,
            "logprobs": True,
            "top_logprobs": rng.randrange(5),
        }
    return "/v1/completions", {**body, "prompt": rng.choice(("The sea", "x" * 100, "x" * 10_000, [1, 2, 3], [10**6]))}


def ask(port: int, rng: random.Random) -> tuple[str, bool]:
    """The status of a mixed request, or how it was left -> (it, whether a refusal for overload lacks Retry-After)."""
    path, body = mixed(rng)
    leaves = rng.random() if body["stream"] else 1.0
    with socket.create_connection((HOST, port), 60) as connection:
        connection.sendall(post(path, json.dumps(body).encode(), headers="Connection: close\r\n"))
        if leaves < 0.1:
            return "closed", False
        if leaves < 0.2:
            connection.recv(rng.choice((1, 500)))
            return "closed in the middle", False
        if leaves < 0.25:
            time.sleep(0.2)
        found = b""
        while part := connection.recv(65536):
            found += part
    head, _, content = found.partition(b"\r\n\r\n")
    status = head[9:12].decode()
    if status == "200" and body["stream"] and b"data: [DONE]" not in content:
        return "stream without an end", False
    return status, status == "429" and b"retry-after:" not in head.lower()


def soak(port: int, count: int, seed: int) -> tuple[collections.Counter[str], int]:
    """Sends mixed requests from CLIENTS threads -> (their statuses, refusals without Retry-After)."""
    statuses: collections.Counter[str] = collections.Counter()
    wrong = 0
    numbers, lock = iter(range(count)), threading.Lock()

    def work() -> None:
        nonlocal wrong
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                status, lacks = ask(port, random.Random(f"{seed} {number}"))
            except OSError as error:
                status, lacks = type(error).__name__, False
            with lock:
                statuses[status] += 1
                wrong += lacks

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, wrong


def overload(port: int, arguments: argparse.Namespace) -> None:
    requests = completions()
    closed(port, requests, count=100, at_once=CLOSED)
    began = time.perf_counter()
    answers = closed(port, requests, count=arguments.measured, at_once=CLOSED)
    capacity = sum(answer.status == 200 for answer in answers) / (time.perf_counter() - began)
    rate = arguments.times * capacity
    print(f"capacity: {capacity:.1f} texts/s of {TOKENS} tokens", flush=True)

    async def load() -> list[Answer]:
        pool = Pool(HOST, port, CONNECTIONS)
        sent = await generate(pool, requests, rate, arguments.seconds, seed=0)
        print(f"open load: {sent} requests, {rate:.0f}/s; at most {pool.waited} waited for a connection")
        return pool.answers

    answers = uvloop.run(load())
    statuses = collections.Counter(answer.status for answer in answers)
    print(f"statuses: {dict(sorted(statuses.items()))}")
    for status, name in ((200, "texts"), (429, "refusals")):
        print(f"{name}, from sending: {quantiles([1000 * (a.ended - a.sent) for a in answers if a.status == status])}")
    began = time.perf_counter()
    after = closed(port, requests, count=20, at_once=1)
    took = quantile([answer.latency_ms for answer in after], 0.5)
    print(f"afterwards, one at a time: {collections.Counter(a.status for a in after)}, p50 {took:.1f} ms", flush=True)


def memory(port: int, pid: int, count: int) -> None:
    soak(port, WARM_UP, seed=-1)
    sizes, total, wrong, began = [resident(pid)], collections.Counter[str](), 0, time.perf_counter()
    for part in range(PARTS):
        statuses, lacking = soak(port, count // PARTS, seed=part)
        total, wrong = total + statuses, wrong + lacking
        sizes.append(resident(pid))
    seconds = time.perf_counter() - began
    print(f"{count} mixed requests in {seconds:.0f} s: {dict(sorted(total.items()))}; {wrong} without Retry-After")
    print(
        "memory: " + " -> ".join(f"{size:.1f}" for size in sizes) + f" MiB ({100 * (sizes[-1] / sizes[0] - 1):+.2f} %)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="the folder of a decoder")
    parser.add_argument("--tiny", action="store_true", help="write a tiny decoder there first")
    parser.add_argument("--times", type=float, default=10.0, help="the load, in capacities")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the load lasts")
    parser.add_argument("--measured", type=int, default=400, help="the texts that the capacity is measured with")
    parser.add_argument("--requests", type=int, default=20_000, help="the mixed requests for which memory is measured")
    arguments = parser.parse_args()
    if arguments.tiny:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tests.interop.tiny_decoder import write_chat

        write_chat(Path(arguments.weights), max_position_embeddings=512)
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        port = unused.getsockname()[1]
    flags = [f"--workdir=m={arguments.weights}", f"--port={port}", "--log=none"]
    with subprocess.Popen([sys.executable, "-m", "research.serve", *flags]) as service:
        try:
            Client(f"http://{HOST}:{port}").wait_until_ready()
            overload(port, arguments)
            memory(port, service.pid, arguments.requests)
        finally:
            service.terminate()


if __name__ == "__main__":
    main()
