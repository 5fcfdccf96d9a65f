"""How a run uses the splits of its dataset: which splits, which parts, and truncation."""

import json

import numpy as np
import pytest

from research import evaluate
from research.analysis.plots import PlotContext
from research.base.errors import UserError
from research.configs import logistic_sst2
from research.data import load as data
from research.data.text import wordpiece as text
from research.runs.rundir import RunDir
from research.training.experiment import prepare
from research.training.loop import train_and_evaluate
from research.training.summary import truncation_warnings
from tests import tiny


@pytest.fixture(autouse=True)
def few(monkeypatch):
    tiny.few_sentences(monkeypatch)


def _run(config, workdir, show=False):
    return train_and_evaluate(config, workdir, show=show)


def test_unused_split_is_not_encoded(monkeypatch, tmp_path):
    """Nor are its labels checked before it is used; the tokens of each split are cached separately."""
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path))
    columns = dict(data.SOURCES["sentiment"][1]())
    columns["unsupervised"] = {**columns["validation"], "label": [-7] * len(columns["validation"]["label"])}
    columns["test"] = columns["validation"]
    monkeypatch.setitem(data.SOURCES, "sentiment", ("embedded", lambda: columns))
    made, encode = [], text.encode

    def counted(encoder, texts, split, **options):
        made.append(split)
        return encode(encoder, texts, split, **options)

    monkeypatch.setattr(text, "encode", counted)
    experiment = prepare(tiny.bert(steps=1))
    assert made == ["train", "validation"]
    assert len(experiment.streams("test").members) == len(columns["test"]["label"])
    with pytest.raises(UserError, match=r"label -7 .* of split 'unsupervised'"):
        experiment.streams("unsupervised")
    with pytest.raises(UserError, match="no split 'tset'; did you mean 'test'"):
        experiment.streams("tset")
    assert made == ["train", "validation", "test", "unsupervised"]
    config = tiny.bert(steps=1)
    config.eval.splits = ("test", "validation")
    prepare(config)
    assert len(made) == 4  # other runs find them in the cache


PARTS = ("validation[:50%]", "test[10:20]", "test[-5%:]")


def test_parts_of_splits_are_evaluated_with_the_indices_of_the_whole(tmp_path, capsys):
    config = tiny.logistic(steps=3)
    config.eval.splits = (*PARTS[:2], "test")
    summary = _run(config, tmp_path)
    run = RunDir.open(tmp_path)
    assert list(summary["metrics"]) == [*PARTS[:2], "test"]
    whole = run.predictions("test")
    size = len(whole)
    assert evaluate.main([f"--workdir={tmp_path}", f"--split={PARTS[2]}"]) == 0
    last = json.loads(capsys.readouterr().out)
    assert last["split"] == PARTS[2]
    assert run.predictions(PARTS[1]) == whole[10:20]
    assert run.predictions(PARTS[2]) == whole[-round(size * 0.05) :]
    for part in PARTS[1:]:
        records = run.predictions(part)
        accuracy = np.mean([record["label"] == record["prediction"] for record in records])
        assert run.evaluation(part)["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-12)
        assert PlotContext(run, split=part).columns["index"].tolist() == [record["index"] for record in records]
    names = {path.name for path in (tmp_path / "predictions").glob("*.jsonl")}
    assert names == {"validation.to-50pct.jsonl", "test.from-10.to-20.jsonl", "test.from-minus5pct.jsonl", "test.jsonl"}
    with pytest.raises(UserError, match="is not valid; write NAME"):
        evaluate.main([f"--workdir={tmp_path}", "--split=test[:5"])
    with pytest.raises(UserError, match="has no split 'tets'"):
        evaluate.main([f"--workdir={tmp_path}", "--split=tets[:5]"])


def _bag(**transform):
    """Packed bags of the generated sentences, with one small step."""
    config = logistic_sst2.get_config("embedded")
    config.model.num_features = 512
    config.data.transform.update(buckets=512, **transform)
    config.optimizer.update(name="sgd", C=None)
    config.train.batch_rows = 2
    config.eval.batch_rows = 2
    return config


def _texts(**transform):
    config = tiny.bert(steps=1)
    config.model.max_positions = 128
    config.data.transform.update(row_length=128, **transform)
    return config


@pytest.mark.extended
def test_parts_of_packed_texts(tmp_path):
    """`train_fraction` does not change the meaning of a part of `train`: it refers to the whole split."""
    config = _bag()
    config.eval.splits = ("validation", "validation[5:9]", "train[:10]")
    config.data.train_fraction = 0.1
    _run(config, tmp_path)
    run = RunDir.open(tmp_path)
    assert [record["index"] for record in run.predictions("train[:10]")] == list(range(10))
    part, whole = run.predictions("validation[5:9]"), run.predictions("validation")[5:9]
    for here, there in zip(part, whole, strict=True):
        assert (here["index"], here["label"]) == (there["index"], there["label"])
        # Different rows mean a different order of summation; no difference was seen here.
        np.testing.assert_allclose(here["scores"], there["scores"], atol=1e-6)


@pytest.mark.parametrize(("make", "limit", "unit"), [(_bag, 12, "terms"), (_texts, 20, "tokens")])
def test_truncated_examples_are_counted(make, limit, unit):
    splits = ("validation", "validation[:20%]")

    def prepared(max_length):
        config = make(max_length=max_length, pad_to=(128,))
        config.eval.splits = splits
        return prepare(config)

    whole = prepared(128)
    assert truncation_warnings(whole) == []
    lines = truncation_warnings(prepared(limit))
    assert truncation_warnings(prepared(limit)) == lines  # from the cache
    for line, split in zip(lines, ("train", *splits), strict=True):
        lengths = whole.streams(split).examples.lengths[whole.streams(split).members]
        assert 0 < np.mean(lengths > limit) < 1
        assert f"{np.mean(lengths > limit):.2%} of the examples of {split} " in line
        assert f" {lengths.max()} {unit}, data.transform.max_length is {limit};" in line


def test_truncated_examples_are_a_warning(tmp_path, capsys):
    summary = _run(_bag(max_length=12), tmp_path, show=True)
    printed = capsys.readouterr().out.splitlines()
    cut = [line for line in summary["warnings"] if "data.transform.max_length is 12;" in line]
    assert len(cut) == 2
    assert [line.strip() for line in printed[1:3]] == [f"warning: {line}" for line in cut]
    assert not any("max_length" in line for line in printed[3:])  # once
