"""A predictor reproduces the records of evaluation from raw inputs and the run directory alone."""

import json
import shutil

import numpy as np
import pytest

from research.base.errors import UserError
from research.data import load as data
from research.inference.evaluation import Evaluation
from research.inference.predictor import Predictor
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate
from tests import tiny


def _bag():
    from research.configs import logistic_sst2

    config = logistic_sst2.get_config("embedded")
    config.data.transform.buckets = config.model.num_features = 2**10
    return config


def _linear():
    from research.configs import linear_diabetes

    config = linear_diabetes.get_config()
    config.train.update(steps=3, epochs=None)
    return config


def _averaged():
    config = _linear()
    config.train.update(steps=5, ema_decay=0.5)
    config.eval.metric = "ema_mean_absolute_error"
    return config


def _seeds():
    config = tiny.logistic(steps=5)
    config.train.seeds = 2
    return config


FAMILIES = {
    "packed text": lambda: tiny.bert(steps=2),
    "text": lambda: tiny.bert(steps=2, batch_size=16),
    "bag of words": _bag,
    "masked text": lambda: tiny.mlm(steps=2),
    "images": lambda: tiny.resnet(steps=2),
    "pixels": lambda: tiny.logistic(steps=5),
    "features": _linear,
    "seeds": _seeds,
    "averaged": _averaged,
}


@pytest.fixture(autouse=True, scope="module")
def few():
    with pytest.MonkeyPatch.context() as patch:
        tiny.few_sentences(patch)
        yield


@pytest.fixture
def no_data(monkeypatch):
    """Makes any later access to a dataset fail."""

    def gone(*_, **__):
        raise AssertionError("the dataset was read")

    def hide():
        monkeypatch.setattr(data, "raw", gone)
        monkeypatch.setattr(data, "SOURCES", {})
        monkeypatch.setattr(data.tfds_source, "load", gone)

    return hide


QUICK = ("packed text", "pixels", "features", "averaged")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.extended] * (name not in QUICK)) for name in FAMILIES]
)
def test_predictions_match_evaluation(family, no_data, tmp_path):
    config = FAMILIES[family]()
    split = config.eval.splits[0]
    train_and_evaluate(config, tmp_path, show=False)
    written = RunDir.open(tmp_path).predictions(split)
    columns = data.raw(config.data)[split]
    inputs = {name: columns[name] for name in config.data.transform.inputs}
    no_data()
    predictor = Predictor.open(tmp_path)
    found = json.loads(json.dumps(predictor.predict(inputs, batch_rows=predictor.batch_rows)))
    assert len(found) == len(written) > 10
    for record, other in zip(found, written, strict=True):
        record.pop("label_name", None)
        other.pop("key", None)
        if family == "seeds":  # the records have a list of both seeds, the predictor only the first
            other = {name: value[0] if isinstance(value, list) else value for name, value in other.items()}
            assert record["prediction"] == other["prediction"]
            np.testing.assert_allclose(record["scores"], other["scores"], rtol=1e-5)  # a different program
            continue
        if family != "masked text":  # whose labels are tokens
            other.pop("label")
        assert record == other


