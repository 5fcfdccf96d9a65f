"""Least squares in closed form, for models that are linear in their parameters."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from research.core.optim import decay_mask
from research.core.tasks import Batch
from research.solvers.problem import Problem, max_norm

# `qr` treats a singular value as 0 up to this multiple of the machine epsilon times the largest. Rounding leaves up to
# 43 of an exact 0 (measured in float32: a duplicated column, 3 million rows), hardly more for more rows or columns.
RANK_CUTOFF = 128


def closed_form(
    problem: Problem, params: Any, *, tolerance: float, factorization: str, **_: Any
) -> tuple[Any, jax.Array, Any, dict[str, jax.Array]]:
    """The least-squares solution of a model that is linear in its parameters, whatever their initial values.

    If the solution is not unique (fewer examples than features, columns that repeat others or are constant), `qr`
    takes the limit of a vanishing penalty: the solution with the smallest norm of the penalized parameters. `cholesky`
    of the normal equations is several times as fast, loses twice the digits, and needs a unique solution; otherwise the
    parameters are 0. `auto` is cholesky where that is accurate enough, and qr elsewhere.

    Besides the solution, reports `undetermined`: the number of directions of the parameters that the data does not
    determine to the type's precision, not counting features that are always 0.
    """
    flat, unravel = ravel_pytree(params)
    flat = jnp.zeros_like(flat)  # solves for the parameters themselves, not for an update
    decayed = np.concatenate(
        [
            np.full(p.size, m)
            for p, m in zip(*map(jax.tree.leaves, (params, decay_mask(params, problem.decay_exclude))), strict=True)
        ]
    )
    # Columns that are not penalized come first: the others are then fitted to what these leave over.
    order = np.argsort(decayed, kind="stable")
    columns = slice(None) if (np.diff(order) == 1).all() else order  # reordering the Jacobian copies it

    def outputs(flat: jax.Array, batch: Batch) -> jax.Array:
        variables = {"params": unravel(flat)}
        return problem.task.predictions(problem.module.apply(variables, batch, train=False), batch)["prediction"]

    def rows(block: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Jacobian [B, P], residuals [B] and weights [B]."""
        of_one = jax.grad(lambda flat, example: outputs(flat, jax.tree.map(lambda x: x[None], example))[0])
        jacobian = jax.vmap(of_one, (None, 0))(flat, block)[:, columns]
        return jacobian, block["labels"].astype(flat.dtype) - outputs(flat, block), block["weight"]

    def gradient(found: jax.Array) -> jax.Array:
        return ravel_pytree(jax.grad(problem.objective)(unravel(flat.at[order].set(found))))[0][order]

    # In the columns' order.
    found, start, undetermined = FACTORIZATIONS[factorization](
        _Equations(
            problem=problem,
            rows=rows,
            weight=problem.sum(lambda block: jnp.sum(block["weight"])),
            penalty=jnp.asarray(problem.weight_decay * decayed[order], flat.dtype),
            free=int(np.sum(~decayed)),
            gradient=gradient,
        )
    )
    found = flat.at[order].set(jnp.where(jnp.all(jnp.isfinite(found)), found, 0))
    # Rounding leaves a gradient that grows with the data's scale: it must be negligible relative to the initial one.
    bound = jnp.maximum(tolerance, math.sqrt(jnp.finfo(flat.dtype).eps) * max_norm(start))
    return unravel(found), jnp.int32(1), bound, {"undetermined": undetermined}


@dataclasses.dataclass(frozen=True)
class _Equations:
    """Least squares in P parameters; those that are not penalized come first."""

    problem: Problem
    rows: Callable[[Batch], tuple[jax.Array, jax.Array, jax.Array]]  # a block's Jacobian, residuals at 0 and weights
    weight: jax.Array  # of all examples
    penalty: jax.Array  # [P], the weight decay or 0
    free: int  # the number of parameters that are not penalized
    gradient: Callable[[jax.Array], jax.Array]  # that of the objective, [P] at [P], by another pass over the data


# The parameters [P], the gradient [P] at 0, and the number of undetermined directions.
_Solution = tuple[jax.Array, jax.Array, jax.Array]


