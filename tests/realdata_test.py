# mypy: disable-error-code="attr-defined"
"""Tests on real datasets, prepared where TFDS finds them."""

import zlib

import numpy as np
import pytest
import scipy.stats
import tensorflow_datasets as tfds

from research.analysis.leaderboard import tsv
from research.config import load
from research.configs import defaults
from research.data import load as data
from research.data.sources import tfds_source
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate

pytestmark = pytest.mark.realdata


def test_sst2_is_complete():
    columns = tfds_source.load("glue/sst2", None)
    assert {split: len(column["label"]) for split, column in columns.items()} == {
        "train": 67_349,
        "validation": 872,
        "test": 1_821,
    }
    assert np.bincount(columns["validation"]["label"]).tolist() == [428, 444]
    assert set(columns["test"]["label"]) == {-1}
    assert isinstance(columns["train"]["sentence"][0], bytes)


def _images(name, channels):
    section = {"name": name, "data_dir": None, "transform": defaults.image(channels=channels)}
    splits = data.load(section).splits
    return {split: (examples.store.images, examples.labels) for split, examples in splits.items()}


def test_mnist_is_complete():
    """The class counts of LeCun et al.'s files."""
    (images, labels), (test_images, test_labels) = (_images("mnist", 1)[split] for split in ("train", "test"))
    assert (images.shape, images.dtype) == ((60_000, 28, 28, 1), np.uint8)
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test_images.shape == (10_000, 28, 28, 1)
    assert np.bincount(test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # The usual normalization constants: mean 0.1307, standard deviation 0.3081.
    assert images.mean(dtype=float) / 255 == pytest.approx(0.1307, abs=5e-5)
    assert images.std(dtype=float) / 255 == pytest.approx(0.3081, abs=5e-5)


def test_cifar10_is_complete():
    (images, labels), (test_images, test_labels) = (_images("cifar10", 3)[split] for split in ("train", "test"))
    assert (images.shape, images.dtype) == ((50_000, 32, 32, 3), np.uint8)
    assert np.bincount(labels).tolist() == [5000] * 10
    assert test_images.shape == (10_000, 32, 32, 3)
    assert np.bincount(test_labels).tolist() == [1000] * 10
    # The usual normalization constants, to four digits.
    means, stds = images.mean(axis=(0, 1, 2), dtype=float) / 255, images.std(axis=(0, 1, 2), dtype=float) / 255
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    assert stds == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-5)
    # The first images and their labels match those decoded by TFDS.
    source = tfds.data_source("cifar10", split="train")
    for index in range(20):
        np.testing.assert_array_equal(images[index], source[index]["image"])
        assert labels[index] == source[index]["label"]
    assert labels[:8].tolist() == [7, 8, 4, 4, 6, 5, 2, 9]
    assert zlib.crc32(np.ascontiguousarray(images[:1000])) == 3_060_660_846


def test_default_preset_uses_sst2():
    experiment = load("configs/logistic_sst2.py")
    assert (experiment.config.preset, experiment.note) == ("sst2", None)
    assert data.missing(experiment.config.data) is None


def test_bag_of_words_on_sst2(tmp_path):
    """At least 0.80 on the dev set; scikit-learn's logistic regression on the same features reaches 0.822."""
    summary = train_and_evaluate(load("configs/logistic_sst2.py:sst2").config, tmp_path, show=False)
    assert summary["metrics"]["validation"]["accuracy"] >= 0.80
    assert summary["data"]["source"] == "tfds"


def test_encoder_starts_to_learn_sst2(tmp_path):
    """300 steps of the `scratch` preset, evaluated on the dev set and, labels hidden, on the test set."""
    overrides = ["train.steps=300", "eval.splits=validation,test", "eval.every_steps=0"]
    summary = train_and_evaluate(load("configs/bert_sst2.py:scratch", overrides).config, tmp_path, show=False)
    assert summary["metrics"]["validation"]["accuracy"] >= 0.60
    assert summary["metrics"]["test"] == dict.fromkeys(summary["metrics"]["validation"])
    assert len((tmp_path / "predictions/test.jsonl").read_text().splitlines()) == 1_821


def test_encoder_runs_on_stsb(tmp_path):
    """30 steps of a tiny encoder: Pearson and Spearman match SciPy's for the written predictions."""
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
