"""Tasks: losses, metrics and predictions from a model's outputs. Training and evaluation use the same `scores`."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.base.ranges import ANY, FRACTION, NOT_NEGATIVE, POSITIVE, Range
from research.core.by_example import by_example
from research.core.distillation import hidden_distance, logits_of, soft_divergence
from research.core.metrics import (
    Confusion,
    Mean,
    Perplexity,
    at_least_float32,
    f1,
    matthews,
    pearson,
    r_squared,
    spearman,
)

Batch = dict[str, jax.Array]

# A metric that is not a sum over examples: (all predictions of a split, by column [N, …], its labels [N]) -> value.
SplitMetric = Callable[[Mapping[str, np.ndarray], np.ndarray], float | None]


class Task(Protocol):
    """A task. Training differentiates `scores["loss"]`; the leading axes of every array are those of `weight`."""

    def scores(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Named additive metrics of one batch."""
        ...

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Per-example records; each array has the leading axes of `weight`."""
        ...

    @property
    def split_metrics(self) -> Mapping[str, SplitMetric]:
        """Metrics of a whole split by name, which evaluation computes on the host and adds to `scores`."""
        ...


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """Optional capabilities of a task, declared as `CAPABILITIES`; none if it declares nothing.

    Attributes:
      predicts: "class", "number" or "token": the plots that apply, and the checks of labels.
      penalty: the key by which scikit-learn's models of this loss are regularized, `C` or `alpha`.
      takes_mixed_labels: whether `scores` reads `mixed_labels` and `mixed_weight` (mixup, CutMix).
      generates: whether a model of this task continues texts.
      evaluator: how a split is evaluated, a name in `research.inference.evaluation.EVALUATORS`.
    """

    predicts: str | None = None
    penalty: str | None = None
    takes_mixed_labels: bool = False
    generates: bool = False
    evaluator: str = "forward"


def capabilities(task: Any) -> Capabilities:
    """The capabilities of a task or of its class."""
    found: Capabilities = getattr(task, "CAPABILITIES", Capabilities())
    return found


@dataclasses.dataclass(frozen=True)
class Classification:
    """Softmax cross-entropy over classes. Outputs: logits [..., C]; labels: int [...], −1 where hidden.

    Where training mixes examples, the batch also has mixed_labels: int [...] and mixed_weight: float [...]; the targets
    are then labels with weight 1 − mixed_weight plus mixed_labels with weight mixed_weight (Zhang et al. 2018,
    section 2). All other scores use `labels`.

    With `soft_labels`: float [..., C], the probabilities that another model gives the classes, the loss is
    (1 − soft_weight) · cross-entropy + soft_weight · `soft_divergence`, without the first part for hidden labels. With
    `soft_hidden` too, float [..., D], it also has hidden_weight · `hidden_distance`; outputs are {"logits", "hidden"}.

    Binary classification also has the F1 score of class 1 and Matthews' correlation. Hidden labels have no weight in
    the scores; their examples are predicted like any other.

    Attributes:
      class_weight: weight of an example of each class, in the loss only; "balanced": N / (classes × examples of the
        class) of the training split, as in scikit-learn (`research.core.class_weights` computes it).
      soft_weight, temperature, hidden_weight: of what another model gives, where a batch has it.
    """

    CAPABILITIES: ClassVar[Capabilities] = Capabilities("class", penalty="C", takes_mixed_labels=True)
    RANGES: ClassVar[dict[str, Range]] = {
        "label_smoothing": FRACTION,
        "class_weight": NOT_NEGATIVE,
        "soft_weight": FRACTION,
        "temperature": POSITIVE,
        "hidden_weight": NOT_NEGATIVE,
    }

    label_smoothing: float = 0.0
    class_weight: tuple[float, ...] | str | None = None
    soft_weight: float = 0.5
    temperature: float = 1.0
    hidden_weight: float = 0.0

    @property
    def split_metrics(self) -> Mapping[str, SplitMetric]:
        return {}

    def scores(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        logits = at_least_float32(logits_of(outputs))
        if logits.shape[-1] < 2:
            raise ValueError("classification needs at least two classes (model.num_classes); use regression for one")
        labels = batch["labels"]
        weight = batch["weight"] * (labels >= 0)
        targets = self.targets(batch, logits.shape[-1])
        losses = optax.softmax_cross_entropy(logits, targets)
        class_weight = _of_class(self.class_weight, labels)
        if "soft_labels" not in batch:
            return {"loss": Mean.of(losses, weight * class_weight), **_class_scores(logits, labels, weight)}
        visible = jnp.where(labels >= 0, (1 - self.soft_weight) * class_weight, 0.0)
        losses = visible * losses + self.soft_weight * soft_divergence(logits, batch["soft_labels"], self.temperature)
        if "soft_hidden" in batch:
            losses += self.hidden_weight * hidden_distance(outputs, batch["soft_hidden"])
        return {"loss": Mean.of(losses, batch["weight"]), **_class_scores(logits, labels, weight)}

    def targets(self, batch: Batch, num_classes: int) -> jax.Array:
        """The target probabilities of the classes: [..., C]."""
        targets = jax.nn.one_hot(batch["labels"], num_classes)
        if "mixed_labels" in batch:
            share = batch["mixed_weight"][..., None]
            targets = (1 - share) * targets + share * jax.nn.one_hot(batch["mixed_labels"], num_classes)
        return optax.smooth_labels(targets, self.label_smoothing)

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """`prediction`: the most probable class; `scores`: the probabilities [..., C]."""
        logits = at_least_float32(logits_of(outputs))
        # argmax of the logits, as in `scores`: they may differ where rounding makes the probabilities equal.
        return {"prediction": jnp.argmax(logits, axis=-1), "scores": jax.nn.softmax(logits, axis=-1)}


def _class_scores(logits: jax.Array, labels: jax.Array, weight: jax.Array) -> dict[str, Any]:
    classes = jnp.argmax(logits, axis=-1)
    scores: dict[str, Any] = {"accuracy": Mean.of(classes == labels, weight)}
    if logits.shape[-1] == 2:
        scores["f1"] = Confusion.of(classes, labels, weight, f1)
        scores["matthews"] = Confusion.of(classes, labels, weight, matthews)
    return scores


def _of_class(class_weight: Any, labels: jax.Array) -> Any:
    """The weight of each example by its class."""
    if class_weight is None:
        return 1.0
    return jnp.asarray(class_weight, jnp.result_type(float))[labels]


@dataclasses.dataclass(frozen=True)
class SquaredHinge:
    """The squared hinge loss of a linear SVM, max(0, 1 − y·z)² (Fan et al. 2008, section 2), with y = ±1.

    Outputs: [..., C]; labels: int [...], −1 where hidden. For two classes z is the second output minus the first; for
    more the one-vs-rest losses are summed, z being the class's output. `class_weight` is as in Classification; with
    more than two classes it applies to a class's own examples, and the rest have weight 1, as in LinearSVC.
    """

    CAPABILITIES: ClassVar[Capabilities] = Capabilities("class", penalty="C")
    RANGES: ClassVar[dict[str, Range]] = {"class_weight": NOT_NEGATIVE}

    class_weight: tuple[float, ...] | str | None = None

    @property
    def split_metrics(self) -> Mapping[str, SplitMetric]:
        return {}

    def scores(self, outputs: jax.Array, batch: Batch) -> dict[str, Any]:
        outputs, labels = at_least_float32(outputs), batch["labels"]
        if outputs.shape[-1] < 2:
            raise ValueError("squared_hinge needs at least two classes (model.num_classes)")
        weight = batch["weight"] * (labels >= 0)
        margins = _decisions(outputs) * (2 * jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype) - 1)
        losses = jax.nn.relu(1 - margins) ** 2
        class_weight = _of_class(self.class_weight, labels)
        if outputs.shape[-1] == 2:
            loss = Mean.of(losses[..., 0], weight * class_weight)  # both columns are equal
        else:
            own = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
            each = 1 + own * (jnp.broadcast_to(class_weight, labels.shape)[..., None] - 1)
            loss = Mean.of(jnp.sum(losses * each, axis=-1), weight)
        return {"loss": loss, **_class_scores(outputs, labels, weight)}

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """`prediction`: the class; `scores`: each class's decision value z [..., C]."""
        return {"prediction": jnp.argmax(outputs, axis=-1), "scores": _decisions(at_least_float32(outputs))}


