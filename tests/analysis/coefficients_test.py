"""Coefficients in the units of the data and their standard errors, against textbook formulas on the raw features."""

import numpy as np
import pytest
from scipy import stats

from research import coefficients as shell
from research.analysis.coefficients import coefficients
from research.base.errors import UserError
from research.config import load
from research.data import load as data
from research.data.pipeline import sample_subset
from research.training.loop import train_and_evaluate
from tests import tiny


def _run(tmp_path, name, *overrides):
    config = load(f"configs/{name}", ["dtype=float64", *overrides]).config
    train_and_evaluate(config, tmp_path, show=False)
    columns = data.SOURCES[config.data.name][1]()["train"]
    return coefficients(tmp_path), np.asarray(columns["features"], np.float64), columns["label"]


@pytest.mark.extended
def test_least_squares_has_the_classical_standard_errors(tmp_path):
    found, features, labels = _run(tmp_path, "linear_diabetes.py:closed_form")
    design = np.column_stack([features, np.ones(len(features))])
    solution, *_ = np.linalg.lstsq(design, labels, rcond=None)
    np.testing.assert_allclose(np.append(found.values[:, 0], found.intercept), solution, rtol=1e-9)
    freedom = len(design) - design.shape[1]
    variance = np.sum((labels - design @ solution) ** 2) / freedom
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    np.testing.assert_allclose(np.append(found.errors[:, 0], found.intercept_errors), errors, rtol=1e-9)
    reach = stats.t.ppf(0.975, freedom)
    np.testing.assert_allclose(found.intervals[1][:, 0], solution[:-1] + reach * errors[:-1], rtol=1e-9)
    np.testing.assert_allclose(found.intervals[0][:, 0], solution[:-1] - reach * errors[:-1], rtol=1e-9)
    assert found.names[:3] == ("age", "sex", "bmi")
    np.testing.assert_allclose(found.standardized, found.values * features.std(axis=0)[:, None], rtol=1e-9)


@pytest.mark.extended
def test_two_classes_have_standard_errors_of_the_inverse_hessian(tmp_path, monkeypatch, rng):
    features = rng.standard_normal((200, 3)) * [1, 10, 100] + [0, 5, 1]
    labels = (features @ [1, 0.1, -0.01] + rng.logistic(size=200) > 0).astype(int)
    columns = {"features": features, "label": labels}
    splits = dict.fromkeys(("train", "validation", "test"), columns)
    monkeypatch.setitem(data.SOURCES, "breast_cancer", ("sklearn", lambda: splits))
    config = load("configs/logistic_breast_cancer.py", ["dtype=float64", "optimizer.tolerance=1e-10"]).config
    config.optimizer.C = None  # a penalty would make the standard errors too small
    train_and_evaluate(config, tmp_path, show=False)
    two = coefficients(tmp_path)
    design = np.column_stack([features, np.ones(len(features))])
    probability = 1 / (1 + np.exp(-design @ np.append(two.values[:, 0], two.intercept)))
    hessian = design.T @ (design * (probability * (1 - probability))[:, None])
    expected = np.sqrt(np.diag(np.linalg.inv(hessian)))
    np.testing.assert_allclose(np.append(two.errors[:, 0], two.intercept_errors), expected, rtol=1e-7)
    reach = stats.norm.ppf(0.975) * expected[:-1]
    np.testing.assert_allclose(two.intervals[0][:, 0], two.values[:, 0] - reach, rtol=1e-6)
    np.testing.assert_allclose(two.intervals[1][:, 0], two.values[:, 0] + reach, rtol=1e-6)
    assert two.names == ("feature 0", "feature 1", "feature 2")
    assert two.columns == ("benign",)  # the class that a larger value favours
    with monkeypatch.context() as few:
        few.setattr("research.analysis.coefficients.MOST_PARAMETERS", 3)
        assert coefficients(tmp_path).errors is None
    logits = np.sqrt(np.einsum("ni,ij,nj->n", design, np.linalg.inv(hessian), design))  # their standard errors
    for limit, known in ((1.01 * logits.max(), True), (0.99 * logits.max(), False)):
        monkeypatch.setattr("research.analysis.coefficients.LARGEST_ERROR", limit)
        assert (coefficients(tmp_path).errors is not None) == known


@pytest.mark.extended
def test_three_classes_have_standard_errors_of_their_differences(tmp_path, monkeypatch, rng):
    """Only b1 − b0 and b2 − b0 are determined, with D + 1 parameters each; the coefficients are those that sum to 0."""
    features = rng.standard_normal((300, 2)) * [1, 10] + [0, 5]
    logits = np.column_stack([np.zeros(300), features @ [1, 0.1], features @ [-1, 0.05]])
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    columns = {"features": features, "label": labels}
    splits = dict.fromkeys(("train", "validation", "test"), columns)
    monkeypatch.setitem(data.SOURCES, "iris", ("sklearn", lambda: splits))
    config = load("configs/logistic_iris.py", ["dtype=float64", "optimizer.tolerance=1e-10"]).config
    config.optimizer.C = None
    train_and_evaluate(config, tmp_path, show=False)
    found = coefficients(tmp_path)
    design = np.column_stack([features, np.ones(len(features))])
    scores = design @ np.vstack([found.values, found.intercept])
    p = np.exp(scores - np.logaddexp.reduce(scores, axis=1)[:, None])[:, 1:]
    blocks = [[design.T @ (design * (p[:, i] * ((i == j) - p[:, j]))[:, None]) for j in (0, 1)] for i in (0, 1)]
    centred = np.kron([[-1 / 3, -1 / 3], [2 / 3, -1 / 3], [-1 / 3, 2 / 3]], np.eye(3))
    errors = np.sqrt(np.diag(centred @ np.linalg.inv(np.block(blocks)) @ centred.T)).reshape(3, 3)
    np.testing.assert_allclose(found.errors, errors.T[:-1], rtol=1e-6)
    np.testing.assert_allclose(found.intercept_errors, errors.T[-1], rtol=1e-6)