@pytest.fixture(scope="module")
def run(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train_and_evaluate(FAMILIES["packed text"](), folder, show=False)  # is compiled already
    return folder


def test_signature_lists_the_inputs(run):
    predictor = Predictor.open(run)
    signature = predictor.signature
    assert (signature.kind, signature.inputs, signature.label) == ("text", ("sentence",), "label")
    assert signature.label_names == ("negative", "positive")
    assert signature.label_dtype == "int32"
    assert predictor.step == 2
    (record,) = predictor.predict({"sentence": ["a fine film"]})
    assert record["label_name"] == signature.label_names[record["prediction"]]
    assert predictor.predict({"sentence": []}) == []


def test_the_batch_size_changes_rounding_only(run, monkeypatch):
    """Scores in batches of any size: at most 1e-6 apart (measured: 6e-8). Few rows are a small batch."""
    predictor = Predictor.open(run)
    sizes, batches = [], Evaluation.batches

    def counted(evaluation, stream):
        sizes.append(evaluation.batch_rows)
        return batches(evaluation, stream)

    monkeypatch.setattr(Evaluation, "batches", counted)
    columns = {"sentence": ["a fine film " * 4] * 12}
    count = len(predictor._model.arrange(predictor.encode(columns)).rows)
    default = predictor.predict(columns)
    for rows in (1, 2, predictor.batch_rows):
        for record, other in zip(default, predictor.predict(columns, batch_rows=rows), strict=True):
            assert record["index"] == other["index"]
            np.testing.assert_allclose(record["scores"], other["scores"], atol=1e-6)
    assert sizes[0] / 2 < count <= sizes[0] < predictor.batch_rows


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ({}, "'sentence'"),
        ({"text": ["a"]}, "'sentence'"),
        ({"sentence": [3]}, "3"),
        ({"sentence": "a film"}, "'sentence' is one value, 'a film'"),
    ],
)
def test_invalid_input_is_a_one_line_error(columns, key, run):
    with pytest.raises(UserError, match=key) as error:
        Predictor.open(run).predict(columns)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("features", [[[1.0, 2.0], [3.0]], [["a"] * 10], [[1.0] * 9], [[float("nan")] * 10]])
def test_mismatched_features_are_a_one_line_error(features, tmp_path):
    train_and_evaluate(_linear(), tmp_path, show=False)
    with pytest.raises(UserError, match="input") as error:
        Predictor.open(tmp_path).predict({"features": features})
    assert "\n" not in str(error.value)


def test_only_classes_have_names(run):
    predictor = Predictor.open(run)
    assert predictor._named({"prediction": 1})["label_name"] == "positive"
    for prediction in (2, 0.5, [0, 1]):  # a class without a name; a number; the tokens of a masked text
        assert "label_name" not in predictor._named({"prediction": prediction})


def test_missing_assets_are_a_one_line_error(run, tmp_path):
    lost = shutil.copytree(run, tmp_path / "lost")
    (lost / "assets/tokenizer.json").unlink()
    with pytest.raises(UserError, match="assets"):
        Predictor.open(lost)


def test_older_run_without_a_signature_predicts(tmp_path):
    train_and_evaluate(tiny.logistic(steps=2), tmp_path, show=False)
    columns = data.raw({"name": "digits", "data_dir": None})["test"]
    before = Predictor.open(tmp_path).predict(columns)
    (tmp_path / "assets/encoder.json").unlink()
    assert Predictor.open(tmp_path).predict(columns) == before


CONFIG = """
import numpy as np

from research.configs import logistic_iris
from research.data.load import SOURCES

PRESETS, FULL = ("embedded",), "embedded"


def columns():
    x = np.random.RandomState(0).normal(size=(60, 4))
    part = {"features": x, "label": (x[:, 0] > 0).astype(np.int32)}
    return dict.fromkeys(("train", "validation", "test"), part)


SOURCES["my_own"] = ("mine", columns)


def get_config(preset):
    config = logistic_iris.get_config(preset)
    config.data.name = "my_own"
    return config
"""


@pytest.mark.extended
def test_source_registered_by_the_config_is_found_again(monkeypatch, tmp_path):
    from research import evaluate, train

    monkeypatch.setattr(data, "SOURCES", dict(data.SOURCES))
    monkeypatch.setattr(train, "_stop_on_signals", list)  # whose handlers would remain registered
    (tmp_path / "mine.py").write_text(CONFIG)
    assert train.main([f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run"]) == 0
    assert evaluate.main([f"--workdir={tmp_path}/run", "--split=test"]) == 0
    del data.SOURCES["my_own"]
    assert evaluate.main([f"--workdir={tmp_path}/run", "--split=validation"]) == 0
    assert "my_own" in data.SOURCES
