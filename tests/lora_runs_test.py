# mypy: disable-error-code="list-item"
"""Runs that train low-rank additions: resumed, opened, and started from."""

from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from research import api
from research.core.lora import Lora, detached
from research.core.replicas import Replicas
from research.inference.generate import Generator
from research.inference.model import open_model
from research.runs.rundir import RunDir
from research.training.experiment import prepare
from research.training.loop import train_and_evaluate
from tests import tiny

MLP: dict[str, Any] = {
    "train.steps": 3,
    "train.batch_size": 8,
    "model.hidden_sizes": (6,),
    "model.dropout": 0.0,
    "optimizer.weight_decay": 0.0,
}
ADDITIONS = {"train.lora.rank": 2, "train.lora.targets": "dense_0/kernel", "train.lora.trains": "classifier"}


def _decoder(**train):
    config = tiny.gpt(steps=10, **train)
    config.train.lora.update(rank=2, dropout=0.1)
    return config


def _encoder(**train):
    config = tiny.bert(steps=10, **train)
    config.train.lora.update(rank=2, dropout=0.1, targets="(query|mlp_in)/kernel")
    return config


@pytest.mark.extended
@pytest.mark.parametrize("make", [_decoder, _encoder])
def test_interrupted_run_ends_equally_and_opens_alone(make, tmp_path, monkeypatch):
    """With dropout on the additions' inputs and averaged parameters. The base is that of a run without them."""
    tiny.few_documents(monkeypatch)
    tiny.few_sentences(monkeypatch)
    calls = iter(range(1, 100))
    config = make(ema_decay=0.5)
    whole = train_and_evaluate(config, tmp_path / "whole", show=False)
    half = train_and_evaluate(config, tmp_path / "half", show=False, should_stop=lambda: next(calls) >= 4)
    assert (half["status"], half["step"]) == ("preempted", 4)
    rest = train_and_evaluate(config, tmp_path / "half", show=False)
    assert (rest["params_sha256"], rest["metrics"]) == (whole["params_sha256"], whole["metrics"])

    run = RunDir.open(tmp_path / "half")
    model = open_model(run)
    own, additions = (flatten_dict(part, sep="/") for part in detached(model.state.params))
    assert all(np.any(leaf) for leaf in additions.values())
    config.train.lora.rank = None
    fresh = flatten_dict(prepare(config, run.assets).init().params, sep="/")
    trained = {path for path in fresh if not np.array_equal(own[path], fresh[path])}
    assert {path.split("/")[0] for path in trained} == ({"pooler", "classifier"} if make is _encoder else set())
    evaluated = api.open_run(run.path).evaluate("validation")["metrics"]
    assert evaluated == {name: pytest.approx(value, rel=1e-6) for name, value in whole["metrics"]["validation"].items()}
    if make is _decoder:
        variables = Generator.open(run.path, "last").variables
        assert not jax.tree.leaves(detached(variables["params"])[1])
        query = variables["params"]["layer_0"]["attention"]["query"]["kernel"]
        assert np.abs(query - own["layer_0/attention/query/kernel"]).max() > 1e-5


def _start_from(source, workdir, **overrides):
    """A run that starts from another one and leaves what it starts from as it is."""
    still = {**MLP, "optimizer.learning_rate": 1e-30, "init_from": str(source), "seed": 7}
    return api.fit("mlp_mnist:embedded", workdir=workdir, show=False, **{**still, **overrides}).workdir


def _variables(workdir):
    return open_model(RunDir.open(workdir)).variables["params"]


@pytest.mark.extended
def test_runs_start_from_merged_additions_and_add_to_others(tmp_path):
    first = api.fit("mlp_mnist:embedded", workdir=tmp_path / "first", show=False, **MLP).workdir
    second = _start_from(first, tmp_path / "second", **ADDITIONS, **{"optimizer.learning_rate": 0.1})
    own, additions = detached(open_model(RunDir.open(second)).state.params)
    assert len(jax.tree.leaves(additions)) == 2
    np.testing.assert_array_equal(own["dense_0"]["kernel"], _variables(first)["dense_0"]["kernel"])
    assert np.abs(_variables(second)["dense_0"]["kernel"] - own["dense_0"]["kernel"]).max() > 1e-3
    third = _start_from(second, tmp_path / "third")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), _variables(third), _variables(second))


@pytest.mark.extended
def test_seeds_have_their_own_additions(tmp_path):
    both = api.fit("mlp_mnist:embedded", workdir=tmp_path / "two", show=False, **MLP, **ADDITIONS, **{"train.seeds": 2})
    state = open_model(RunDir.open(both.workdir)).state
    lora = Lora(**both.config.train.lora)
    for seed, part in enumerate(Replicas(2).split(state.params)):
        alone = api.fit("mlp_mnist:embedded", workdir=tmp_path / f"{seed}", show=False, **MLP, **ADDITIONS, seed=seed)
        merged = lora.merged(part)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), merged, _variables(alone.workdir))
