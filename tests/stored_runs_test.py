"""Runs written by version 0.1 still open: a complete one, and one that was stopped at step 10 of 20."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from research.analysis.coefficients import coefficients
from research.data import load as data
from research.inference.predictor import Predictor
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate
from research.training.stopping import is_finished
from research.training.trained_run import TrainedRun

STORED = Path(__file__).parent / "stored_runs"


@pytest.fixture
def stored(tmp_path):
    return lambda name: shutil.copytree(STORED / name, tmp_path / name)


def test_stored_run_evaluates_and_predicts_as_before(stored):
    folder = stored("iris-0.1")
    before = RunDir.open(folder).predictions("test")
    evaluated = TrainedRun(RunDir.open(folder, writer=True), "last").evaluate("test")
    assert evaluated["metrics"] == pytest.approx(json.loads((folder / "summary.json").read_text())["metrics"]["test"])
    found = Predictor.open(folder).predict(data.raw({"name": "iris", "data_dir": None})["test"])
    assert [record["prediction"] for record in found] == [record["prediction"] for record in before]
    # Rounding depends on the processor and the XLA release.
    np.testing.assert_allclose(
        [record["scores"] for record in found], [record["scores"] for record in before], rtol=1e-5
    )


def test_stored_run_has_coefficients(stored):
    found = coefficients(stored("iris-0.1"))
    assert found.values.shape == (4, 3)
    assert found.columns == ("setosa", "versicolor", "virginica")  # it lacks encoder.json, which has the names


def test_completed_run_is_not_trained_again(stored):
    folder = stored("iris-0.1")
    summary = json.loads((folder / "summary.json").read_text())
    assert train_and_evaluate(RunDir.open(folder).config(), folder, show=False) == summary
    assert is_finished(summary)
    assert is_finished({"status": "stopped_early", "reason": "eval.metric stopped improving"})
    assert not is_finished({"status": "stopped_early", "reason": "train.max_minutes is over"})


@pytest.mark.extended
def test_stopped_run_resumes(stored):
    folder = stored("bert-0.1")
    assert not is_finished(RunDir.open(folder).summary())
    summary = train_and_evaluate(RunDir.open(folder).config(), folder, show=False)
    assert (summary["status"], summary["step"]) == ("completed", 20)
    assert Predictor.open(folder).signature.label_names == ("negative", "positive")
