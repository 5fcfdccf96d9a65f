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
import numpy as np
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from research import metrics
from research.optim import decay_mask
from research.state import TrainState
from research.tasks import Batch, Task

# What a solver takes of the config's `optimizer` section, beside the penalty.
KEYS = ("tolerance", "max_iterations", "factorization")
# Rows that are in the cache together; more where the gradient itself, which each block adds to, is large.
BLOCK_BYTES = 2**20
BLOCK_PER_GRADIENT = 4
# Up to how many parameters a matrix of their pairs is made, from how many examples for each, and what is added to its
# diagonal, as a part of the mean there.
DENSE, DENSE_ROWS, REGULAR = 1024, 4, 1e-3


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is minimised, over a batch in blocks: each of its arrays [K, B, …]."""

    module: nn.Module
    task: Task
    batch: Batch
    weight_decay: float
    decay_exclude: str

    def scores(self, params: Any, batch: Batch) -> dict[str, Any]:
        return self.task.scores(self.module.apply({"params": params}, batch, train=False), batch)

    def sum(self, function: Callable[[Batch], Any]) -> Any:
        """The sum over the blocks of a tree of arrays."""
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(function, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.batch)),
        )
        return jax.lax.scan(lambda total, block: (metrics.add(total, function(block)), None), zeros, self.batch)[0]

    def decayed(self, params: Any) -> Any:
        """The parameters that the penalty takes, and 0 for the others."""
        return jax.tree.map(lambda p, mask: p * mask, params, decay_mask(params, self.decay_exclude))

    def value(self, params: Any) -> jax.Array:
        """The objective, of a batch of one block."""
        loss = self.scores(params, jax.tree.map(lambda x: x[0], self.batch))["loss"]
        return loss.total / loss.weight + self._penalty(params)

    def _penalty(self, params: Any) -> jax.Array:
        return self.weight_decay / 2 * optax.tree.norm(self.decayed(params), squared=True)

    def at(self, params: Any, which: Callable[[dict[str, Any]], Any] = lambda scores: scores) -> "Point":
        """The objective's value and gradient, and of the scores `which` picks, in one pass over the data."""

        def loss(params: Any, block: Batch) -> tuple[jax.Array, Any]:
            scores = self.scores(params, block)
            return scores["loss"].total, (scores["loss"].weight, which(scores))

        (total, (weight, scores)), grads = self.sum(lambda block: jax.value_and_grad(loss, has_aux=True)(params, block))
        grads = jax.tree.map(lambda g, p: g / weight + self.weight_decay * p, grads, self.decayed(params))
        return Point(total / weight + self._penalty(params), grads, scores)

    def objective(self, params: Any) -> jax.Array:
        """The objective, a function whose gradient comes in the same pass as its value."""

        @jax.custom_vjp
        def objective(params: Any) -> jax.Array:
            return self.at(params, lambda _: ()).value

        def forward(params: Any) -> tuple[jax.Array, Any]:
            point = self.at(params, lambda _: ())
            return point.value, point.grad

        objective.defvjp(forward, lambda grad, scale: (jax.tree.map(lambda g: scale * g, grad),))
        return objective(params)


@dataclasses.dataclass(frozen=True)
class Point:
    """What there is at some parameters: the objective's value and gradient, and scores."""

    value: jax.Array
    grad: Any
    scores: Any


# (problem, parameters to start from) -> (solution, iterations, the largest gradient that counts as converged)
Solver = Callable[..., tuple[Any, jax.Array, Any]]


def _max_norm(tree: Any) -> jax.Array:
    return jnp.max(jnp.abs(ravel_pytree(tree)[0]))


def lbfgs(
    problem: Problem, params: Any, *, tolerance: float, max_iterations: int, factorization: str
) -> tuple[Any, jax.Array, Any]:
    """L-BFGS with ten pairs (Nocedal & Wright 2006, Algorithm 7.5), to a gradient whose largest entry is `tolerance`.

    Up to DENSE parameters it works in coordinates in which the curvature at the start is the same in all directions,
    which takes half the passes over the data that it takes in the parameters themselves, or fewer. It also ends where
    ten iterations brought no lower objective: that is the type's precision.
    """
    tx = optax.lbfgs(memory_size=10)
    coordinates = _Coordinates.round(problem, params)

    def objective(x: Any) -> jax.Array:
        return problem.objective(coordinates.params(x))

    def going_on(carry: Any) -> jax.Array:
        iteration, since, _, _, _, grad, _ = carry
        return (iteration < max_iterations) & (since < 10) & (_max_norm(coordinates.gradient(grad)) > tolerance)

    def iterate(carry: Any) -> Any:
        iteration, since, best, x, value, grad, state = carry
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=objective)
        x = optax.apply_updates(x, updates)
        value, grad = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
        return (iteration + 1, jnp.where(value < best, 0, since + 1), jnp.minimum(best, value), x, value, grad, state)

    zero, x = jnp.int32(0), coordinates.start
    value, grad = jax.value_and_grad(objective)(x)
    carry = (zero, zero, value, x, value, grad, tx.init(x))
    iterations, _, _, x, _, _, _ = jax.lax.while_loop(going_on, iterate, carry)
    return coordinates.params(x), iterations, tolerance


