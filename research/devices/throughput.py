"""How fast a run is and where its time goes."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from research.devices.compiled import Compiled

# Dense bfloat16 matmul peaks, FLOP/s a chip, as their makers publish them, by the start of JAX's device_kind.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


class Throughput:
    """Counts training steps and their time; what happens inside `aside` does not count."""

    def __init__(self, step: Compiled):
        self._step = step
        self._start = time.perf_counter()
        self._aside = 0.0
        self._waited = 0.0
        self._running: Any = None  # an array that the last step gives
        self._steps = 0
        self._examples = 0.0
        self._tokens = 0.0
        self._places = 0.0
        self._flops = 0.0

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Evaluation, saving: time that is not training's."""
        start, compiled = time.perf_counter(), self._step.seconds
        try:
            yield
        finally:
            self._aside += time.perf_counter() - start - (self._step.seconds - compiled)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Waiting for data: training's time, but wasted, unless the device is still busy with the step before.

        An upper bound: all of a wait counts that the device was not busy to the end of. The first, in which the
        pipeline starts, does not count.
        """
        start = time.perf_counter()
        yield
        if self._running is not None and self._running.is_ready():
            self._waited += time.perf_counter() - start

    def count(self, batch: dict[str, np.ndarray], scores: Any, processes: int) -> None:
        """One step begun on this process's rows of a batch, which will give `scores`."""
        self._running = jax.tree.leaves(scores)[0]
        self._steps += 1
        self._examples += float(batch["weight"].sum()) * processes
        self._flops += self._step.flops
        if "segments" in batch:
            self._tokens += int(np.count_nonzero(batch["segments"])) * processes
            self._places += batch["segments"].size * processes

    @property
    def seconds(self) -> float:
        """What training has taken so far: without compiling, and without what happened `aside`."""
        return time.perf_counter() - self._start - self._aside - self._step.seconds

    @property
    def data_wait_fraction(self) -> float:
        """Which part of that went into waiting for data."""
        return self._waited / max(self.seconds, 1e-9)

    def report(self) -> dict[str, float | None]:
        """The figures of summary.json's `throughput`; null where there is nothing to count or the peak is unknown."""
        seconds = self.seconds
        if not self._steps or seconds <= 0:
            return dict.fromkeys(
                (
                    "examples_per_second",
                    "tokens_per_second",
                    "token_efficiency",
                    "step_time_ms",
                    "data_wait_fraction",
                    "mfu",
                )
            ) | {"compile_seconds": self._step.seconds}
        kind = jax.devices()[0].device_kind
        peak = next((flops for name, flops in PEAK_FLOPS.items() if kind.startswith(name)), None)
        return {
            "examples_per_second": self._examples / seconds,
            "tokens_per_second": self._tokens / seconds if self._tokens else None,
            "token_efficiency": self._tokens / self._places if self._places else None,
            "step_time_ms": 1e3 * seconds / self._steps,
            "data_wait_fraction": self.data_wait_fraction,
            "compile_seconds": self._step.seconds,
            "mfu": self._flops / seconds / peak if peak else None,
        }


def seconds_of_a_seed(summary: Mapping[str, Any]) -> float | None:
    """What the steps of a run took, without compiling and evaluating, over the number of its seeds.

    None where the summary knows of no step's time: the run failed, or was taken up again with no step left.
    """
    step_time = (summary.get("throughput") or {}).get("step_time_ms")
    return None if step_time is None else summary["step"] * step_time / 1e3 / summary.get("seeds", 1)