@pytest.mark.extended
def test_coefficients_in_data_units_give_the_same_predictions(tmp_path):
    found, features, labels = _run(tmp_path, "logistic_iris.py", "optimizer.tolerance=1e-10")
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    peer = LogisticRegression(tol=1e-10, max_iter=10_000).fit(scaler.transform(features), labels)
    logits = features @ found.values + found.intercept
    expected = peer.decision_function(scaler.transform(features))
    np.testing.assert_allclose(logits - logits.mean(1)[:, None], expected - expected.mean(1)[:, None], atol=1e-6)
    assert found.errors is None
    assert (found.names[0], found.columns[1]) == ("sepal length (cm)", "versicolor")
    assert found.label(1) == "sepal length (cm), versicolor"


@pytest.mark.extended
def test_standard_errors_use_the_training_examples(tmp_path):
    found, features, labels = _run(tmp_path, "linear_diabetes.py:closed_form", "data.train_fraction=0.5")
    part = sample_subset(len(labels), 0.5, seed=0)
    design, labels = np.column_stack([features[part], np.ones(len(part))]), labels[part]
    _, (squares,), *_ = np.linalg.lstsq(design, labels, rcond=None)
    errors = np.sqrt(squares / (len(part) - 11) * np.diag(np.linalg.inv(design.T @ design)))
    np.testing.assert_allclose(found.errors[:, 0], errors[:-1], rtol=1e-9)


@pytest.mark.slow
def test_several_seeds_report_the_first(tmp_path):
    train_and_evaluate(tiny.logistic(steps=5, seeds=2), tmp_path / "two", show=False)
    train_and_evaluate(tiny.logistic(steps=5), tmp_path / "one", show=False)
    two, one = coefficients(tmp_path / "two"), coefficients(tmp_path / "one")
    assert two.values.shape == (64, 10)
    np.testing.assert_allclose(two.values, one.values, rtol=1e-5, atol=1e-8)  # float32; measured: 2e-10
    assert two.label(11) == "pixel_0_1, class 1"


@pytest.mark.extended
def test_hashed_features_are_named_by_bucket(tmp_path, monkeypatch):
    tiny.few_sentences(monkeypatch)
    config = load("configs/logistic_sst2.py:embedded").config
    config.model.num_features = config.data.transform.buckets = 512
    config.optimizer.C = None
    train_and_evaluate(config, tmp_path, show=False)
    found = coefficients(tmp_path)
    assert found.values.shape == (512, 1)
    assert np.count_nonzero(found.values) > 50
    assert found.label(3) == "bucket 3"
    assert found.errors is None


@pytest.mark.extended
def test_other_models_have_no_coefficients(tmp_path):
    config = load("configs/mlp_mnist.py:embedded", ["train.steps=1", "model.hidden_sizes=(2,)"]).config
    train_and_evaluate(config, tmp_path, show=False)
    with pytest.raises(UserError, match="model 'mlp' has no coefficients"):
        coefficients(tmp_path)


def test_command_prints_the_table(tmp_path, capsys):
    """The p-values on diabetes match a regression on the raw features."""
    found, features, labels = _run(tmp_path, "linear_diabetes.py:closed_form")
    capsys.readouterr()
    assert shell.main([f"--workdir={tmp_path}"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "|  | coefficient | standard error | low | high | p | standardized |"
    cells = {name.strip(): [float(x) for x in numbers] for _, name, *numbers, _ in (row.split("|") for row in rows)}
    assert list(cells) == [*found.names, "intercept"]
    design = np.column_stack([features, np.ones(len(features))])
    solution, (squares,), *_ = np.linalg.lstsq(design, labels, rcond=None)
    freedom = len(labels) - 11
    errors = np.sqrt(squares / freedom * np.diag(np.linalg.inv(design.T @ design)))
    expected = [solution, errors, 2 * stats.t(freedom).sf(np.abs(solution) / errors)]
    # The table prints four digits.
    np.testing.assert_allclose(np.array(list(cells.values()))[:, [0, 1, 4]], np.transpose(expected), rtol=1e-3)
    assert shell.main([f"--workdir={tmp_path}", "--most=2"]) == 0
    assert [row.split()[1] for row in capsys.readouterr().out.splitlines()[2:5]] == ["s1", "s5", "intercept"]
    with pytest.raises(UserError, match="--most is 0"):
        shell.main([f"--workdir={tmp_path}", "--most=0"])


@pytest.mark.extended
def test_separable_class_has_no_standard_errors(tmp_path):
    """One class of iris is separable: its errors are unbounded, although the last Newton step may be small."""
    found, *_ = _run(tmp_path, "logistic_iris.py", "optimizer.C=None", "optimizer.tolerance=1e-8")
    assert found.errors is None
