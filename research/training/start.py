"""The initial state of a run: its last checkpoint, or fresh variables, optionally with pretrained weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research.base.errors import UserError
from research.core.replicas import Replicas
from research.core.state import TrainState
from research.runs.checkpoint import Checkpoints, Progress
from research.training.experiment import Experiment


def restore_or_init(
    experiment: Experiment, checkpoints: Checkpoints, initial: Callable[[Any], Any] | None = None
) -> tuple[TrainState, Progress]:
    """Restores the last checkpoint, or makes the initial state. Raises UserError if that needs a missing `initial`."""
    if checkpoints.steps:
        return checkpoints.restore(experiment.state, checkpoints.steps[-1])
    if experiment.config.init_from and initial is None:
        raise UserError(
            f"init_from={experiment.config.init_from!r} is not resolved: train_and_evaluate needs `initial`, from "
            "research.interop.pretrained.start"
        )
    state = experiment.init()
    if initial:
        variables = {"params": state.params, **state.model_state}
        variables = _initial_of_each(initial, variables, experiment.replicas)
        # The optimizer's state is the same: no optimizer reads the parameters before the first step.
        state = dataclasses.replace(state, params=variables.pop("params"), model_state=variables)
    return state, Progress()


def _initial_of_each(initial: Callable[[Any], Any], variables: Any, replicas: Replicas) -> dict[str, Any]:
    """Applies `initial` to each replica's fresh variables, whose untrained parts differ."""
    if replicas.count is None:
        return dict(initial(variables))
    placed = jax.tree.map(lambda x: x.sharding, variables)
    parts = [initial(part) for part in replicas.split(variables)]
    stack = jax.jit(lambda parts: jax.tree.map(lambda *x: jnp.stack(x), *parts), out_shardings=placed)
    return dict(stack(parts))
