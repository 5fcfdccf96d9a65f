"""The service beside what people run: requests a second at a bounded latency, and latency at light load.

python -m research.export --workdir=RUN --out=FOLDER
python benchmarks/serve_peers.py --kind=export --folder=FOLDER
python benchmarks/serve.py --run=RUN --folder=FOLDER --texts=TEXTS           # about 10 minutes a round

RUN is a text classifier; TEXTS a file with a text in each line, such as SST-2's dev sentences. FOLDER has the same
model for the peers (serve_peers.py): transformers' pipeline, and ONNX Runtime in float32 and dynamic int8, each behind
FastAPI, with one request at a time on all cores and with one on each core. The servers are started once; in every round
each is measured in turn, while the others wait. Requests of one text come at random times (load.py). The throughput is
the highest rate, within 8 %, at which every request is answered and the 99th percentile of the latency is at most
--p99_ms. The service's cache of answers is off, except in the row that says so. Needs the `serve` and `parity` extras,
onnx and onnxruntime.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from turns import environment

HERE = Path(__file__).parent
LIGHT = 4.0  # requests a second at light load
PACKAGES = ("jax", "torch", "transformers", "onnxruntime", "fastapi")


@dataclasses.dataclass
class Side:
    """A server to measure.

    Attributes:
      ready: the path that answers 200 when it is ready.
      cached: whether each text is sent once before anything is measured.
      path: that of the requests.
      capacity: the highest rate within the bound, of each round.
      light: (p50, p99) at light load, of each round, in milliseconds.
      compute: the mean time of the model itself at light load, where the server tells it, in milliseconds.
    """

    name: str
    command: list[str]
    port: int
    ready: str = "/docs"
    cached: bool = False
    path: str = "/predict"
    capacity: list[float] = dataclasses.field(default_factory=list)
    light: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    compute: list[float] = dataclasses.field(default_factory=list)


def sides(arguments: argparse.Namespace) -> list[Side]:
    ours = [sys.executable, "-m", "research.serve", f"--workdir=model={arguments.run}", "--log=none"]
    ours += arguments.service.split()
    peer = [sys.executable, str(HERE / "serve_peers.py"), f"--folder={arguments.folder}"]
    cores = os.cpu_count() or 1
    found = [
        Side(f"this project, {compute}", [*ours, f"--compute={compute}", "--cache_entries=0"], 0, "/v2/health/ready")
        for compute in arguments.compute
    ]
    found.append(Side("this project, cached", ours, 0, "/v2/health/ready", cached=True))
    kinds = {
        "transformers' pipeline": ["--kind=pipeline", f"--device={arguments.device}", f"--dtype={arguments.dtype}"],
        "ONNX Runtime float32": ["--kind=onnx"],
        "ONNX Runtime int8": ["--kind=onnx", "--file=int8.onnx"],
    }
    for name, flags in kinds.items():
        for workers in sorted({1, cores}):
            command = [*peer, *flags, f"--workers={workers}", f"--threads={cores // workers}"]
            found.append(Side(f"{name}, {workers} at a time", command, 0))
    for number, side in enumerate(found):
        side.port = arguments.port + number
        side.command.append(f"--port={side.port}")
    return [side for side in found if re.search(arguments.only, side.name)]


@contextlib.contextmanager
def started(side: Side) -> Iterator[float]:
    """Starts a server -> the seconds until it was ready."""
    began = time.perf_counter()
    process = subprocess.Popen(side.command, stdout=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                if urllib.request.urlopen(f"http://127.0.0.1:{side.port}{side.ready}", timeout=5).status == 200:
                    break
            if process.poll() is not None:
                raise SystemExit(f"{side.name} ended with exit code {process.returncode}")
            time.sleep(0.2)
        yield time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def load(side: Side, bodies: Path, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    flags = [f"--port={side.port}", f"--path={side.path}", f"--bodies={bodies}", f"--rate={rate}"]
    flags += [f"--seconds={seconds}", f"--seed={seed}"]
    made = subprocess.run([sys.executable, str(HERE / "load.py"), *flags], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def capacity(side: Side, bodies: Path, seconds: float, p99_ms: float, seed: int) -> float:
    """The highest rate within the bound: doubled or halved until it is enclosed, then bisected."""

    def holds(rate: float) -> bool:
        found = load(side, bodies, rate, seconds, seed)
        good = set(found["statuses"]) == {"200"} and found["p99_ms"] <= p99_ms
        print(f"  {side.name} at {rate:.0f}/s: p99 {found['p99_ms']:.1f} ms, {found['statuses']}", file=sys.stderr)
        return good

    low, high = 0.0, 0.0
    rate = side.capacity[-1] if side.capacity else 60.0
    while not (low and high):
        if holds(rate):
            low, rate = rate, rate * 2 if not side.capacity else rate * 1.3
        else:
            high, rate = rate, rate / 2 if not side.capacity else rate / 1.3
        if rate < 1:
            return 0.0
    while high / low > 1.08:
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def compute_seconds(side: Side) -> tuple[float, float]:
    """The sum and the count of the time that requests spent in the model, from the service's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{side.port}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    found = {"sum": 0.0, "count": 0.0}
    for line in lines:
        if match := re.match(r'research_stage_seconds_(sum|count)\{.*stage="compute".*\} (\S+)', line):
            found[match[1]] += float(match[2])
    return found["sum"], found["count"]


