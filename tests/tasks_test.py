# mypy: disable-error-code="arg-type, attr-defined"
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import sklearn.utils.class_weight
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.core import metrics
from research.core.class_weights import training_weight, with_class_weights
from research.core.tasks import Classification, LanguageModel, MaskedLM, Regression, SquaredHinge


def _classification_batch(rng, shape):
    return (
        jnp.asarray(rng.standard_normal((*shape, 4)), jnp.float32),
        {
            "labels": jnp.asarray(rng.integers(0, 4, shape)),
            "weight": jnp.asarray(rng.integers(0, 2, shape), jnp.float32),
        },
    )


@pytest.mark.parametrize("shape", [(50,), (10, 5)])
def test_classification_matches_scikit_learn(rng, shape):
    logits, batch = _classification_batch(rng, shape)
    scores = metrics.compute(Classification().scores(logits, batch))
    probabilities = np.asarray(jax.nn.softmax(logits)).reshape(-1, 4).astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels, weight = np.asarray(batch["labels"]).ravel(), np.asarray(batch["weight"]).ravel()
    loss = sklearn.metrics.log_loss(labels, probabilities, sample_weight=weight, labels=range(4))
    assert scores["loss"] == pytest.approx(loss, rel=1e-6)
    accuracy = sklearn.metrics.accuracy_score(labels, probabilities.argmax(axis=1), sample_weight=weight)
    assert scores["accuracy"] == pytest.approx(accuracy, rel=1e-6)


def test_label_smoothing_mixes_in_the_uniform_distribution(rng):
    logits, batch = _classification_batch(rng, (20,))
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    target = 0.9 * np.eye(4)[np.asarray(batch["labels"])] + 0.1 / 4
    expected = np.average(-(target * log_p).sum(axis=1), weights=batch["weight"])
    loss = Classification(label_smoothing=0.1).scores(logits, batch)["loss"].compute()
    assert loss == pytest.approx(expected, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0, 1)), min_size=6, max_size=6),
    smoothing=st.floats(0, 0.9),
)
def test_targets_of_mixed_examples_are_distributions(rows, smoothing):
    labels, mixed_labels, shares = (np.array(column) for column in zip(*rows, strict=True))
    batch = {"labels": labels, "mixed_labels": mixed_labels, "mixed_weight": shares.astype(np.float32)}
    targets = np.asarray(Classification(smoothing).targets(batch, 5))
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=5e-7)  # a few rounding errors of float32
    assert targets.min() >= 0
    one, other = np.eye(5)[labels], np.eye(5)[mixed_labels]
    expected = (1 - smoothing) * ((1 - shares[:, None]) * one + shares[:, None] * other) + smoothing / 5
    np.testing.assert_allclose(targets, expected, atol=5e-7)


def test_mixed_examples_have_mixed_losses_and_plain_accuracy(rng):
    logits, batch = _classification_batch(rng, (50,))
    other = {**batch, "labels": jnp.asarray(rng.integers(0, 4, 50))}
    share = jnp.asarray(rng.random(50), jnp.float32)
    mixed = {**batch, "mixed_labels": other["labels"], "mixed_weight": share}
    task = Classification()
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    first, second = (-log_p[np.arange(50), np.asarray(part["labels"])] for part in (batch, other))
    expected = np.average((1 - share) * first + share * second, weights=batch["weight"])
    scores = metrics.compute(task.scores(logits, mixed))
    assert scores["loss"] == pytest.approx(expected, rel=1e-6)
    assert scores["accuracy"] == metrics.compute(task.scores(logits, batch))["accuracy"]


@pytest.mark.extended
@pytest.mark.parametrize("task", [Classification(), SquaredHinge()])
@pytest.mark.parametrize("logits", [[1e-9, 2e-9], [30.0, 60.0, 61.0], [-2.0, 5e-8, 6e-8, 0.0]])
def test_prediction_matches_the_accuracy(task, logits):
    """Although the float32 softmax of these logits gives two classes the same probability."""
    outputs = jnp.asarray([logits], jnp.float32)
    batch = {"labels": jnp.array([np.argmax(logits)]), "weight": jnp.ones(1)}
    assert task.scores(outputs, batch)["accuracy"].compute() == 1
    assert int(task.predictions(outputs, batch)["prediction"][0]) == np.argmax(logits)