@dataclasses.dataclass(frozen=True)
class _Coordinates:
    """Other coordinates of the parameters. `params` gives the parameters at a place in them; `gradient` makes of a
    gradient in these coordinates that in the parameters, of the same entries."""

    start: Any
    params: Callable[[Any], Any]
    gradient: Callable[[Any], Any]

    @classmethod
    def round(cls, problem: Problem, params: Any) -> "_Coordinates":
        """Coordinates x with params = start + L⁻ᵀ x, L Lᵀ being the objective's Hessian at the start.

        The Hessian is that of some examples, and what makes a singular one regular is added to it: it only has to be
        about right. Where there are more than DENSE parameters, or no such L, the coordinates are the parameters.
        """
        flat, unravel = ravel_pytree(params)
        if flat.size > DENSE:
            return cls(params, lambda x: x, lambda grad: grad)
        rows = jax.tree.leaves(problem.batch)[0].shape[1]
        wanted = DENSE_ROWS * flat.size
        blocks, stride = -(-wanted // rows), max(1, rows // wanted)
        sample = jax.tree.map(lambda x: x[:blocks, ::stride], problem.batch)
        some = dataclasses.replace(problem, batch=jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), sample))

        def objective(flat: jax.Array) -> jax.Array:
            return some.value(unravel(flat))

        hessian = jax.hessian(objective)(flat)
        ridge = REGULAR * jnp.mean(jnp.diag(hessian))
        factor = jnp.linalg.cholesky(hessian + ridge * jnp.eye(flat.size, dtype=flat.dtype))
        factor = jnp.where(jnp.all(jnp.isfinite(factor)), factor, jnp.eye(flat.size, dtype=flat.dtype))

        def of(x: jax.Array) -> Any:
            return unravel(flat + jax.scipy.linalg.solve_triangular(factor, x, trans="T", lower=True))

        return cls(jnp.zeros_like(flat), of, lambda grad: factor @ grad)


