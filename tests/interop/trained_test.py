"""Models that transformers does not have start from runs of the same model."""

from typing import Any

import jax
import numpy as np
import pytest

from research import api
from research.base.errors import UserError
from research.inference.model import open_model
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate
from tests import tiny

LINEAR: dict[str, Any] = {"train.steps": 3, "train.batch_size": 8}
MLP: dict[str, Any] = {**LINEAR, "model.hidden_sizes": (4,), "model.dropout": 0.0}


def _fit(config, workdir, **overrides: Any):
    return api.fit(f"{config}:embedded", workdir=workdir, show=False, **overrides).workdir


def _params(workdir):
    return open_model(RunDir.open(workdir)).state.params


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("linear_diabetes", LINEAR),
        ("logistic_digits", LINEAR),
        pytest.param("mlp_mnist", MLP, marks=pytest.mark.extended),
        pytest.param("cnn_mnist", LINEAR, marks=pytest.mark.extended),
    ],
)
def test_run_starts_where_another_one_ended(config, overrides, tmp_path):
    """A learning rate of nearly zero leaves the parameters as they were."""
    first = _fit(config, tmp_path / "first", **overrides)
    still = {**overrides, "optimizer.learning_rate": 1e-30, "optimizer.weight_decay": 0.0, "seed": 7}
    second = _fit(config, tmp_path / "second", init_from=str(first), **still)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-20), _params(second), _params(first))


@pytest.mark.extended
def test_head_of_another_size_is_fresh_and_named(tmp_path, capsys):
    first = _fit("mlp_mnist", tmp_path / "first", **MLP)
    still = {**MLP, "optimizer.learning_rate": 1e-30, "optimizer.weight_decay": 0.0, "init_from": str(first)}
    api.fit("mlp_mnist:embedded", workdir=tmp_path / "second", **{**still, "model.num_classes": 12})
    assert "fresh: params/classifier/bias, params/classifier/kernel, of another size" in capsys.readouterr().out
    old, new = _params(first), _params(tmp_path / "second")
    assert new["classifier"]["kernel"].shape == (4, 12)
    for name in old.keys() - {"classifier"}:
        tiny.assert_trees_equal(new[name], old[name])


def test_init_fresh_leaves_out_parameters(tmp_path):
    first = _fit("mlp_mnist", tmp_path / "first", **MLP)
    still = {**MLP, "optimizer.learning_rate": 1e-30, "optimizer.weight_decay": 0.0, "init_from": str(first)}
    second = _fit("mlp_mnist", tmp_path / "second", **still, init_fresh="classifier")
    assert not np.array_equal(_params(second)["classifier"]["kernel"], _params(first)["classifier"]["kernel"])


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("mlp_mnist", {**MLP, "model.hidden_sizes": (5,)}, r"of shape .* only the number of outputs of the last layer"),
        ("mlp_mnist", {**MLP, "model.hidden_sizes": (4, 4)}, "init_from needs a run of the same model"),
        ("logistic_digits", LINEAR, "init_from needs a run of the same model"),
        ("resnet_digits", LINEAR, "has weights for models mlp; this config's is 'resnet'"),
    ],
)
def test_another_model_is_refused_and_leaves_nothing(config, overrides, message, tmp_path):
    first = _fit("mlp_mnist", tmp_path / "first", **MLP)
    with pytest.raises(UserError, match=message):
        _fit(config, tmp_path / "second", init_from=str(first), **overrides)
    assert not (tmp_path / "second").exists()


def test_run_from_weights_is_resumed_without_them(tmp_path):
    first = _fit("logistic_digits", tmp_path / "first", **LINEAR)
    second = _fit("logistic_digits", tmp_path / "second", init_from=str(first), **{**LINEAR, "train.steps": 2})
    (first / "config.json").unlink()
    again = _fit("logistic_digits", second, init_from=str(first), **{**LINEAR, "train.steps": 2})
    assert RunDir.open(again).summary()["step"] == 2


def test_config_in_python_needs_the_loaded_weights(tmp_path):
    config = tiny.logistic()
    config.init_from = str(tmp_path)
    with pytest.raises(UserError, match="is not resolved"):
        train_and_evaluate(config, tmp_path / "run", show=False)
