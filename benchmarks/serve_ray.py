"""The service in replicas of Ray Serve beside the same service in one process.

python benchmarks/serve_ray.py --run=RUN --texts=TEXTS      # of a text classifier
python benchmarks/serve_ray.py --run=RUN --digits           # of logistic_digits

Compares the answers for all inputs; the latency of a single client and the requests a second of several, of which each
sends its next request when it has its answer (load.py): the services run side by side, and are measured in turn. Then
it counts the failed requests of clients that retry while a replica is killed, and while all are replaced by a second
call of the command. Needs the extras `serve`, `ray` and `client`.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvloop
from load import Answer, ClosedPool, post
from turns import environment

from research.client import AsyncClient, Client

CLIENTS = 8


def command(arguments: argparse.Namespace, port: int, *flags: str, models: Sequence[str] = ("model",)) -> list[str]:
    runs = [f"--workdir={name}={arguments.run}" for name in models]
    fixed = [sys.executable, "-m", "research.serve", "--cache_entries=0", "--log=none", f"--port={port}"]
    return [*fixed, f"--compute={arguments.compute}", *runs, *flags]


@contextlib.contextmanager
def started(command: list[str], port: int, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A service that is ready -> (it, the seconds that took)."""
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file)
    try:
        if "--engine=ray" in command:
            # Both replicas, rather than the first.
            until(lambda: process.poll() is not None or "ready: http" in log.read_text(), 300.0)
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        with Client(f"http://127.0.0.1:{port}") as client:
            client.wait_until_ready(300)
        yield process, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(90)


def closed(port: int, bodies: Sequence[bytes], count: int, at_once: int) -> tuple[float, list[float]]:
    """Sends requests, `at_once` at a time -> (answered a second, the latencies in ms)."""
    requests = itertools.islice(itertools.cycle(post("/models/model/predict", body) for body in bodies), count)

    async def run() -> tuple[float, list[Answer]]:
        began = time.perf_counter()
        answers = await ClosedPool("127.0.0.1", port, at_once, requests).run(count)
        return time.perf_counter() - began, answers

    seconds, answers = uvloop.run(run())
    assert {answer.status for answer in answers} == {200}
    return count / seconds, [answer.latency_ms for answer in answers]


def replicas(parent: int) -> list[int]:
    """The processes of replicas that descend from a process."""
    found, below = [], {parent}
    for pid in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(OSError):
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) in below:
                below.add(pid)
                if b"ServeReplica" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
    return found