def _decisions(outputs: jax.Array) -> jax.Array:
    """The decision value z of each class [..., C]; for two classes, −z and z."""
    return outputs - outputs[..., ::-1] if outputs.shape[-1] == 2 else outputs


@dataclasses.dataclass(frozen=True)
class Regression:
    """Squared error. Outputs: float [...] or [..., 1]; labels: float [...].

    A split also has R², Pearson's and Spearman's correlation. Hidden labels have no weight in the scores; their
    examples are predicted like any other.

    Attributes:
      hidden_label: the number that marks a hidden label; None where no label is hidden.
    """

    CAPABILITIES: ClassVar[Capabilities] = Capabilities("number", penalty="alpha")
    RANGES: ClassVar[dict[str, Range]] = {"hidden_label": ANY}

    hidden_label: float | None = None

    @property
    def split_metrics(self) -> Mapping[str, SplitMetric]:
        def among_visible(metric: Any, columns: Mapping[str, np.ndarray], labels: np.ndarray) -> float | None:
            visible = labels != self.hidden_label
            return metric(columns["prediction"][visible], labels[visible])

        functions = {"r2": r_squared, "pearson": pearson, "spearman": spearman}
        return {name: functools.partial(among_visible, function) for name, function in functions.items()}

    def scores(self, outputs: jax.Array, batch: Batch) -> dict[str, Any]:
        labels, weight = batch["labels"], batch["weight"]
        predictions = _one_each(outputs, labels.ndim)
        if self.hidden_label is not None:
            weight = weight * (labels != self.hidden_label)
        return {
            "loss": Mean.of((predictions - labels) ** 2, weight),
            "mean_absolute_error": Mean.of(jnp.abs(predictions - labels), weight),
        }

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"prediction": _one_each(outputs, batch["weight"].ndim)}


