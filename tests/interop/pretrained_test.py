# mypy: disable-error-code="arg-type, call-arg, call-overload"
"""Configs with `init_from`, and runs that start from the weights."""

import json
import shutil

import jax
import numpy as np
import pytest

from research.base.errors import UserError
from research.config import load
from research.interop import pretrained
from research.runs.checkpoint import Checkpoints
from research.runs.rundir import RunDir
from research.training.experiment import prepare
from research.training.loop import train_and_evaluate
from research.training.start import restore_or_init
from tests import tiny
from tests.interop import tiny_encoder


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    tiny.few_sentences(monkeypatch, train=60, validation=20)


def _config(init_from, *overrides):
    """The config of the embedded BERT, from pretrained weights, with 6 steps of 8 sentences."""
    settings = ["train.batch_size=8", "train.steps=6", "checkpoint.every_steps=3", "eval.every_steps=0"]
    experiment = load("configs/bert_sst2.py:embedded", [f"init_from={init_from}", *settings, *overrides])
    return experiment.config, experiment.given


def _start(workdir, init_from, *overrides):
    return pretrained.resolve_init_from(*_config(init_from, *overrides), workdir)


def _run(start, workdir, **options):
    return train_and_evaluate(start.config, workdir, load_variables=start.load_variables, show=False, **options)


def _first(start, workdir):
    """The parameters before the first step, and those without pretrained weights."""
    experiment = prepare(start.config)
    fresh = jax.device_get(experiment.init().params)
    with Checkpoints(workdir / "checkpoints", metric="accuracy", mode="max") as checkpoints:
        return restore_or_init(experiment, checkpoints, start.load_variables)[0].params, fresh


class TestTheConfig:
    def test_model_and_tokenizer_follow_the_weights(self, tmp_path):
        tiny_encoder.write(tmp_path / "F", "roberta")
        config, given = _config(tmp_path / "F")
        before = config.copy_and_resolve_references()
        start = pretrained.resolve_init_from(config, given, tmp_path / "W")
        assert config == before
        model = start.config.model
        assert (model.hidden_size, model.num_layers, model.mlp_size, model.vocab_size) == (8, 2, 12, 261)
        assert (model.max_positions, model.position_offset, model.type_vocab_size) == (32, 2, 1)
        assert (model.layer_norm_eps, model.pooler_dropout, model.num_classes, model.name) == (1e-5, 0.1, 2, "bert")
        transform = start.config.data.transform
        assert (transform.tokenizer, transform.vocab_size) == (str(tmp_path / "F/tokenizer.json"), 261)
        assert start.note == f"weights: {tmp_path}/F (roberta); fresh: classifier"
        assert not (tmp_path / "W").exists()

    def test_keys_that_were_given_are_kept(self, tmp_path):
        tiny_encoder.write(tmp_path, num_classes=2)
        start = _start(tmp_path / "W", tmp_path, "model.dropout=0.3", "model.num_layers=1")
        assert (start.config.model.dropout, start.config.model.num_layers) == (0.3, 1)
        assert start.config.model.attention_dropout == 0.1
        assert "not used: bert.encoder.layer.1." in start.note
        assert start.note.endswith(" and 15 more")

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (
                ["model.num_layers=3"],
                r"lacks bert.encoder.layer.2.attention\S+, .* and 13 more, which the model needs",
            ),
            (["model.hidden_size=16"], r"has shape \(8,\); the model of this config needs \(16,\)"),
            (["model.num_heads=3"], "model.num_heads=3 does not divide model.hidden_size=8"),
        ],
    )
    def test_conflicting_keys_are_one_line_errors(self, overrides, message, tmp_path):
        tiny_encoder.write(tmp_path)
        with pytest.raises(UserError, match=message):
            _start(tmp_path / "W", tmp_path, *overrides)

    def test_without_init_from_nothing_is_loaded(self):
        experiment = load("configs/bert_sst2.py:embedded")
        start = pretrained.resolve_init_from(experiment.config, experiment.given, "W")
        assert start == pretrained.Initialization(experiment.config)

    def test_other_models_start_from_runs_only(self, tmp_path):
        experiment = load("configs/logistic_digits.py", [f"init_from={tmp_path}"])
        with pytest.raises(UserError, match="is not a run directory with a checkpoint, which model 'logistic' needs"):
            pretrained.resolve_init_from(experiment.config, experiment.given, "W")


