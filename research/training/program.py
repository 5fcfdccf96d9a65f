"""Programs: the functions of a run, for one model or for several replicas of it, and their compilation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.core.replicas import Replicas
from research.core.state import TrainState
from research.devices import sharding
from research.devices.platform import quick_random_bits


@dataclasses.dataclass(frozen=True)
class Program:
    """Functions of arrays, before they are compiled.

    Attributes:
      init: () -> the state before the first step.
      train_step: (state, batch) -> (state, scores).
      state: the shapes and types of the state.
      shardings: the shardings of its leaves.
      batch_axis: the axis of rows in a training batch.
    """

    init: Callable[[], TrainState]
    train_step: Callable[..., Any]
    state: TrainState
    shardings: Any
    batch_axis: int = 0

    def placed_state(self) -> TrainState:
        """The shapes, types and shardings of the state."""
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.state, self.shardings)

    def compiled(self, mesh: jax.sharding.Mesh, options: Any) -> tuple[Callable[[], TrainState], Any]:
        """`init` and `train_step`, jitted for the mesh; the latter donates its input state."""
        init = quick_random_bits()(jax.jit(self.init, out_shardings=self.shardings))
        train_step = jax.jit(
            sharding.on_mesh(self.train_step, mesh),
            in_shardings=(self.shardings, sharding.batch_sharding(mesh, axis=self.batch_axis)),
            out_shardings=(self.shardings, sharding.replicated(mesh)),
            donate_argnums=0,
            compiler_options=options,
        )
        return init, train_step


def make_program(
    init: Callable[[Any], TrainState],
    train_step: Callable[..., Any],
    seed: int,
    *,
    state: TrainState,
    shardings: Any,
    replicas: Replicas,
) -> Program:
    """The program of one model, or of `replicas` with the seeds `seed`, `seed` + 1, ….

    With replicas the state, the scores and the training batches have a leading axis for them.

    Args:
      init: seed -> state.
      train_step: (state, batch, seed=…) -> (state, scores).
      state, shardings: those of one model.
    """
    if replicas.count is None:
        return Program(functools.partial(init, seed), functools.partial(train_step, seed=seed), state, shardings)

    def step(seed: Any, state: TrainState, batch: Any) -> Any:
        return train_step(state, batch, seed=seed)

    seeds = seed + np.arange(replicas.count, dtype=np.uint32)
    first = functools.partial(jax.vmap(init), seeds)
    steps = functools.partial(replicas.map(step, (0, 0, 0)), seeds)
    placed = sharding.with_leading_axes(shardings, replicas.axes)
    return Program(first, steps, jax.eval_shape(first), placed, batch_axis=replicas.axes)
