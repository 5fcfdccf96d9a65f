# mypy: disable-error-code="arg-type"
"""Learning another model's predictions: the loss against its formula, and where they come from."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from research.base.errors import UserError
from research.core.tasks import Classification
from research.data.examples import ArrayExamples, BagExamples, Ragged
from research.data.soft_labels import read_soft_labels, with_soft_labels
from research.runs.rundir import RunDir
from research.training.trained_run import TrainedRun
from tests import tiny


def mean(metric):
    return float(metric.total / metric.weight)


def batch_of(rng, rows=6, classes=3):
    labels = np.array([0, 1, 2, -1, 1, 0])[:rows]
    weight = np.array([1, 1, 1, 1, 1, 0], np.float32)[:rows]
    soft = softmax(2 * rng.normal(size=(rows, classes)), axis=1).astype(np.float32)
    return {"labels": jnp.asarray(labels), "weight": jnp.asarray(weight), "soft_labels": jnp.asarray(soft)}


def test_loss_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    batch, logits, share, degrees = batch_of(rng), rng.normal(size=(6, 3)).astype(np.float32), 0.3, 2.5
    found = Classification(soft_weight=share, temperature=degrees).scores(jnp.asarray(logits), batch)
    teacher = log_softmax(np.log(np.asarray(batch["soft_labels"], np.float64)) / degrees, axis=1)
    own = log_softmax(logits.astype(np.float64) / degrees, axis=1)
    divergence = degrees**2 * np.sum(np.exp(teacher) * (teacher - own), axis=1)
    entropy = -np.take_along_axis(log_softmax(logits, axis=1), np.maximum(batch["labels"], 0)[:, None], axis=1)[:, 0]
    expected = share * divergence + (1 - share) * entropy * (np.asarray(batch["labels"]) >= 0)
    assert mean(found["loss"]) == pytest.approx(expected[:5].mean(), rel=1e-5)
    plain = {name: x for name, x in batch.items() if name != "soft_labels"}
    assert mean(found["accuracy"]) == mean(Classification().scores(jnp.asarray(logits), plain)["accuracy"])


def test_the_predictions_themselves_have_no_gradient():
    rng = np.random.default_rng(1)
    batch = batch_of(rng)
    task = Classification(soft_weight=1.0, temperature=3.0)

    def loss(logits):
        found = task.scores(logits, batch)["loss"]
        return found.total / found.weight

    value, gradient = jax.value_and_grad(loss)(jnp.log(batch["soft_labels"]))
    assert abs(float(value)) < 1e-6
    assert float(jnp.abs(gradient).max()) < 1e-6
    assert float(jnp.abs(jax.grad(loss)(jnp.zeros((6, 3)))).max()) > 1e-2


@pytest.mark.extended
def test_run_learns_what_another_predicts(tmp_path):
    """From the file that evaluation writes; packed texts get their own probabilities."""
    config = tiny.bert(steps=2)
    tiny.run(config, tmp_path / "teacher")
    evaluation = TrainedRun(RunDir.open(tmp_path / "teacher", writer=True), "last").evaluate("train")
    config.data.soft_labels = evaluation["predictions"]
    config.task.soft_weight = 1.0
    summary = tiny.run(config, tmp_path / "student")
    assert summary["status"] == "completed"
    trained = TrainedRun(RunDir.open(tmp_path / "student"), "last")
    stream = trained.streams()("train")
    soft = read_soft_labels(tmp_path / "teacher" / "predictions" / "train.jsonl")
    rows = stream.rows[:4]
    batch = stream.examples.batch(rows)
    np.testing.assert_array_equal(batch["soft_labels"][rows >= 0], soft[rows[rows >= 0]])
    assert "soft_labels" not in trained.streams()("validation").examples.batch(np.array([[0]]))


def test_invalid_soft_labels_are_one_line(tmp_path):
    path = tmp_path / "train.jsonl"
    with pytest.raises(UserError, match="can't be read"):
        read_soft_labels(path)
    for records, message in (
        ([{"index": 0, "prediction": 1.5}], "has no scores"),
        ([{"index": 1, "scores": [0.5, 0.5]}], "is not of all examples of a split"),
    ):
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        with pytest.raises(UserError, match=message):
            read_soft_labels(path)
    examples = ArrayExamples({"features": np.zeros((3, 2)), "labels": np.zeros(3, np.int32)})
    with pytest.raises(UserError, match="soft labels of 2 examples, and the split has 3"):
        with_soft_labels(examples, np.ones((2, 2)))
    assert with_soft_labels(examples, np.ones((3, 2))).batch(np.array([[1]]))["soft_labels"].shape == (1, 2)
    terms = Ragged.of([[1]], np.int32)
    with pytest.raises(UserError, match="soft labels are for texts"):
        with_soft_labels(BagExamples(terms, terms, None, (1,), 1), np.ones((1, 2)))