def test_hidden_labels_have_predictions_but_no_scores(rng):
    logits, batch = _classification_batch(rng, (6,))
    batch = {"labels": jnp.full(6, -1), "weight": jnp.ones(6)}
    assert metrics.compute(Classification().scores(logits, batch)) == {"loss": None, "accuracy": None}
    records = Classification().predictions(logits, batch)
    np.testing.assert_array_equal(records["prediction"], np.argmax(logits, axis=1))


@pytest.mark.extended
@pytest.mark.parametrize("shape", [(50,), (10, 5)])
def test_two_classes_have_f1_and_matthews(rng, shape):
    logits = jnp.asarray(rng.standard_normal((*shape, 2)), jnp.float32)
    labels = rng.integers(-1, 2, shape)  # some labels are hidden
    weight = rng.integers(0, 2, shape)
    scores = Classification().scores(
        logits, {"labels": jnp.asarray(labels), "weight": jnp.asarray(weight, jnp.float32)}
    )
    counted = (labels >= 0) & (weight > 0)
    true, predicted = labels[counted], np.argmax(logits, axis=-1)[counted]
    assert scores["f1"].compute() == pytest.approx(sklearn.metrics.f1_score(true, predicted), abs=1e-6)
    assert scores["matthews"].compute() == pytest.approx(sklearn.metrics.matthews_corrcoef(true, predicted), abs=1e-6)


def test_only_two_classes_have_f1_and_one_class_is_an_error(rng):
    logits, batch = _classification_batch(rng, (6,))
    assert set(Classification().scores(logits, batch)) == {"loss", "accuracy"}
    with pytest.raises(ValueError, match="at least two classes"):
        Classification().scores(logits[:, :1], batch)


def test_hidden_labels_of_two_classes_have_no_scores(rng):
    batch = {"labels": jnp.full(6, -1), "weight": jnp.ones(6)}
    scores = Classification().scores(jnp.asarray(rng.standard_normal((6, 2))), batch)
    assert set(metrics.compute(scores).values()) == {None}


def test_hidden_labels_of_a_regression_have_predictions_but_no_scores(rng):
    task = Regression(hidden_label=-1.0)
    outputs = jnp.asarray(rng.standard_normal((40, 1)), jnp.float32)
    labels = np.where(np.arange(40) % 4 == 0, -1.0, rng.uniform(0, 5, 40)).astype(np.float32)
    batch = {"labels": jnp.asarray(labels), "weight": jnp.ones(40)}
    visible, predicted = labels != -1.0, np.asarray(outputs[:, 0])
    scores = metrics.compute(task.scores(outputs, batch))
    expected = sklearn.metrics.mean_squared_error(labels[visible], predicted[visible])
    assert scores["loss"] == pytest.approx(expected, rel=1e-6)
    records = {name: np.asarray(column) for name, column in task.predictions(outputs, batch).items()}
    np.testing.assert_array_equal(records["prediction"], predicted)
    found = {name: metric(records, labels) for name, metric in task.split_metrics.items()}
    expected = {
        "r2": sklearn.metrics.r2_score(labels[visible], predicted[visible]),
        "pearson": scipy.stats.pearsonr(predicted[visible], labels[visible]).statistic,
        "spearman": scipy.stats.spearmanr(predicted[visible], labels[visible]).statistic,
    }
    assert found == pytest.approx(expected, abs=1e-6)
    hidden = {"labels": jnp.full(40, -1.0), "weight": jnp.ones(40)}
    assert set(metrics.compute(task.scores(outputs, hidden)).values()) == {None}
    assert {metric(records, np.full(40, -1.0)) for metric in task.split_metrics.values()} == {None}


