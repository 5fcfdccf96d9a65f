"""Refits on a line, for which every fit has a closed form, and refits by solvers, against scikit-learn."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from research.analysis import refits
from research.analysis.refits import learning_curve, penalties, regularization_path
from research.base.errors import UserError
from research.config import load
from research.configs import linear_line
from research.data.pipeline import sample_subset
from research.data.sources.bundled import breast_cancer, diabetes, feature_names
from research.data.sources.line import line
from research.runs.rundir import RunDir
from research.training.experiment import prepare
from research.training.loop import train_and_evaluate
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "line"
    train_and_evaluate(linear_line.get_config(), path, show=False)
    return RunDir.open(path, writer=True)


def _not_again(*_, **__):
    raise AssertionError("trained again")


@pytest.mark.extended
def test_regularization_path_matches_ridge_regression(run, monkeypatch):
    """The gradient 2 (w − cov(x, y)) + 2 α / N · w of a standardized feature is zero at w = cov / (1 + α / N)."""
    near = 200.0001  # nearly equal values have separate fits
    found = regularization_path(run, [200.0, 2.0, 10000.0, near], show=False)
    columns = line()["train"]
    x, y = columns["features"][:, 0], columns["label"]
    covariance = np.mean((x - x.mean()) / x.std() * y)
    *points, diverged = found["points"]
    assert [point["value"] for point in points] == [2.0, 200.0, near]
    for point in points:
        # The remaining error is 0.8^100; float32 sums differ by 1e-7.
        assert point["coefficients"] == pytest.approx([covariance / (1 + point["value"] / 200)], rel=1e-5)
    assert points[0]["metric"] < points[1]["metric"]
    assert "training diverged" in diverged["failed"]
    about = ("penalty", "now", "split", "metric", "step")
    assert [found[key] for key in about] == ["optimizer.alpha", None, "validation", "loss", 100]
    assert found["best"] == {"value": 2.0, "metric": points[0]["metric"]}
    assert found["unpenalized"] == run.summary()["metrics"]["validation"]["loss"]
    monkeypatch.setattr("research.training.loop._train", _not_again)
    assert regularization_path(run, [200, 2, near], show=False)["points"] == points


def test_only_divergence_makes_a_failed_point(run):
    """If another process holds a point, the path stops; otherwise the penalty would seem impossible to fit."""
    folder = run.refits / "regularization_path/alpha=3.0"
    other = RunDir(folder)
    other.start(linear_line.get_config().to_dict())
    try:
        with pytest.raises(UserError, match=r"^workdir .* is in use by another training"):
            regularization_path(run, [3.0], show=False)
    finally:
        other.close()
    with pytest.raises(UserError, match=r"no refit succeeded: .*training diverged"):
        regularization_path(run, [10000.0], show=False)


@pytest.mark.extended
def test_learning_curve_is_least_squares_on_each_part(run, monkeypatch):
    found = learning_curve(run, fractions=(1.0, 0.1), repeats=2, show=False)
    assert [point["examples"] for point in found["points"]] == [20, 200]
    assert (found["split"], found["step"]) == ("validation", 100)
    train, validation = line()["train"], line()["validation"]
    for point in found["points"]:
        expected = []
        for seed in (0, 1):
            part = sample_subset(200, point["fraction"], seed)
            fit = np.polyfit(train["features"][part, 0], train["label"][part], 1)
            errors = np.polyval(fit, validation["features"][:, 0]) - validation["label"]
            expected.append(np.mean(errors**2))
        # The feature's variance on 20 examples differs from 1, so convergence is a little slower.
        assert point["metrics"]["validation"]["values"] == pytest.approx(expected, rel=1e-4)
        assert set(point["metrics"]["validation"]) == {"values", "mean", "low", "high"}
        assert set(point["metrics"]) == {"validation", "train"}
    assert not list(run.refits.glob("learning_curve/*/checkpoints"))
    monkeypatch.setattr("research.training.loop._train", _not_again)
    assert learning_curve(run, fractions=(1.0, 0.1), repeats=2, show=False) == found


@pytest.mark.slow
def test_path_over_alpha_matches_scikit_learn_ridge(tmp_path):
    config = load("configs/linear_diabetes.py:ridge", ["dtype=float64"]).config
    train_and_evaluate(config, tmp_path, show=False)
    run = RunDir.open(tmp_path, writer=True)
    found = regularization_path(run, [0.01, 1.0, 100.0], show=False)
    assert (found["penalty"], found["now"], found["unpenalized"]) == ("optimizer.alpha", 1.0, None)
    features, labels = (diabetes()["train"][name] for name in ("features", "label"))
    features = StandardScaler().fit_transform(features)
    for point in found["points"]:
        peer = Ridge(alpha=point["value"]).fit(features, labels)
        expected = dict(zip(feature_names("diabetes"), peer.coef_, strict=True))
        # Measured: 2e-9, for a column that almost depends on the others.
        assert dict(zip(found["names"], point["coefficients"], strict=True)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.slow
def test_path_over_c_matches_scikit_learn_logistic_regression(tmp_path):
    config = load("configs/logistic_breast_cancer.py", ["dtype=float64", "optimizer.tolerance=1e-9"]).config
    train_and_evaluate(config, tmp_path, show=False)
    run = RunDir.open(tmp_path, writer=True)
    found = regularization_path(run, [0.01, 1.0], show=False)
    assert (found["penalty"], found["now"]) == ("optimizer.C", 0.3)
    assert found["best"]["metric"] == max(point["metric"] for point in found["points"])
    features, labels = (breast_cancer()["train"][name] for name in ("features", "label"))
    features = StandardScaler().fit_transform(features)
    for point in found["points"]:
        peer = LogisticRegression(C=point["value"], solver="newton-cholesky", tol=1e-12).fit(features, labels)
        expected = dict(zip(feature_names("breast_cancer"), peer.coef_[0], strict=True))
        assert dict(zip(found["names"], point["coefficients"], strict=True)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.extended
@pytest.mark.parametrize("batch_size", [-1, 200])
def test_solver_fits_all_of_each_part(tmp_path, batch_size):
    config = linear_line.get_config()
    config.optimizer.name = "closed_form"
    config.train.update(steps=1, batch_size=batch_size)
    train_and_evaluate(config, tmp_path, show=False)
    found = learning_curve(RunDir.open(tmp_path, writer=True), fractions=(0.1, 1.0), repeats=2, show=False)
    train, validation = line()["train"], line()["validation"]
    for point in found["points"]:
        measured = point["metrics"]["validation"]
        # The whole split has one least-squares fit, whatever the seed.
        assert (len(measured["values"]), measured["low"] is None) == (
            (1, True) if point["fraction"] == 1 else (2, False)
        )
        for seed, loss in enumerate(measured["values"]):
            part = sample_subset(200, point["fraction"], seed)
            fit = np.polyfit(train["features"][part, 0], train["label"][part], 1)
            errors = np.polyval(fit, validation["features"][:, 0]) - validation["label"]
            assert loss == pytest.approx(np.mean(errors**2), rel=1e-5)  # measured: 3e-7


@pytest.mark.slow
def test_solver_fits_all_of_packed_parts(tmp_path, monkeypatch):
    tiny.few_sentences(monkeypatch)
    config = load("configs/logistic_sst2.py:embedded").config
    config.model.num_features = config.data.transform.buckets = 512
    config.data.transform.row_length = 128
    config.eval.update(metric="loss", mode="min")
    config.train.batch_rows = prepare(config).length.batch_rows  # the number that −1 stands for
    train_and_evaluate(config, tmp_path, show=False)
    found = learning_curve(RunDir.open(tmp_path, writer=True), fractions=(0.2, 1.0), repeats=1, show=False)
    assert [point["examples"] for point in found["points"]] == [40, 200]
    few, whole = (point["metrics"]["validation"]["mean"] for point in found["points"])
    assert whole == RunDir.open(tmp_path).summary()["metrics"]["validation"]["loss"]
    assert few != whole


@pytest.mark.extended
def test_batch_of_packed_rows_is_at_most_its_part(tmp_path, monkeypatch):
    tiny.few_sentences(monkeypatch)
    config = load("configs/logistic_sst2.py:embedded", ["optimizer.name=sgd"]).config
    config.model.num_features = config.data.transform.buckets = 512
    config.train.batch_rows = rows = len(prepare(config).streams("train").rows)
    train_and_evaluate(config, tmp_path, show=False)
    run = RunDir.open(tmp_path, writer=True)
    learning_curve(run, fractions=(0.2, 1.0), repeats=1, show=False)
    folder = run.refits / "learning_curve"
    few, whole = (RunDir.open(folder / name).config()["train"]["batch_rows"] for name in ("0.2-seed0", "1.0-seed0"))
    assert (few, whole) == (round(0.2 * rows), rows)


def test_penalties_are_centred_on_that_of_the_run():
    assert penalties(0.5)[4] == pytest.approx(0.5)
    assert penalties(0.5)[::8] == pytest.approx([0.005, 50])
    assert penalties(None)[4] == 1.0


@pytest.mark.parametrize(
    ("task", "given", "expected"),
    [
        ("classification", {}, ("C", None)),
        ("squared_hinge", {}, ("C", None)),
        ("regression", {}, ("alpha", None)),
        ("regression", {"alpha": 0.0}, ("alpha", None)),
        ("regression", {"alpha": 3.0}, ("alpha", 3.0)),
        ("classification", {"C": 3.0}, ("C", 3.0)),
        ("classification", {"weight_decay": 0.1}, ("weight_decay", 0.1)),
    ],
)
def test_default_penalty_is_that_of_scikit_learn(task, given, expected):
    config = linear_line.get_config()
    config.task.name = task
    config.optimizer.update(given)
    assert refits.penalty(config) == expected


@pytest.mark.parametrize(("mode", "penalty", "best"), [("max", "C", 1.0), ("min", "C", 0.1), ("max", "alpha", 10.0)])
def test_strongest_of_equally_good_penalties_is_best(run, monkeypatch, mode, penalty, best):
    metric = {0.1: 0.5, 1.0: 0.7, 10.0: 0.7}

    def fitted(config, folder, *, show):
        return {"metrics": {"validation": {"loss": metric[config.optimizer[penalty]]}}, "step": 1}

    class Fit:
        standardized = np.ones((1, 1))
        label = str

    config = linear_line.get_config()
    config.eval.mode = mode
    monkeypatch.setattr(refits, "_config", lambda run: config)
    monkeypatch.setattr(refits, "penalty", lambda config: (penalty, None))
    monkeypatch.setattr(refits, "train_and_evaluate", fitted)
    monkeypatch.setattr(refits, "coefficients", lambda folder: Fit)
    assert regularization_path(run, list(metric), show=False)["best"] == {"value": best, "metric": metric[best]}


@pytest.mark.parametrize(("metric", "best"), [((None, 0.7, 0.6), 1.0), ((math.nan, None, 0.6), 10.0)])
def test_penalty_without_a_metric_is_not_best(run, monkeypatch, metric, best):
    values = dict(zip((0.1, 1.0, 10.0), metric, strict=True))

    def fitted(config, folder, *, show):
        return {"metrics": {"validation": {"loss": values[config.optimizer.alpha]}}, "step": 1}

    fit = SimpleNamespace(standardized=np.ones((1, 1)), label=str)
    config = linear_line.get_config()
    config.eval.mode = "max"
    monkeypatch.setattr(refits, "_config", lambda run: config)
    monkeypatch.setattr(refits, "train_and_evaluate", fitted)
    monkeypatch.setattr(refits, "coefficients", lambda folder: fit)
    assert regularization_path(run, list(values), show=False)["best"]["value"] == best
    values = dict.fromkeys(values)
    with pytest.raises(UserError, match=r"eval\.metric 'loss'"):
        regularization_path(run, list(values), show=False)


@pytest.mark.slow
def test_refits_do_not_stop_early(tmp_path):
    """The run's patience and time limit do not apply to them."""
    config = linear_line.get_config()
    config.eval.every_steps = 10
    train_and_evaluate(config, tmp_path, show=False)
    limited = json.loads((tmp_path / "config.json").read_text())
    limited["eval"] |= {"patience": 1, "min_delta": 1e9}
    limited["train"]["max_minutes"] = 1e-9
    (tmp_path / "config.json").write_text(json.dumps(limited))
    run = RunDir.open(tmp_path, writer=True)
    regularization_path(run, [1.0], show=False)
    learning_curve(run, fractions=[0.5], repeats=1, show=False)
    ended = [
        RunDir.open(run.refits / name).summary()
        for name in ("regularization_path/alpha=1.0", "learning_curve/0.5-seed0")
    ]
    assert [(summary["status"], summary["step"]) for summary in ended] == [("completed", 100)] * 2


def test_runs_without_a_path_give_the_reason(tmp_path):
    train_and_evaluate(tiny.logistic(steps=2), tmp_path, show=False)
    run = RunDir.open(tmp_path)
    with pytest.raises(
        UserError,
        match="optimizer 'adamw' has no penalty; optimizers with a penalty: closed_form, lbfgs, adam, sgd, rmsprop",
    ):
        regularization_path(run, show=False)
    monkeypatched = {**run.summary(), "status": "preempted"}
    RunDir.open(tmp_path, writer=True).write_summary(monkeypatched)
    with pytest.raises(UserError, match="is not completed"):
        learning_curve(run, show=False)
