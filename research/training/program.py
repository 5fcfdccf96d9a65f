"""Programs: the functions of a run, for one replica or for several with different seeds, and their compilation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.core.state import TrainState
from research.core.step import vmap_or_unroll
from research.devices import sharding


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
        init = jax.jit(self.init, out_shardings=self.shardings)
        train_step = jax.jit(
            self.train_step,
            in_shardings=(self.shardings, sharding.batch_sharding(mesh, axis=self.batch_axis)),
            out_shardings=(self.shardings, sharding.replicated(mesh)),
            donate_argnums=0,
            compiler_options=options,
        )
        return init, train_step


def single(init: Callable[[Any], TrainState], train_step: Any, seed: int, abstract: Any, shardings: Any) -> Program:
    """The program of one seed. init: seed -> state; train_step: (state, batch, seed=…)."""
    return Program(functools.partial(init, seed), functools.partial(train_step, seed=seed), abstract, shardings)


def replicate(
    init: Callable[[Any], TrainState], train_step: Any, seeds: np.ndarray, shardings: Any, *, unrolled: bool
) -> Program:
    """The program of several seeds, uint32 [K]: state, scores and training batches have a leading axis of K.

    `unrolled`: as in `research.core.step.vmap_or_unroll`. `shardings`: those of one replica.
    """

    def of_one(seed: Any, state: TrainState, batch: Any) -> Any:
        return train_step(state, batch, seed=seed)

    first = functools.partial(jax.vmap(init), seeds)
    steps = vmap_or_unroll(of_one, len(seeds), (0, 0, 0), unrolled=unrolled)
    return Program(
        first, functools.partial(steps, seeds), jax.eval_shape(first), sharding.for_seeds(shardings), batch_axis=1
    )
