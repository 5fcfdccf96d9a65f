"""Every config and preset is complete, can be built and traced, without data or compilation."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from research import config_files
from research.analysis.leaderboard import TASKS as TASKS_OF_GLUE
from research.base.registry import config_keys
from research.base.trees import flatten
from research.config import load
from research.configs import bert_glue, bert_sst2
from research.configs.defaults import defaults
from research.core.tasks import TASKS
from research.data import load as data
from research.data.images.augment import Augment
from research.models import MODELS
from research.overrides import declared
from research.training.experiment import prepare
from research.training.limits import check_values, key_ranges
from research.training.own_files import fill_in
from tests import tiny

FILES = config_files.names()
PRESETS = [(file, preset) for file in FILES for preset in importlib.import_module(f"research.configs.{file}").PRESETS]


def test_configs_were_found():
    assert len(FILES) >= 6


@pytest.mark.extended
@pytest.mark.parametrize(
    ("file", "preset"),
    [
        pytest.param(file, preset, marks=[] if preset == "embedded" else pytest.mark.slow, id=f"{file}-{preset}")
        for file, preset in PRESETS
    ],
)
def test_train_and_eval_steps_have_consistent_shapes(file, preset, monkeypatch, tmp_path):
    tiny.few_sentences(monkeypatch)
    tiny.tfds(monkeypatch)
    tiny.few_documents(monkeypatch)
    config = load(f"configs/{file}.py:{preset}").config
    assert config.preset == preset
    config.init_from = None
    if config.data.name == "files":
        config.data.train = str(tiny.own_file(tmp_path, config.data.transform.name))
        config, _ = fill_in(config, ())
    if config.data.name == "shards":
        config.data.train = config.data.validation = str(tiny.shard(tmp_path / "a.parquet"))
        config.data.shards.rows = 8
    config.data.workers = 0
    if config.train.batch_size is not None:
        config.train.batch_size = min(config.train.batch_size, 8)  # large batches of images are slow to make
    if "num_layers" in config.model:
        config.model.num_layers = min(config.model.num_layers, 2)  # all of them are similar, and tracing is slow
    experiment = prepare(config)
    (batch,) = tiny.batches(experiment, 1)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    state, scores = jax.eval_shape(experiment.train_step, experiment.state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), experiment.state
    )
    assert "loss" in scores
    scores, predictions = jax.eval_shape(experiment.eval_step, experiment.state, batch)
    assert config.eval.metric in {**scores, **experiment.task.split_metrics}
    assert {x.shape[: batch["weight"].ndim] for x in jax.tree.leaves(predictions)} == {batch["weight"].shape}


@pytest.mark.parametrize(("file", "preset"), PRESETS)
def test_every_key_is_visible(file, preset):
    """No hidden defaults: each section lists all arguments of the function or class that it builds."""
    config = load(f"configs/{file}.py:{preset}").config
    for section, table in (
        (config.model, MODELS),
        (config.task, TASKS),
        (config.data.transform, data.TRANSFORMS),
    ):
        taken = set(config_keys(table[section.name])) - {"dtype", "splits", "kept"}
        assert set(section) - {"name"} == taken
    if config.data.transform.name == "image":
        assert set(config.data.transform.augment) == {field.name for field in dataclasses.fields(Augment)}


@pytest.mark.parametrize(("file", "preset"), PRESETS)
def test_optional_keys_are_declared(file, preset):
    """They are placeholders, whatever the preset's value, so that users can set them to None."""
    config = load(f"configs/{file}.py:{preset}").config
    keys = declared(config)
    built = {
        "model": MODELS[config.model.name],
        "task": TASKS[config.task.name],
        "data.transform": data.TRANSFORMS[config.data.transform.name],
        "data.transform.augment": Augment,
    }
    for section, function in built.items():
        for key, parameter in config_keys(function).items():
            if f"{section}.{key}" in keys and "None" in str(parameter.annotation):
                assert keys[f"{section}.{key}"].optional, f"{section}.{key}"
    optional = {key for key, declared in keys.items() if declared.optional}
    assert {"init_from", "data.data_dir", "optimizer.clip_norm", "optimizer.C", "optimizer.alpha"} <= optional


