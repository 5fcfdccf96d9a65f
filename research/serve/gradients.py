"""Integrated gradients: how much each item of an input adds to a score, which together is all of it.

Sundararajan et al. 2017, "Axiomatic attribution for deep networks": the attribution of an item is the integral of the
score's derivative along the straight line from a baseline without information to the input (section 3). The sum of the
attributions is the score of the input minus that of the baseline (section 3, "completeness").

The line is walked with gates: 0 is the baseline of an item, 1 the item itself, so an item's attribution is the integral
of the derivative by its gate. Items are the tokens of a text, the terms of a bag of words, pixels, or features.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# Points of the line in a batch. Two of them are its ends, so that the first batch has both scores.
ROWS = 16
# Points at most, and the gap, as a share of the attributions' magnitudes, for which no more are taken.
MOST_POINTS = 128
TOLERANCE = 0.002

# The entry of a batch that is gated; the model reads one of them.
ENTRIES = ("tokens", "values", "images", "features")


@dataclasses.dataclass(frozen=True)
class Attributions:
    """What adds to a score.

    Attributes:
      values: of each item: [L], [H, W] or [D].
      score, baseline: of the input and of the baseline.
      points: where on the line the derivative was taken.
    """

    values: np.ndarray
    score: float
    baseline: float
    points: int

    @property
    def gap(self) -> float:
        """What the attributions lack to be complete: 0 if the integral is exact."""
        return self.score - self.baseline - float(self.values.sum(dtype=np.float64))


def _gated_embedding(gates: jax.Array) -> Callable[..., Any]:
    """Multiplies token embeddings [K, L, D] by gates [K, L], in whatever model: their baseline is 0 (section 3).

    A trained baseline would be the embedding of padding, but no loss depends on that one, so its values are random.
    """

    def interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        found = call(*args, **kwargs)
        if context.module.name == "token_embedding" and context.method_name == "__call__":
            return found * gates[:, :, None].astype(found.dtype)
        return found

    return interceptor


def _outputs(variables: Any, batch: Mapping[str, jax.Array], gates: jax.Array, baseline: Any, module: nn.Module) -> Any:
    """The model's outputs [K, …] at gates [K, …] of a batch of one row."""
    rows = {name: jnp.broadcast_to(x, (len(gates), *x.shape[1:])) for name, x in batch.items()}
    if "tokens" in rows:
        with nn.intercept_methods(_gated_embedding(gates)):
            return module.apply(variables, rows, train=False)
    (name,) = (name for name in ENTRIES if name in rows)
    x = rows[name].astype(jnp.float32)
    gates = gates.reshape(*gates.shape, *[1] * (x.ndim - gates.ndim))  # all channels of a pixel have one
    return module.apply(variables, {**rows, name: baseline + gates * (x - baseline)}, train=False)


def walk(
    variables: Any,
    batch: Mapping[str, jax.Array],
    baseline: jax.Array,
    free: jax.Array,
    places: jax.Array,
    weights: jax.Array,
    direction: jax.Array,
    *,
    module: nn.Module,
) -> tuple[jax.Array, jax.Array]:
    """A part of the integral.

    Args:
      batch: one row.
      baseline: of the entry that is gated, broadcast to it; unused for tokens.
      free: 1 for items on the line, 0 for those that stay as they are, such as [CLS]: [1, …].
      places, weights: K points of the line, 0 to 1, and the weights of their derivatives.
      direction: the score is its product with the outputs: [C].

    Returns:
      The sum of the derivatives by the items' gates, and the scores at the points [K].
    """

    def scores(gates: jax.Array) -> jax.Array:
        outputs = _outputs(variables, batch, free * gates + (1 - free), baseline, module)
        return (outputs.astype(jnp.float32).reshape(len(places), -1) * direction[None, :]).sum(axis=1)

    gates = jnp.broadcast_to(places.reshape(-1, *[1] * (free.ndim - 1)), (len(places), *free.shape[1:]))
    found, derivative = jax.vjp(scores, gates)
    return derivative(weights)[0].sum(axis=0), found


@functools.cache
def line(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Points from 0 to 1 and their weights: the ends, which weigh nothing, and Gauss and Legendre's between them."""
    nodes, weights = np.polynomial.legendre.leggauss(points - 2)
    return np.r_[0, (nodes + 1) / 2, 1].astype(np.float32), np.r_[0, weights / 2, 0].astype(np.float32)


def direction(count: int, label: int | None) -> np.ndarray:
    """The score of a class among `count` outputs: its logit minus the mean of the others; of a number, the number.

    Softmax ignores what is added to all logits, and so does this. For two classes it is the log-odds.
    """
    if label is None or count == 1:
        return np.ones(count, np.float32)
    return np.where(np.arange(count) == label, 1, -1 / (count - 1)).astype(np.float32)


def integrate(part: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Attributions:
    """Doubles the points until the gap is small. `part`: `walk` for ROWS places and their weights."""
    points = ROWS
    while True:
        places, weights = line(points)
        batches = [part(places[i : i + ROWS], weights[i : i + ROWS]) for i in range(0, points, ROWS)]
        values = np.stack([values for values, _ in batches]).sum(axis=0, dtype=np.float64)
        found = Attributions(values, float(batches[-1][1][-1]), float(batches[0][1][0]), points)
        if points >= MOST_POINTS or abs(found.gap) <= TOLERANCE * np.abs(values).sum():
            return found
        points *= 2
