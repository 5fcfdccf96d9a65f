# mypy: disable-error-code="arg-type"
"""Learning another model's predictions: the loss against its formula, and where they come from."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import log_softmax, softmax

from research.base.errors import UserError
from research.core.tasks import Classification
from research.data.examples import ArrayExamples, BagExamples, Ragged
from research.data.soft_labels import joined, read_soft_labels, read_unlabelled, with_soft
from research.inference.model import build_module
from research.runs.rundir import RunDir
from research.training.experiment import prepare
from research.training.teaching import taught as taught_stream
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
    stream = taught_stream(trained.config, trained.dataset(), trained.streams()("train"))
    soft = read_soft_labels(tmp_path / "teacher" / "predictions" / "train.jsonl")
    rows = stream.rows[:4]
    batch = stream.examples.batch(rows)
    np.testing.assert_array_equal(batch["soft_labels"][rows >= 0], soft[rows[rows >= 0]])
    assert "soft_labels" not in trained.streams()("train").examples.batch(np.array([[0]]))


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
    records = [{"index": i, "scores": scores} for i, scores in enumerate(([0.5, 0.5], [1.0]))]
    for wrong in (records, [{"index": 0, "scores": "no"}], [{"index": 0, "scores": [-1, 2]}]):
        path.write_text("".join(f"{json.dumps(record)}\n" for record in wrong))
        with pytest.raises(UserError, match="has scores that are not"):
            read_soft_labels(path)
    terms = Ragged.of([[1]], np.int32)
    bag = BagExamples(terms, terms, np.zeros(1, np.int32), (1,), 1)
    for refused in (lambda: with_soft(bag, {}), lambda: joined(bag, bag)):
        with pytest.raises(UserError, match="soft labels are for texts"):
            refused()


def test_invalid_unlabelled_rows_are_one_line(tmp_path):
    path = tmp_path / "more.jsonl"
    for text, message in (
        ("", "has no rows$"),
        ('{"sentence": "a"', "^line 1, column 17 of .* is not valid JSON"),
        ('{"scores": [1]}', r"row 0 \(counting from 0\) of .* lacks 'sentence'"),
        ('{"sentence": "a"}', "lacks 'scores'"),
        ('{"sentence": "a", "scores": [[0.5, 0.5]]}', "has scores that are not probabilities of classes$"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_unlabelled(path, ("sentence",))
    with pytest.raises(UserError, match="can't be read: No such file"):
        read_unlabelled(tmp_path / "none", ("sentence",))


def test_joined_features_keep_their_order_and_hide_labels():
    features, labels = np.arange(6.0).reshape(3, 2), np.array([2, 0, 1], np.int32)
    both = joined(ArrayExamples({"features": features, "labels": labels}), ArrayExamples({"features": features[::-1]}))
    batch = both.batch(np.arange(6)[:, None])
    np.testing.assert_array_equal(batch["features"], [*features, *features[::-1]])
    assert batch["labels"].tolist() == [2, 0, 1, -1, -1, -1]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A tiny encoder of 200 sentences, with uniform soft labels."""
    tiny.few_sentences(monkeypatch)
    config = tiny.bert(steps=1, batch_size=4)
    path = tmp_path / "soft.jsonl"
    path.write_text("".join(f'{{"index": {i}, "scores": [0.5, 0.5]}}\n' for i in range(200)))
    config.data.soft_labels = str(path)
    return config