@pytest.mark.parametrize(("file", "preset"), PRESETS)
def test_every_number_has_a_range(file, preset):
    """The preset's own value is in its range."""
    config = load(f"configs/{file}.py:{preset}").config
    for key, declared_key in declared(config).items():
        if declared_key.kind in (int, float) or declared_key.items in (int, float):
            assert key in key_ranges(config.to_dict()), key
    check_values(config.to_dict())


@pytest.mark.parametrize("file", FILES)
def test_every_config_has_the_embedded_preset_and_only_known_keys(file):
    module = importlib.import_module(f"research.configs.{file}")
    assert "embedded" in module.PRESETS
    assert module.FULL in module.PRESETS
    if hasattr(module, "ON_CPU"):
        assert module.get_config(module.FULL).needs_accelerator
        assert not module.get_config(module.ON_CPU).needs_accelerator
    own = {
        key for key in flatten(module.get_config("embedded").to_dict()) if not key.startswith(("model", "task", "data"))
    }
    assert own == {key for key in flatten(defaults().to_dict()) if not key.startswith(("model", "task", "data"))}
    assert module.get_config("embedded").data.name in {*data.SOURCES, "files"}


@pytest.mark.parametrize("file", FILES)
def test_default_preset_in_python_is_the_full_size(file):
    module = importlib.import_module(f"research.configs.{file}")
    assert module.get_config().preset == module.FULL


@pytest.mark.parametrize("task", [preset for preset in bert_glue.PRESETS if preset != "embedded"])
def test_glue_matches_tfds_and_the_leaderboard(task):
    """Columns and classes match TFDS's definitions; the ranking metric is the first one of the leaderboard."""
    from tensorflow_datasets.text.glue import Glue

    (official,) = (builder for builder in Glue.BUILDER_CONFIGS if builder.name == task)
    config = bert_glue.get_config(task)
    assert config.preset == task
    assert config.data.name == f"glue/{task}"
    assert set(config.data.transform.inputs) == set(official.text_features) == set(tiny.GLUE_INPUTS[task])
    assert config.data.transform.inputs == tiny.GLUE_INPUTS[task]
    leaderboard = TASKS_OF_GLUE[config.data.name]
    if task == "stsb":
        assert (config.model.num_classes, official.label_classes) == (1, None)
    else:
        assert config.model.num_classes == len(official.label_classes) == len(leaderboard.labels)
    if leaderboard.labels and leaderboard.labels[0] != "0":
        assert list(leaderboard.labels) == official.label_classes
    assert config.eval.metric in leaderboard.metrics
    assert config.eval.splits == leaderboard.validation


@pytest.mark.parametrize("task", [preset for preset in bert_glue.PRESETS if preset != "embedded"])
def test_glue_tasks_change_only_task_specific_keys(task):
    """The recipe is that of bert_sst2: a change there applies to every task."""
    recipe = flatten(bert_sst2.get_config("base").to_dict())
    own = flatten(bert_glue.get_config(task).to_dict())
    changed = {key for key in recipe.keys() | own.keys() if recipe.get(key) != own.get(key)}
    assert changed <= {
        "preset",
        "model.num_classes",
        "task.name",
        "task.label_smoothing",
        "task.soft_weight",
        "task.temperature",
        "task.hidden_weight",
        "task.class_weight",
        "task.hidden_label",
        "data.name",
        "data.transform.inputs",
        "data.transform.max_length",
        "data.transform.pad_to",
        "data.transform.row_length",
        "train.epochs",
        "train.batch_rows",
        "eval.splits",
        "eval.metric",
        "eval.every_steps",
    }
    if task == "sst2":
        assert changed == {"preset"}


def test_parameters_of_bert_base():
    """109,483,778, as for transformers' BertForSequenceClassification of bert-base-uncased with two labels."""
    config = load("configs/bert_sst2.py:base").config
    module = MODELS["bert"](**{k: v for k, v in config.model.items() if k != "name"})
    row = np.zeros((1, 8), np.int32)
    batch = {"tokens": row, "segments": row, "positions": row, "type_ids": row, "starts": row[:, :1]}
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), batch, train=False))
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(variables["params"])) == 109_483_778
