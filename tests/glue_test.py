"""GLUE's table of scores and the leaderboard's files, from runs on small substitutes for the datasets."""

import itertools
import json
import types

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from ml_collections import ConfigDict

from research import glue
from research.analysis import leaderboard
from research.base.errors import UserError
from research.data.sources import tfds_source
from research.inference import model
from research.runs.rundir import RunDir
from research.training import loop
from research.training import trained_run as trained
from research.training.experiment import prepare
from research.training.trained_run import TrainedRun
from tests import tiny


def _quick(task):
    """The task's config with a model that compiles quickly, on bags of words."""
    config = tiny.bert_glue_task(task, batch_size=16, batch_rows=None)
    num_classes, inputs = config.model.num_classes, config.data.transform.inputs
    config.model = ConfigDict({"name": "sparse_logistic", "num_classes": num_classes, "num_features": 200})
    config.data.transform = ConfigDict(
        {
            "name": "bag_of_words",
            "inputs": inputs,
            "label": "label",
            "ngrams": (1, 2),
            "buckets": 200,
            "max_length": 32,
            "pad_to": (32,),
            "row_length": 32,
        }
    )
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs of 10 steps, evaluated at steps 5 and 10; the checkpoint of step 5 is made the best."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.tfds(monkeypatch)
        falling = itertools.count(0, -1)
        monkeypatch.setattr(loop, "ranking_metric", lambda metrics, name: float(next(falling)))
        for task in ("cola", "stsb", "mnli"):
            summary = loop.train_and_evaluate(_quick(task), folder / task, show=False)
            assert (summary["step"], summary["best"]["step"]) == (10, 5)
    return folder


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    tiny.tfds(monkeypatch)


def _lines(path):
    header, *lines = path.read_text().splitlines()
    assert header == "index\tprediction"
    return [line.split("\t") for line in lines]


