"""Measures networks in turn: the time of batches of several shapes, and the energy where the processor counts it."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.compress.calibration import Calibration
from research.compress.network import Network

# Rows, and tokens of each for texts.
SHAPES = ((1, 32), (16, 32), (8, 128))
_ROWS = (1, 16, 64)  # of other inputs
_ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


@dataclasses.dataclass(frozen=True)
class Timing:
    """The time of batches of one shape.

    Attributes:
      rows, length: the rows of a batch, and the tokens of each; None for other inputs than texts.
      p50_ms, p99_ms: percentiles of the time of a batch.
      per_second: inputs a second, one batch after the other.
      joules: of an input; None where it can't be read.
    """

    rows: int
    length: int | None
    p50_ms: float
    p99_ms: float
    per_second: float
    joules: float | None


def timings(networks: Sequence[Network], calibration: Calibration, *, seconds: float = 2.0) -> list[list[Timing]]:
    """The times of each network by shape: their batches are timed in turn, for about `seconds` each, at least 30."""
    runs = [network.program() for network in networks]
    variables = [jax.device_put(dict(network.variables)) for network in networks]
    found: list[list[Timing]] = [[] for _ in networks]
    for rows, length in _shapes(networks[0], calibration):
        batch = _batch(calibration.batches[0], rows, length)
        batches = [jax.device_put(network.renamed(batch)) for network in networks]
        calls = [_call(*each) for each in zip(runs, variables, batches, strict=True)]
        for call in calls:  # compiles
            call()
        times: list[list[float]] = [[] for _ in networks]
        joules: list[list[float | None]] = [[] for _ in networks]
        began = time.perf_counter()
        while len(times[0]) < 30 or time.perf_counter() - began < seconds * len(networks):
            for call, own, energy in zip(calls, times, joules, strict=True):
                before, start = _energy(), time.perf_counter()
                call()
                own.append(time.perf_counter() - start)
                energy.append(_spent(before, _energy()))
        for i, own in enumerate(times):
            spent = [value for value in joules[i] if value is not None]
            found[i].append(
                Timing(
                    rows=rows,
                    length=length,
                    p50_ms=1000 * float(np.median(own)),
                    p99_ms=1000 * float(np.quantile(own, 0.99)),
                    per_second=rows / float(np.median(own)),
                    joules=float(np.sum(spent)) / (len(spent) * rows) if len(spent) == len(own) else None,
                )
            )
    return found


def _call(run: Callable[..., Any], variables: Any, batch: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(run(variables, batch))


def _shapes(network: Network, calibration: Calibration) -> list[tuple[int, int | None]]:
    if "segments" not in calibration.batches[0] or "tokens" not in calibration.batches[0]:
        return [(rows, None) for rows in _ROWS]
    longest = network.config.model.get("max_positions", 128)
    return list(dict.fromkeys((rows, min(length, longest)) for rows, length in SHAPES))


def _batch(batch: Mapping[str, np.ndarray], rows: int, length: int | None) -> dict[str, np.ndarray]:
    """A full batch of a shape, of the inputs of another: one text in each row."""
    if length is None:
        return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in batch.items()}
    tokens = batch["tokens"][batch["segments"] > 0]
    ones = np.ones((rows, length), np.int32)
    return {
        "tokens": np.resize(tokens, (rows, length)),
        "segments": ones,
        "positions": np.cumsum(ones, axis=1, dtype=np.int32) - 1,
        "type_ids": np.zeros_like(ones),
        "starts": np.zeros((rows, 1), np.int32),
    }


def _energy() -> int | None:
    """The microjoules that the processor has spent, where it counts them and they can be read."""
    try:
        return int(_ENERGY.read_text())
    except (OSError, ValueError):
        return None


def _spent(before: int | None, after: int | None) -> float | None:
    """Joules; None where unknown, or the counter began again."""
    return (after - before) / 1e6 if before is not None and after is not None and after >= before else None


def hardware() -> dict[str, Any]:
    """What the times are of."""
    device = jax.devices()[0]
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": f"{len(jax.devices())} × {device.device_kind}",
        "python": platform.python_version(),
        "jax": version("jax"),
        "flax": version("flax"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
