"""Gradients whose bits do not depend on how many devices and processes compute them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from research.devices.sharding import BATCH_AXES


def exact_gradient(
    gradient: Callable[..., Any], params: Any, model_state: Any, batch: Any, rng: jax.Array, *, shards: int, mesh: Mesh
) -> tuple[Any, dict[str, Any], Any]:
    """The gradient of the mean loss, the scores and the model state of a batch, by `shards` logical parts of it.

    Part i has the i-th of equally many consecutive rows and its own random numbers, whichever device computes it; each
    device computes its parts one after another. Their gradients are gathered and added in the order of the parts, on
    every device. That takes the memory of `shards` gradients per device.

    Args:
      gradient: (model_state, part of the batch, rng) -> gradient of the summed loss, (scores, model_state).
      params: the parameters, replicated.
      model_state: empty: batch statistics are not supported.
      shards: a multiple of the devices over which `mesh` splits a batch, and a divisor of its rows.
    """
    parts = jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), batch)
    rngs = jax.random.split(rng, shards)

    def own(parts: Any, rngs: jax.Array) -> Any:
        def one(part: Any) -> Any:
            grads, (scores, _) = gradient(model_state, *jax.lax.optimization_barrier(part))
            return jax.lax.optimization_barrier((grads, scores))

        found = jax.lax.map(one, (parts, rngs))
        return jax.tree.map(lambda x: jax.lax.all_gather(x, BATCH_AXES, tiled=True), found)

    split = PartitionSpec(BATCH_AXES)
    grads, scores = jax.shard_map(own, mesh=mesh, in_specs=(split, split), out_specs=PartitionSpec(), check_vma=False)(
        parts, rngs
    )
    # The barriers keep XLA from merging the parts with the sum or the optimizer's update, which may change rounding.
    grads, scores = jax.lax.optimization_barrier(_in_order(jax.lax.optimization_barrier((grads, scores))))
    weight = scores["loss"].weight
    weight = jnp.where(weight > 0, weight, 1)
    return jax.tree.map(lambda g: g / weight, grads), scores, model_state


def _in_order(trees: Any) -> Any:
    """Σ of the leading axis of every leaf, from its first entry to its last."""

    def add(total: Any, more: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, more), None

    first = jax.tree.map(lambda x: x[0], trees)
    rest = jax.tree.map(lambda x: x[1:], trees)
    return jax.lax.scan(add, first, rest)[0]