@pytest.mark.extended
def test_the_command_writes_files_and_prints_scores(runs, tmp_path, capsys):
    workdirs = [str(runs / task) for task in ("mnli", "cola", "stsb")]
    assert glue.main(["--workdirs", *workdirs, f"--out={tmp_path / 'out'}"]) == 0
    out, err = capsys.readouterr()
    files = {"AX.tsv", "CoLA.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "STS-B.tsv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    others = "SST-2.tsv, MRPC.tsv, QQP.tsv, QNLI.tsv, RTE.tsv, WNLI.tsv"
    assert f"not written: {others} (no run on its task was given)" in err.splitlines()

    for file, task, split, labels in (
        ("CoLA.tsv", "cola", "test", ("0", "1")),
        ("MNLI-m.tsv", "mnli", "test_matched", leaderboard.INFERENCE),
        ("MNLI-mm.tsv", "mnli", "test_mismatched", leaderboard.INFERENCE),
        ("AX.tsv", "ax", "test", leaderboard.INFERENCE),
        ("STS-B.tsv", "stsb", "test", None),
    ):
        lines = _lines(tmp_path / "out" / file)
        assert [line[0] for line in lines] == [str(place) for place in range(30)], file
        run = RunDir.open(runs / ("mnli" if task == "ax" else task))
        records = run.predictions("glue_ax-test-best" if task == "ax" else f"{split}-best")
        places = tiny.glue_columns(f"glue/{task}")[split]["idx"]
        for record, place in zip(records, places, strict=True):
            prediction = record["prediction"]
            expected = labels[prediction] if labels else f"{np.clip(prediction, 0, 5):.3f}"
            assert lines[place][1] == expected

    # The scores match scikit-learn and SciPy for the checkpoint that made the predictions.
    def columns(task, split="validation"):
        records = RunDir.open(runs / task).predictions(f"{split}-best")
        return [[record[name] for record in records] for name in ("label", "prediction")]

    pearson = scipy.stats.pearsonr(*columns("stsb")).statistic
    spearman = scipy.stats.spearmanr(*columns("stsb")).statistic
    matthews = sklearn.metrics.matthews_corrcoef(*columns("cola"))
    matched = sklearn.metrics.accuracy_score(*columns("mnli", "validation_matched"))
    mismatched = sklearn.metrics.accuracy_score(*columns("mnli", "validation_mismatched"))
    average = (matthews + (pearson + spearman) / 2 + (matched + mismatched) / 2) / 3
    assert out.splitlines() == [
        "| task | metric | dev | step | run |",
        "|---|---|---|---|---|",
        f"| CoLA | matthews | {100 * matthews:.1f} | 5 | {runs / 'cola'} |",
        f"| STS-B | pearson / spearman | {100 * pearson:.1f} / {100 * spearman:.1f} | 5 | {runs / 'stsb'} |",
        f"| MNLI | accuracy, matched / mismatched | {100 * matched:.1f} / {100 * mismatched:.1f} | 5 "
        f"| {runs / 'mnli'} |",
        f"| average of 3 tasks | | {100 * average:.1f} | | |",
    ]


def test_existing_predictions_are_used(runs, monkeypatch):
    """Only if they come from this checkpoint; the metrics are those of training at its step."""
    run = RunDir.open(runs / "cola", writer=True)
    best = TrainedRun(run, "best")
    metrics, records = best.predictions("validation")
    logged = {name: value for name, value in run.metrics("validation")[0].items() if name not in ("step", "split")}
    assert metrics == pytest.approx(logged, rel=1e-6)
    assert best.predictions("test")[0] == dict.fromkeys(metrics)

    with monkeypatch.context() as closed:
        closed.setattr(trained, "evaluate", None)
        assert TrainedRun(run, "best").predictions("validation") == (metrics, records)
        last_metrics, last_records = TrainedRun(run, "last").predictions("validation")  # written at the end of the run
        assert last_metrics == run.summary()["metrics"]["validation"]
        assert last_records == run.predictions("validation") != records

    run.write_predictions("validation-best", last_records, {"step": 4, "split": "validation", "metrics": last_metrics})
    assert TrainedRun(run, "best").predictions("validation") == (metrics, records)
    run.write_predictions("validation-best", last_records)  # of unknown origin
    assert TrainedRun(run, "best").predictions("validation") == (metrics, records)


def test_predictions_of_the_last_checkpoint_are_used_if_it_is_the_best(runs, monkeypatch):
    run = RunDir.open(runs / "cola", writer=True)
    monkeypatch.setattr(model.Checkpoints, "best_step", 10)
    monkeypatch.setattr(trained, "evaluate", None)
    assert TrainedRun(run, "best").predictions("validation")[1] == run.predictions("validation")


def test_other_dataset_is_encoded_with_the_vocabulary_of_the_run(runs):
    """glue/ax has no training split to fit one; the run's assets are unchanged."""
    run = RunDir.open(runs / "mnli", writer=True)
    before = {path: path.read_bytes() for path in run.assets.iterdir()}
    metrics, records = TrainedRun(run, "last").predictions("test", data="glue/ax")
    assert set(metrics.values()) == {None}
    assert len(records) == 30
    _, same = TrainedRun(run, "last").predictions("train", data="glue/mnli")
    _, own = TrainedRun(run, "last").predictions("train")
    assert same == own
    assert {path: path.read_bytes() for path in run.assets.iterdir()} == before
    with pytest.raises(UserError, match="has no column 'premise'; it has sentence1"):
        TrainedRun(run, "last").evaluate("test", data="glue/stsb")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"num_classes": 2}}, "a classifier needs integers"),
        ({"task": {"hidden_label": 5.0}}, "split 'train' has the label 5.0: task.hidden_label can't be trained on"),
        ({"eval": {"splits": ("test",)}}, "the labels of split 'test' are hidden; name another one first"),
        (
            {"task": ConfigDict({"name": "classification", "label_smoothing": 0.0, "class_weight": None})},
            "task 'classification' does not fit the model: classification needs at least two classes",
        ),
    ],
)
def test_invalid_regression_is_a_one_line_error(change, message):
    config = _quick("stsb")
    if "task" in change and "name" in change["task"]:
        config.task = change.pop("task")
    config.update(change)
    with pytest.raises(UserError, match=message) as caught:
        prepare(config)
    assert "\n" not in str(caught.value)


def test_model_with_several_outputs_is_not_a_regression():
    config = _quick("cola")
    config.task = ConfigDict({"name": "regression", "hidden_label": -1.0})
    with pytest.raises(UserError, match="one output for a label, and the model gives 2"):
        prepare(config)


class Checkpoint:
    """A substitute for TrainedRun with fixed predictions."""

    def __init__(self, run, which):
        self.run, self.step = run, 7
        self.config = types.SimpleNamespace(
            data=types.SimpleNamespace(data_dir=None), eval=types.SimpleNamespace(metric="accuracy")
        )

    def predictions(self, split, *, data=None):
        name = data or self.run.config()["data"]["name"]
        metrics = dict.fromkeys(("accuracy", "f1", "matthews", "pearson", "spearman"), 0.5)
        numbers = name == "glue/stsb"
        size = len(tiny.glue_columns(name)[split]["idx"])
        return metrics, [{"index": i, "prediction": i / 5 - 1 if numbers else i % 2} for i in range(size)]


