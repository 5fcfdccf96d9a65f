"""Methods: how a run fits its parameters. Nothing outside this file depends on which one a config names."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax
from flax import linen as nn
from jax.sharding import Mesh

from research import solvers
from research.base.registry import lookup
from research.core import optim, step
from research.core.class_weights import training_weight
from research.core.exact import exact_gradient
from research.core.optimizers import OPTIMIZERS
from research.core.state import param_count
from research.core.tasks import Task, capabilities
from research.data import pipeline
from research.devices import sharding
from research.inference.model import lora_of
from research.training import checks


@dataclasses.dataclass(frozen=True)
class Setting:
    """The problem for which a method is built: the task, the training examples in rows, and the batches and steps."""

    task: Task
    stream: pipeline.Stream
    batch_rows: int
    total_steps: int
    mesh: Mesh
    weight_decay: float  # from optimizer.weight_decay, C or alpha


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to fit the parameters.

    Attributes:
      tx: the gradient transformation; its state is `opt_state`.
      learning_rate: the schedule, by step; None if there is no learning rate.
      weight_decay: the factor of the penalty, with a mean loss.
      deterministic: whether the resulting parameters do not depend on the seed.
      train_step: (module, abstract parameters, an example batch) -> the function (state, batch, seed=…) -> (state,
        scores), and the number of blocks into which it splits each device's rows; it must divide their number.
      warnings: (the last training metrics, the number of training examples and of parameters) -> warnings about the
        result, a line each.
    """

    tx: optax.GradientTransformation
    learning_rate: optax.Schedule | None
    weight_decay: float
    deterministic: bool
    train_step: Callable[[nn.Module, Any, Mapping[str, Any]], tuple[Callable[..., Any], int]]
    warnings: Callable[..., list[str]]


def make_method(
    config: Any, task: Task, stream: pipeline.Stream, *, batch_rows: int, total_steps: int, mesh: Mesh
) -> Method:
    """The method that `config.optimizer` names. Raises UserError for settings that it does not support."""
    section = config.optimizer
    weight, penalty = training_weight(task, stream.labels), capabilities(task).penalty
    decay = optim.weight_decay(section, config.task.name, penalty, weight)
    setting = Setting(task, stream, batch_rows, total_steps, mesh, decay)
    return lookup(METHODS, section.name, "optimizer.name")(config, setting)


def is_deterministic(name: str) -> bool:
    """Whether the results of the method of this name do not depend on the seed."""
    return METHODS.get(name) is _solver


def _gradient(config: Any, setting: Setting) -> Method:
    """A gradient method: a chain of optax transformations."""
    decay, steps = setting.weight_decay, setting.total_steps
    tx, learning_rate = optim.optimizer(config.optimizer, weight_decay=decay, total_steps=steps)

    def train_step(module: nn.Module, params: Any, batch: Mapping[str, Any]) -> tuple[Callable[..., Any], int]:
        shards = config.train.exact_shards
        function = functools.partial(
            step.train_step,
            module=module,
            task=setting.task,
            tx=tx,
            accumulate=config.train.accumulate,
            ema_decay=config.train.ema_decay,
            gradient_point=OPTIMIZERS[config.optimizer.name].gradient_point,
            lora=lora_of(config),
            exact=functools.partial(exact_gradient, shards=shards, mesh=setting.mesh) if shards else None,
        )
        return function, config.train.accumulate

    return Method(tx, learning_rate, setting.weight_decay, False, train_step, lambda *_: [])


def _solver(config: Any, setting: Setting) -> Method:
    """A solver, whose one step fits all training examples."""
    section, stream, task = config.optimizer, setting.stream, setting.task
    devices = sharding.batch_parts(setting.mesh)
    checks.check_solver(
        config,
        task=task,
        examples=stream.examples,
        full_batch=setting.batch_rows == len(stream.rows),
        total_steps=setting.total_steps,
    )
    solver = functools.partial(solvers.SOLVERS[section.name], **{key: section[key] for key in solvers.KEYS})

    def train_step(module: nn.Module, params: Any, batch: Mapping[str, Any]) -> tuple[Callable[..., Any], int]:
        checks.check_solved(section.name, module, batch)
        table = solvers.Table.of(module, lambda: pipeline.make_batch(stream.examples, stream.rows))
        parameters = table.count(params) if table else param_count(params)
        blocks = solvers.blocks(batch, rows=setting.batch_rows, devices=devices, parameters=parameters)
        blocks = max(config.train.accumulate, blocks)

        def solve(state: Any, batch: Any, *, seed: Any) -> Any:
            """One step of the solver; `seed` is not used, as nothing is random."""
            return solvers.solve_step(
                state,
                batch,
                module=module,
                task=task,
                solver=solver,
                weight_decay=setting.weight_decay,
                decay_exclude=section.decay_exclude,
                devices=devices,
                blocks=blocks,
                table=table,
            )

        return solve, blocks

    def warnings(training: Mapping[str, Any], examples: int, parameters: int) -> list[str]:
        return solvers.warnings(
            section, task, config.dtype, setting.weight_decay, training, examples=examples, parameters=parameters
        )

    return Method(optax.identity(), None, setting.weight_decay, True, train_step, warnings)


METHODS: dict[str, Callable[[Any, Setting], Method]] = {
    **dict.fromkeys(OPTIMIZERS, _gradient),
    **dict.fromkeys(solvers.SOLVERS, _solver),
}
