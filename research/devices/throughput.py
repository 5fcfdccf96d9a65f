"""Measures how fast a run is and where its time goes."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from research.devices.compiled import Compiled

# Published dense bfloat16 matmul peaks, FLOP/s per chip, by the beginning of JAX's device_kind.
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
    """Counts training steps and their time, except time inside `aside`."""

    def __init__(self, step: Compiled):
        self._step = step
        self._start = time.perf_counter()
        self._aside = 0.0
        self._waited = 0.0
        self._running: Any = None  # an output array of the last step
        self._steps = 0
        self._examples = 0.0
        self._tokens = 0.0
        self._places = 0.0
        self._flops = 0.0

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Context for evaluating and saving: excludes its time from training."""
        start, compiled = time.perf_counter(), self._step.seconds
        try:
            yield
        finally:
            self._aside += time.perf_counter() - start - (self._step.seconds - compiled)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context for waiting for data: time of training, but wasted unless the device is still busy with a step.

        An upper bound: a wait counts in full unless the device was busy to its end. The first wait, in which the
        pipeline starts, does not count.
        """
        start = time.perf_counter()
        yield
        if self._running is not None and self._running.is_ready():
            self._waited += time.perf_counter() - start

    def count(self, batch: dict[str, np.ndarray], scores: Any, share: float) -> None:
        """Counts a step that was started on this process's `share` of a batch's rows and will return `scores`."""
        self._running = jax.tree.leaves(scores)[0]
        self._steps += 1
        self._examples += float(batch["weight"].sum()) / share
        self._flops += self._step.flops
        if "segments" in batch:
            self._tokens += int(np.count_nonzero(batch["segments"])) / share
            self._places += batch["segments"].size / share

    @property
    def seconds(self) -> float:
        """Seconds of training so far, excluding compilation and time `aside`."""
        return time.perf_counter() - self._start - self._aside - self._step.seconds

    @property
    def data_wait_fraction(self) -> float:
        """The fraction of `seconds` spent waiting for data."""
        return self._waited / max(self.seconds, 1e-9)

    def report(self) -> dict[str, float | None]:
        """The values of summary.json's `throughput`; None if there is nothing to count or the peak is unknown."""
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
