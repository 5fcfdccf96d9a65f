"""Solvers: optimizers whose one step fits the whole training set, for models that have one optimum.

A solver minimises the task's mean loss + weight_decay / 2 · Σ p² over the parameters p that `decay_exclude` does not
find, so an intercept is not penalised. It goes through the batch a block of rows at a time, each small enough to stay
in the processor's cache: the second use of a row, for the gradient, then costs no second reading from memory.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.core import metrics
from research.core.state import TrainState
from research.core.tasks import Batch, Classification, SquaredHinge, Task
from research.solvers.least_squares import FACTORIZATIONS, closed_form
from research.solvers.problem import Problem, max_norm
from research.solvers.quasi_newton import lbfgs
from research.solvers.table import Table

__all__ = ["FACTORIZATIONS", "KEYS", "SOLVERS", "Table", "blocks", "report", "solve_step", "warnings"]

# What a solver takes of the config's `optimizer` section, beside the penalty.
KEYS = ("tolerance", "max_iterations", "factorization")
# Rows that are in the cache together; more where the gradient itself, which each block adds to, is large.
BLOCK_BYTES = 2**20
BLOCK_PER_GRADIENT = 4

# (problem, parameters to start from) -> (solution, iterations, the largest gradient that counts as converged, what else
# it reports, by name)
Solver = Callable[..., tuple[Any, jax.Array, Any, dict[str, jax.Array]]]

SOLVERS: dict[str, Solver] = {"closed_form": closed_form, "lbfgs": lbfgs}


def solve_step(
    state: TrainState,
    batch: Batch,
    *,
    module: nn.Module,
    task: Task,
    solver: Solver,
    weight_decay: float,
    decay_exclude: str,
    devices: int,
    blocks: int,
    table: Table | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """The parameters that fit `batch`, all training examples, and their scores.

    Beside the task's scores there are `objective`, `grad_max` (its gradient's largest entry), `iterations`, `converged`
    (1 or 0) and what the solver itself reports. The rows of `batch`, split over `devices`, are a multiple of devices ×
    blocks. Of a `table` only the rows are fitted that `batch` reads.
    """

    def in_blocks(x: jax.Array) -> jax.Array:  # each device keeps its own rows
        parts = x.reshape(devices, blocks, -1, *x.shape[1:]).swapaxes(0, 1)
        return parts.reshape(blocks, -1, *x.shape[1:])

    start, widened = state.params, lambda params: params
    if table:
        module, start, batch, widened = table.narrowed(
            module, start, batch, weight_decay=weight_decay, decay_exclude=decay_exclude
        )
    with jax.default_matmul_precision("highest"):
        problem = Problem(module, task, jax.tree.map(in_blocks, batch), weight_decay, decay_exclude)
        params, iterations, bound, others = solver(problem, start)
        end = problem.at(params)
    grad_max = max_norm(end.grad)
    found = {
        "objective": end.value,
        "grad_max": grad_max,
        "iterations": iterations,
        "converged": grad_max <= bound,
        **others,
    }
    one = jnp.ones((), end.value.dtype)
    found = {name: metrics.Mean(x.astype(end.value.dtype), one) for name, x in found.items()}
    return dataclasses.replace(state, step=state.step + 1, params=widened(params)), {**end.scores, **found}


def blocks(batch: Mapping[str, Any], *, rows: int, devices: int, parameters: int) -> int:
    """Into how many blocks to cut `rows` like those of `batch`, for each device: 1 where there is no cache to fill."""
    if jax.default_backend() != "cpu":
        return 1
    row_bytes = sum(x.size * x.dtype.itemsize for x in batch.values()) / len(batch["weight"])
    gradient_bytes = 4 * parameters
    return max(1, math.ceil(rows * row_bytes / devices / max(BLOCK_BYTES, BLOCK_PER_GRADIENT * gradient_bytes)))


def report(training: Mapping[str, Any]) -> str | None:
    """How a solver ended whose last training metrics these are, in a line; None for other optimizers."""
    if "iterations" not in training:
        return None
    count = f"{training['iterations']:.0f} iteration{'' if training['iterations'] == 1 else 's'}"
    largest, objective = (
        "not finite" if training[name] is None else f"{training[name]:{form}}"
        for name, form in (("grad_max", ".3g"), ("objective", ".6g"))
    )
    return f"{count}, the gradient's largest entry {largest}, objective {objective}"


def warnings(
    config: Any, task: Task, weight_decay: float, training: Mapping[str, Any], *, examples: int, parameters: int
) -> list[str]:
    """What to know of a solution whose last training metrics are `training`."""
    section, found = config.optimizer, []
    if training.get("converged") == 0:
        way = _way_out(section, config.dtype, weight_decay, training)
        found.append(f"{section.name} did not converge: {report(training)}; {way}")
    if weight_decay:
        return found
    if section.name == "closed_form" and examples < parameters:
        found.append(
            f"{examples} training examples do not determine {parameters} parameters: of all that fit them these have "
            "the smallest norm; give optimizer.alpha"
        )
    elif training.get("undetermined"):
        wider = "" if config.dtype == "float64" else " or dtype=float64"
        found.append(
            f"{config.dtype} can't tell {training['undetermined']:.0f} of {parameters} directions of the parameters "
            "apart, for training features depend on each other: of all solutions this one has the smallest norm; give "
            f"optimizer.alpha{wider}"
        )
    if training.get("accuracy") == 1:
        what = None
        if isinstance(task, SquaredHinge):
            what = "many parameters have no loss"
        elif isinstance(task, Classification) and not task.label_smoothing:
            what = "the loss has no minimum"
        if what:
            found.append(
                f"all training examples are right and nothing is penalised: the classes can be separated, so {what}, "
                "and where the solver stopped is an accident; give optimizer.C"
            )
    return found


def _way_out(section: Any, dtype: str, weight_decay: float, training: Mapping[str, Any]) -> str:
    wider = "" if dtype == "float64" else "dtype=float64 or "
    if section.name == "closed_form":
        other = "optimizer.factorization=qr" if section.factorization == "cholesky" else "features of a like scale"
        return f"columns depend on each other, or differ in scale: give {wider}{other}"
    if training["iterations"] >= section.max_iterations:
        way = "a larger optimizer.tolerance" + ("" if weight_decay else " or some regularization")
        return f"give more than optimizer.max_iterations={section.max_iterations}, or {way}"
    return f"{dtype} can't get further: give {wider}a larger optimizer.tolerance than {section.tolerance:g}"
