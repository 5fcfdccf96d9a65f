"""On the real datasets, prepared where TFDS looks for them."""

import numpy as np
import pytest
import scipy.stats

from research.config import load
from research.data import load as data
from research.data import tfds_source
from research.leaderboard import tsv
from research.loop import train_and_evaluate
from research.rundir import RunDir

pytestmark = pytest.mark.realdata


def test_sst2_is_whole():
    columns = tfds_source.load("glue/sst2", None)
    assert {split: len(column["label"]) for split, column in columns.items()} == {
        "train": 67_349,
        "validation": 872,
        "test": 1_821,
    }
    assert np.bincount(columns["validation"]["label"]).tolist() == [428, 444]
    assert set(columns["test"]["label"]) == {-1}
    assert isinstance(columns["train"]["sentence"][0], bytes)


def test_images_are_decoded_without_tensorflow():
    columns = tfds_source.load("mnist", None)
    assert np.shape(columns["test"]["image"][0]) == (28, 28, 1)
    assert len(columns["train"]["label"]) == 60_000


def test_no_preset_takes_the_real_sst2():
    experiment = load("configs/logistic_sst2.py")
    assert (experiment.config.preset, experiment.note) == ("sst2", None)
    assert data.missing(experiment.config.data) is None


def test_a_bag_of_words_on_sst2(tmp_path):
    """At least 0.80 on the dev set; scikit-learn's logistic regression on the same features has 0.822."""
    summary = train_and_evaluate(load("configs/logistic_sst2.py:sst2").config, tmp_path, show=False)
    assert summary["metrics"]["validation"]["accuracy"] >= 0.80
    assert summary["data"]["source"] == "tfds"


def test_an_encoder_learns_sst2_a_little(tmp_path):
    """300 steps of the `scratch` preset, evaluated on the dev set and, labels hidden, on the test set."""
    overrides = ["train.steps=300", "eval.splits=validation,test", "eval.every_steps=0"]
    summary = train_and_evaluate(load("configs/bert_sst2.py:scratch", overrides).config, tmp_path, show=False)
    assert summary["metrics"]["validation"]["accuracy"] >= 0.60
    assert summary["metrics"]["test"] == dict.fromkeys(summary["metrics"]["validation"])
    assert len((tmp_path / "predictions/test.jsonl").read_text().splitlines()) == 1_821


def test_an_encoder_runs_on_stsb(tmp_path):
    """30 steps of a tiny encoder: the run's Pearson and Spearman are scipy's of the predictions it wrote."""
    overrides = ["train.steps=30", "eval.every_steps=15", "train.batch_rows=8", "eval.splits=validation,test"]
    config = load("configs/bert_glue.py:stsb", overrides).config
    config.init_from = None
    config.dtype = "float32"
    config.model.update(hidden_size=32, mlp_size=64, num_layers=1, num_heads=2, vocab_size=4000)
    config.data.transform.vocab_size = 4000
    config.optimizer.learning_rate = 1e-3
    summary = train_and_evaluate(config, tmp_path, show=False)
    assert summary["best"]["metric"] == "spearman"
    run = RunDir.open(tmp_path)
    records = run.predictions("validation")
    assert len(records) == 1_500
    columns = [[record[name] for record in records] for name in ("prediction", "label")]
    found = summary["metrics"]["validation"]
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(*columns).statistic, abs=1e-6)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(*columns).statistic, abs=1e-6)
    assert set(summary["metrics"]["test"].values()) == {None}

    places = tfds_source.load("glue/stsb", None)["test"]["idx"]
    lines = tsv(run.predictions("test"), places, None, "STS-B.tsv").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["index", *map(str, range(1_379))]