def closed_form(
    problem: Problem, params: Any, *, tolerance: float, max_iterations: int, factorization: str
) -> tuple[Any, jax.Array, Any]:
    """The least-squares solution of a model that is linear in its parameters, wherever they start.

    Where several parameters solve it (fewer examples than features, columns that repeat others or are constant), `qr`
    takes the limit of a vanishing penalty: the one with the smallest norm of what is penalised. `cholesky` of the
    normal equations is faster and needs a problem with a single solution; without one the parameters stay 0.
    """
    flat, unravel = ravel_pytree(params)
    flat = jnp.zeros_like(flat)  # what is solved for are the parameters themselves
    decayed = np.concatenate(
        [
            np.full(p.size, m)
            for p, m in zip(*map(jax.tree.leaves, (params, decay_mask(params, problem.decay_exclude))), strict=True)
        ]
    )
    # Columns that are not penalised come first: the others are then solved for in what these leave over.
    order = np.argsort(decayed, kind="stable")
    columns = slice(None) if (np.diff(order) == 1).all() else order  # to reorder the Jacobian copies it
    penalty = problem.weight_decay * decayed[order]
    solve = {"qr": _qr, "cholesky": _cholesky}[factorization]

    def outputs(flat: jax.Array, batch: Batch) -> jax.Array:
        variables = {"params": unravel(flat)}
        return problem.task.predictions(problem.module.apply(variables, batch, train=False), batch)["prediction"]

    def rows(block: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Jacobian [B, P], residuals [B] and weights [B]."""
        of_one = jax.grad(lambda flat, example: outputs(flat, jax.tree.map(lambda x: x[None], example))[0])
        jacobian = jax.vmap(of_one, (None, 0))(flat, block)[:, columns]
        return jacobian, block["labels"].astype(flat.dtype) - outputs(flat, block), block["weight"]

    weight = problem.sum(lambda block: jnp.sum(block["weight"]))
    # In the columns' order, from here on.
    found, grad = solve(
        problem,
        rows,
        weight=weight,
        penalty=jnp.asarray(penalty, flat.dtype),
        free=int(np.sum(~decayed)),
        gradient=lambda found: ravel_pytree(jax.grad(problem.objective)(unravel(flat.at[order].set(found))))[0][order],
    )
    found = flat.at[order].set(jnp.where(jnp.all(jnp.isfinite(found)), found, 0))
    # Rounding leaves a gradient that grows with the data's scale: it has to vanish beside that of the start.
    bound = jnp.maximum(tolerance, math.sqrt(jnp.finfo(flat.dtype).eps) * _max_norm(grad))
    return unravel(found), jnp.int32(1), bound


def _cholesky(
    problem: Problem, rows: Any, *, weight: Any, penalty: jax.Array, free: int, gradient: Any
) -> tuple[jax.Array, jax.Array]:
    """The parameters [P], and the gradient [P] where all are 0."""

    def products(block: Batch) -> tuple[jax.Array, jax.Array]:
        jacobian, residuals, weights = rows(block)
        return jacobian.T @ (jacobian * weights[:, None]), jacobian.T @ (residuals * weights)

    gram, right = problem.sum(products)
    grad = -2 * right / weight
    factor = jax.scipy.linalg.cho_factor(2 * gram / weight + jnp.diag(penalty))
    found = -jax.scipy.linalg.cho_solve(factor, grad)
    # Once more, for what rounding left over.
    return found - jax.scipy.linalg.cho_solve(factor, gradient(found)), grad


def _qr(
    problem: Problem, rows: Any, *, weight: Any, penalty: jax.Array, free: int, gradient: Any
) -> tuple[jax.Array, jax.Array]:
    """As `_cholesky`."""

    def scaled(block: Batch) -> jax.Array:
        jacobian, residuals, weights = rows(block)
        return jnp.column_stack([jacobian, residuals]) * jnp.sqrt(weights / weight)[:, None]

    # R of [J | r], with the penalty's rows below, holds all there is to know; the other factor is not made.
    size = len(penalty)
    stacked = jax.lax.map(scaled, problem.batch).reshape(-1, size + 1)
    below = jnp.column_stack([jnp.diag(jnp.sqrt(penalty / 2)), jnp.zeros_like(penalty)])
    triangle = jnp.linalg.qr(jnp.concatenate([stacked, below]), mode="r")
    factor, right = triangle[:size, :size], triangle[:size, size]
    # What rounding leaves of a singular value that is 0: it grows with the root of the rows that were summed.
    cutoff = jnp.finfo(penalty.dtype).eps * max(math.sqrt(stacked.shape[0]), size)
    penalised = jnp.linalg.pinv(factor[free:, free:], rtol=cutoff) @ right[free:]
    rest = right[:free] - factor[:free, free:] @ penalised
    found = jnp.concatenate([jnp.linalg.pinv(factor[:free, :free], rtol=cutoff) @ rest, penalised])
    return found, -2 * factor.T @ right


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
) -> tuple[TrainState, dict[str, Any]]:
    """The parameters that fit `batch`, all training examples, and their scores.

    Beside the task's scores there are `objective`, `grad_norm` (its gradient's largest entry), `iterations` and
    `converged` (1 or 0). The rows of `batch`, split over `devices`, are a multiple of devices × blocks.
    """

    def in_blocks(x: jax.Array) -> jax.Array:  # each device keeps its own rows
        parts = x.reshape(devices, blocks, -1, *x.shape[1:]).swapaxes(0, 1)
        return parts.reshape(blocks, -1, *x.shape[1:])

    with jax.default_matmul_precision("highest"):
        problem = Problem(module, task, jax.tree.map(in_blocks, batch), weight_decay, decay_exclude)
        params, iterations, bound = solver(problem, state.params)
        end = problem.at(params)
    grad_norm = _max_norm(end.grad)
    found = {
        "objective": end.value,
        "grad_norm": grad_norm,
        "iterations": iterations,
        "converged": grad_norm <= bound,
    }
    one = jnp.ones((), end.value.dtype)
    found = {name: metrics.Mean(x.astype(end.value.dtype), one) for name, x in found.items()}
    return dataclasses.replace(state, step=state.step + 1, params=params), {**end.scores, **found}


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
    return (
        f"{training['iterations']:.0f} iterations, the gradient's largest entry {training['grad_norm']:.3g}, objective "
        f"{training['objective']:.6g}"
    )


def warnings(config: Any, weight_decay: float, training: Mapping[str, Any]) -> list[str]:
    """What to know of a solution whose last training metrics are `training`; nothing for other optimizers."""
    section = config.optimizer
    found: list[str] = []
    if section.name not in SOLVERS:
        return found
    if training.get("converged") == 0:
        reason = (
            f"optimizer.max_iterations={section.max_iterations} were not enough, or {config.dtype} is not: give more, "
            "dtype=float64, a larger optimizer.tolerance or more regularization"
            if section.name == "lbfgs"
            else "columns depend on each other: give optimizer.factorization=qr, dtype=float64 or optimizer.alpha"
        )
        found.append(
            f"{section.name} did not converge: the gradient's largest entry is {training['grad_norm']:.3g} after "
            f"{training['iterations']:.0f} iterations; {reason}"
        )
    if not weight_decay and training.get("accuracy") == 1:
        found.append(
            "all training examples are right and nothing is penalised: the classes can be separated, so the loss has "
            "no minimum and the parameters depend on where the solver stopped; give optimizer.C"
        )
    return found
