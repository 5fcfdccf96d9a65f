import json
import re
from typing import Any

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from research.base import paths
from research.base.errors import UserError
from research.base.trees import flatten, to_json
from research.runs.rundir import RunDir
from research.runs.saved_config import without_retired
from research.training import loop
from research.training.loop import train_and_evaluate
from research.training.trained_run import TrainedRun
from tests import tiny


def _start(path, config):
    """Like a training run: starts, and releases the directory at the end."""
    run = RunDir(path)
    try:
        run.start(config)
    finally:
        run.close()
    return run


def _trained(path):
    """A run that has completed a step."""
    _start(path, CONFIG).append_metrics({"step": 1, "split": "train"})


CONFIG: dict[str, Any] = {"seed": 0, "train": {"lr": 0.1, "sizes": (1, 2), "log_every": 20}}


def test_same_config_resumes_the_run(tmp_path):
    _trained(tmp_path / "run")
    _start(tmp_path / "run", {**CONFIG, "train": {**CONFIG["train"], "log_every": 5}})  # does not affect the result
    kept = {"lr": 0.1, "sizes": [1, 2], "log_every": 20}
    train = RunDir.open(tmp_path / "run").config()["train"]
    assert {key: value for key, value in train.items() if key != "lora"} == {
        **kept,
        "seeds": None,
        "exact_shards": None,
    }
    assert train["lora"]["rank"] is None


def test_settings_of_lora_matter_only_with_a_rank(tmp_path):
    """An older run has none; the defaults of its config may be others by now."""
    lora = {"rank": None, "alpha": 16.0, "dropout": 0.0, "targets": "attention", "trains": "head"}
    _trained(tmp_path)
    _start(tmp_path, {**CONFIG, "train": {**CONFIG["train"], "lora": lora}})
    with pytest.raises(UserError, match=r"train\.lora\.rank"):
        _start(tmp_path, {**CONFIG, "train": {**CONFIG["train"], "lora": {**lora, "rank": 4}}})


def test_older_run_has_default_train_fraction_and_seeds(tmp_path):
    _start(tmp_path, {**CONFIG, "data": {"name": "digits"}})
    config = RunDir.open(tmp_path).config()
    assert (config["data"]["train_fraction"], config["data"]["train"]) == (1.0, None)
    assert config["train"]["seeds"] is None


OTHER = {**CONFIG, "train": {**CONFIG["train"], "lr": 0.2}}


def test_run_of_another_config_is_rejected_unchanged(tmp_path):
    _trained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"train.lr is 0.1 there and 0.2 here"):
        _start(tmp_path, OTHER)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("there", "here"), [("~/weights", "HOME/weights"), ("HOME/a/../weights", "~/weights"), ("hub/id", "hub/id")]
)
def test_spelling_of_a_weights_folder_does_not_matter(there, here, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # neither it nor the weights need to exist
    run, home = tmp_path / "run", str(tmp_path / "home")
    _start(run, {"init_from": there.replace("HOME", home)}).append_metrics({"step": 1, "split": "train"})
    _start(run, {"init_from": here.replace("HOME", home)})
    for other in ("~/other", "hub/other", None):
        with pytest.raises(UserError, match=r"init_from is .* there and .* here"):
            _start(run, {"init_from": other})


def test_run_that_never_started_is_replaced(tmp_path):
    """A config that was refused can be corrected in the same workdir."""
    (_start(tmp_path, CONFIG).assets / "tokenizer.json").write_text("of the refused config")
    _start(tmp_path, OTHER)
    assert RunDir.open(tmp_path).config()["train"]["lr"] == 0.2
    assert not list((tmp_path / "assets").iterdir())


def test_two_runs_cannot_share_a_directory(tmp_path):
    first = RunDir(tmp_path)
    first.start(CONFIG)
    with pytest.raises(UserError, match="in use by another training"):
        RunDir(tmp_path).start(CONFIG)
    first.close()
    _start(tmp_path, CONFIG)


def test_folder_with_other_files_is_rejected(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty and not a run directory"):
        RunDir(tmp_path).start(CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_unwritable_workdir_is_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        RunDir(tmp_path / "file" / "run").start(CONFIG)


def test_folder_without_a_run_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"has no config.json"):
        RunDir.open(tmp_path)


@pytest.mark.parametrize(
    ("evaluated", "kept"),
    [(("validation",), [(1, "train"), (2, "train"), (2, "validation")]), ((), [(1, "train"), (2, "train")])],
)
def test_metrics_after_the_checkpoint_are_truncated(evaluated, kept, tmp_path):
    run = _start(tmp_path, CONFIG)
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "split": "train"})
    run.append_metrics({"step": 2, "split": "validation"})
    run.append_metrics({"step": 2, "split": "test"})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')  # cut off by a crash
    run.truncate_metrics(2, evaluated)
    assert [(line["step"], line["split"]) for line in run.metrics()] == kept
    assert len(run.metrics("validation")) == len(evaluated)


def test_retired_key_is_removed_from_an_older_config(tmp_path):
    """The run then resumes with a current config, which lacks the key."""
    run = _start(tmp_path, {**CONFIG, "task": {"name": "regression", "label_shift": 150.0}})
    run.append_metrics({"step": 1, "split": "train"})
    run.close()
    assert RunDir.open(tmp_path).config()["task"] == {"name": "regression"}
    _start(tmp_path, {**CONFIG, "task": {"name": "regression"}})


