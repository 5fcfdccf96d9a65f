"""Solvers: optimizers that fit the whole training set in one step, for models with a single optimum.

A solver minimizes the task's mean loss + weight_decay / 2 · Σ p² over the parameters p that `decay_exclude` does not
match, so an intercept is not penalized. It processes the batch in blocks of rows, each small enough to stay in the
processor's cache, so that the second use of a row, for the gradient, does not read it from memory again.
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

# The keys of the config's `optimizer` section that a solver takes, besides the penalty.
KEYS = ("tolerance", "max_iterations", "factorization")
# Rows per block in the cache; more if the gradient, which each block adds to, is itself large.
BLOCK_BYTES = 2**20
BLOCK_PER_GRADIENT = 4

# (problem, initial parameters) -> (solution, iterations, the largest gradient that counts as converged, other reported
# values by name)
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
    """Fits the parameters to `batch`, all training examples -> the state and its scores.

    Besides the task's, the scores are `objective`, `grad_max` (its gradient's largest entry), `iterations`, `converged`
    (1 or 0) and values reported by the solver. The number of rows of `batch`, split over `devices`, is a multiple of
    devices × blocks. Only those rows of a `table` are fitted that `batch` reads.
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
    """The number of blocks per device into which to split `rows` rows like those of `batch`; 1 except on CPUs."""
    if jax.default_backend() != "cpu":
        return 1
    row_bytes = sum(x.size * x.dtype.itemsize for x in batch.values()) / len(batch["weight"])
    gradient_bytes = 4 * parameters
    return max(1, math.ceil(rows * row_bytes / devices / max(BLOCK_BYTES, BLOCK_PER_GRADIENT * gradient_bytes)))


def report(training: Mapping[str, Any]) -> str | None:
    """Describes in a line how a solver with these last training metrics ended; None for other optimizers."""
    if "iterations" not in training:
        return None
    count = f"{training['iterations']:.0f} iteration{'' if training['iterations'] == 1 else 's'}"
    largest, objective = (
        "not finite" if training[name] is None else f"{training[name]:{form}}"
        for name, form in (("grad_max", ".3g"), ("objective", ".6g"))
    )
    return f"{count}, the gradient's largest entry {largest}, objective {objective}"


def warnings(
    section: Any,
    task: Task,
    dtype: str,
    weight_decay: float,
    training: Mapping[str, Any],
    *,
    examples: int,
    parameters: int,
) -> list[str]:
    """Warnings about a solution whose last training metrics are `training`; `section`: the solver's settings."""
    found = []
    if training.get("converged") == 0:
        way = _way_out(section, dtype, weight_decay, training)
        found.append(f"{section.name} did not converge: {report(training)}; {way}")
    if weight_decay:
        return found
    if section.name == "closed_form" and examples < parameters:
        found.append(
            f"{examples} training examples do not determine {parameters} parameters; this is the solution of smallest "
            "norm: give optimizer.alpha"
        )
    elif training.get("undetermined"):
        wider = "" if dtype == "float64" else " or dtype=float64"
        found.append(
            f"in {dtype}, {training['undetermined']:.0f} of {parameters} directions of the parameters are not "
            "determined, because features are linearly dependent; this is the solution of smallest norm: give "
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
                f"all training examples are classified correctly without a penalty: the classes are separable, so "
                f"{what}, and the result depends on where the solver stopped; give optimizer.C"
            )
    return found


def _way_out(section: Any, dtype: str, weight_decay: float, training: Mapping[str, Any]) -> str:
    wider = "" if dtype == "float64" else "dtype=float64 or "
    if section.name == "closed_form":
        other = "optimizer.factorization=qr" if section.factorization == "cholesky" else "features of similar scale"
        return f"columns depend on each other, or differ in scale: give {wider}{other}"
    if training["iterations"] >= section.max_iterations:
        way = "a larger optimizer.tolerance" + ("" if weight_decay else " or some regularization")
        return f"give more than optimizer.max_iterations={section.max_iterations}, or {way}"
    return (
        f"the limit of {dtype} precision is reached: give {wider}a larger "
        f"optimizer.tolerance than {section.tolerance:g}"
    )
