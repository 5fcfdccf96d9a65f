"""Gradual magnitude pruning (Zhu & Gupta 2017): the smallest weights of each kernel become 0 while the others train."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from research.base.leaves import path_name

# The part of the steps over which weights are removed, about so many times; afterwards the others only train.
_PART, _TIMES = 0.75, 100
_SMALLEST = 2**14  # weights of a kernel; smaller ones stay whole


def is_pruned(path: Any, leaf: jax.Array) -> bool:
    """Whether weights of this parameter are removed: of large kernels, not of embeddings, biases and norms."""
    return path_name(path).endswith("kernel") and leaf.ndim >= 2 and leaf.size >= _SMALLEST


def gradually(tx: optax.GradientTransformation, sparsity: float, total_steps: int) -> optax.GradientTransformation:
    """`tx`, and the smallest weights of each large kernel become 0 and stay so.

    After the fraction t of the pruning the share of zeros is sparsity · (1 − (1 − t)³) (equation 1). A weight that is 0
    stays 0: which ones are removed is in the parameters themselves.
    """
    end = max(1, int(_PART * total_steps))
    every = max(1, end // _TIMES)

    def init(params: Any) -> Any:
        return jnp.zeros((), jnp.int32), tx.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        step, inner = state
        updates, inner = tx.update(updates, inner, params)
        share = sparsity * (1 - (1 - jnp.minimum(step / end, 1.0)) ** 3)
        is_due = ((step % every == 0) & (step <= end)) | (step == end)

        def pruned(path: Any, update: jax.Array, weights: jax.Array) -> jax.Array:
            if not is_pruned(path, weights):
                return update
            new = jnp.where(weights == 0, 0, weights + update)

            def smallest_removed(new: jax.Array) -> jax.Array:
                size = jnp.sort(jnp.abs(new).ravel())
                count = jnp.round(share * size.size).astype(jnp.int32)
                limit = jnp.where(count > 0, size[jnp.maximum(count - 1, 0)], -1.0)
                return jnp.where(jnp.abs(new) <= limit, 0, new)

            return jax.lax.cond(is_due, smallest_removed, lambda new: new, new) - weights

        return jax.tree_util.tree_map_with_path(pruned, updates, params), (step + 1, inner)

    return optax.GradientTransformation(init, update)


def zeros(params: Any) -> float | None:
    """The share of zeros among the weights of large kernels; None if there are none."""
    leaves = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if is_pruned(path, leaf)]
    if not leaves:
        return None
    return float(sum(int(jnp.sum(leaf == 0)) for leaf in leaves) / sum(leaf.size for leaf in leaves))