def test_process_that_is_not_the_writer_writes_nothing(tmp_path):
    run = RunDir(tmp_path / "run", writer=False)
    run.start(CONFIG)
    run.append_metrics({"step": 1, "split": "train"})
    run.write_summary({"status": "completed"})
    run.write_predictions("validation", [{"index": 0}])
    run.write_latency({"1": 0.5})
    assert not (tmp_path / "run").exists()


def test_predictions_are_one_record_per_line(tmp_path):
    run = _start(tmp_path, CONFIG)
    path = run.write_predictions("test", [{"index": 0}, {"index": 1}])
    assert path.relative_to(run.path).as_posix() == "predictions/test.jsonl"
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 1]


def test_latency_is_measured_once(tmp_path):
    run = _start(tmp_path, CONFIG)
    assert run.latency() is None
    run.write_latency({"1": 0.5})
    assert RunDir.open(tmp_path).latency() == {"1": 0.5}


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": (2,)}}, "e": 3}) == {"a.b": 1, "a.c.d": (2,), "e": 3}


def test_predictions_of_a_part_of_a_split_have_a_separate_file(tmp_path):
    """Its name has no characters that are special in a shell or a file system."""
    parts = ("t", "t[:5]", "t[5:]", "t[:-5]", "t[-5:]", "t[:5%]", "t[5%:]", "t[-5%:]", "t[1:5]", "t[1:5%]", "t[1.5%:]")
    names = [name for part in parts for name in (part, f"{part}-best", f"mine_a-{part}")]
    run = _start(tmp_path, CONFIG)
    for name in names:
        run.write_predictions(name, [{"name": name}], {"step": 1, "split": name, "metrics": {}})
    files = list((tmp_path / "predictions").glob("*.jsonl"))
    assert len(files) == len(names)
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in files)
    for name in names:
        assert run.predictions(name) == [{"name": name}]
        assert run.evaluation(name)["split"] == name


def _strict(text):
    """Parses JSON strictly, without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_values_that_are_not_finite_are_null():
    value = {"a": float("nan"), "b": [1.5, (float("-inf"), "NaN")], "c": None, 1: {"d": float("inf")}}
    assert _strict(to_json(value)) == {"a": None, "b": [1.5, [None, "NaN"]], "c": None, "1": {"d": None}}
    assert to_json({"a": [1, 0.1]}, indent=2) == json.dumps({"a": [1, 0.1]}, indent=2)


def test_every_file_of_a_run_is_strict_json(tmp_path):
    run, bad = _start(tmp_path, CONFIG), float("inf")
    run.append_metrics({"step": 1, "split": "train", "loss": 0.5, "grad_norm": bad})
    run.append_metrics({"step": 2, "split": "train", "loss": 0.5, "grad_norm": float("nan")})
    run.truncate_metrics(1, ())
    run.write_summary({"metrics": {"perplexity": bad}})
    run.write_latency({"1": bad})
    run.write_predictions("test", [{"index": 0, "scores": [bad, 0.5]}], {"metrics": {"loss": bad}})
    files = [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.jsonl")]
    assert len(files) == 6
    for file in files:
        for text in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            _strict(text)
    assert run.metrics() == [{"step": 1, "split": "train", "loss": 0.5, "grad_norm": None}]
    assert run.summary()["metrics"] == {"perplexity": None}


@pytest.mark.parametrize("value", [float("inf"), float("nan"), (0.5, float("nan")), {1, 2}, b"x"])
def test_config_not_representable_in_json_is_rejected_first(value, tmp_path):
    with pytest.raises(UserError, match=r"train.rate is "):
        RunDir(tmp_path / "run").start({"train": {"rate": value}})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [dict, ConfigDict, FrozenConfigDict])
def test_retired_keys_are_removed_from_any_config_type(kind):
    config = kind({"seed": 1, "task": {"name": "regression", "label_shift": 2.5}, "data": {"transform": {"size": 3}}})
    expected = {"seed": 1, "task": {"name": "regression"}, "data": {"transform": {"size": 3}}}
    assert ConfigDict(without_retired(config)).to_dict() == expected


def test_summary_that_can_not_be_read_leaves_no_lock(tmp_path):
    """The second attempt, in the same process, fails for the same reason as the first."""
    train_and_evaluate(tiny.logistic(steps=1), tmp_path, show=False)
    (tmp_path / "summary.json").write_text("{")
    for _ in range(2):
        with pytest.raises(UserError, match=r"summary.json can't be read"):
            train_and_evaluate(tiny.logistic(steps=1), tmp_path, show=False)


def test_completed_run_stays_completed_if_its_curve_can_not_be_drawn(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(loop, "plot_training_curve", full)
    with pytest.raises(OSError, match="disk full"):
        train_and_evaluate(tiny.logistic(steps=1), tmp_path, show=False)
    assert RunDir(tmp_path).summary()["status"] == "completed"


def test_two_writers_of_one_file(tmp_path):
    """Each writes a file of its own, and the last one to finish is read: whole."""
    one, other = (paths.temporary(tmp_path / "x") for _ in range(2))
    assert one != other
    paths.atomic_write(tmp_path / "x", "ü")
    assert (tmp_path / "x").read_bytes() == "ü".encode()
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_run_opened_for_reading_is_evaluated_without_a_file(tmp_path):
    train_and_evaluate(tiny.logistic(steps=1), tmp_path, show=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    metrics, records = TrainedRun(RunDir.open(tmp_path), "last").predictions("test[:3]")
    assert "accuracy" in metrics
    assert [record["index"] for record in records] == [0, 1, 2]
    assert TrainedRun(RunDir.open(tmp_path), "last").evaluate("test[:3]")["predictions"] is None
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
