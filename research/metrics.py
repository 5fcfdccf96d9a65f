"""Additive metrics: what is summed over batches and devices, and only at the end divided.

Each metric is a pytree of sums; adding two of them, leaf by leaf, is the metric of both sets of examples together.
So a metric does not depend on how the examples were cut into batches.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A weighted mean, kept as its two sums (both scalars)."""

    total: Any
    weight: Any

    @classmethod
    def of(cls, values: jax.Array, weight: jax.Array) -> "Mean":
        """The mean of `values`, each counted `weight` times (same shape); NaN at zero weight does not count."""
        weight = weight.astype(jnp.float32)
        values = jnp.where(weight > 0, values.astype(jnp.float32), 0.0)
        return cls(jnp.sum(values * weight), jnp.sum(weight))

    def compute(self) -> float | None:
        """The mean, or None if there was nothing to average."""
        return float(self.total) / float(self.weight) if float(self.weight) > 0 else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss, which is in nats a token. The mean is over all batches: exp comes last."""

    loss: Mean

    def compute(self) -> float | None:
        """The perplexity, or None if there was nothing to average."""
        loss = self.loss.compute()
        if loss is None:
            return None
        return math.exp(loss) if loss < 700 else math.inf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RSquared:
    """The coefficient of determination R² = 1 − Σ(y−ŷ)² / Σ(y−ȳ)² over weighted examples."""

    weight: Any
    label: Any  # Σ w (y − c)
    label_squared: Any  # Σ w (y − c)²
    error_squared: Any  # Σ w (y − ŷ)²
    shift: float = dataclasses.field(default=0.0, metadata={"static": True})  # c: near the labels' mean, for accuracy

    @classmethod
    def of(cls, predictions: jax.Array, labels: jax.Array, weight: jax.Array, shift: float = 0.0) -> "RSquared":
        """From predictions, labels and weights of one shape."""
        centred = labels - shift
        return cls(
            jnp.sum(weight),
            jnp.sum(weight * centred),
            jnp.sum(weight * centred**2),
            jnp.sum(weight * (labels - predictions) ** 2),
            shift,
        )

    def compute(self) -> float | None:
        """R², or None without examples or with labels that are all equal."""
        weight = float(self.weight)
        if weight == 0:
            return None
        variation = float(self.label_squared) - float(self.label) ** 2 / weight
        return 1.0 - float(self.error_squared) / variation if variation > 0 else None


def add(a: Any, b: Any) -> Any:
    """The sum of two dicts of metrics over different examples."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def compute(scores: dict[str, Any]) -> dict[str, float | None]:
    """Every metric's value."""
    return {name: metric.compute() for name, metric in scores.items()}
