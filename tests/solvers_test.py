# mypy: disable-error-code="attr-defined"
"""The solvers against scikit-learn in float64, and their behaviour on problems without a good solution."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import linear_model
from sklearn.svm import LinearSVC

from research.base.errors import UserError
from research.config import load
from research.core.state import init_state
from research.core.tasks import Classification, Regression
from research.data import load as data
from research.data.pipeline import sample_subset
from research.devices.platform import x64
from research.models.linear import LinearRegression, LogisticRegression
from research.runs.rundir import RunDir
from research.solvers import solve_step
from research.solvers.least_squares import closed_form
from research.solvers.quasi_newton import lbfgs
from research.training.experiment import prepare
from research.training.loop import train_and_evaluate
from research.training.trained_run import TrainedRun
from tests import tiny


def _solve(config):
    """In float64 -> the experiment, coefficients [C, D], intercepts [C], the training metrics, the test predictions."""
    config.dtype = "float64"
    with x64(config.dtype):
        experiment = prepare(config)
        (batch,) = tiny.batches(experiment, 1)
        state, scores = experiment.train_step(experiment.init(), jax.tree.map(jax.numpy.asarray, batch))
        linear = jax.tree.map(np.asarray, state.params["linear"])
        _, records = experiment.evaluate(state, config.eval.splits[-1], predictions=True)
    return (
        experiment,
        linear["kernel"].T,
        linear["bias"],
        {name: score.compute() for name, score in scores.items()},
        records,
    )


def _columns(experiment, split):
    batch = experiment.dataset.split(split).batch(np.arange(len(experiment.dataset.split(split)))[:, None])
    return np.asarray(batch["features"], np.float64), batch["labels"]


def _linear(*overrides, preset="closed_form"):
    return load(f"configs/linear_diabetes.py:{preset}", overrides).config


@pytest.mark.extended
@pytest.mark.parametrize(
    ("preset", "overrides", "peer"),
    [
        ("closed_form", (), linear_model.LinearRegression()),
        ("closed_form", ("optimizer.factorization=cholesky",), linear_model.LinearRegression()),
        ("ridge", (), linear_model.Ridge(alpha=1.0)),
        ("ridge", ("optimizer.factorization=cholesky", "optimizer.alpha=100.0"), linear_model.Ridge(alpha=100.0)),
        ("lbfgs", ("optimizer.alpha=1.0", "optimizer.tolerance=1e-7"), linear_model.Ridge(alpha=1.0)),
    ],
)
def test_least_squares_matches_scikit_learn(preset, overrides, peer):
    experiment, kernel, bias, training, records = _solve(_linear(*overrides, preset=preset))
    features, labels = _columns(experiment, "train")
    peer.fit(features, labels)
    alpha = getattr(peer, "alpha", 0.0)

    def objective(coefficients, intercept):
        error = labels - features @ coefficients - intercept
        return (error @ error + alpha * coefficients @ coefficients) / len(labels)

    # Measured: 2e-8 (lbfgs), below 1e-8 (the others).
    np.testing.assert_allclose(kernel[0], peer.coef_, rtol=1e-6)
    np.testing.assert_allclose(bias[0], peer.intercept_, rtol=1e-6)
    assert training["objective"] == pytest.approx(objective(kernel[0], bias[0]), rel=1e-12)
    assert training["objective"] == pytest.approx(objective(peer.coef_, peer.intercept_), rel=1e-10)
    assert training["converged"] == 1
    found = [record["prediction"] for record in records]
    np.testing.assert_allclose(found, peer.predict(_columns(experiment, "test")[0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "c", "class_weight", "fraction"),
    [
        pytest.param("breast_cancer", 1.0, None, 1.0, marks=pytest.mark.extended),
        pytest.param("breast_cancer", 0.01, "balanced", 1.0, marks=pytest.mark.slow),
        pytest.param("breast_cancer", 100.0, (3.0, 0.5), 1.0, marks=pytest.mark.extended),
        pytest.param("breast_cancer", 0.01, "balanced", 0.5, marks=pytest.mark.extended),
        pytest.param("iris", 1.0, None, 1.0, marks=pytest.mark.slow),
        ("iris", 10.0, (1.0, 2.0, 3.0), 1.0),
        pytest.param("digits", 0.03, "balanced", 1.0, marks=pytest.mark.slow),
    ],
)
def test_logistic_regression_matches_scikit_learn(name, c, class_weight, fraction):
    config = load(f"configs/logistic_{name}.py:{'lbfgs' if name == 'digits' else 'embedded'}").config
    config.optimizer.update(C=c, tolerance=1e-9)
    config.task.class_weight = class_weight
    config.data.train_fraction = fraction
    experiment, kernel, bias, training, records = _solve(config)
    features, labels = (column[experiment.streams("train").members] for column in _columns(experiment, "train"))
    weights = dict(enumerate(class_weight)) if isinstance(class_weight, tuple) else class_weight
    peer = linear_model.LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12, class_weight=weights).fit(
        features, labels
    )

    counts = np.bincount(labels)
    of_class = {None: np.ones(len(counts)), "balanced": len(labels) / (len(counts) * counts)}
    per_example = np.asarray(of_class.get(class_weight, class_weight))[labels]

    def objective(coefficients, intercept):
        scores = features @ coefficients.T + intercept
        logits = np.column_stack([np.zeros(len(scores)), scores]) if len(intercept) == 1 else scores
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
        return (c * per_example @ losses + (coefficients**2).sum() / 2) / (c * per_example.sum())

    # Shifting all intercepts changes neither the softmax of several classes nor the penalty.
    intercept = bias if len(bias) == 1 else bias - bias.mean() + peer.intercept_.mean()
    scale = np.abs(peer.coef_).max()
    # Measured: at most 3e-6 of the largest; some pixels of digits hardly vary.
    np.testing.assert_allclose(kernel, peer.coef_, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(intercept, peer.intercept_, rtol=1e-4, atol=1e-5 * scale)
    assert training["objective"] == pytest.approx(objective(kernel, bias), rel=1e-12)
    assert training["objective"] == pytest.approx(objective(peer.coef_, peer.intercept_), rel=1e-8)
    test = _columns(experiment, "test")[0]
    np.testing.assert_array_equal([record["prediction"] for record in records], peer.predict(test))
    np.testing.assert_allclose([record["scores"] for record in records], peer.predict_proba(test), atol=1e-6)


@pytest.mark.extended
@pytest.mark.parametrize(("name", "c"), [("breast_cancer", 0.1), ("iris", 1.0)])
def test_squared_hinge_matches_linear_svc(name, c):
    config = load(f"configs/logistic_{name}.py").config
    config.task = {"name": "squared_hinge", "class_weight": None}
    # LinearSVC also penalizes the intercept.
    config.optimizer.update(C=c, tolerance=1e-9, decay_exclude="")
    experiment, kernel, bias, _, records = _solve(config)
    features, labels = _columns(experiment, "train")
    peer = LinearSVC(C=c, tol=1e-10, max_iter=100_000, dual=False).fit(features, labels)
    np.testing.assert_allclose(kernel, peer.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bias, peer.intercept_, rtol=1e-4, atol=1e-6)
    test = _columns(experiment, "test")[0]
    decisions = np.array([record["scores"] for record in records])
    np.testing.assert_allclose(
        decisions[:, 1] if len(bias) == 1 else decisions, peer.decision_function(test), atol=1e-4
    )
    np.testing.assert_array_equal([record["prediction"] for record in records], peer.predict(test))


@pytest.mark.slow
def test_class_weights_of_squared_hinge_match_scikit_learn():
    """For each one-versus-rest classifier, its own class has the given weight and the rest 1."""
    config = load("configs/logistic_iris.py").config
    config.task = {"name": "squared_hinge", "class_weight": (1.0, 5.0, 2.0)}
    config.optimizer.update(C=1.0, tolerance=1e-9, decay_exclude="")
    experiment, kernel, _, _, _ = _solve(config)
    features, labels = _columns(experiment, "train")
    peer = LinearSVC(C=1.0, tol=1e-10, max_iter=100_000, dual=False, class_weight={0: 1.0, 1: 5.0, 2: 2.0})
    np.testing.assert_allclose(kernel, peer.fit(features, labels).coef_, rtol=1e-4, atol=1e-6)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("factorization", "apart", "error"),
    [
        # 7e-7; the normal equations are singular to float32.
        ("auto", 0.003, 1e-5),
        ("qr", 0.003, 1e-5),
        # 1e-4: float32 keeps few digits of the difference.
        ("auto", 1e-4, 1e-3),
        # 1e-5; 5e-3 without the refinement.
        ("auto", 0.1, 1e-4),
    ],
)
def test_least_squares_of_many_rows_separates_similar_columns(rng, factorization, apart, error):
    """100,000 float32 rows of a and a + `apart` noise, y = 3a - 2b: the rank does not depend on the number of rows."""
    a = rng.standard_normal(100_000)
    features = np.stack([a, a + apart * rng.standard_normal(len(a))], axis=1).astype(np.float32)
    labels = (features @ np.array([3.0, -2.0])).astype(np.float32)
    batch = {"features": features, "labels": labels, "weight": np.ones(len(a), np.float32)}
    state = init_state(LinearRegression(), optax.identity(), jax.tree.map(lambda x: x[:1], batch), 0)
    solution, scores = _least_squares(factorization, np.float32)(state, jax.tree.map(jax.numpy.asarray, batch))
    np.testing.assert_allclose(solution.params["linear"]["kernel"][:, 0], [3.0, -2.0], atol=error)
    assert scores["undetermined"].compute() == 0


@pytest.mark.extended
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_undetermined_directions_are_counted(dtype, rng):
    """A repeated column, a sum of two, and a zero column, which counts as determined: its coefficient is 0."""
    a, b = rng.standard_normal((2, 2_000))
    features = np.column_stack([a, b, a, a + b, np.zeros(len(a))]).astype(dtype)
    with x64("float64" if dtype is np.float64 else "float32"):
        batch = {"features": features, "labels": a.astype(dtype), "weight": np.ones(len(a), np.float32)}
        state = init_state(LinearRegression(dtype=dtype), optax.identity(), batch, 0, dtype=dtype)
        _, scores = _least_squares("auto", dtype)(state, jax.tree.map(jax.numpy.asarray, batch))
    assert scores["undetermined"].compute() == 2


def _source(monkeypatch, name, features, labels):
    columns = {"features": features, "label": labels}
    monkeypatch.setitem(
        data.SOURCES, name, ("sklearn", lambda: dict.fromkeys(("train", "validation", "test"), columns))
    )


@functools.cache
def _least_squares(factorization, dtype=np.float64):
    step = functools.partial(
        solve_step,
        module=LinearRegression(dtype=dtype),
        task=Regression(),
        solver=functools.partial(closed_form, tolerance=1e-4, factorization=factorization),
        weight_decay=0.0,
        decay_exclude="bias",
        devices=1,
        blocks=2,
    )
    return jax.jit(step)


def _peer(features, labels):
    """The minimum-norm solution; scikit-learn truncates singular values at 1e-6."""
    mean = features.mean(axis=0)
    coefficients, *_ = np.linalg.lstsq(features - mean, labels - labels.mean(), rcond=None)
    return coefficients, labels.mean() - mean @ coefficients


def _fitted(features, labels, start=0.0, factorization="auto"):
    """Coefficients [D], intercept and training metrics of least squares in float64, all parameters being `start`."""
    with x64("float64"):
        batch = {"features": features, "labels": labels, "weight": np.ones(len(labels), np.float32)}
        module = LinearRegression(dtype=np.float64)
        state = init_state(module, optax.identity(), batch, 0, dtype=np.float64)
        state = dataclasses.replace(state, params=jax.tree.map(lambda x: np.full_like(x, start), state.params))
        state, scores = _least_squares(factorization)(state, batch)
        linear = jax.tree.map(np.asarray, state.params["linear"])
    return linear["kernel"][:, 0], linear["bias"][0], {name: score.compute() for name, score in scores.items()}


@pytest.mark.extended
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    condition=st.floats(0, 8),
    size=st.sampled_from([(30, 4), (12, 12)]),
    factorization=st.sampled_from(["auto", "qr"]),
)
def test_ill_conditioned_least_squares_reaches_the_minimum(seed, condition, size, factorization):
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.standard_normal(size))
    right, _ = np.linalg.qr(rng.standard_normal((size[1], size[1])))
    features = left @ np.diag(10 ** np.linspace(0, -condition, size[1])) @ right
    labels = rng.standard_normal(size[0])
    kernel, bias, _ = _fitted(features, labels, factorization=factorization)
    coefficients, intercept = _peer(features, labels)
    best = np.mean((labels - features @ coefficients - intercept) ** 2)
    # With as many columns as examples the minimum is a rounding error.
    assert np.mean((labels - features @ kernel - bias) ** 2) == pytest.approx(best, rel=1e-8, abs=1e-12)


@pytest.mark.extended
@pytest.mark.parametrize("factorization", ["auto", "qr"])
@pytest.mark.parametrize("start", [0.0, 2.0])
def test_fewer_examples_than_features_give_the_minimum_norm_solution(rng, start, factorization):
    features, labels = rng.standard_normal((20, 40)), rng.standard_normal(20)
    kernel, bias, training = _fitted(features, labels, start, factorization)
    coefficients, intercept = _peer(features, labels)
    np.testing.assert_allclose(kernel, coefficients, atol=1e-10)
    np.testing.assert_allclose(bias, intercept, atol=1e-10)
    assert training["converged"] == 1


def test_constant_repeated_and_huge_columns(rng):
    features, labels = rng.standard_normal((50, 5)), rng.standard_normal(50)
    features[:, 1], features[:, 2] = 3.0, features[:, 0]
    features[:, 3] *= 1e8
    kernel, bias, training = _fitted(features, labels)
    coefficients, intercept = _peer(features, labels)
    np.testing.assert_allclose(kernel, coefficients, atol=1e-8)
    np.testing.assert_allclose(bias, intercept, atol=1e-8)
    assert kernel[1] == pytest.approx(0, abs=1e-8)
    assert kernel[0] == pytest.approx(kernel[2])
    assert training["converged"] == 1


def test_cholesky_of_dependent_columns_warns_and_keeps_the_parameters(monkeypatch, rng, tmp_path):
    labels = rng.standard_normal(5)
    _source(monkeypatch, "diabetes", rng.standard_normal((5, 20)), labels)
    summary = train_and_evaluate(_linear("optimizer.factorization=cholesky"), tmp_path, show=False)
    assert summary["training"]["converged"] == 0
    assert "optimizer.factorization=qr" in summary["warnings"][0]
    assert summary["training"]["loss"] == pytest.approx(np.mean(labels**2))  # that of 0


@pytest.mark.extended
def test_too_few_iterations_and_separable_classes_are_warnings(monkeypatch, rng, tmp_path):
    labels = np.arange(40) % 2
    _source(monkeypatch, "breast_cancer", rng.standard_normal((40, 3)) + 20 * labels[:, None], labels)
    config = load(
        "configs/logistic_breast_cancer.py", ["optimizer.max_iterations=2", "optimizer.tolerance=1e-9"]
    ).config
    config.optimizer.C = None
    summary = train_and_evaluate(config, tmp_path, show=False)
    assert summary["status"] == "completed"
    assert summary["training"]["iterations"] == 2
    assert [text.split(":")[0] for text in summary["warnings"]] == [
        "lbfgs did not converge",
        "all training examples are classified correctly without a penalty",
    ]
    assert "give more than optimizer.max_iterations=2" in summary["warnings"][0]


@pytest.mark.extended
def test_tolerance_below_the_precision_is_a_warning(tmp_path):
    config = load("configs/logistic_iris.py", ["optimizer.tolerance=1e-12"]).config
    (text,) = train_and_evaluate(config, tmp_path, show=False)["warnings"]
    assert (
        "the limit of float32 precision is reached: give dtype=float64 or a larger optimizer.tolerance than 1e-12"
        in text
    )


@pytest.mark.extended
def test_dependent_features_are_a_warning(monkeypatch, rng, tmp_path):
    x = rng.standard_normal((50, 2))
    _source(monkeypatch, "twice", np.column_stack([x, x[:, 0]]), x @ [1.0, 2.0])
    (warning,) = train_and_evaluate(_linear("data.name=twice"), tmp_path, show=False)["warnings"]
    assert "1 of 4 directions" in warning
    assert "dtype=float64" in warning


@pytest.mark.extended
def test_more_parameters_than_examples_are_a_warning(tmp_path):
    summary = train_and_evaluate(_linear("data.train_fraction=0.02"), tmp_path, show=False)
    assert summary["training"]["converged"] == 1
    (text,) = summary["warnings"]
    assert text.startswith("5 training examples do not determine 11 parameters")


@pytest.mark.extended
@pytest.mark.parametrize(
    ("change", "warnings"),
    [
        pytest.param({"optimizer": {"C": 1.0}}, [], marks=pytest.mark.slow),
        ({"optimizer": {"C": None}}, ["the loss has no minimum"]),
        # It has a minimum.
        pytest.param({"optimizer": {"C": None}, "task": {"label_smoothing": 0.1}}, [], marks=pytest.mark.slow),
        ({"optimizer": {"C": None}, "task": {"name": "squared_hinge"}}, ["many parameters have no loss"]),
    ],
)
def test_only_separable_classes_without_an_optimum_are_a_warning(monkeypatch, rng, tmp_path, change, warnings):
    labels = np.arange(40) % 2
    _source(monkeypatch, "breast_cancer", rng.standard_normal((40, 3)) + 20 * labels[:, None], labels)
    config = load("configs/logistic_breast_cancer.py").config
    if change.get("task", {}).get("name"):
        config.task = {"class_weight": None, **change["task"]}
    config.update({key: value for key, value in change.items() if "name" not in value})
    found = train_and_evaluate(config, tmp_path, show=False)["warnings"]
    assert len(found) == len(warnings)
    assert all(what in text for what, text in zip(warnings, found, strict=True))


def test_overflow_is_reported(monkeypatch, rng, tmp_path):
    _source(monkeypatch, "diabetes", rng.standard_normal((50, 3)), 1e25 * rng.standard_normal(50))
    with pytest.raises(UserError, match="too large for the type; scale them or give dtype=float64"):
        train_and_evaluate(_linear(), tmp_path, show=False)


@pytest.mark.extended
def test_ill_conditioned_problem_converges_to_machine_precision(rng):
    """Columns from 1 to 0.001."""
    features = (rng.standard_normal((400, 8)) * np.logspace(0, -3, 8)).astype(np.float32)
    labels = (0.5 * features @ np.logspace(0, 3, 8) + rng.logistic(size=400) > 0).astype(np.int32)
    batch = {"features": features, "labels": labels, "weight": np.ones(400, np.float32)}
    module = LogisticRegression(2)
    state = init_state(module, optax.identity(), batch, 0)

    def iterations(tolerance):
        step = functools.partial(
            solve_step,
            module=module,
            task=Classification(),
            solver=functools.partial(lbfgs, tolerance=tolerance, max_iterations=500),
            weight_decay=1e-7,
            decay_exclude="bias",
            devices=1,
            blocks=2,
        )
        return jax.jit(step)(state, jax.tree.map(jax.numpy.asarray, batch))[1]["iterations"].compute()

    assert iterations(1e-5) <= 40  # 22; 187 without scaled coordinates
    assert iterations(1e-14) <= 100  # beyond float32 precision; 35


@pytest.mark.slow
def test_curvature_of_packed_bags_takes_little_memory(monkeypatch):
    config = load("configs/logistic_sst2.py:embedded").config
    config.model.num_features = config.data.transform.buckets = 1000
    experiment = prepare(config)
    (batch,) = tiny.batches(experiment, 1)
    compiled = experiment.train_step.lower(experiment.state, jax.tree.map(jax.numpy.asarray, batch)).compile()
    # 11 MiB; 54 MiB with all columns of the Hessian at once, 5.7 GiB with all rows as well.
    assert compiled.memory_analysis().temp_size_in_bytes < 30 * 2**20


@pytest.mark.slow
def test_blocks_of_rows_change_nothing():
    """150 · 0.6 = 90 rows in one block, and in 3 blocks for each of eight devices, the last one padded."""
    one, several = (
        _solve(load("configs/logistic_iris.py", [f"train.accumulate={parts}", "optimizer.tolerance=1e-8"]).config)
        for parts in (1, 3)
    )
    np.testing.assert_allclose(one[1], several[1], rtol=1e-5)  # measured: 2e-7
    assert one[3]["objective"] == pytest.approx(several[3]["objective"], rel=1e-13)
    assert one[3]["accuracy"] == several[3]["accuracy"]


def test_run_in_float64_uses_it_throughout(tmp_path, capsys):
    config = load("configs/logistic_iris.py", ["dtype=float64", "optimizer.tolerance=1e-10"]).config
    summary = train_and_evaluate(config, tmp_path)
    assert f"  solver: {summary['training']['iterations']:.0f} iterations" in capsys.readouterr().out
    assert summary["training"]["grad_max"] <= 1e-10  # float32 ends at 1e-7
    assert summary["warnings"] == []
    assert "learning_rate" not in summary["training"]
    trained = TrainedRun(RunDir.open(tmp_path, writer=True), "last")
    assert trained.evaluate("test")["metrics"] == summary["metrics"]["test"]
    assert {x.dtype for x in jax.tree.leaves(trained.model.state.params)} == {np.dtype("float64")}
    assert not jax.config.jax_enable_x64


@pytest.mark.extended
@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("logistic_iris.py", {"train": {"batch_size": 16}}, r"give train.batch_size=-1 and train.steps=1"),
        ("logistic_iris.py", {"train": {"steps": 2}}, r"give train.batch_size=-1 and train.steps=1"),
        ("logistic_iris.py", {"train": {"ema_decay": 0.5}}, "train.ema_decay is 0.5"),
        ("logistic_iris.py", {"optimizer": {"clip_norm": 1.0}}, "optimizer.clip_norm is 1.0"),
        ("logistic_iris.py", {"optimizer": {"name": "adamw"}}, "optimizer.C is 1.0; 'adamw' uses decoupled"),
        ("logistic_iris.py", {"optimizer": {"name": "lbfg"}}, "optimizer.name 'lbfg' is unknown; did you mean 'lbfgs'"),
        ("logistic_iris.py", {"optimizer": {"weight_decay": 0.1}}, "weight_decay=0.1 and optimizer.C=1.0 are given"),
        ("logistic_iris.py", {"optimizer": {"C": 0.0}}, "optimizer.C is 0.0"),
        ("logistic_iris.py", {"optimizer": {"C": float("nan")}}, "optimizer.C is nan"),
        ("logistic_iris.py", {"optimizer": {"alpha": 1.0, "C": None}}, "does not support it; set optimizer.C"),
        ("linear_diabetes.py:lbfgs", {"optimizer": {"C": 1.0}}, "does not support it; set optimizer.alpha"),
        ("logistic_iris.py", {"optimizer": {"name": "closed_form"}}, "'closed_form' supports regression"),
        ("logistic_iris.py", {"task": {"class_weight": "balance"}}, "task.class_weight is 'balance'; known: balanced"),
        ("logistic_iris.py", {"task": {"class_weight": (1.0, 2.0)}}, r"task.class_weight is \(1.0, 2.0\)"),
        ("logistic_iris.py", {"task": {"class_weight": 2.0}}, r"task.class_weight is 2.0"),
        ("logistic_sst2.py:embedded", {"data": {"transform": {"buckets": 64}}}, "buckets is 64 and model.num_features"),
        (
            "mlp_mnist.py:embedded",
            {"optimizer": {"name": "lbfgs"}, "data": {"transform": {"augment": {"crop_padding": 1}}}},
            r"data\.transform 'image' .*\(data\.transform\.augment\)",
        ),
        (
            "linear_diabetes.py:closed_form",
            {"optimizer": {"factorization": "qrr"}},
            "did you mean 'qr'",
        ),
        (
            "linear_diabetes.py:closed_form",
            {"model": {"name": "mlp", "hidden_sizes": (4,), "num_classes": 1, "dropout": 0.0}},
            "linear in their parameters",
        ),
    ],
)
def test_unsupported_settings_are_one_line_errors(config, change, message):
    config = load(f"configs/{config}").config
    if "model" in change:
        config.model = change.pop("model")
    config.update(change)
    with pytest.raises(UserError, match=message):
        prepare(config)


@pytest.mark.extended
def test_majority_baseline_predicts_the_majority_class(monkeypatch, rng, tmp_path):
    """Although it has only one example of 11,301 more than the others, as in 20 Newsgroups."""
    labels = rng.permutation(np.repeat(np.arange(20), [566 if c == 10 else 565 for c in range(20)]))
    _source(monkeypatch, "digits", np.zeros((len(labels), 8, 8, 1)), labels)
    config = load("configs/majority.py").config
    config.model.num_classes = 20
    train_and_evaluate(config, tmp_path, show=False)
    predictions = {record["prediction"] for record in RunDir.open(tmp_path).predictions("test")}
    assert predictions == {10}


def test_one_class_is_an_error(monkeypatch, rng):
    _source(monkeypatch, "iris", rng.standard_normal((9, 2)), np.ones(9, int))
    with pytest.raises(UserError, match="all 9 training examples of iris have the label 1"):
        prepare(load("configs/logistic_iris.py").config)


def test_part_with_one_class_is_an_error(monkeypatch, rng):
    labels = np.ones(100, int)
    labels[sample_subset(100, 0.1, seed=0)] = 0
    _source(monkeypatch, "iris", rng.standard_normal((100, 2)), labels)
    with pytest.raises(UserError, match="all 10 training examples of iris have the label 0"):
        prepare(load("configs/logistic_iris.py", ["data.train_fraction=0.1"]).config)
