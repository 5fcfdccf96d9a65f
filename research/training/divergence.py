"""Divergence: losses and parameters that are not finite end a run before they are saved."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.base.errors import DivergedError
from research.core.replicas import Replicas
from research.core.statistics import Value


@dataclasses.dataclass(frozen=True)
class FiniteCheck:
    """Raises DivergedError, with the seed and what to change, for values that are not finite.

    Attributes:
      seed: the seed of the run, or the first of several.
      learning_rate: the schedule, by step; None for a solver.
    """

    seed: int
    replicas: Replicas
    learning_rate: Callable[[int], Any] | None

    def metrics(self, values: dict[str, Value], what: str, step: int) -> None:
        """Checks the "loss" of the metrics `values`, which the message calls `what`."""
        losses = values["loss"]
        for i, loss in enumerate(losses if isinstance(losses, list) else [losses]):
            if loss is not None and not math.isfinite(loss):
                raise self._error(f"{what} is {loss}", step, i)

    def params(self, params: Any, step: int) -> None:
        """Checks all parameters after `step`."""
        for i, finite in enumerate(np.asarray(_all_finite(params, self.replicas.size))):
            if not finite:
                raise self._error(f"a parameter after step {step} is not finite", step, i)

    def _error(self, what: str, step: int, replica: int) -> DivergedError:
        whose = "" if self.replicas.count is None else f" with seed {self.seed + replica}"
        if self.learning_rate:
            rate = float(self.learning_rate(step - 1))
            way = f"training diverged; lower optimizer.learning_rate (here {rate:.3g}) or set optimizer.clip_norm"
        else:
            way = "the numbers are too large for the type; scale them or give dtype=float64"
        return DivergedError(f"{what}{whose}: {way}; use a new --workdir, the checkpoints in this one remain")


@functools.partial(jax.jit, static_argnums=1)
def _all_finite(params: Any, replicas: int) -> jax.Array:
    """Whether all parameters of each replica are finite: bool [replicas]."""
    leaves = [jnp.isfinite(leaf).reshape(replicas, -1).all(axis=1) for leaf in jax.tree.leaves(params)]
    return functools.reduce(jnp.logical_and, leaves)
