"""Predictions carry the examples' own keys: joined on them, `predict` equals `evaluate` in any order and batch size."""

import json
import random

import numpy as np
import pytest

from research.api import open_run
from research.configs import tabular_files
from research.data import load as data
from research.data.columns import keys, plain
from research.data.sources import tfds_source
from research.inference.bulk import open_source, predict_rows
from research.inference.predictor import Predictor
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate
from research.training.own_files import fill_in
from research.training.trained_run import TrainedRun
from tests import tiny
from tests.data.tiny_reviews import TinyReviews  # noqa: F401  registers the dataset


def own_table(folder):
    path = folder / "own.csv"
    lines = (f"k{i},{i / 7},{'abc'[i % 3]},{'yes' if i % 7 > 2 else 'no'}\n" for i in range(200))
    path.write_text("id,size,group,label\n" + "".join(lines))
    config = tabular_files.get_config("embedded")
    config.data.train = str(path)
    config.model.hidden_sizes = (8,)
    config.train.epochs, config.eval.every_steps = 1.0, 0
    return fill_in(config, {"train.epochs", "eval.every_steps"})[0]


def bundled(_):
    return tiny.logistic()


def prepared(folder):
    tfds_source.load("tiny_reviews", str(folder))
    config = tiny.bert(steps=3)
    config.eval.every_steps = 0
    config.data.name, config.data.data_dir = "tiny_reviews", str(folder)
    config.train.batch_rows = 2
    config.eval.splits = ("train",)
    return config


@pytest.mark.parametrize(
    "make", [own_table, *(pytest.param(make, marks=pytest.mark.extended) for make in (bundled, prepared))]
)
def test_predict_is_evaluate_joined_on_keys(make, tmp_path):
    config = make(tmp_path)
    split = config.eval.splits[0]
    train_and_evaluate(config, tmp_path / "run", show=False)
    open_run(tmp_path / "run").evaluate(split)
    evaluated = [json.loads(line) for line in (tmp_path / f"run/predictions/{split}.jsonl").read_text().splitlines()]
    by_key = {record["key"]: record for record in evaluated}
    assert len(by_key) == len(evaluated) > 5

    columns = data.raw(config.data)[split]
    key_of = keys(columns)
    rows = [
        {"key": key_of(i), **{name: plain(columns[name][i]) for name in config.data.transform.inputs}}
        for i in range(len(evaluated))
    ]
    random.Random(0).shuffle(rows)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictor = Predictor.open(tmp_path / "run")
    found = [
        record
        for piece in predict_rows(predictor, open_source(str(path), predictor), keys=("key",))
        for record in piece
    ]
    assert [record["key"] for record in found] == [row["key"] for row in rows]
    assert [record["row"] for record in found] == list(range(len(rows)))
    for record in found:
        other = by_key[record["key"]]
        assert record["prediction"] == other["prediction"]
        np.testing.assert_allclose(record["scores"], other["scores"], rtol=1e-5)  # of another batch: measured 3e-7


def test_a_row_s_key_is_that_of_its_evaluation(tmp_path):
    config = own_table(tmp_path)
    train_and_evaluate(config, tmp_path / "run", show=False)
    predictor = Predictor.open(tmp_path / "run")
    assert predictor.key == "id"
    pieces = predict_rows(predictor, open_source(config.data.train, predictor))
    assert [record["key"] for piece in pieces for record in piece] == [f"k{i}" for i in range(200)]


def test_records_have_the_inputs_on_request(tmp_path):
    config = own_table(tmp_path)
    train_and_evaluate(config, tmp_path / "run", show=False)
    run = RunDir.open(tmp_path / "run", writer=True)
    TrainedRun(run, "last").evaluate("validation", inputs=True)
    for record in run.predictions("validation"):
        row = int(record["key"].removeprefix("k"))
        assert record["size"] == pytest.approx(row / 7)
        assert record["group"] == "abc"[row % 3]