def _one_each(outputs: jax.Array, ndim: int) -> jax.Array:
    """Outputs [...] or [..., 1] as float [...]. Raises ValueError if there are several for one label."""
    if outputs.ndim == ndim + 1 and outputs.shape[-1] == 1:
        outputs = jnp.squeeze(outputs, axis=-1)
    if outputs.ndim != ndim:
        raise ValueError(f"regression takes one output for a label, and the model gives {outputs.shape[-1]}")
    return at_least_float32(outputs)


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Cross-entropy over the masked tokens of each row (Devlin et al. 2018, section 3.1), all weighted equally.

    Outputs: logits [B, M, V]; labels: int [B, M], −1 in unused slots; weight [B, 1].
    """

    CAPABILITIES: ClassVar[Capabilities] = Capabilities("token")

    @property
    def split_metrics(self) -> Mapping[str, SplitMetric]:
        return {}

    def scores(self, outputs: jax.Array, batch: Batch) -> dict[str, Any]:
        logits, labels = at_least_float32(outputs), batch["labels"]
        weight = batch["weight"] * (labels >= 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        loss = Mean.of(losses, weight)
        return {
            "loss": loss,
            "accuracy": Mean.of(jnp.argmax(logits, axis=-1) == labels, weight),
            "perplexity": Perplexity(loss),
        }

    def predictions(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """`position` in the row, `label` and `prediction` (the most probable token) of each slot, each [B, 1, M]."""
        return {
            "position": batch["masked_positions"][:, None],
            "label": batch["labels"][:, None],
            "prediction": jnp.argmax(outputs, axis=-1)[:, None],
        }


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Cross-entropy of each token given those before it, all tokens weighted equally.

    Outputs: {"logits": [B, L, V]}; targets: int [B, L], the token that follows each, −1 where there is none; weight
    [B, E], and where E > 1, which it is for packed texts, their starts [B, E] and segments [B, L]. With target_bytes,
    int [B, L], the bytes that each target stands for, `bits_per_byte` compares models of different vocabularies: the
    bits of all targets over their bytes.
    """

    CAPABILITIES: ClassVar[Capabilities] = Capabilities("token", generates=True)

    @property
    def split_metrics(self) -> Mapping[str, SplitMetric]:
        return {}

    def scores(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, Any]:
        logits, targets = at_least_float32(outputs["logits"]), batch["targets"]
        # A row counts if it holds an example; in its places without one it has no targets.
        weight = jnp.max(batch["weight"], axis=1, keepdims=True) * (targets >= 0)
        loss = Mean.of(_token_losses(logits, targets), weight)
        scores = {
            "loss": loss,
            "accuracy": Mean.of(jnp.argmax(logits, axis=-1) == targets, weight),
            "perplexity": Perplexity(loss),
        }
        if "target_bytes" in batch:
            scores["bits_per_byte"] = Mean(loss.total / math.log(2), jnp.sum(weight * batch["target_bytes"]))
        return scores

    def predictions(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """`label`, −1 for none, `prediction` (the most probable token) and `loss` of each token, each [B, E, L]."""
        logits, targets = at_least_float32(outputs["logits"]), batch["targets"]
        losses = jnp.where(targets >= 0, _token_losses(logits, targets), 0)
        return {
            "label": by_example(targets, batch, -1),
            "prediction": by_example(jnp.argmax(logits, axis=-1), batch, -1),
            "loss": by_example(losses, batch, 0),
        }


def _token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The cross-entropy of each target, in nats: logits [..., V], targets [...] -> [...]; any value where negative."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))


TASKS: dict[str, Callable[..., Task]] = {
    "classification": Classification,
    "language_model": LanguageModel,
    "masked_lm": MaskedLM,
    "regression": Regression,
    "squared_hinge": SquaredHinge,
}
