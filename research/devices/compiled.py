"""Programs compiled ahead of their first call, once for each shape."""

import time
from typing import Any

import jax

from research.devices import memory


class Compiled:
    """A jitted function that is compiled once for each shape of its arguments; measures the compilation time.

    `repeats`: iterations of its inner loop, whose operations XLA counts once. `replicas`: how many models it computes,
    if several. Raises UserError if there is not enough memory.
    """

    def __init__(self, function: Any, repeats: int = 1, replicas: int | None = None):
        self._function = function
        self._replicas = replicas
        self._repeats = repeats
        self._compiled: dict[Any, Any] = {}
        self.seconds = 0.0
        self.flops = 0.0  # FLOPs of the last call, per device, as counted by XLA

    def __call__(self, state: Any, batch: dict[str, jax.Array]) -> Any:
        compiled, self.flops = self.compiled(state, batch)
        return compiled(state, batch)

    def compiled(self, state: Any, batch: dict[str, jax.Array]) -> tuple[Any, float]:
        """The program for arguments of these shapes, and its number of operations as counted by XLA."""
        key = tuple((name, array.shape) for name, array in sorted(batch.items()))
        if key not in self._compiled:
            start = time.perf_counter()
            compiled = self._function.lower(state, batch).compile()
            self.seconds += time.perf_counter() - start
            memory.check_step(compiled, self._replicas)
            cost = compiled.cost_analysis() or {}
            self._compiled[key] = compiled, self._repeats * float(cost.get("flops", 0.0))
        return self._compiled[key]
