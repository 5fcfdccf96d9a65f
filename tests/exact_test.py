"""`train.exact_shards`: the bits of a run do not depend on how many devices share a batch."""

import jax
import numpy as np
import pytest

from research.base.errors import UserError
from research.core.state import params_sha256
from research.devices.sharding import prefetch_to_device
from research.training.experiment import prepare
from tests import tiny

STEPS = 10


def _bert(shards):
    config = tiny.bert(steps=STEPS)
    config.train.exact_shards = shards
    return config


def _trained(config, devices):
    """The parameters and the losses of all steps on the first `devices`."""
    experiment = prepare(config, devices=jax.devices()[:devices])
    state, losses = experiment.init(), []
    for _, batch in prefetch_to_device(experiment.training_batches(0), experiment.mesh):
        state, scores = experiment.train_step(state, batch)
        losses.append(float(scores["loss"].total / scores["loss"].weight))
    return state.params, losses


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "decoder", "logistic"])
def test_parameters_are_the_same_on_1_2_4_and_8_devices(name, monkeypatch):
    """With dropout. Without exact_shards they differ by rounding."""
    tiny.few_sentences(monkeypatch)
    tiny.few_documents(monkeypatch)
    config = {"bert": lambda: _bert(8), "decoder": lambda: tiny.gpt(steps=STEPS), "logistic": _logistic}[name]()
    config.train.exact_shards = 8
    hashes = {params_sha256(_trained(config, devices)[0]) for devices in (1, 2, 4, 8)}
    assert len(hashes) == 1
    if name == "bert":
        config.train.exact_shards = None
        assert len({params_sha256(_trained(config, devices)[0]) for devices in (1, 8)}) == 2


def _logistic():
    config = tiny.logistic(steps=STEPS)
    config.optimizer.update(name="adamw", learning_rate=0.01)
    return config


@pytest.mark.extended
def test_the_gradient_is_that_of_the_whole_batch(monkeypatch):
    """Without dropout, losses are those of the plain step. Measured: at most 4e-7 apart, relatively."""
    tiny.few_sentences(monkeypatch)
    losses = []
    for shards in (None, 8):
        config = _bert(shards)
        config.model.update(dropout=0.0, attention_dropout=0.0)
        losses.append(_trained(config, 8)[1])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def _augmented(**keys):
    config = _logistic()
    config.train.exact_shards = 8
    for key, value in keys.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: _augmented(train__exact_shards=12), "a multiple of the 8 devices"),
        (lambda: _augmented(train__exact_shards=32), "divide its 16 rows"),
        (lambda: _augmented(train__accumulate=2), "does not support train.accumulate"),
        (lambda: _augmented(train__seeds=2), "does not support train.seeds"),
        (lambda: _augmented(mesh__rules="fsdp"), "does not support mesh.rules"),
        (
            lambda: _augmented(optimizer__name="lbfgs", train__batch_size=-1, train__steps=1),
            "does not support a solver",
        ),
    ],
)
def test_what_is_not_supported_is_one_line(config, message):
    with pytest.raises(UserError, match=rf"train\.exact_shards=\d+ .*({message})"):
        prepare(config())


def test_batch_statistics_are_refused():
    config = tiny.resnet(steps=1)
    config.train.exact_shards = 8
    with pytest.raises(UserError, match="batch statistics"):
        prepare(config)