def _looks_like_a_run(folder, name):
    folder.mkdir(parents=True)
    config = {"data": {"name": name, "data_dir": None}, "train": {"seeds": None}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_all_of_glue_makes_the_eleven_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leaderboard, "TrainedRun", Checkpoint)
    workdirs = [_looks_like_a_run(tmp_path / name, name) for name in leaderboard.TASKS]
    assert glue.main(["--workdirs", *workdirs, f"--out={tmp_path / 'out'}"]) == 0
    out, err = capsys.readouterr()
    assert "not written" not in err
    binary, entailment = {"0", "1"}, {"entailment", "not_entailment"}
    inference = {"entailment", "neutral"}  # class 2 is not predicted here
    expected = {
        "CoLA": binary,
        "SST-2": binary,
        "MRPC": binary,
        "QQP": binary,
        "MNLI-m": inference,
        "MNLI-mm": inference,
        "QNLI": entailment,
        "RTE": entailment,
        "WNLI": binary,
        "AX": inference,
    }
    files = {path.stem for path in (tmp_path / "out").iterdir()}
    assert files == {*expected, "STS-B"}
    for name, values in expected.items():
        assert {value for _, value in _lines(tmp_path / "out" / f"{name}.tsv")} == values
    numbers = [value for _, value in _lines(tmp_path / "out/STS-B.tsv")]
    assert {min(numbers), max(numbers)} == {"0.000", "4.800"}
    assert out.splitlines()[-1] == "| average of 9 tasks | | 50.0 | | |"


def test_missing_score_is_a_dash(tmp_path):
    task = leaderboard.TASKS["glue/mrpc"]
    text = leaderboard.table([leaderboard.Scored(task, 3, tmp_path, (None, 0.5))] * 2)
    assert "| MRPC | f1 / accuracy | – / 50.0 | 3 |" in text
    assert "average" not in text


@pytest.mark.parametrize(
    ("prediction", "text"), [(-0.4, "0.000"), (2.34567, "2.346"), (5.00001, "5.000"), (float("nan"), None)]
)
def test_a_similarity_lies_between_0_and_5(prediction, text):
    records = [{"index": 0, "prediction": prediction}]
    if text is None:
        with pytest.raises(UserError, match="prediction nan"):
            leaderboard.tsv(records, [0], None, "STS-B.tsv")
    else:
        assert leaderboard.tsv(records, [0], None, "STS-B.tsv") == f"index\tprediction\n0\t{text}\n"


@pytest.mark.parametrize(
    ("predictions", "places", "message"),
    [
        ([0, 1], [1, 0, 2], "has 2 predictions for 3 examples"),
        ([0, 1, 1], [0, 1, 3], "wants each of 0 to 2 once"),
        ([0, 2], [0, 1], "has the prediction 2; the classes are 0 to 1"),
    ],
)
def test_incomplete_file_is_rejected(predictions, places, message):
    records = [{"index": i, "prediction": prediction} for i, prediction in enumerate(predictions)]
    with pytest.raises(UserError, match=message):
        leaderboard.tsv(records, places, ("0", "1"), "CoLA.tsv")


def test_invalid_input_is_one_line_and_nothing_is_written(runs, tmp_path, monkeypatch):
    other = _looks_like_a_run(tmp_path / "other", "sentiment")
    cola, twin = str(runs / "cola"), _looks_like_a_run(tmp_path / "twin", "glue/cola")
    (tmp_path / "file").write_text("")
    for workdirs, out, message in (
        ([cola, str(tmp_path)], "out", "is not a run directory"),
        ([cola, twin], "out", "are both runs on glue/cola; give one for each task"),
        ([cola, other], "out", "is a run on 'sentiment', .*; known: glue/cola"),
        ([cola], "file/out", "can't be written"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            glue.main(["--workdirs", *workdirs, f"--out={tmp_path / out}"])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_earlier_submission_is_replaced_only_on_request(runs, tmp_path):
    command = ["--workdirs", str(runs / "cola"), f"--out={tmp_path}"]
    (tmp_path / "CoLA.tsv").write_text("old")
    with pytest.raises(UserError, match="exists; choose another --out, or give --overwrite"):
        glue.main(command)
    assert (tmp_path / "CoLA.tsv").read_text() == "old"
    assert glue.main([*command, "--overwrite"]) == 0
    assert len(_lines(tmp_path / "CoLA.tsv")) == 30


def test_run_without_a_checkpoint_is_a_one_line_error(runs, tmp_path):
    config = json.loads((runs / "cola/config.json").read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has no best checkpoint yet"):
        glue.main(["--workdirs", str(tmp_path / "run"), f"--out={tmp_path / 'out'}"])


def test_without_the_diagnostic_set_the_rest_is_written(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tfds_source, "missing", lambda name, data_dir: "is missing" if name == "glue/ax" else None)
    assert glue.main(["--workdirs", str(runs / "mnli"), f"--out={tmp_path}"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"MNLI-m.tsv", "MNLI-mm.tsv"}
    assert "not written: AX.tsv (is missing)" in capsys.readouterr().err


def test_run_ranked_by_averaged_parameters_is_scored_with_them(tmp_path):
    config = _quick("cola")
    config.train.ema_decay, config.eval.metric = 0.9, "ema_matthews"
    metrics = loop.train_and_evaluate(config, tmp_path / "run", show=False)["metrics"]["validation"]
    runs = leaderboard.task_runs([tmp_path / "run"])
    (scored,), _ = leaderboard.submit(runs, tmp_path / "out", which="last", overwrite=False, say=lambda text: None)
    assert scored.values[0] == metrics["ema_matthews"] != metrics["matthews"]
