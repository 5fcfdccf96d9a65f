# mypy: disable-error-code="attr-defined, misc"
"""Small end-to-end masked language modelling, and a fine-tuning run with frozen layers."""

import json

import jax
import numpy as np
import pytest

from research.base.errors import UserError
from research.base.leaves import path_name
from research.data.pipeline import Rows
from research.runs.checkpoint import Checkpoints
from research.runs.rundir import RunDir
from research.training.experiment import prepare
from research.training.trained_run import TrainedRun
from tests import tiny


@pytest.fixture(autouse=True)
def few(monkeypatch):
    tiny.few_documents(monkeypatch)
    tiny.few_sentences(monkeypatch)


@pytest.mark.slow
def test_run_learns_and_an_interrupted_one_ends_equally(tmp_path):
    """With dropout, the end of an epoch, and evaluations before and after the interruption."""
    whole = tiny.run(tiny.mlm(steps=40), tmp_path / "whole")
    # After each of 23 steps, and in the evaluations at steps 10 and 20 between their two batches.
    assert tiny.run(tiny.mlm(steps=40), tmp_path / "cut", should_stop=tiny.stop_after(25))["step"] == 23
    rest = tiny.run(tiny.mlm(steps=40), tmp_path / "cut")
    assert rest["params_sha256"] == whole["params_sha256"]
    assert rest["examples_seen"] == whole["examples_seen"] == 320
    perplexities = [line["perplexity"] for line in RunDir(tmp_path / "whole").metrics("validation")]
    assert len(perplexities) == 4
    assert perplexities[-1] < 0.7 * perplexities[0]  # measured: 0.655
    assert whole["best"]["step"] == 10 * (1 + int(np.argmin(perplexities)))
    metrics = whole["metrics"]["validation"]
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]), rel=1e-6)
    examples = prepare(tiny.mlm()).dataset.split("validation")
    lines = (tmp_path / "whole/predictions/validation.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["index"] for record in records] == list(range(len(examples)))
    rows, _ = examples.rows(np.arange(len(examples)))
    hits = []
    for record in records:
        for place, label, prediction in zip(*(record[k] for k in ("position", "label", "prediction")), strict=True):
            if label >= 0:
                assert rows[record["index"], place] == label
                hits.append(label == prediction)
    assert np.mean(hits) == pytest.approx(metrics["accuracy"], abs=1e-9)


@pytest.mark.extended
def test_evaluation_is_exact_at_any_batch_size():
    results = []
    for batch_size in (3, 64):
        config = tiny.mlm()
        config.eval.batch_size = batch_size
        experiment = prepare(config)
        results.append(experiment.evaluate(experiment.init(), "validation")[0])
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert results[0]["perplexity"] == pytest.approx(results[1]["perplexity"], rel=1e-6)


def test_rows_of_each_process_are_masked_as_in_one_process():
    experiment = prepare(tiny.mlm())
    (whole,) = tiny.batches(experiment, 1)
    for part in range(2):
        share = prepare(tiny.mlm())
        object.__setattr__(share.evaluation, "rows", Rows(of=lambda n, part=part: np.arange(n)[part::2], multiple=8))
        (batch,) = tiny.batches(share, 1)
        for name, array in batch.items():
            np.testing.assert_array_equal(array, whole[name][part::2])


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("data", {"row_length": 200}, "row_length is 200: model.max_positions is 128"),
        ("model", {"vocab_size": 100}, r"token id \d+ in split '\w+' is out of range: model.vocab_size is 100"),
        ("model", {"name": "bert"}, "model.num_classes is missing"),
    ],
)
def test_mismatched_settings_are_one_line_errors(section, change, message, tmp_path):
    config = tiny.mlm()
    (config.data.transform if section == "data" else config.model).update(change)
    with pytest.raises(UserError, match=message):
        tiny.run(config, tmp_path)


def test_rows_cannot_be_packed(tmp_path):
    with pytest.raises(UserError, match=r"give train\.batch_size"):
        tiny.run(tiny.mlm(batch_size=None, batch_rows=8), tmp_path)


@pytest.mark.slow
def test_fine_tuning_run_with_frozen_layers_resumes(tmp_path):
    """The optimizer has no state for frozen layers, and checkpoints must support that."""
    config = tiny.bert(steps=4)
    config.optimizer.update(freeze="embedding|attention", layer_decay=0.8)
    assert tiny.run(config, tmp_path, should_stop=tiny.stop_after(2))["step"] == 2
    assert tiny.run(config, tmp_path)["status"] == "completed"
    experiment = prepare(config)
    with Checkpoints(tmp_path / "checkpoints", metric="accuracy", mode="max", writable=False) as checkpoints:
        state, _ = checkpoints.restore(experiment.state, 4)
    start = experiment.init().params["encoder"]
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start, state.params["encoder"])
    for path, changed in jax.tree_util.tree_leaves_with_path(moved):
        assert changed == ("mlp" in path_name(path)), path
    moments = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert any("mlp_in/kernel" in name for name in moments)
    assert not any("attention" in name or "embedding" in name for name in moments)


def sharded(folder, **train):
    """`tiny.mlm` on two corpora in shards."""
    config = tiny.mlm(**train)
    config.data.name, config.data.train = "shards", f"{folder}/few*,{folder}/many*"
    config.data.validation = str(tiny.shard(folder / "val.parquet", tiny.texts(40, 3)))
    config.data.shards.update(weights=(1.0, 2.0), rows=6, sample=100)
    tiny.shard(folder / "few.parquet", tiny.texts(40, 1))
    tiny.shard(folder / "many.array_record", tiny.texts(90, 2))
    return config


@pytest.mark.slow
def test_an_interrupted_run_on_shards_ends_equally_and_is_evaluated(tmp_path):
    whole = tiny.run(sharded(tmp_path, steps=40), tmp_path / "whole")
    assert tiny.run(sharded(tmp_path, steps=40), tmp_path / "cut", should_stop=tiny.stop_after(25))["step"] < 30
    config = sharded(tmp_path, steps=40)
    config.data.workers = 1  # and with another number of processes
    rest = tiny.run(config, tmp_path / "cut")
    assert rest["params_sha256"] == whole["params_sha256"]
    assert rest["examples_seen"] == whole["examples_seen"] == 320
    assert rest["data"]["source"] == "shards"
    run = TrainedRun(RunDir.open(tmp_path / "cut", writer=True), "last")
    evaluation = run.evaluate("validation")
    assert evaluation["metrics"]["loss"] == pytest.approx(whole["metrics"]["validation"]["loss"], rel=1e-6)
    examples = prepare(sharded(tmp_path)).dataset.split("validation")
    lines = (tmp_path / "cut/predictions/validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(len(examples)))
    part = run.evaluate("train[:9]")
    assert len((tmp_path / "cut/predictions/train.to-9.jsonl").read_text().splitlines()) == 9
    assert part["metrics"]["loss"] < evaluation["metrics"]["loss"] + 0.5


def test_a_model_without_the_vocabulary_of_the_shards_is_refused(tmp_path):
    config = sharded(tmp_path)
    config.model.vocab_size = 20
    with pytest.raises(UserError, match=r"token id \d+ in split 'train' is out of range: model\.vocab_size is 20"):
        prepare(config)
    config = sharded(tmp_path)
    config.data.transform.row_length = 1000
    with pytest.raises(UserError, match=r"data\.transform\.row_length is 1000: model\.max_positions is 128"):
        prepare(config)
