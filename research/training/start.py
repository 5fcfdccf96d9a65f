"""The initial state of a run: its last checkpoint, or fresh variables, optionally with pretrained weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research.base.errors import UserError
from research.core.lora import detached, join
from research.core.replicas import Replicas
from research.core.state import TrainState
from research.runs.checkpoint import Checkpoints, Progress
from research.runs.rundir import RunDir
from research.training.experiment import Experiment
from research.training.stopping import any_process


def in_first_process(action: Callable[[], None], what: str) -> None:
    """Calls `action` in process 0, while the others wait. Raises UserError in every process if it does there."""
    error: UserError | None = None
    if jax.process_index() == 0:
        try:
            action()
        except UserError as refused:
            error = refused
    if any_process(error is not None):
        raise error or UserError(f"process 0 can't {what}; it says why")


def start_run(run: RunDir, config: dict[str, Any]) -> None:
    """Starts the run directory: first in the process that writes it, as the others read what it leaves there."""
    in_first_process(lambda: run.start(config), f"start a run in {run.path}")
    if not run.writer:
        run.start(config)


def restore_or_init(
    experiment: Experiment, checkpoints: Checkpoints, load_variables: Callable[[Any], Any] | None = None
) -> tuple[TrainState, Progress]:
    """Restores the last checkpoint, or makes the initial state. Raises UserError if `load_variables` is missing."""
    if checkpoints.steps:
        return checkpoints.restore(experiment.state, checkpoints.steps[-1])
    if experiment.config.init_from and load_variables is None:
        raise UserError(
            f"init_from={experiment.config.init_from!r} is not resolved: train_and_evaluate needs `load_variables`, "
            "from research.interop.pretrained.resolve_init_from"
        )
    state = experiment.init()
    if load_variables:
        params, adapters = detached(state.params)
        variables = {"params": params, **state.model_state}
        variables = _load_each(load_variables, variables, experiment.replicas)
        # The optimizer's state is the same: no optimizer reads the parameters before the first step.
        state = dataclasses.replace(state, params=join(variables.pop("params"), adapters), model_state=variables)
    return state, Progress()


def _load_each(load_variables: Callable[[Any], Any], variables: Any, replicas: Replicas) -> dict[str, Any]:
    """Applies `load_variables` to each replica's fresh variables, whose untrained parts differ."""
    if replicas.count is None:
        return dict(load_variables(variables))
    placed = jax.tree.map(lambda x: x.sharding, variables)
    parts = [load_variables(part) for part in replicas.split(variables)]
    stack = jax.jit(lambda parts: jax.tree.map(lambda *x: jnp.stack(x), *parts), out_shardings=placed)
    return dict(stack(parts))
