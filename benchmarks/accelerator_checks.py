# mypy: disable-error-code="type-var"
"""The parts `environment` and `correctness` of accelerator.py: the device, and whether its results are correct."""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from parts import Deadline, Emit, Line
from turns import matmul_peak

PACKAGES = (
    *("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("tokenizers", "torch", "transformers", "timm", "torchvision"),
)

# ---- environment

# The peer's libraries, as JSON. A library may be installed and still fail to import.
PROBE = """
import importlib, json
found = {}
for name in ("torch", "transformers", "timm", "torchvision"):
    try:
        found[name] = importlib.import_module(name).__version__
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"[:200]
        continue
    if name == "torch":
        import torch
        cuda = torch.cuda.is_available()
        found["cuda"] = {"version": torch.version.cuda, "device": torch.cuda.get_device_name() if cuda else None}
print(json.dumps(found))
"""


def environment(emit: Emit, *, deadline: Deadline, options: argparse.Namespace) -> None:
    """Emits the device, the driver, the versions, `peak_flops` and the peer's `libraries`."""
    import jax

    from research.devices.throughput import PEAK_FLOPS

    device = jax.devices()[0]
    emit(
        {
            "device_kind": device.device_kind,
            "devices": len(jax.devices()),
            "backend": jax.default_backend(),
            "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "versions": {name: found for name in PACKAGES if (found := _version(name))},
            "nvidia_smi": _nvidia_smi(),
            "environ": {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_"))},
        }
    )
    peaks = matmul_peak([256] if options.rehearse else [4096, 8192, 16384])
    published = next((peak for kind, peak in PEAK_FLOPS.items() if device.device_kind.startswith(kind)), None)
    emit({"matmul_flops_by_size": peaks, "peak_flops": max(peaks.values()), "published_peak_flops": published})
    emit({"libraries": _libraries(deadline)})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nvidia_smi() -> str | None:
    query = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.sm,temperature.gpu"
    try:
        done = subprocess.run(["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()


def _libraries(deadline: Deadline) -> Line:
    """The libraries that the peer can import, found in a separate process, which then releases the device."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=max(deadline.remaining - 2, 1)
    )
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else {"error": done.stderr[-300:]}


# ---- correctness

STEPS = 20
CHEAPEST = "mlp_mnist:embedded"  # the cheapest to compile
LOSSES = Path(__file__).with_name("accelerator_losses.json")

# Largest relative difference from the stored CPU values over all steps. One thread instead of two (jax 0.10.2), and
# jax 0.11.2 instead of 0.10.2 made at most 2.3e-7 (loss) and 6.2e-7 (gradient norm); bfloat16 instead of float32 made
# 2.9e-4 and 7.0e-3 (BERT), 1.3e-3 and 6.2e-2 (ResNet), and TF32, with three more bits, should make an eighth of that.
# Float32 on another device sums in a different order, with different exp and erf: about a hundred times the first is
# allowed, less than TF32 should make.
TOLERANCES = {"loss": 2e-5, "grad_norm": 2e-4}


def _configs() -> dict[str, Any]:
    from research.configs import bert_sst2, mlp_mnist, resnet_digits

    configs = {
        CHEAPEST: mlp_mnist.get_config("embedded"),
        "bert_sst2:embedded": bert_sst2.get_config("embedded"),
        "resnet_digits": resnet_digits.get_config("embedded"),
    }
    # At its usual rate of 0.1 the ResNet amplifies rounding errors by thousands in 20 steps.
    configs["resnet_digits"].optimizer.learning_rate = 0.01
    for config in configs.values():
        config.train.update(epochs=None, steps=STEPS)
    return configs


def trajectory(config: Any, steps: int) -> Line:
    """The first float32 steps of a config -> "loss", "grad_norm" and "inputs" (a hash of the batch) of each."""
    import jax

    from research.devices.sharding import prefetch_to_device
    from research.training.experiment import prepare

    values: Line = {"loss": [], "grad_norm": [], "inputs": []}
    with jax.default_matmul_precision("highest"):  # otherwise a GPU multiplies in TF32
        experiment = prepare(config)
        state = experiment.init()
        with contextlib.closing(prefetch_to_device(experiment.training_batches(0), experiment.mesh)) as batches:
            for _ in range(steps):
                batch, placed = next(batches)
                values["inputs"].append(_digest(batch))
                state, scores = experiment.train_step(state, placed)
                for name in ("loss", "grad_norm"):
                    values[name].append(float(scores[name].total / scores[name].weight))
    return values


def _digest(batch: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(batch):
        digest.update(name.encode() + batch[name].tobytes())
    return digest.hexdigest()[:8]


def differences(found: Line, stored: Line) -> Line:
    """The largest relative difference of each trajectory over the steps in `found`."""
    return {name: max(abs(a / b - 1) for a, b in zip(found[name], stored[name], strict=False)) for name in TOLERANCES}


def correctness(emit: Emit, *, deadline: Deadline, options: argparse.Namespace) -> None:
    """Emits for each config its difference from the stored values, and whether that is within TOLERANCES."""
    from research.devices.platform import prepare_process

    # Autotuning every kernel for every product takes longer than the steps do.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
    prepare_process()
    stored = json.loads(LOSSES.read_text())
    for name, config in _configs().items():
        if options.rehearse and name != CHEAPEST:
            continue
        found = trajectory(config, STEPS)
        far = differences(found, stored["runs"][name])
        emit(
            {
                "config": name,
                "same_inputs": found["inputs"] == stored["runs"][name]["inputs"],  # otherwise the data differs
                "relative_difference": far,
                "tolerance": TOLERANCES,
                "within": all(far[key] <= limit for key, limit in TOLERANCES.items()),
                "found": found,
                "stored_by": stored["made_with"],
            }
        )


def write_cpu_losses() -> None:
    """Writes accelerator_losses.json."""
    runs = {name: trajectory(config, STEPS) for name, config in _configs().items()}
    made_with = {"python": platform.python_version(), **{name: _version(name) for name in ("jax", "flax", "optax")}}
    LOSSES.write_text(_text({"made_with": made_with, "runs": runs}))
    print(f"wrote {LOSSES}")


def _text(stored: Line) -> str:
    """JSON with one line per list of numbers."""
    text = json.dumps(stored, indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"
