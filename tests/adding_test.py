"""Adds a custom model, dataset, loss and metric with exactly the steps that README.md lists."""

import dataclasses
import json
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from research.analysis.plots import PlotContext, draw
from research.base.errors import UserError
from research.base.ranges import COUNT, Range
from research.config import load
from research.configs import logistic_digits
from research.core import tasks
from research.core.metrics import Mean
from research.data import load as data
from research.models import MODELS
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate


class Toy(nn.Module):
    RANGES: ClassVar[dict[str, Range]] = {"width": COUNT, "num_classes": COUNT}

    num_classes: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch, *, train):
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.width)(batch["features"])))


@dataclasses.dataclass(frozen=True)
class SquaredProbabilities:
    """The Brier score, and a split metric: the fraction of predictions of the most frequently predicted class."""

    sharpness: float = 1.0

    @property
    def split_metrics(self):
        return {"largest_share": lambda columns, labels: float(np.bincount(columns["prediction"]).max() / len(labels))}

    def scores(self, outputs, batch):
        probabilities = jax.nn.softmax(self.sharpness * outputs)
        errors = jnp.sum((probabilities - jax.nn.one_hot(batch["labels"], outputs.shape[-1])) ** 2, axis=-1)
        right = jnp.argmax(outputs, axis=-1) == batch["labels"]
        return {"loss": Mean.of(errors, batch["weight"]), "accuracy": Mean.of(right, batch["weight"])}

    def predictions(self, outputs, batch):
        return {"prediction": jnp.argmax(outputs, axis=-1), "scores": jax.nn.softmax(outputs)}


def _columns():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 2))
    split = {"features": x, "label": (x[:, 0] * x[:, 1] > 0).astype(np.int32)}  # not linearly separable
    return dict.fromkeys(("train", "validation", "test"), split)


@pytest.fixture
def added(monkeypatch):
    """One line in each table."""
    monkeypatch.setitem(MODELS, "toy", Toy)
    monkeypatch.setitem(data.SOURCES, "toy_points", ("embedded", _columns))
    monkeypatch.setitem(tasks.TASKS, "brier", SquaredProbabilities)


def _config():
    config = logistic_digits.get_config("embedded")
    config.unlock()
    config.model = {"name": "toy", "num_classes": 2, "width": 16}
    config.task = {"name": "brier"}
    config.data.update({"name": "toy_points"})
    config.data.transform = {"name": "standardize", "inputs": ("features",), "label": "label"}
    config.optimizer.learning_rate = 0.02
    config.train.update({"steps": 150, "epochs": None})
    return config


def test_each_addition_takes_one_line(added, tmp_path):
    summary = train_and_evaluate(_config(), tmp_path, show=False)
    assert summary["status"] == "completed"
    metrics = summary["metrics"]["validation"]
    assert metrics["accuracy"] > 0.9
    assert 0.4 < metrics["largest_share"] < 0.7
    run = RunDir.open(tmp_path)
    for what in ("roc", "confusion"):  # records with scores mean that the task has classes
        assert json.loads(draw(PlotContext(run), what).with_suffix(".json").read_text())
    with pytest.raises(UserError, match="a number"):
        draw(PlotContext(run), "residuals")


def test_ranges_of_a_custom_model_are_checked(added, tmp_path):
    config = _config()
    config.model.width = 0
    with pytest.raises(UserError, match=r"model\.width is 0"):
        train_and_evaluate(config, tmp_path, show=False)


CONFIG = """
from tests.adding_test import _config

PRESETS, FULL = ("embedded",), "embedded"


def get_config(preset):
    return _config()
"""


def test_unlisted_field_can_be_overridden(added, tmp_path):
    (tmp_path / "toy.py").write_text(CONFIG)
    config = load(f"{tmp_path}/toy.py", ["task.sharpness=2.5"]).config
    assert config.task.sharpness == 2.5