@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(name, marks=pytest.mark.extended) for name in ("roberta", "distilbert"))]
)
def test_run_starts_from_the_weights(family, tmp_path):
    """The classifier is initialized from the seed."""
    tensors = tiny_encoder.write(tmp_path / "F", family, num_classes=2)
    start = _start(tmp_path / "W", tmp_path / "F")
    params, fresh = _first(start, tmp_path / "W")
    table = tensors[f"{family}.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(params["encoder"]["token_embedding"]["embedding"], table)
    expected = pretrained.load(str(tmp_path / "F"))[1]["params"]
    for name in ("encoder", "pooler"):
        tiny.assert_trees_equal(params[name], expected[name])
    tiny.assert_trees_equal(params["classifier"], fresh["classifier"])
    assert not np.array_equal(params["classifier"]["kernel"], expected["classifier"]["kernel"])


@pytest.mark.extended
@pytest.mark.parametrize("source", ["files", "run"])
def test_parameters_matching_init_fresh_are_not_loaded(source, tmp_path):
    tiny_encoder.write(tmp_path / "F", num_classes=2)
    weights = pretrained.load(str(tmp_path / "F"))[1]["params"]
    if source == "run":
        tiny_encoder.write_run(tmp_path / "first", tmp_path / "F", num_classes=2)
    start = _start(tmp_path / "W", tmp_path / ("F" if source == "files" else "first"), "init_fresh=layer_1/|pooler")
    assert "fresh: classifier, layer_1/|pooler" in start.note
    params, fresh = _first(start, tmp_path / "W")
    for part in ("token_embedding", "embedding_norm", "layer_0"):
        tiny.assert_trees_equal(params["encoder"][part], weights["encoder"][part])
    tiny.assert_trees_equal(params["encoder"]["layer_1"], fresh["encoder"]["layer_1"])
    tiny.assert_trees_equal(params["pooler"], fresh["pooler"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["init_fresh=layer_7/"],
            "init_fresh='layer_7/' finds no parameter that init_from has; one is encoder/",
        ),
        (["init_fresh=."], "init_fresh='.' finds every parameter"),
        (["init_fresh=("], r"init_fresh='\(' is not a valid regular expression"),
    ],
)
def test_invalid_init_fresh_is_a_one_line_error(overrides, message, tmp_path):
    tiny_encoder.write(tmp_path)
    with pytest.raises(UserError, match=message):
        _start(tmp_path / "W", tmp_path, *overrides)


def test_init_fresh_needs_init_from():
    experiment = load("configs/bert_sst2.py:embedded", ["init_fresh=pooler"])
    with pytest.raises(UserError, match="init_from is None"):
        pretrained.resolve_init_from(experiment.config, experiment.given, "W")


@pytest.mark.slow
def test_resuming_and_evaluating_do_not_need_the_weights(tmp_path):
    tiny_encoder.write(tmp_path / "F")
    whole = _run(_start(tmp_path / "whole", tmp_path / "F", "model.num_layers=1"), tmp_path / "whole")

    asked = iter([False, False, False, True])
    part = _run(
        _start(tmp_path / "W", tmp_path / "F", "model.num_layers=1"), tmp_path / "W", should_stop=lambda: next(asked)
    )
    assert (part["status"], part["step"]) == ("preempted", 4)
    assert RunDir(tmp_path / "W").config()["model"]["hidden_size"] == 8
    shutil.rmtree(tmp_path / "F")
    start = _start(tmp_path / "W", tmp_path / "F", "model.num_layers=1")
    assert start.load_variables is None
    assert start.config.model.hidden_size == 8
    summary = _run(start, tmp_path / "W")
    assert (summary["status"], summary["params_sha256"]) == ("completed", whole["params_sha256"])

    experiment = prepare(start.config, RunDir(tmp_path / "W").assets)
    with Checkpoints(tmp_path / "W/checkpoints", metric="accuracy", mode="max") as checkpoints:
        state, _ = checkpoints.restore(experiment.state, checkpoints.steps[-1])
    metrics, _ = experiment.evaluate(state, "validation")
    assert metrics == summary["metrics"]["validation"]


def test_missing_weights_are_a_one_line_error_if_needed(tmp_path):
    with pytest.raises(UserError, match=r"is not a folder"):
        _start(tmp_path / "W", tmp_path / "F")


@pytest.mark.extended
def test_weights_may_be_the_last_checkpoint_of_another_run(tmp_path):
    tiny_encoder.write(tmp_path / "F", num_classes=2)
    trained = pretrained.load(str(tmp_path / "F"), 2)[1]["params"]
    run = tiny_encoder.write_run(tmp_path / "first", tmp_path / "F", num_classes=2)
    shutil.rmtree(tmp_path / "F")

    start = _start(tmp_path / "W", run)
    assert start.note == f"weights: the run {run}; fresh: classifier"
    assert start.config.model.hidden_size == 8
    assert start.config.data.transform.tokenizer == str(run / "assets/tokenizer.json")
    params, fresh = _first(start, tmp_path / "W")
    tiny.assert_trees_equal(params["classifier"], fresh["classifier"])
    for name in ("encoder", "pooler"):
        tiny.assert_trees_equal(params[name], trained[name])
    assert not np.array_equal(params["classifier"]["kernel"], trained["classifier"]["kernel"])
    tiny.assert_trees_equal(jax.device_get(pretrained.load(str(run))[1]["params"]), jax.device_get(trained))

    with pytest.raises(UserError, match=r"first lacks params/encoder/layer_2/\S+; the model of this config needs"):
        _start(tmp_path / "W", run, "model.num_layers=3")


