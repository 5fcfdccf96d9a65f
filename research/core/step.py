"""One step of training and of evaluation: pure functions of arrays, the same for every model."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from research.core import metrics, quantization
from research.core.lora import OFF, Lora, join
from research.core.state import TrainState
from research.core.tasks import Batch, Task


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    module: nn.Module,
    task: Task,
    tx: optax.GradientTransformation,
    seed: int,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    gradient_point: Callable[[Any, Any], Any] | None = None,
    lora: Lora = OFF,
    exact: Callable[..., Any] | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One optimizer update on the mean loss of the examples in `batch`.

    With `accumulate` = k the batch's rows go through the model in k parts, whose summed gradients are divided by the
    examples' total weight once: the same update as k = 1 up to rounding (dropout masks and batch statistics apart).
    `ema_decay` is the decay of the average of the parameters, where the state keeps one. `gradient_point` maps
    parameters and optimizer state to the point at which the gradient is taken, by default the parameters. With `lora`
    only the parameters that it trains have gradients and optimizer state. A batch whose examples all have weight 0 has
    zero gradients. `exact` computes the parts instead: `research.core.exact`.
    """
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    trained, frozen = lora.split(state.params)

    in_parts = exact or (functools.partial(_accumulated, parts=accumulate) if accumulate > 1 else None)

    # One part uses the mean; several use sums, divided once at the end, because dividing all gradients takes time.
    def part_loss(params: Any, model_state: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Any]:
        with lora.applied(train=True):
            outputs, model_state = module.apply(
                {"params": join(params, frozen), **model_state},
                batch,
                train=True,
                rngs={"dropout": rng},
                mutable=list(model_state),
            )
        scores = task.scores(outputs, batch)
        loss = scores["loss"]
        return loss.total if in_parts else loss.total / _or_one(loss.weight), (scores, dict(model_state))

    point = gradient_point(trained, state.opt_state) if gradient_point else trained
    gradient = functools.partial(jax.grad(part_loss, has_aux=True), point)

    if in_parts:
        grads, scores, model_state = in_parts(gradient, trained, state.model_state, batch, rng)
    else:
        grads, (scores, model_state) = gradient(state.model_state, batch, rng)
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    params = join(optax.apply_updates(trained, updates), frozen)
    latest = {"params": params, "model_state": model_state} if state.average else {}
    # A single product with 1 − decay: rounded separately, decay and 1 − decay would not sum to one.
    average = jax.tree.map(lambda mean, new: mean + (1 - ema_decay) * (new - mean), state.average, latest)
    scores = {**scores, "grad_norm": metrics.Mean(optax.tree.norm(grads), jnp.ones(()))}
    return TrainState(state.step + 1, params, model_state, opt_state, average), scores


def _accumulated(
    gradient: Callable[..., Any], params: Any, model_state: Any, batch: Batch, rng: jax.Array, parts: int
) -> tuple[Any, dict[str, Any], Any]:
    """The gradient of the mean loss, the scores and the model state of a batch that is computed in `parts`.

    gradient: (model_state, part of the batch, rng) -> gradient of the summed loss by `params`, (scores, model_state).
    """
    # Part i takes rows i, i+k, …: each device keeps its own rows, and nothing is transferred.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    rngs = jax.random.split(rng, parts)

    def body(carry: Any, part: Any) -> tuple[Any, Any]:
        more, (scores, model_state) = gradient(carry[1], *part)
        # A part of only padding has no batch statistics and is skipped.
        real = jnp.any(part[0]["weight"] > 0)
        kept = jax.tree.map(
            lambda new, old: jnp.where(real, new, old), (metrics.add(carry[0], more), model_state), carry
        )
        return kept, scores

    zeros = jax.tree.map(jnp.zeros_like, params)
    (grads, model_state), scores = jax.lax.scan(body, (zeros, model_state), (split, rngs))
    scores = jax.tree.map(lambda x: jnp.sum(x, axis=0), scores)
    weight = _or_one(scores["loss"].weight)
    return jax.tree.map(lambda g: g / weight, grads), scores, model_state


def _or_one(weight: jax.Array) -> jax.Array:
    """`weight`, or 1 where it is 0: the sums are then 0, so the mean is 0 too."""
    return jnp.where(weight > 0, weight, 1)


def eval_step(
    state: TrainState, batch: Batch, *, module: nn.Module, task: Task, lora: Lora = OFF
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Returns the scores of one batch and its per-example predictions."""
    with quantization.applied(state.model_state):
        outputs = module.apply({"params": lora.merged(state.params), **state.model_state}, batch, train=False)
    return task.scores(outputs, batch), task.predictions(outputs, batch)
