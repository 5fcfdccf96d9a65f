import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from research import metrics
from research.tasks import Classification, MaskedLM, Regression


def _classification_batch(rng, shape):
    return (
        jnp.asarray(rng.standard_normal((*shape, 4)), jnp.float32),
        {
            "labels": jnp.asarray(rng.integers(0, 4, shape)),
            "weight": jnp.asarray(rng.integers(0, 2, shape), jnp.float32),
        },
    )


@pytest.mark.parametrize("shape", [(50,), (10, 5)])
def test_classification_is_scikit_learns(rng, shape):
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


def test_hidden_labels_have_predictions_but_no_scores(rng):
    logits, batch = _classification_batch(rng, (6,))
    batch = {"labels": jnp.full(6, -1), "weight": jnp.ones(6)}
    assert metrics.compute(Classification().scores(logits, batch)) == {"loss": None, "accuracy": None}
    records = Classification().predictions(logits, batch)
    np.testing.assert_array_equal(records["prediction"], np.argmax(logits, axis=1))


def test_masked_lm_scores_the_used_slots_of_real_rows(rng):
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


def test_regression_is_scikit_learns(rng):
    labels, outputs = rng.standard_normal((2, 30)).astype(np.float32)
    batch = {"labels": jnp.asarray(labels), "weight": jnp.ones(30)}
    scores = metrics.compute(Regression().scores(jnp.asarray(outputs), batch))
    assert scores["loss"] == pytest.approx(sklearn.metrics.mean_squared_error(labels, outputs), rel=1e-5)
    assert scores["mean_absolute_error"] == pytest.approx(
        sklearn.metrics.mean_absolute_error(labels, outputs), rel=1e-5
    )
    assert scores["r2"] == pytest.approx(sklearn.metrics.r2_score(labels, outputs), abs=1e-5)