def _cholesky(equations: _Equations) -> _Solution:
    """Solves by Cholesky factorization. The parameters are not finite if the equations are singular."""
    found, start, _ = _normal_equations(equations)
    return found, start, jnp.int32(0)


def _auto(equations: _Equations) -> _Solution:
    """Solves by `_cholesky` if that is accurate enough, else by `_qr`.

    It is if, of each column's square, the part that is not a combination of the columns before it exceeds the square
    root of the type's precision: rounding errors are then below that root, and are refined.
    """
    found, start, own = _normal_equations(equations)
    good = jnp.all(own > math.sqrt(jnp.finfo(own.dtype).eps)) & jnp.all(jnp.isfinite(found))
    return jax.lax.cond(good, lambda: (found, start, jnp.int32(0)), lambda: _qr(equations))


def _normal_equations(equations: _Equations) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Solves the normal equations -> parameters and gradient as in `_Solution`, independence [P].

    The last is the part of each column's square that is not a combination of the columns before it.
    """

    def products(block: Batch) -> tuple[jax.Array, jax.Array]:
        jacobian, residuals, weights = equations.rows(block)
        return jacobian.T @ (jacobian * weights[:, None]), jacobian.T @ (residuals * weights)

    gram, right = equations.problem.sum(products)
    start = -2 * right / equations.weight
    hessian = 2 * gram / equations.weight + jnp.diag(equations.penalty)
    # Columns are scaled to one length: the factor's diagonal then shows how far they depend on each other.
    scale = 1 / jnp.sqrt(jnp.diag(hessian))
    factor = jnp.linalg.cholesky(hessian * scale[:, None] * scale[None, :])

    def solve(right: jax.Array) -> jax.Array:
        return scale * jax.scipy.linalg.cho_solve((factor, True), scale * right)

    found = solve(-start)
    # A second solve refines what rounding left over.
    return found - solve(equations.gradient(found)), start, jnp.diag(factor) ** 2


def _qr(equations: _Equations) -> _Solution:
    """Solves by QR factorization. The parameters are always finite."""

    def scaled(block: Batch) -> jax.Array:
        jacobian, residuals, weights = equations.rows(block)
        return jnp.column_stack([jacobian, residuals]) * jnp.sqrt(weights / equations.weight)[:, None]

    # R of [J | r], with the penalty's rows below, has all that is needed; Q is not computed.
    penalty, free = equations.penalty, equations.free
    size = len(penalty)
    stacked = jax.lax.map(scaled, equations.problem.batch).reshape(-1, size + 1)
    below = jnp.column_stack([jnp.diag(jnp.sqrt(penalty / 2)), jnp.zeros_like(penalty)])
    triangle = jnp.linalg.qr(jnp.concatenate([stacked, below]), mode="r")
    factor, right = triangle[:size, :size], triangle[:size, size]
    penalized, lost = _minimum_norm(factor[free:, free:], right[free:])
    rest, lost_free = _minimum_norm(factor[:free, :free], right[:free] - factor[:free, free:] @ penalized)
    return jnp.concatenate([rest, penalized]), -2 * factor.T @ right, lost + lost_free


def _minimum_norm(factor: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The minimum-norm solution [P] of factor · x = right, and the number of directions in which it is undetermined.

    Columns of `factor` [P, P] that are 0 are not counted.
    """
    if not right.size:
        return right, jnp.int32(0)
    left, values, rows = jnp.linalg.svd(factor)
    counts = values > RANK_CUTOFF * jnp.finfo(values.dtype).eps * values[0]
    solution = rows.T @ (jnp.where(counts, 1 / jnp.where(counts, values, 1), 0) * (left.T @ right))
    columns = jnp.count_nonzero(jnp.any(factor != 0, axis=0))
    return solution, (columns - jnp.count_nonzero(counts)).astype(jnp.int32)


FACTORIZATIONS: dict[str, Callable[[_Equations], _Solution]] = {
    "auto": _auto,
    "cholesky": _cholesky,
    "qr": _qr,
}
