"""The problem that a solver minimizes, with its values and gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from research.core import metrics
from research.core.optim import decay_mask
from research.core.tasks import Batch, Task


@dataclasses.dataclass(frozen=True)
class Problem:
    """The objective over a batch in blocks, whose arrays are [K, B, …]."""

    module: nn.Module
    task: Task
    batch: Batch
    weight_decay: float
    decay_exclude: str

    def scores(self, params: Any, batch: Batch) -> dict[str, Any]:
        return self.task.scores(self.module.apply({"params": params}, batch, train=False), batch)

    def sum(self, function: Callable[[Batch], Any]) -> Any:
        """The sum of `function`, a tree of arrays, over the blocks."""
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(function, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.batch)),
        )
        return jax.lax.scan(lambda total, block: (metrics.add(total, function(block)), None), zeros, self.batch)[0]

    def decayed(self, params: Any) -> Any:
        """The penalized parameters, with 0 for the others."""
        return jax.tree.map(lambda p, mask: p * mask, params, decay_mask(params, self.decay_exclude))

    def value(self, params: Any) -> jax.Array:
        """The objective for a batch of one block."""
        loss = self.scores(params, jax.tree.map(lambda x: x[0], self.batch))["loss"]
        return loss.total / loss.weight + self._penalty(params)

    def _penalty(self, params: Any) -> jax.Array:
        return self.weight_decay / 2 * optax.tree.norm(self.decayed(params), squared=True)

    def at(self, params: Any, which: Callable[[dict[str, Any]], Any] = lambda scores: scores) -> "Point":
        """The objective's value and gradient, and the scores that `which` selects, in one pass over the data."""

        def loss(params: Any, block: Batch) -> tuple[jax.Array, Any]:
            scores = self.scores(params, block)
            return scores["loss"].total, (scores["loss"].weight, which(scores))

        (total, (weight, scores)), grads = self.sum(lambda block: jax.value_and_grad(loss, has_aux=True)(params, block))
        grads = jax.tree.map(lambda g, p: g / weight + self.weight_decay * p, grads, self.decayed(params))
        return Point(total / weight + self._penalty(params), grads, scores)

    def objective(self, params: Any) -> jax.Array:
        """The objective, as a function that computes its gradient in the same pass as its value."""

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
    """The objective's value and gradient, and scores, at some parameters."""

    value: jax.Array
    grad: Any
    scores: Any


def max_norm(tree: Any) -> jax.Array:
    return jnp.max(jnp.abs(ravel_pytree(tree)[0]))
