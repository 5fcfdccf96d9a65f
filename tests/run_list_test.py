"""`python -m research.runs`: one row per run."""

import pytest

from research.base.errors import UserError
from research.run_list import list_runs
from research.runs.__main__ import main
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate
from tests import tiny


def _config(seed=0, **train):
    config = tiny.logistic(**{"steps": 2, **train})
    config.seed = seed
    return config


def test_runs_are_listed_with_what_differs_best_metric_and_status(tmp_path, capsys):
    for name in ("1", "2"):
        train_and_evaluate(_config(), tmp_path / "group" / name, show=False)
    last = train_and_evaluate(_config(seed=5, steps=3), tmp_path / "other", show=False)
    train_and_evaluate(_config(), tmp_path / "other/refits/half", show=False)  # a part of the run, not one of its own
    rows = {row["run"]: row for row in list_runs(tmp_path)}
    assert set(rows) == {"group/1", "group/2", "other"}
    assert rows["other"]["trains"] == "logistic on digits (embedded)"
    assert rows["other"]["differs"].split() == ["seed=5", "train.steps=3"]
    assert rows["group/1"]["differs"] == ""
    assert rows["other"]["best"] == f"accuracy {last['best']['value']:.4f}"
    assert (rows["other"]["status"], rows["other"]["step"]) == ("completed", 3)
    assert list(rows)[-1] == "other"  # oldest first
    assert main([str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_run_that_is_training_or_has_not_ended_says_so(tmp_path):
    run = RunDir(tmp_path / "run")
    run.start(_config().to_dict())
    assert list_runs(tmp_path)[0]["status"] == "running"
    run.close()
    assert list_runs(tmp_path)[0]["status"] == "not ended"


def test_damaged_run_is_listed_and_empty_and_missing_folders_say_so(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert "no runs" in capsys.readouterr().out
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{")
    assert "can't be read" in list_runs(tmp_path)[0]["trains"]
    with pytest.raises(UserError, match="is not a folder"):
        list_runs(tmp_path / "gone")
