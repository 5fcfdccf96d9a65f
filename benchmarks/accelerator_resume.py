"""The part `resume` of accelerator.py: whether an interrupted run ends with the parameters of an uninterrupted one.

Two consecutive processes, as in practice: the first trains N steps, and N/2 steps of another run; the second resumes
the latter, and trains N steps again. With XLA's deterministic operations, all three must agree bitwise. Without them,
comparing the two uninterrupted runs shows whether a difference is due to resuming.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parts import Deadline, Emit, Line

FLAG = "--xla_gpu_deterministic_ops"


def resume(emit: Emit, *, deadline: Deadline, options: argparse.Namespace) -> None:
    """Emits a line per config and setting of the flag. Both settings run at the same time."""
    steps, names = (4, ["mlp_mnist"]) if options.rehearse else (20, ["bert_sst2", "resnet_digits"])
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            for flag, (first, second) in _both_settings(Path(folder), name, steps, deadline).items():
                whole, again, resumed = first["whole"], second["again"], second["resumed"]
                emit(
                    {
                        "config": name,
                        "deterministic_ops": flag == "true",
                        "steps": steps,
                        "resumed_equals_whole": resumed == whole,
                        "again_equals_whole": again == whole,
                        "was_interrupted": first["half"] != whole,
                        "params_sha256": {"whole": whole, "again": again, "resumed": resumed},
                    }
                )


def _both_settings(folder: Path, name: str, steps: int, deadline: Deadline) -> dict[str, list[Line]]:
    """The results of the first and the second process for each setting of the flag."""
    found: dict[str, list[Line]] = {"true": [], "false": []}
    for phase in ("first", "second"):
        children = {flag: _start(flag, phase, folder / flag, name, steps) for flag in found}
        for flag, child in children.items():
            output, _ = child.communicate(timeout=max(deadline.remaining, 1))
            if child.returncode:
                raise RuntimeError(f"{FLAG}={flag}: the {phase} process ended with exit code {child.returncode}")
            found[flag].append(json.loads(output.splitlines()[-1]))
    return found


def _start(flag: str, phase: str, folder: Path, name: str, steps: int) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}={flag}"
    return subprocess.Popen(
        [sys.executable, __file__, phase, str(folder), name, str(steps)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags.strip()},
    )


def _config(name: str, steps: int) -> Any:
    """An embedded preset with this number of steps, evaluated and saved at the end."""
    config = importlib.import_module(f"research.configs.{name}").get_config("embedded")
    config.train.update(epochs=None, steps=steps, log_every=1)
    config.eval.every_steps = 0
    config.checkpoint.every_steps = 0
    if name == "bert_sst2":
        config.dtype = "bfloat16"  # the usual dtype on a GPU
    return config


def _stop_after(steps: int) -> Callable[[], bool]:
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= steps


def run_phase(phase: str, folder: Path, name: str, steps: int) -> Line:
    """Runs one process -> the hash of the parameters of each of its runs."""
    from research.devices.platform import prepare_process
    from research.training.loop import train_and_evaluate

    prepare_process()
    config = _config(name, steps)

    def run(kind: str, **options: Any) -> str:
        return train_and_evaluate(config, folder / kind, show=False, **options)["params_sha256"]

    if phase == "first":
        return {"whole": run("whole"), "half": run("cut", should_stop=_stop_after(steps // 2))}
    return {"again": run("again"), "resumed": run("cut")}


if __name__ == "__main__":
    result = run_phase(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    print(json.dumps(result))