def test_regression_needs_one_output(rng):
    outputs = jnp.asarray(rng.standard_normal((4, 3, 1)), jnp.float32)
    batch = {"labels": jnp.zeros((4, 3)), "weight": jnp.ones((4, 3))}
    assert Regression().predictions(outputs, batch)["prediction"].shape == (4, 3)
    plain = Regression().scores(outputs[..., 0], batch)["loss"].compute()
    assert Regression().scores(outputs, batch)["loss"].compute() == plain
    with pytest.raises(ValueError, match="one output for a label, and the model gives 2"):
        Regression().scores(jnp.zeros((4, 3, 2)), batch)


def test_masked_lm_scores_only_used_slots(rng):
    logits = jnp.asarray(rng.standard_normal((3, 4, 6)), jnp.float32)
    labels = np.array([[2, 5, -1, -1], [0, -1, -1, -1], [1, 1, 1, 1]])  # the last row is padding
    positions = rng.integers(0, 9, (3, 4))
    batch = {"labels": labels, "weight": np.array([[1.0], [1.0], [0.0]]), "masked_positions": positions}
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    scores = metrics.compute(MaskedLM().scores(logits, batch))
    used = [(0, 0), (0, 1), (1, 0)]
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    loss = -np.mean([log_p[r, s, labels[r, s]] for r, s in used])
    assert scores["loss"] == pytest.approx(loss, rel=1e-6)
    assert scores["perplexity"] == pytest.approx(np.exp(loss), rel=1e-6)
    hits = [np.argmax(log_p[r, s]) == labels[r, s] for r, s in used]
    assert scores["accuracy"] == pytest.approx(np.mean(hits), abs=1e-6)
    records = MaskedLM().predictions(logits, batch)
    assert {x.shape for x in records.values()} == {(3, 1, 4)}
    np.testing.assert_array_equal(records["position"][:, 0], positions)
    np.testing.assert_array_equal(records["label"][:, 0], labels)
    np.testing.assert_array_equal(records["prediction"][:, 0], np.argmax(logits, axis=-1))


def _targets(rng, rows=4, length=5, vocab_size=7):
    """A batch in which some tokens have no target, and the last row is padding."""
    targets = rng.integers(-1, vocab_size, (rows, length))
    sizes = np.where(targets >= 0, rng.integers(0, 9, targets.shape), 0)
    weight = (np.arange(rows) < rows - 1).astype(np.float32)[:, None]
    return {name: jnp.asarray(x) for name, x in (("targets", targets), ("target_bytes", sizes), ("weight", weight))}


def test_language_model_scores_only_targets(rng):
    batch, logits = _targets(rng), jnp.asarray(rng.standard_normal((4, 5, 7)), jnp.float32)
    targets, sizes = (np.asarray(batch[name]) for name in ("targets", "target_bytes"))
    scores = metrics.compute(LanguageModel().scores({"logits": logits}, batch))
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    used = [(r, t) for r in range(3) for t in range(5) if targets[r, t] >= 0]
    losses = [-log_p[r, t, targets[r, t]] for r, t in used]
    assert 0 < len(used) < 15
    assert scores["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert scores["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-6)
    assert scores["bits_per_byte"] == pytest.approx(np.sum(losses) / np.log(2) / sizes[:3].sum(), rel=1e-6)
    hits = [np.argmax(log_p[r, t]) == targets[r, t] for r, t in used]
    assert scores["accuracy"] == pytest.approx(np.mean(hits), abs=1e-6)
    records = LanguageModel().predictions({"logits": logits}, batch)
    assert {x.shape for x in records.values()} == {(4, 1, 5)}
    assert float(jnp.sum(records["loss"][:3])) == pytest.approx(np.sum(losses), rel=1e-6)
    np.testing.assert_array_equal(records["label"][:, 0], targets)
    np.testing.assert_array_equal(records["prediction"][:, 0], np.argmax(logits, axis=-1))


