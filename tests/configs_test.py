"""Every config and preset: complete, buildable, and abstractly stepped, without data or compilation."""

import importlib
import inspect
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.defaults import defaults
from research.config import load
from research.data import load as data
from research.data import tfds_source
from research.experiment import prepare
from research.models import MODELS
from research.rundir import flatten
from research.tasks import TASKS
from tests import tiny

FILES = sorted(path.stem for path in Path("configs").glob("*.py") if path.stem not in ("__init__", "defaults"))
PRESETS = [(file, preset) for file in FILES for preset in importlib.import_module(f"configs.{file}").PRESETS]
SENTENCES = {"sentence": [b"a superb film", b"a dull film", b"not bad"], "label": [1, 0, 1]}
SENTENCES["text"] = [b"superbly dullest filming", *SENTENCES["sentence"][1:]]


def test_they_were_found():
    assert len(FILES) >= 6


@pytest.mark.parametrize(("file", "preset"), PRESETS)
def test_a_train_and_an_eval_step_have_consistent_shapes(file, preset, monkeypatch):
    tiny.few_sentences(monkeypatch)
    tiny.few_documents(monkeypatch)
    monkeypatch.setattr(tfds_source, "load", lambda name, data_dir: dict.fromkeys(("train", "validation"), SENTENCES))
    config = load(f"configs/{file}.py:{preset}").config
    assert config.preset == preset
    config.init_from = None
    experiment = prepare(config)
    (batch,) = tiny.batches(experiment, 1)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    state, scores = jax.eval_shape(experiment.train_step, experiment.state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), experiment.state
    )
    assert "loss" in scores
    scores, predictions = jax.eval_shape(experiment.eval_step, experiment.state, batch)
    assert config.eval.metric in scores
    assert {x.shape[: batch["weight"].ndim] for x in jax.tree.leaves(predictions)} == {batch["weight"].shape}


@pytest.mark.parametrize(("file", "preset"), PRESETS)
def test_every_key_is_visible(file, preset):
    """No default hides in the code: each section lists all that the thing it builds takes."""
    config = load(f"configs/{file}.py:{preset}").config
    for section, table in (
        (config.model, MODELS),
        (config.task, TASKS),
        (config.data.transform, data.TRANSFORMS),
    ):
        given = {"name", "parent", "dtype", "splits", "kept"}
        taken = set(inspect.signature(table[section.name]).parameters) - given
        assert set(section) - {"name"} == taken


@pytest.mark.parametrize("file", FILES)
def test_every_config_has_the_embedded_preset_and_only_known_keys(file):
    module = importlib.import_module(f"configs.{file}")
    assert "embedded" in module.PRESETS
    assert module.FULL in module.PRESETS
    own = {
        key for key in flatten(module.get_config("embedded").to_dict()) if not key.startswith(("model", "task", "data"))
    }
    assert own == {key for key in flatten(defaults().to_dict()) if not key.startswith(("model", "task", "data"))}
    assert module.get_config("embedded").data.name in data.SOURCES


@pytest.mark.parametrize("file", FILES)
def test_no_preset_is_the_full_size_in_python(file):
    module = importlib.import_module(f"configs.{file}")
    assert module.get_config().preset == module.FULL


def test_parameters_of_bert_base():
    """109,483,778: what transformers counts for BertForSequenceClassification of bert-base-uncased with two labels."""
    config = load("configs/bert_sst2.py:base").config
    module = MODELS["bert"](**{k: v for k, v in config.model.items() if k != "name"})
    row = np.zeros((1, 8), np.int32)
    batch = {"tokens": row, "segments": row, "positions": row, "type_ids": row, "starts": row[:, :1]}
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), batch, train=False))
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(variables["params"])) == 109_483_778
