"""Kills runs with SIGKILL at random moments: each resumes, and ends as the uninterrupted run.

python -m tests.soak --kills=30 [--seed=0]

Each run of RUNS is trained once without interruption; then again and again in new run directories, with kills at
uniformly distributed moments from its start (imports, compilation, steps, evaluations and saves included), until the
total of `--kills` is reached. Compared are the parameters' hash, the metrics, the predictions of every split, and the
lines of metrics.jsonl. A kill that came after the end of the run does not count.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_OFTEN = ("--config.eval.every_steps=10", "--config.checkpoint.every_steps=4", "--config.train.log_every=5")

RUNS = {
    "bert": ("configs/bert_sst2.py:embedded", "--config.train.steps=60", *_OFTEN),
    "resnet": ("configs/resnet_digits.py", "--config.train.steps=30", "--config.train.ema_decay=0.9", *_OFTEN),
    "logistic": ("configs/logistic_digits.py:embedded", "--config.train.steps=200", "--config.train.seeds=2", *_OFTEN),
}


def _command(name: str, workdir: Path) -> list[str]:
    config, *overrides = RUNS[name]
    return [sys.executable, "-m", "research.train", f"--config={config}", f"--workdir={workdir}", *overrides]


def outcome(workdir: Path) -> dict[str, Any]:
    """What must not depend on interruptions."""
    summary = json.loads((workdir / "summary.json").read_text())
    return {
        **{key: summary[key] for key in ("status", "step", "examples_seen", "params_sha256", "metrics", "best")},
        "metrics.jsonl": (workdir / "metrics.jsonl").read_text(),
        **{path.name: path.read_text() for path in sorted((workdir / "predictions").glob("*.jsonl"))},
    }


def _train(name: str, workdir: Path, seconds: float | None = None) -> bool:
    """Trains, or kills the process after `seconds` -> whether it was killed. Raises RuntimeError if training failed."""
    with subprocess.Popen(
        _command(name, workdir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return True
    if process.returncode:
        raise RuntimeError(f"{name} in {workdir} exited with {process.returncode}: {errors[-2000:]}")
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    share = -(-arguments.kills // len(RUNS))
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            _train(name, Path(folder, f"{name}-warm-up"))  # fills the compilation cache, if there is one
            began = time.monotonic()
            _train(name, Path(folder, name))
            whole = time.monotonic() - began
            expected, kills, attempt = outcome(Path(folder, name)), 0, 0
            while kills < share:
                attempt += 1
                workdir, in_this = Path(folder, f"{name}-{attempt}"), 0
                # At most four, so that short intervals do not keep a run from ending.
                while in_this < 4 and _train(name, workdir, moments.uniform(0.0, whole)):
                    in_this += 1
                _train(name, workdir)
                kills += in_this
                found = outcome(workdir)
                differing = [key for key in expected if found.get(key) != expected[key]]
                wrong += bool(differing)
                print(
                    f"{name}: {in_this} kills, {kills} of {share}; differs: {', '.join(differing) or 'nothing'}",
                    flush=True,
                )
    print(f"{share * len(RUNS)} kills or more, {wrong} runs differ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