def measure(side: Side, bodies: Path, arguments: argparse.Namespace, seed: int) -> None:
    ours = side.ready.startswith("/v2")
    if side.cached and not side.capacity:
        load(side, bodies, 20.0, len(bodies.read_text().splitlines()) / 20.0 * 1.5, seed)
    before = compute_seconds(side) if ours else (0.0, 0.0)
    light = load(side, bodies, LIGHT, arguments.light_seconds, seed)
    side.light.append((light["p50_ms"], light["p99_ms"]))
    if ours:
        after = compute_seconds(side)
        side.compute.append(1000 * (after[0] - before[0]) / max(1.0, after[1] - before[1]))
    side.capacity.append(capacity(side, bodies, arguments.seconds, arguments.p99_ms, seed))
    print(f"{side.name}: {side.capacity[-1]:.0f} requests/s, light load p50 {light['p50_ms']:.1f} ms", file=sys.stderr)


def table(found: Sequence[Side], p99_ms: float) -> Iterator[str]:
    yield f"| | requests/s at p99 ≤ {p99_ms:g} ms | lowest–highest | p50 at light load, ms | p99 | of it the model |"
    yield "|---|---|---|---|---|---|"
    for side in found:
        p50, p99 = (statistics.median(values) for values in zip(*side.light, strict=True))
        own = f"{statistics.median(side.compute):.1f}" if side.compute else ""
        rates = f"{min(side.capacity):.0f}–{max(side.capacity):.0f}"
        yield f"| {side.name} | {statistics.median(side.capacity):.0f} | {rates} | {p50:.1f} | {p99:.1f} | {own} |"
    yield ""
    first, *others = found
    for other in others:
        ratios = [mine / max(1.0, theirs) for mine, theirs in zip(first.capacity, other.capacity, strict=True)]
        yield f"{first.name} over {other.name}: {statistics.median(ratios):.2f} times the requests a second  "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a run directory of a text classifier")
    parser.add_argument("--folder", required=True, help="the same model, exported")
    parser.add_argument("--texts", required=True, help="a file with a text in each line")
    parser.add_argument("--compute", nargs="+", default=["float32"], help="what the service computes in")
    parser.add_argument("--only", default="", help="a regular expression of the rows to measure")
    parser.add_argument("--rounds", type=int, default=3, help="0: only until each is ready")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a trial of a rate")
    parser.add_argument("--light_seconds", type=float, default=15.0, help="at light load")
    parser.add_argument("--p99_ms", type=float, default=100.0)
    parser.add_argument("--port", type=int, default=8100, help="the first of the ports to use")
    parser.add_argument("--service", default="", help="more flags of the service, such as '--batch_items=16384'")
    parser.add_argument("--device", default="cpu", help="the pipeline's, such as cuda")
    parser.add_argument("--dtype", default="float32", help="the pipeline's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        bodies = Path(folder, "bodies")
        texts = Path(arguments.texts).read_text().splitlines()
        bodies.write_text("\n".join(json.dumps({"inputs": text}) for text in texts))
        found = sides(arguments)
        for side in found:
            print(f"{side.name}: ready after {servers.enter_context(started(side)):.1f} s", file=sys.stderr)
        for number in range(arguments.rounds):
            print(f"round {number + 1}", file=sys.stderr)
            for side in found:
                measure(side, bodies, arguments, seed=number)
        print(environment(*PACKAGES))
        if arguments.rounds:
            print("\n".join(table(found, arguments.p99_ms)))


if __name__ == "__main__":
    main()
