"""Tasks: what is asked of a model's outputs. The same `scores` serve training and evaluation."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from research.metrics import Mean, Perplexity, RSquared

Batch = dict[str, jax.Array]


class Task(Protocol):
    """`scores["loss"]` is what training differentiates; every array's leading axes are those of `weight`."""

    def scores(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Named additive metrics of one batch."""
        ...

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Per-example records; each array has the leading axes of `weight`."""
        ...


@dataclasses.dataclass(frozen=True)
class Classification:
    """Softmax cross-entropy over classes. Outputs: logits [..., C]; labels: int [...], −1 where hidden.

    Hidden labels have no weight in the scores, their predictions are given like any other's.
    """

    label_smoothing: float = 0.0

    def scores(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        logits = outputs.astype(jnp.float32)
        labels = batch["labels"]
        weight = batch["weight"] * (labels >= 0)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), self.label_smoothing)
        return {
            "loss": Mean.of(optax.softmax_cross_entropy(logits, targets), weight),
            "accuracy": Mean.of(jnp.argmax(logits, axis=-1) == labels, weight),
        }

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """`prediction`: the most probable class; `scores`: the probabilities [..., C]."""
        probabilities = jax.nn.softmax(outputs.astype(jnp.float32), axis=-1)
        return {"prediction": jnp.argmax(probabilities, axis=-1), "scores": probabilities}


@dataclasses.dataclass(frozen=True)
class Regression:
    """Squared error. Outputs: float [...]; labels: float [...]. `label_shift` is a round number near the labels' mean,
    subtracted inside R² so that its sums keep their digits in float32."""

    label_shift: float = 0.0

    def scores(self, outputs: jax.Array, batch: Batch) -> dict[str, Any]:
        predictions, labels, weight = outputs.astype(jnp.float32), batch["labels"], batch["weight"]
        return {
            "loss": Mean.of((predictions - labels) ** 2, weight),
            "mean_absolute_error": Mean.of(jnp.abs(predictions - labels), weight),
            "r2": RSquared.of(predictions, labels, weight, self.label_shift),
        }

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"prediction": outputs.astype(jnp.float32)}


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Cross-entropy over the hidden tokens of each row (Devlin et al. 2018, section 3.1), each weighing the same.

    Outputs: logits [B, M, V]; labels: int [B, M], −1 in slots that hide nothing; weight [B, 1].
    """

    def scores(self, outputs: jax.Array, batch: Batch) -> dict[str, Any]:
        logits, labels = outputs.astype(jnp.float32), batch["labels"]
        weight = batch["weight"] * (labels >= 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        loss = Mean.of(losses, weight)
        return {
            "loss": loss,
            "accuracy": Mean.of(jnp.argmax(logits, axis=-1) == labels, weight),
            "perplexity": Perplexity(loss),
        }

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """`position` in the row, `label` and `prediction` (the most probable token) of each slot: [B, 1, M]."""
        return {
            "position": batch["masked_positions"][:, None],
            "label": batch["labels"][:, None],
            "prediction": jnp.argmax(outputs, axis=-1)[:, None],
        }


TASKS: dict[str, Callable[..., Task]] = {
    "classification": Classification,
    "masked_lm": MaskedLM,
    "regression": Regression,
}
