# mypy: disable-error-code="arg-type, attr-defined, dict-item, return-value"
"""What a model computes in, and how it is chosen."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from research.base.errors import UserError
from research.core import quantization
from research.serve.compute import BOUND, disagreement, fastest, predictions
from research.serve.model import Answer, ServedModel
from research.serve.operations import OPERATIONS
from tests.serve.conftest import LIMITS, TEXTS, answer_all


@dataclasses.dataclass
class Fake:
    """A model that takes a known time, and predicts known probabilities of two classes."""

    compute: str
    time: float = 1.0
    score: float = 0.9
    samples: Any = dataclasses.field(default_factory=lambda: type("Samples", (), {"columns": [0]}))

    def probe(self, limits):
        return self.time

    def encode(self, columns):
        return columns

    def answer(self, parts):
        scores = np.array([1 - self.score, self.score])
        return [Answer({"prediction": scores.argmax(), "scores": scores}, "1")], None


@pytest.mark.parametrize(
    ("bfloat16", "int8", "chosen"),
    [
        ({"time": 0.5}, {"time": 0.3}, "int8"),
        ({"time": 0.3}, {"time": 0.5}, "bfloat16"),
        ({"time": 0.5}, {"time": 0.3, "score": 0.9 - 2 * BOUND}, "bfloat16"),
        ({"time": 0.5, "score": 0.4}, {"time": 2.0}, "float32"),
        ({"time": 0.95}, {"time": 1.0}, "float32"),
    ],
)
def test_the_fastest_that_agrees_is_chosen(bfloat16, int8, chosen):
    made = {"float32": {}, "bfloat16": bfloat16, "int8": int8}
    assert fastest("m", lambda compute: Fake(compute, **made[compute]), LIMITS).compute == chosen


def test_what_a_model_cannot_compute_in_is_left_out():
    def make(compute):
        if compute == "int8":
            raise UserError("no dense layer")
        return Fake(compute, time=1.0 if compute == "float32" else 0.5)

    assert fastest("m", make, LIMITS).compute == "bfloat16"


def test_without_samples_nothing_but_float32_is_chosen():
    assert fastest("m", lambda compute: Fake(compute, samples=None), LIMITS).compute == "float32"


def test_disagreement_is_of_scores_numbers_and_classes():
    def numbers(*values):
        return [{"prediction": np.array(value)} for value in values]

    assert disagreement(numbers(100.0, 0.5), numbers(101.0, 0.5)) == pytest.approx(0.01)
    assert disagreement(numbers(0.1, 0.5), numbers(0.1, 0.6)) == pytest.approx(0.1)
    one = [{"prediction": 1, "scores": np.array([0.49, 0.51])}]
    other = [{"prediction": 0, "scores": np.array([0.51, 0.49])}]
    assert disagreement(one, other) == float("inf")


@pytest.mark.extended
def test_predictions_for_samples_are_those_of_each_alone(models):
    model = models["text"]
    found = predictions(model)
    assert len(found) > 4
    for values, part in zip(found, model.encode(model.samples.columns), strict=True):
        (alone,), _ = model.answer([part])
        np.testing.assert_allclose(values["scores"], alone.values["scores"], atol=1e-6)


@pytest.mark.extended
def test_int8_of_a_served_model_is_close_to_float32(monkeypatch, runs, models):
    monkeypatch.setattr(quantization, "_SMALLEST", 16 * 16)
    model = ServedModel.open("text", runs["text"], compute="int8", operations=tuple(OPERATIONS))
    for _ in model.warm_up(LIMITS):
        pass
    parts = model.encode({"sentence": TEXTS})
    for operation, name in (("predict", "scores"), ("embed", "embedding")):
        exact, rounded = (x if operation == "predict" else x.others[operation] for x in (models["text"], model))
        found, expected = (
            np.stack([answer.values[name] for answer in answer_all(each, parts)[0]]) for each in (rounded, exact)
        )
        # Measured: scores 1.3e-4 off, embeddings 3.0e-4.
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert np.abs(found - expected).max() > 1e-6


def test_a_model_of_small_layers_has_no_int8(runs):
    with pytest.raises(UserError, match="int8"):
        ServedModel.open("features", runs["features"], compute="int8")
