"""The time from the start of a command to the first training step, and to its end.

python benchmarks/startup.py                                  # three small configs, with a warm cache
python benchmarks/startup.py --configs configs/linear_diabetes.py --rounds=9

Every run is a separate process with a new run directory, and the configs alternate. The first run of each, which fills
the caches of data and of compiled programs, is not counted. Reports wall-clock and CPU seconds; on a busy machine, CPU
seconds are more reliable.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import environment

CONFIGS = ("configs/linear_diabetes.py", "configs/logistic_digits.py", "configs/bert_sst2.py:embedded")
COLUMNS = ("first", "first_processor", "end", "end_processor")


def child(config: str, workdir: str, began: float) -> None:
    """Trains, and prints the times since `began`, on the clock that all processes share."""
    from research import cli, train
    from research.devices.platform import prepare_process

    prepare_process()  # as in `cli.run`, before anything imports JAX
    import jax

    from research.runs.reporting import Reporter

    found: dict[str, float] = {}

    def note(name: str) -> None:
        found.setdefault(name, time.monotonic() - began)
        found.setdefault(f"{name}_processor", time.process_time())

    taken = Reporter.step

    def step(self: Reporter, scores: Any) -> None:
        if not found:
            jax.block_until_ready(scores)
            note("first")
        taken(self, scores)

    Reporter.step = step  # type: ignore[method-assign]
    try:
        train.main([f"--config={config}", f"--workdir={workdir}"])
    except cli.UserError as error:
        sys.exit(f"error: {error}")
    note("end")
    Path(workdir, "startup.json").write_text(json.dumps(found))


def measured(config: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        workdir = f"{folder}/run"
        command = [sys.executable, __file__, "--child", config, workdir, repr(time.monotonic())]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return json.loads(Path(workdir, "startup.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        config, workdir, began = arguments.child
        child(config, workdir, float(began))
        return
    results: dict[str, list[dict[str, float]]] = {config: [] for config in arguments.configs}
    for round_number in range(arguments.rounds + 1):
        for config in arguments.configs:
            figures = measured(config)
            print(f"round {round_number}: {config}: {figures}", file=sys.stderr, flush=True)
            if round_number:  # the first round fills the caches
                results[config].append(figures)
    print(environment("jax", "flax", "orbax-checkpoint", "grain") + "\n")
    print("| config | first step, s | CPU, s | end, s | CPU, s |")
    print("|---|---|---|---|---|")
    for config, rounds in results.items():
        medians = [statistics.median(figures[column] for figures in rounds) for column in COLUMNS]
        print(f"| {config} | " + " | ".join(f"{median:.2f}" for median in medians) + " |")


if __name__ == "__main__":
    main()