class Load:
    """Clients that send one request of one input after the other, and retry.

    Attributes:
      answered: when each request had its answer, and how long it took with its retries.
      failed: the errors of those that had none.
      refused: the statuses that were retried.
    """

    def __init__(self, port: int, inputs: Sequence[Any]):
        self.answered: list[tuple[float, float]] = []
        self.failed: list[Exception] = []
        self.refused: Counter[int] = Counter()
        self._url, self._inputs = f"http://127.0.0.1:{port}", inputs
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _count(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            self.refused[response.status_code] += 1

    async def _run(self) -> None:
        async with AsyncClient(self._url, concurrency=CLIENTS) as client:  # with its usual retries
            client._http.event_hooks["response"].append(self._count)
            await asyncio.gather(*(self._ask(client, number) for number in range(CLIENTS)))

    async def _ask(self, client: AsyncClient, number: int) -> None:
        while not self._stopped.is_set():
            number = (number + CLIENTS) % len(self._inputs)
            began = time.perf_counter()
            try:
                await client.predict("model", [self._inputs[number]])
            except Exception as error:
                self.failed.append(error)
            now = time.perf_counter()
            self.answered.append((now, now - began))

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def line(self) -> str:
        longest = max(seconds for _, seconds in self.answered)
        retried = ", ".join(f"{count} times {status}" for status, count in sorted(self.refused.items())) or "none"
        return (
            f"{len(self.answered)} requests, {len(self.failed)} failed; statuses that were retried: {retried}; the "
            f"longest request took {longest:.2f} s with its retries {self.failed[:1] or ''}"
        )


def predictions(port: int, inputs: Sequence[Any]) -> list[Any]:
    with Client(f"http://127.0.0.1:{port}") as client:
        return client.predict("model", inputs)


def difference(one: Sequence[Any], other: Sequence[Any]) -> str:
    labels = sum(a.prediction != b.prediction for a, b in zip(one, other, strict=True))
    scores = max(
        abs(a.scores[name] - b.scores[name]) for a, b in zip(one, other, strict=True) for name in a.scores or ()
    )
    return f"{len(one)} inputs: {labels} other labels, scores at most {scores:.2g} off"


def until(true: Any, seconds: float = 120.0) -> float:
    """Waits -> the seconds that it took."""
    began = time.perf_counter()
    while not true():
        if time.perf_counter() > began + seconds:
            raise SystemExit(f"it did not happen within {seconds:g} s")
        time.sleep(0.05)
    return time.perf_counter() - began


def failures(arguments: argparse.Namespace, port: int, inputs: Sequence[Any], log: Path) -> None:
    """Kills a replica under load, and replaces all of them."""
    with started(command(arguments, port, "--engine=ray", "--min_replicas=2"), port, log) as (process, _):
        old = replicas(process.pid)
        with Load(port, inputs) as load:
            time.sleep(5)
            os.kill(old[0], signal.SIGKILL)
            back = until(lambda: len(set(replicas(process.pid)) - {old[0]}) == 2)
            time.sleep(10)
        print(f"a replica killed: {load.line()}; its successor's process was there after {back:.1f} s")
        address = re.search(r"--ray_address=(\S+)", log.read_text())
        assert address
        both = command(
            arguments, port, "--engine=ray", "--min_replicas=2", f"--ray_address={address[1]}", models=("model", "new")
        )
        old = replicas(process.pid)
        with Load(port, inputs) as load:
            time.sleep(2)
            began = time.perf_counter()
            with Path(f"{log}.update").open("wb") as file:
                subprocess.run(both, check=True, stderr=file, stdout=file)
            took = time.perf_counter() - began
            time.sleep(2)
        kept = set(old) & set(replicas(process.pid))
        with Client(f"http://127.0.0.1:{port}") as client:
            names = [model["name"] for model in client.models()]
        print(f"rolling update in {took:.1f} s to {names}, {len(kept)} of 2 replicas kept: {load.line()}")


@dataclasses.dataclass
class Side:
    """A service, and of each round: its requests a second, their median latency, and that of a single client, in ms."""

    name: str
    port: int
    answers: list[Any]
    rates: list[float] = dataclasses.field(default_factory=list)
    medians: list[float] = dataclasses.field(default_factory=list)
    singles: list[float] = dataclasses.field(default_factory=list)

    def measure(self, bodies: Sequence[bytes], arguments: argparse.Namespace) -> None:
        closed(self.port, bodies, 50, arguments.at_once)
        self.singles.append(statistics.median(closed(self.port, bodies, arguments.single, 1)[1]))
        rate, latencies = closed(self.port, bodies, arguments.requests, arguments.at_once)
        self.rates.append(rate)
        self.medians.append(statistics.median(latencies))


def table(found: Sequence[Side], at_once: int) -> Iterator[str]:
    yield f"| | requests/s, {at_once} clients | by round | beside one process | p50, ms | p50, one client | beside |"
    yield "|---|---|---|---|---|---|---|"
    for side in found:
        rates = ", ".join(f"{rate:.0f}" for rate in side.rates)
        more, longer = (
            statistics.median(own / first for own, first in zip(mine, theirs, strict=True))
            for mine, theirs in ((side.rates, found[0].rates), (side.singles, found[0].singles))
        )
        rate, p50, single = (statistics.median(values) for values in (side.rates, side.medians, side.singles))
        yield f"| {side.name} | {rate:.0f} | {rates} | {more:.2f} | {p50:.1f} | {single:.1f} | {longer:.2f} |"


def compare(arguments: argparse.Namespace, inputs: Sequence[Any], folder: Path) -> None:
    """The services side by side, measured in turn."""
    bodies = [json.dumps({"inputs": [each]}).encode() for each in inputs]
    kinds = {
        "one process": [],
        "Ray, 1 replica": ["--engine=ray"],
        "Ray, 2 replicas": ["--engine=ray", "--min_replicas=2"],
    }
    with contextlib.ExitStack() as services:
        found = []
        for port, (name, flags) in enumerate(kinds.items(), arguments.port):
            service = started(command(arguments, port, *flags), port, folder / name)
            _, seconds = services.enter_context(service)
            print(f"{name}: ready after {seconds:.1f} s")
            found.append(Side(name, port, predictions(port, inputs)))
        for _ in range(arguments.rounds):
            for side in found:
                side.measure(bodies, arguments)
        for side in found[1:]:
            print(f"{side.name} beside {found[0].name}: {difference(found[0].answers, side.answers)}")
        print("\n".join(table(found, arguments.at_once)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a run directory of a classifier")
    parser.add_argument("--texts", help="a file with a text in each line")
    parser.add_argument("--digits", action="store_true", help="ask for scikit-learn's digits instead")
    parser.add_argument("--compute", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at_once", type=int, default=16, help="clients")
    parser.add_argument("--requests", type=int, default=1000, help="of all clients in a round")
    parser.add_argument("--single", type=int, default=100, help="requests of a single client in a round")
    parser.add_argument("--port", type=int, default=8300, help="the first of the ports to use")
    arguments = parser.parse_args()
    if arguments.digits:
        from sklearn.datasets import load_digits

        inputs: list[Any] = load_digits().images[:256, :, :, None].tolist()
    else:
        inputs = Path(arguments.texts).read_text().splitlines()
    print(environment("jax", "ray", "fastapi"), os.getloadavg())
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, inputs, Path(folder))
        failures(arguments, arguments.port, inputs, Path(folder, "log"))


if __name__ == "__main__":
    main()