def test_unlabelled_examples_follow_the_training_split(config, tmp_path):
    texts = ["a superb film", "dull", "a film that is never dull"]
    lines = (json.dumps({"sentence": text, "scores": [0.25, 0.75]}) for text in texts)
    (tmp_path / "more.jsonl").write_text("\n".join(lines))
    without = prepare(config).training
    config.data.unlabelled = str(tmp_path / "more.jsonl")
    experiment = prepare(config)
    stream = experiment.training
    np.testing.assert_array_equal(stream.labels, [*without.labels, -1, -1, -1])
    rows = np.arange(203)[:, None]
    before, batch = without.examples.batch(rows[:200]), stream.examples.batch(rows)
    np.testing.assert_array_equal(batch["tokens"][:200], before["tokens"])
    expected = experiment.dataset.encoder.encode({"sentence": texts}, labels=False).batch(rows[:3])
    np.testing.assert_array_equal(batch["tokens"][200:], expected["tokens"])
    np.testing.assert_array_equal(batch["soft_labels"][199:, 0], [[0.5, 0.5]] + [[0.25, 0.75]] * 3)
    assert len(experiment.streams("train").members) == 200
    config.data.train_fraction = 0.5
    assert len(prepare(config).training.members) == 103


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.soft_hidden": "short.npy"}, r"is float16 \[199, 16\]; it must be float \[200, D\]"),
        ({"data.soft_hidden": "wide.npy"}, r"has states of size 17, and model\.hidden_size is 16; they must be equal$"),
        ({"data.soft_hidden": "few.jsonl"}, r"few\.jsonl can't be read"),
        ({"data.soft_labels": "few.jsonl"}, "soft labels of 1 examples, and the split has 200$"),
        ({"data.unlabelled": "more.jsonl"}, r"has scores of 3 classes, and data\.soft_labels of 2$"),
        ({"data.soft_labels": None, "data.unlabelled": "more.jsonl"}, r"adds to data\.soft_labels; give that too$"),
        ({"model.num_classes": 3}, r"has scores of 2 classes, and model\.num_classes is 3$"),
        ({"task.name": "squared_hinge"}, "^task 'squared_hinge' does not learn data.soft_labels"),
    ],
)
def test_what_does_not_fit_is_one_line(config, tmp_path, changes, message):
    np.save(tmp_path / "short.npy", np.zeros((199, 16), np.float16))
    np.save(tmp_path / "wide.npy", np.zeros((200, 17), np.float16))
    (tmp_path / "few.jsonl").write_text('{"index": 0, "scores": [0.5, 0.5]}\n')
    (tmp_path / "more.jsonl").write_text(json.dumps({"sentence": "a film", "scores": [0.5, 0.25, 0.25]}))
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = str(tmp_path / value) if section == "data" and value else value
    if "task.name" in changes:
        config.task = ConfigDict({"name": "squared_hinge", "class_weight": None})
    with pytest.raises(UserError, match=message):
        prepare(config)


def bert_batch(rng, size):
    tokens = rng.integers(1, 50, (4, 8)).astype(np.int32)
    ones = np.ones((4, 8), np.int32)
    batch = {"tokens": tokens, "segments": ones, "type_ids": 0 * ones, "positions": np.arange(8)[None] * ones}
    batch |= {"starts": np.zeros((4, 1), np.int32), "labels": np.array([[0], [1], [-1], [1]])}
    batch |= {"weight": np.array([[1], [1], [1], [0]], np.float32)}
    soft = {"soft_labels": np.full((4, 1, 2), 0.5, np.float32)}
    return batch, soft, rng.normal(size=(4, 1, size)).astype(np.float16)


@pytest.mark.extended
def test_hidden_states_are_the_poolers_inputs_and_their_distance_is_a_mean_square():
    rng = np.random.default_rng(3)
    config = tiny.bert(steps=1)
    module, (batch, soft, theirs) = build_module(config), bert_batch(rng, 16)
    variables = module.init(jax.random.key(0), batch, train=False)
    plain = module.apply(variables, batch, train=False)
    outputs: Any = module.apply(variables, {**batch, "soft_hidden": theirs}, train=False)
    np.testing.assert_array_equal(outputs["logits"], plain)
    pooler, head = (jax.tree.map(np.asarray, variables["params"][name]) for name in ("pooler", "classifier"))
    pooled = np.tanh(np.asarray(outputs["hidden"]) @ pooler["kernel"] + pooler["bias"])
    np.testing.assert_allclose(pooled @ head["kernel"] + head["bias"], plain, atol=1e-5)

    task = Classification(soft_weight=0.5, hidden_weight=3.0)
    without = mean(task.scores(plain, {**batch, **soft})["loss"])
    found = mean(task.scores(outputs, {**batch, **soft, "soft_hidden": theirs})["loss"])
    distances = np.mean((np.asarray(outputs["hidden"], np.float64) - theirs) ** 2, axis=-1)
    assert found - without == pytest.approx(3 * distances[:3].mean(), rel=1e-5)  # the last one is padding
    with pytest.raises(ValueError, match="returns no hidden state"):
        task.scores(plain, {**batch, **soft, "soft_hidden": theirs})
