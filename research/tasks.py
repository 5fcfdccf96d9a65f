"""Tasks: what is asked of a model's outputs. The same `scores` serve training and evaluation."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.metrics import Confusion, Mean, Perplexity, RSquared, f1, matthews, pearson, spearman

Batch = dict[str, jax.Array]

# A metric that is no sum over examples: from all `predictions` of a split, each column [N, …], and its labels [N].
SplitMetric = Callable[[Mapping[str, np.ndarray], np.ndarray], float | None]


class Task(Protocol):
    """`scores["loss"]` is what training differentiates; every array's leading axes are those of `weight`."""

    def scores(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Named additive metrics of one batch."""
        ...

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Per-example records; each array has the leading axes of `weight`."""
        ...

    @property
    def split_metrics(self) -> Mapping[str, SplitMetric]:
        """What evaluation adds to `scores`, by name: metrics of a whole split, worked out on the host."""
        ...


@dataclasses.dataclass(frozen=True)
class Classification:
    """Softmax cross-entropy over classes. Outputs: logits [..., C]; labels: int [...], −1 where hidden.

    Where training mixes examples, batch also has mixed_labels: int [...] and mixed_weight: float [...]; the targets are
    then 1 − mixed_weight of the one and mixed_weight of the other (Zhang et al. 2018, section 2). The other scores are
    those of `labels`.

    Two classes are also scored by F1 of class 1 and by Matthews' correlation. Hidden labels have no weight in the
    scores, their predictions are given like any other's.
    """

    label_smoothing: float = 0.0

    @property
    def split_metrics(self) -> Mapping[str, SplitMetric]:
        return {}

    def scores(self, outputs: jax.Array, batch: Batch) -> dict[str, Any]:
        logits = outputs.astype(jnp.float32)
        if logits.shape[-1] < 2:
            raise ValueError("classification takes two classes at least (model.num_classes); of one output: regression")
        labels = batch["labels"]
        weight = batch["weight"] * (labels >= 0)
        targets = self.targets(batch, logits.shape[-1])
        classes = jnp.argmax(logits, axis=-1)
        scores: dict[str, Any] = {
            "loss": Mean.of(optax.softmax_cross_entropy(logits, targets), weight),
            "accuracy": Mean.of(classes == labels, weight),
        }
        if logits.shape[-1] == 2:
            scores["f1"] = Confusion.of(classes, labels, weight, f1)
            scores["matthews"] = Confusion.of(classes, labels, weight, matthews)
        return scores

    def targets(self, batch: Batch, num_classes: int) -> jax.Array:
        """The probabilities that the model should give the classes: [..., C]."""
        targets = jax.nn.one_hot(batch["labels"], num_classes)
        if "mixed_labels" in batch:
            share = batch["mixed_weight"][..., None]
            targets = (1 - share) * targets + share * jax.nn.one_hot(batch["mixed_labels"], num_classes)
        return optax.smooth_labels(targets, self.label_smoothing)

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """`prediction`: the most probable class; `scores`: the probabilities [..., C]."""
        probabilities = jax.nn.softmax(outputs.astype(jnp.float32), axis=-1)
        return {"prediction": jnp.argmax(probabilities, axis=-1), "scores": probabilities}


@dataclasses.dataclass(frozen=True)
class Regression:
    """Squared error. Outputs: float [...] or [..., 1]; labels: float [...].

    A split is also scored by Pearson's and Spearman's correlation. Hidden labels have no weight in the scores, their
    predictions are given like any other's.

    Attributes:
      label_shift: a round number near the labels' mean, subtracted inside R² so that its sums keep their digits in
        float32.
      hidden_label: the number that stands for a label that is not given; None where all are.
    """

    label_shift: float = 0.0
    hidden_label: float | None = None

    @property
    def split_metrics(self) -> Mapping[str, SplitMetric]:
        def among_visible(correlation: Any, columns: Mapping[str, np.ndarray], labels: np.ndarray) -> float | None:
            visible = labels != self.hidden_label
            return correlation(columns["prediction"][visible], labels[visible])

        functions = {"pearson": pearson, "spearman": spearman}
        return {name: functools.partial(among_visible, function) for name, function in functions.items()}

    def scores(self, outputs: jax.Array, batch: Batch) -> dict[str, Any]:
        labels, weight = batch["labels"], batch["weight"]
        predictions = _one_each(outputs, labels.ndim)
        if self.hidden_label is not None:
            weight = weight * (labels != self.hidden_label)
        return {
            "loss": Mean.of((predictions - labels) ** 2, weight),
            "mean_absolute_error": Mean.of(jnp.abs(predictions - labels), weight),
            "r2": RSquared.of(predictions, labels, weight, self.label_shift),
        }

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"prediction": _one_each(outputs, batch["labels"].ndim)}


def _one_each(outputs: jax.Array, ndim: int) -> jax.Array:
    """float32 [...] of outputs [...] or [..., 1]. Raises ValueError where there are several for a label."""
    if outputs.ndim == ndim + 1 and outputs.shape[-1] == 1:
        outputs = jnp.squeeze(outputs, axis=-1)
    if outputs.ndim != ndim:
        raise ValueError(f"regression takes one output for a label, and the model gives {outputs.shape[-1]}")
    return outputs.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Cross-entropy over the hidden tokens of each row (Devlin et al. 2018, section 3.1), each weighing the same.

    Outputs: logits [B, M, V]; labels: int [B, M], −1 in slots that hide nothing; weight [B, 1].
    """

    @property
    def split_metrics(self) -> Mapping[str, SplitMetric]:
        return {}

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
