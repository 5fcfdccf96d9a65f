"""What research.capacity predicts for one process of the service, beside what the service then does.

python benchmarks/capacity.py --workdir=RUN --texts=TEXTS [--p99_ms=100] [--rounds=2]       # about 2 minutes a round

RUN is a classifier of single texts; TEXTS a file with a text in each line. In each round the command predicts the rate
that one replica keeps within the bound, and how fast it is at its best; then the service, a process of its own without
a cache of answers, is asked for requests at random times (load.py), at rates that are bisected to the highest, within
8 %, at which every request is answered and the 99th percentile is within the bound; then for three times its best rate.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from serve import Side, capacity, load, started
from turns import environment


def predicted(arguments: argparse.Namespace) -> dict[str, Any]:
    flags = [f"--workdir={arguments.workdir}", f"--p99_ms={arguments.p99_ms}", "--rps=1000", "--json"]
    flags += [f"--compute={arguments.compute}", f"--seconds={arguments.seconds / 2}"]
    if arguments.texts:
        flags.append(f"--texts={arguments.texts}")
    made = subprocess.run(
        [sys.executable, "-m", "research.capacity", *flags], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="the run of a classifier of single texts")
    parser.add_argument("--texts", required=True, help="a file with a text in each line")
    parser.add_argument("--p99_ms", type=float, default=100.0)
    parser.add_argument("--compute", default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a trial of a rate")
    parser.add_argument("--port", type=int, default=8100)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "research.serve", f"--workdir=model={arguments.workdir}", "--log=none"]
    command += [f"--compute={arguments.compute}", "--cache_entries=0", f"--port={arguments.port}"]
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bodies = Path(folder, "bodies")
        texts = Path(arguments.texts).read_text().splitlines()
        bodies.write_text("\n".join(json.dumps({"inputs": text}) for text in texts))
        print(environment("jax"))
        for number in range(arguments.rounds):
            found = predicted(arguments)
            side = Side("the service", command, arguments.port, "/v2/health/ready")
            # The search begins near what is expected.
            side.capacity.append(found["sustained_rps"] or 20.0)
            with started(side):
                load(side, bodies, 20.0, 2.0, seed=99)
                kept = capacity(side, bodies, arguments.seconds, arguments.p99_ms, seed=number)
                over = load(side, bodies, 3 * found["best_rps"], arguments.seconds, seed=number)
            answered = over["answered_per_second"]
            values = {
                "simulation": (found["sustained_rps"], kept),
                "formula": (found["sustained_rps_by_formula"], kept),
                "best rate": (found["best_rps"], answered),
            }
            print(f"round {number + 1}: overload {over['statuses']}")
            for name, (predicted_rate, measured_rate) in values.items():
                ratio = predicted_rate / measured_rate if measured_rate else float("nan")
                ratios.setdefault(name, []).append(ratio)
                print(f"  {name}: {predicted_rate:.0f} predicted, {measured_rate:.0f} measured, ratio {ratio:.2f}")
            for each in found["checks"]:
                shown = [f"{each[name]:.1f}" if each[name] else "-" for name in ("measured_ms", "simulated_ms")]
                print(f"  p99 at {each['rate']:.0f}/s in the command: {shown[0]} ms measured, {shown[1]} simulated")
    for name, each in ratios.items():
        print(f"{name}: predicted over measured {statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})")


if __name__ == "__main__":
    main()