@pytest.mark.parametrize("vocab_size", [2, 256, 1000])
def test_uniform_language_model_costs_the_logarithm_of_the_vocabulary(rng, vocab_size):
    """256 bytes, each a token of one byte, cost 8 bits a byte."""
    batch = _targets(rng, vocab_size=vocab_size)
    batch["target_bytes"] = (batch["targets"] >= 0).astype(jnp.int32)
    scores = metrics.compute(LanguageModel().scores({"logits": jnp.full((4, 5, vocab_size), 3.0)}, batch))
    assert scores["loss"] == pytest.approx(np.log(vocab_size), rel=1e-6)
    assert scores["perplexity"] == pytest.approx(vocab_size, rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(np.log2(vocab_size), rel=1e-6)


def test_language_model_of_tokens_of_unknown_size(rng):
    batch = _targets(rng)
    logits = {"logits": jnp.asarray(rng.standard_normal((4, 5, 7)), jnp.bfloat16)}
    whole = LanguageModel().scores(logits, batch)
    assert set(whole) == {"loss", "accuracy", "perplexity", "bits_per_byte"}
    wide = LanguageModel().scores({"logits": logits["logits"].astype(jnp.float32)}, batch)
    assert whole["loss"].compute() == wide["loss"].compute()
    del batch["target_bytes"]
    assert set(LanguageModel().scores(logits, batch)) == {"loss", "accuracy", "perplexity"}
    batch["targets"] = jnp.full((4, 5), -1)
    assert set(metrics.compute(LanguageModel().scores(logits, batch)).values()) == {None}


def test_regression_matches_scikit_learn(rng):
    labels, outputs = rng.standard_normal((2, 30)).astype(np.float32)
    batch = {"labels": jnp.asarray(labels), "weight": jnp.ones(30)}
    scores = metrics.compute(Regression().scores(jnp.asarray(outputs), batch))
    assert scores["loss"] == pytest.approx(sklearn.metrics.mean_squared_error(labels, outputs), rel=1e-5)
    assert scores["mean_absolute_error"] == pytest.approx(
        sklearn.metrics.mean_absolute_error(labels, outputs), rel=1e-5
    )


def test_class_weights_affect_the_loss_only(rng):
    logits, batch = _classification_batch(rng, (30,))
    labels, weight = np.asarray(batch["labels"]), np.asarray(batch["weight"])
    task = with_class_weights(Classification(class_weight="balanced"), labels, 4)
    of_class = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(task.class_weight, of_class)
    assert training_weight(task, labels) == pytest.approx(30)
    scores = metrics.compute(task.scores(logits, batch))
    probabilities = scipy.special.softmax(np.asarray(logits, np.float64), axis=1)
    expected = sklearn.metrics.log_loss(labels, probabilities, sample_weight=weight * of_class[labels])
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)
    assert scores["accuracy"] == metrics.compute(Classification().scores(logits, batch))["accuracy"]


@pytest.mark.parametrize(
    "given",
    [("a", "b"), (1, None), (1, float("nan")), (1, float("inf")), (True, 1), (1,), (1, 2, 3), {"0": 1}, 2, "all", ()],
)
def test_invalid_class_weights_are_one_line_errors(given):
    with pytest.raises(UserError, match=r"task\.class_weight is "):
        with_class_weights(Classification(class_weight=given), np.array([0, 1]), 2)


@pytest.mark.parametrize("classes", [2, 3])
def test_squared_hinge(rng, classes):
    outputs, labels = rng.standard_normal((40, classes)).astype(np.float32), rng.integers(0, classes, 40)
    batch = {"labels": jnp.asarray(labels), "weight": jnp.ones(40)}
    margins = outputs[:, 1:] - outputs[:, :1] if classes == 2 else outputs
    signs = 2 * (labels[:, None] == np.arange(classes)) - 1
    losses = np.sum(np.maximum(0, 1 - margins * (signs[:, 1:] if classes == 2 else signs)) ** 2, axis=1)
    scores = metrics.compute(SquaredHinge().scores(jnp.asarray(outputs), batch))
    assert scores["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert scores["accuracy"] == np.mean(outputs.argmax(1) == labels)
    assert ("f1" in scores) == (classes == 2)
    np.testing.assert_allclose(SquaredHinge().predictions(outputs, batch)["scores"][:, -1:], margins[:, -1:])
