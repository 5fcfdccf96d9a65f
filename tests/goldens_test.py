"""The first five steps of every model family, which a change that should not affect numbers must reproduce.

The numbers in goldens.json were computed with JAX 0.10.1 on an AMD EPYC. `python -m tests.goldens_test` stores new
ones, for a change that is meant to affect them.

Tolerances are relative: five times the largest difference measured between JAX 0.10.1, 0.10.2 and 0.12.0 with most
optimizations disabled, and 0.10.1 with all of them: 5.8e-7 in float32, 2.7e-11 in float64.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from research.configs import (
    cnn_mnist,
    linear_diabetes,
    linear_line,
    logistic_breast_cancer,
    logistic_sst2,
    mlp_mnist,
)
from research.devices.platform import x64
from research.training.experiment import prepare
from tests import tiny

GOLDENS = Path(__file__).with_name("goldens.json")
STEPS = 5


def _small(config, **train):
    """The embedded preset, in batches of 16."""
    config.train.update(epochs=None, batch_rows=None, batch_size=16, steps=STEPS)
    config.train.update(train)
    return config


def _float64():
    config = tiny.bert(steps=STEPS)
    config.dtype = "float64"
    return config


def _convolutions():
    config = tiny.mixed_resnet(steps=STEPS)
    config.compiler = "convolutions"
    return config


FAMILIES = {
    "linear": lambda: _small(linear_line.get_config("embedded"), batch_size=-1),
    "linear, closed form": lambda: linear_diabetes.get_config("closed_form"),
    "logistic": lambda: tiny.logistic(steps=STEPS),
    "logistic, two classes, lbfgs": lambda: logistic_breast_cancer.get_config("embedded"),
    "logistic, three seeds": lambda: tiny.logistic(steps=STEPS, seeds=3),
    "bag of words, lbfgs": lambda: logistic_sst2.get_config("embedded"),
    "mlp": lambda: _small(mlp_mnist.get_config("embedded")),
    "cnn": lambda: _small(cnn_mnist.get_config("embedded")),
    "resnet": lambda: tiny.resnet(steps=STEPS),
    "resnet, augmented": _convolutions,
    "bert": lambda: tiny.bert(steps=STEPS),
    "bert, float64": _float64,
    "bert_mlm": lambda: tiny.mlm(steps=STEPS),
    "gpt": lambda: tiny.gpt(steps=STEPS),
}
EXTENDED = ("bert_mlm", "cnn", "gpt", "resnet")
SLOW = (
    "linear, closed form",
    "logistic, two classes, lbfgs",
    "bag of words, lbfgs",
    "resnet, augmented",
    "bert, float64",
)


def _marks(name):
    return [pytest.mark.slow] * (name in SLOW) + [pytest.mark.extended] * (name in EXTENDED)


def trajectory(config):
    """The loss of each step, and the final norms of the parameters and of the other model state."""
    with x64(config.dtype):
        experiment = prepare(config)
        state, losses = experiment.init(), []
        for batch in tiny.batches(experiment, min(STEPS, experiment.length.total_steps)):
            state, scores = experiment.train_step(state, batch)
            losses.append((np.asarray(scores["loss"].total) / np.asarray(scores["loss"].weight)).tolist())
        norms = [
            float(np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree))))
            for tree in (state.params, state.model_state)
        ]
    return {"losses": losses, "norms": norms}


def _prepare(monkeypatch):
    """Small corpora, and one device, as on most CPUs."""
    tiny.few_sentences(monkeypatch)
    tiny.few_documents(monkeypatch)
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)


@functools.cache
def _stored():
    return json.loads(GOLDENS.read_text())


def _tolerance(name):
    return 1.5e-10 if name.endswith("float64") else 3e-6


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in FAMILIES])
def test_first_steps_match_the_stored_ones(name, monkeypatch):
    _prepare(monkeypatch)
    found = trajectory(FAMILIES[name]())
    for key, expected in _stored()[name].items():
        np.testing.assert_allclose(found[key], expected, rtol=_tolerance(name))


def test_every_stored_family_is_run():
    assert set(_stored()) == set(FAMILIES)


def main():
    found = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        _prepare(monkeypatch)
        for name, make in FAMILIES.items():
            found[name] = trajectory(make())
    GOLDENS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