def test_run_of_another_model_is_a_one_line_error(tmp_path):
    train_and_evaluate(tiny.logistic(steps=1), tmp_path / "first", show=False)
    with pytest.raises(UserError, match="has weights for models logistic; this config's is 'bert'"):
        _start(tmp_path / "W", tmp_path / "first")


# Computed by transformers 5.23 in float64 from the same files, to seven digits.
GOLDEN = {
    "bert": [
        [-0.0821885, 0.3097855, -0.0299217],
        [0.0356035, 0.2256708, -0.0455143],
        [0.0890424, 0.2037304, -0.0722956],
    ],
    "roberta": [
        [-0.0547510, 0.2706097, -0.0097606],
        [-0.0339490, 0.2388100, 0.0080741],
        [-0.0503820, 0.2714564, -0.0151583],
    ],
    "distilbert": [
        [-0.3284164, -0.9302217, 0.6921344],
        [-0.3266285, -1.0355682, 0.5946791],
        [-0.2137295, -1.0972166, 0.4257959],
    ],
}


@pytest.mark.parametrize("family", tiny_encoder.CONFIGS)
def test_logits_match_transformers(family, tmp_path):
    """Measured: differences of at most 1e-7."""
    tiny_encoder.write(tmp_path, family, num_classes=3)
    module, variables = pretrained.load(str(tmp_path), num_classes=3)
    batch = tiny_encoder.batch(tiny_encoder.CONFIGS[family]["vocab_size"], type_ids=family == "bert")
    logits = module.apply(variables, batch, train=False)[:, 0]
    np.testing.assert_allclose(logits, GOLDEN[family], atol=1e-6)


@pytest.mark.slow
class TestLanguageModels:
    @pytest.fixture(autouse=True)
    def _few_documents(self, monkeypatch):
        tiny.few_documents(monkeypatch)

    def _mlm(self, *overrides):
        settings = ["train.steps=2", "train.batch_size=8", "eval.every_steps=0", *overrides]
        experiment = load("configs/bert_mlm.py:embedded", settings)
        return experiment.config, experiment.given

    def test_classifier_starts_from_a_pretraining_run(self, tmp_path):
        config, _ = self._mlm("model.hidden_size=16", "model.num_layers=1", "model.num_heads=2", "model.mlp_size=32")
        train_and_evaluate(config, tmp_path / "mlm", show=False)
        start = _start(tmp_path / "W", tmp_path / "mlm")
        assert start.note == f"weights: the run {tmp_path}/mlm; fresh: classifier, pooler"
        assert (start.config.model.hidden_size, start.config.model.pooler) == (16, "tanh")
        params, fresh = _first(start, tmp_path / "W")
        run = RunDir.open(tmp_path / "mlm")
        with Checkpoints(run.checkpoints, metric="perplexity", mode="min", writable=False) as checkpoints:
            saved = checkpoints.restore(prepare(config, run.assets).state, 2)[0].params
        tiny.assert_trees_equal(params["encoder"], saved["encoder"])
        for name in ("pooler", "classifier"):
            tiny.assert_trees_equal(params[name], fresh[name])

    def test_pretraining_continues_from_weights(self, tmp_path):
        """With more embedding rows than tokens: the extra rows never replace a masked token."""
        tiny_encoder.write(tmp_path / "F", vocab_size=64)
        config, given = self._mlm(f"init_from={tmp_path / 'F'}", "data.transform.row_length=16")
        start = pretrained.resolve_init_from(config, given, tmp_path / "W")
        assert start.note.startswith(f"weights: {tmp_path}/F (bert); fresh: output_bias, transform, transform_norm")
        assert start.config.model.hidden_size == 8
        params, fresh = _first(start, tmp_path / "W")
        table = params["encoder"]["token_embedding"]["embedding"]
        tensors = tiny_encoder.tensors("bert", vocab_size=64)
        np.testing.assert_array_equal(table, tensors["bert.embeddings.word_embeddings.weight"])
        tiny.assert_trees_equal(params["transform"], fresh["transform"])
        experiment = prepare(start.config)
        assert max(batch["tokens"].max() for batch in tiny.batches(experiment, 2)) < len(tiny_encoder.VOCABULARY)
        assert _run(start, tmp_path / "run")["status"] == "completed"


@pytest.mark.parametrize("names", ["null", "{}", "3", "[]"])
def test_labels_without_names_are_a_one_line_error_if_needed(names, tmp_path):
    tiny_encoder.write(tmp_path / "F", num_classes=3)
    path = tmp_path / "F/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": json.loads(names)}))
    with pytest.raises(UserError, match=r"config.json has id2label"):
        pretrained.load(str(tmp_path / "F"))
    assert _start(tmp_path / "W", tmp_path / "F").load_variables  # whose head is initialized in any case


def test_key_given_as_none_does_not_follow_the_weights(tmp_path):
    tiny_encoder.write(tmp_path / "F", "distilbert")
    assert _start(tmp_path / "W", tmp_path / "F").config.model.classifier_dropout == 0.2
    given = _start(tmp_path / "W", tmp_path / "F", "model.classifier_dropout=None")
    assert given.config.model.classifier_dropout is None
