"""Additive metrics: sums over batches and devices, divided only at the end.

Each metric is a pytree of sums; adding two of them leaf by leaf gives the metric of both sets of examples together.
So a metric does not depend on how the examples were split into batches.

A metric that is not a sum, such as a rank correlation, is a function of a whole split's predictions, on the host in
float64.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts `x` to float32, unless it is float64 already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# Prefix of the names of metrics of the averaged parameters.
AVERAGE = "ema_"


# The least and the greatest value of metrics that have one.
_BOUNDS: dict[str, tuple[float, float]] = {
    "accuracy": (0, 1),
    "f1": (0, 1),
    "matthews": (-1, 1),
    "pearson": (-1, 1),
    "spearman": (-1, 1),
    "r2": (-math.inf, 1),
    "perplexity": (1, math.inf),
    "bits_per_byte": (0, math.inf),
    "loss": (0, math.inf),
}


def metric_bounds(name: str) -> tuple[float, float]:
    """The range of a metric's values, to which intervals are clipped in plots."""
    return _BOUNDS.get(name.removeprefix(AVERAGE), (-math.inf, math.inf))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A weighted mean, kept as its two sums (both scalars)."""

    total: Any
    weight: Any

    @classmethod
    def of(cls, values: jax.Array, weight: jax.Array) -> "Mean":
        """The mean of `values` weighted by `weight` (same shape); values with zero weight are ignored, even NaN."""
        weight, values = at_least_float32(weight), at_least_float32(values)
        values = jnp.where(weight > 0, values, 0.0)
        return cls(jnp.sum(values * weight), jnp.sum(weight))

    def compute(self) -> float | None:
        """The mean, or None if there was nothing to average."""
        return float(self.total) / float(self.weight) if float(self.weight) > 0 else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss in nats per token. The mean is over all batches: exp is applied last."""

    loss: Mean

    def compute(self) -> float | None:
        """The perplexity, or None if there was nothing to average."""
        loss = self.loss.compute()
        if loss is None:
            return None
        return math.exp(loss) if loss < 700 else math.inf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Confusion:
    """Binary confusion counts, class 1 being positive, and the statistic to compute from them."""

    true_positive: Any
    false_positive: Any
    false_negative: Any
    true_negative: Any
    statistic: Callable[[float, float, float, float], float] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        predictions: jax.Array,
        labels: jax.Array,
        weight: jax.Array,
        statistic: Callable[[float, float, float, float], float],
    ) -> "Confusion":
        """Counts predicted classes, labels and weights of one shape; `statistic` is `f1` or `matthews`."""
        positive, true = (predictions == 1).astype(jnp.float32), (labels == 1).astype(jnp.float32)
        return cls(
            jnp.sum(weight * positive * true),
            jnp.sum(weight * positive * (1 - true)),
            jnp.sum(weight * (1 - positive) * true),
            jnp.sum(weight * (1 - positive) * (1 - true)),
            statistic,
        )

    def compute(self) -> float | None:
        """The statistic, or None without examples."""
        counts = [float(x) for x in (self.true_positive, self.false_positive, self.false_negative, self.true_negative)]
        return self.statistic(*counts) if sum(counts) > 0 else None


def f1(true_positive: float, false_positive: float, false_negative: float, true_negative: float) -> float:
    """The harmonic mean of precision and recall of class 1 (van Rijsbergen 1979): 2·TP / (2·TP + FP + FN).

    0 where class 1 neither is predicted nor occurs, as in scikit-learn.
    """
    total = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / total if total > 0 else 0.0


def matthews(true_positive: float, false_positive: float, false_negative: float, true_negative: float) -> float:
    """The correlation between predictions and labels (Matthews 1975), −1 to 1.

    0 where all predictions or all labels are of one class, as in scikit-learn.
    """
    tp, fp, fn, tn = true_positive, false_positive, false_negative, true_negative
    scale = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / scale if scale > 0 else 0.0


def r_squared(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """The coefficient of determination R² = 1 − Σ(y−ŷ)² / Σ(y−ȳ)² of two arrays [N], in float64 and two passes.

    The mean is subtracted before squaring, so that labels far from 0 keep their precision. None where R² is undefined:
    fewer than two examples, or all labels equal.
    """
    predicted, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if len(y) < 2 or (y == y[0]).all():
        return None
    return 1.0 - float(np.sum((y - predicted) ** 2) / np.sum((y - y.mean()) ** 2))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """Pearson's correlation of two arrays [N], in float64.

    None where it is undefined: fewer than two examples, or all labels equal. 0 where all predictions are equal: the
    formula gives 0 / 0, but constant predictions carry no information about the labels.
    """
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if len(y) < 2 or (y == y[0]).all():
        return None
    if (x == x[0]).all():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1.0, 1.0))


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """Spearman's rank correlation of two arrays [N]: Pearson's correlation of their ranks, ties sharing their mean."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64 [N]; equal values all get the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def add(a: Any, b: Any) -> Any:
    """The sum of two dicts of metrics over different examples."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def compute(scores: dict[str, Any]) -> dict[str, Any]:
    """The value of every metric; a list of values, one per seed, where the sums have a leading axis of seeds."""
    shape = np.shape(jax.tree.leaves(scores)[0])
    if not shape:
        return {name: metric.compute() for name, metric in scores.items()}
    by_seed = [compute(jax.tree.map(lambda x, i=i: x[i], scores)) for i in range(shape[0])]
    return {name: [values[name] for values in by_seed] for name in scores}
