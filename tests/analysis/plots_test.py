"""Each plot of small runs: what applies, and that the numbers beside it are those of scikit-learn."""

import json

import numpy as np
import pytest
import sklearn.metrics

from configs import linear_line, logistic_breast_cancer
from research import plot
from research.analysis import figures, plots
from research.analysis.plots import PLOTS, Subject, draw, draw_all
from research.data.line import INTERCEPT, SLOPE
from research.errors import UserError
from research.loop import train_and_evaluate
from research.rundir import RunDir
from tests import tiny


def _run(config, path):
    train_and_evaluate(config, path, show=False)
    return RunDir.open(path, writer=True)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return _run(tiny.logistic(steps=20), tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return _run(linear_line.get_config(), tmp_path_factory.mktemp("runs") / "line")


def _numbers(path):
    assert path.read_bytes().startswith(b"\x89PNG")
    return json.loads(path.with_suffix(".json").read_text())


def _columns(run, split="validation"):
    records = run.predictions(split)
    return {name: np.array([record[name] for record in records]) for name in records[0]}


def test_the_shell_names_what_there_is():
    assert plot.WHAT.split(", ") == list(PLOTS)


def test_a_classifiers_curves_are_scikit_learns(digits):
    subject = Subject(digits)
    columns = _columns(digits)
    labels, scores = columns["label"], columns["scores"]
    auc = _numbers(draw(subject, "roc"))["auc"]
    precision = _numbers(draw(subject, "precision_recall"))["average_precision"]
    assert list(auc) == list(precision) == [str(c) for c in range(10)]
    for c in range(10):
        of_class = labels == c, scores[:, c]
        assert auc[str(c)] == pytest.approx(sklearn.metrics.roc_auc_score(*of_class), abs=1e-12)
        assert precision[str(c)] == pytest.approx(sklearn.metrics.average_precision_score(*of_class), abs=1e-12)
    counts = _numbers(draw(subject, "confusion"))["counts"]
    assert counts == sklearn.metrics.confusion_matrix(labels, columns["prediction"]).tolist()
    assert np.trace(counts) / len(labels) == digits.summary()["metrics"]["validation"]["accuracy"]


def test_a_line_is_drawn_in_the_datas_own_units(line):
    fit = _numbers(draw(Subject(line), "fit"))
    slope, intercept = np.polyfit(fit["x"], fit["prediction"], 1)
    # 200 points with a noise of 0.5: standard errors of 0.03 and 0.05.
    assert slope == pytest.approx(SLOPE, abs=0.1)
    assert intercept == pytest.approx(INTERCEPT, abs=0.15)
    np.testing.assert_allclose(slope * np.array(fit["x"]) + intercept, fit["prediction"], atol=1e-5)
    residuals = _numbers(draw(Subject(line, split="test"), "residuals"))
    columns = _columns(line, "test")
    assert residuals["mean"] == pytest.approx(np.mean(columns["label"] - columns["prediction"]), abs=1e-12)
    assert residuals["standard_deviation"] ** 2 + residuals["mean"] ** 2 == pytest.approx(
        line.summary()["metrics"]["test"]["loss"], rel=1e-6
    )


def test_coefficients_are_the_checkpoints(digits, line):
    numbers = _numbers(draw(Subject(line), "coefficients"))
    assert numbers["names"] == ["feature 0"]
    (slope,), (standardized,), (intercept,) = (numbers[key] for key in ("values", "standardized", "intercept"))
    # 200 points with a noise of 0.5: standard errors of 0.03 and 0.05.
    assert slope == pytest.approx(SLOPE, abs=0.1)
    assert intercept == pytest.approx(INTERCEPT, abs=0.15)
    assert numbers["low"][0] < slope < numbers["high"][0]
    assert standardized == pytest.approx(SLOPE * 1.15, rel=0.1)  # of a feature whose deviation, 4 / √12, is 1
    shown = _numbers(draw(Subject(digits), "coefficients"))
    assert shown["of"] == 640
    assert "low" not in shown
    kernel = np.asarray(Subject(digits).trained.loaded[1].params["linear"]["kernel"])
    assert np.abs(kernel).max() == np.abs(shown["standardized"][-1])
    feature, of_class = shown["names"][-1].split(", class ")
    row, column = (int(part) for part in feature.removeprefix("pixel_").split("_"))
    assert kernel[8 * row + column, int(of_class)] == pytest.approx(shown["standardized"][-1], rel=1e-7)
    assert shown["values"][-1] == pytest.approx(shown["standardized"][-1] / 6)  # the pixels' deviation


def test_what_can_be_compared_comes_first():
    """Standardized beside raw only where they rank differently."""
    names, values = ["a", "constant"], np.array([3.0, 0.0])
    intervals = values - 1, values + 1
    for scale, labels in (([2.0, 0.0], ["of one standard deviation", "of one unit"]), ([2.0, 2.0], ["of one unit"])):
        figure = figures.coefficients(names, values, intervals, scale=np.array(scale), title="")
        assert [label in axis.get_xlabel() for axis, label in zip(figure.axes, labels, strict=True)] == [True] * len(
            labels
        )
    (dots, *_), (raw, *_) = (
        axis.lines for axis in figures.coefficients(names, values, intervals, scale=np.array([2.0, 0.0]), title="").axes
    )
    assert dots.get_xdata().tolist() == [1.5, 0.0]
    assert raw.get_xdata().tolist() == [3.0, 0.0]


def test_decision_values_are_ranked_as_probabilities_are(tmp_path):
    config = logistic_breast_cancer.get_config()
    config.task = {"name": "squared_hinge", "class_weight": None}
    run = _run(config, tmp_path)
    columns = _columns(run)
    auc = _numbers(draw(Subject(run), "roc"))["auc"]
    assert auc == {"1": pytest.approx(sklearn.metrics.roc_auc_score(columns["label"], columns["scores"][:, 1]))}
    counts = _numbers(draw(Subject(run), "confusion"))["counts"]
    assert counts == sklearn.metrics.confusion_matrix(columns["label"], columns["prediction"]).tolist()


def test_all_that_applies_is_drawn_and_the_rest_says_why(digits, line, monkeypatch):
    monkeypatch.setattr(plots, "UNASKED_SECONDS", 0.0)
    found = {name: (path, why) for name, path, why in draw_all(Subject(digits))}
    assert list(found) == list(PLOTS)
    assert {name for name, (path, _) in found.items() if path} == {
        "coefficients",
        "roc",
        "precision_recall",
        "confusion",
    }
    assert found["fit"][1] == "the run's task is classification; this plot is of regression"
    assert found["regularization_path"][1] == "optimizer 'adamw' has no penalty; closed_form, lbfgs, sgd have"
    assert found["learning_curve"][1].endswith("--what=learning_curve draws it")
    found = {name: why for name, path, why in draw_all(Subject(line)) if not path}
    assert set(found) == {"roc", "precision_recall", "confusion", "regularization_path", "learning_curve"}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fit", "the run's task is classification; this plot is of regression"),
        ("regularization_path", "optimizer 'adamw' has no penalty; closed_form, lbfgs, sgd have"),
        ("rock", "did you mean 'roc'"),
    ],
)
def test_what_does_not_apply_is_an_error_where_it_was_asked_for(digits, what, message):
    with pytest.raises(UserError, match=message):
        draw(Subject(digits), what)


def test_the_shell_draws_what_it_is_asked_for(line, capsys):
    assert plot.main([f"--workdir={line.path}", "--what=residuals,fit", "--split=test"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [f"{name}: {line.plots / name}-test.png" for name in ("residuals", "fit")]
    with pytest.raises(UserError, match="--what 'fti' is unknown; did you mean 'fit'"):
        plot.main([f"--workdir={line.path}", "--what=residuals,fti"])
    with pytest.raises(UserError, match="has no split 'tets'; did you mean 'test'"):
        plot.main([f"--workdir={line.path}", "--split=tets"])


def test_all_that_can_be_drawn_is_and_the_rest_is_an_error(line, capsys):
    with pytest.raises(UserError) as error:
        plot.main([f"--workdir={line.path}", "--what=roc,residuals,confusion,fit"])
    assert str(error.value) == (
        "roc, confusion not drawn: the run's task is regression; this plot is of classification or squared_hinge"
    )
    out = capsys.readouterr().out.splitlines()
    assert out == [f"{name}: {line.plots / name}.png" for name in ("residuals", "fit")]


def test_a_plot_says_what_of(digits, monkeypatch):
    """And one of another split or checkpoint does not take the place of the first."""
    titles = []
    add = figures.add_title
    monkeypatch.setattr(figures, "add_title", lambda figure, text: add(figure, text) or titles.append(text))
    expected = {"split": "validation", "checkpoint": "last", "step": 20}
    test, best = Subject(digits, split="test"), Subject(digits, "best", split="test")
    for subject, what, name, about in [
        (Subject(digits), "roc", "roc", {}),
        (test, "roc", "roc-test", {"split": "test"}),
        (best, "roc", "roc-test-best", {"split": "test", "checkpoint": "best"}),
        (test, "coefficients", "coefficients", {"split": None}),
        (best, "coefficients", "coefficients-best", {"split": None, "checkpoint": "best"}),
    ]:
        path = draw(subject, what)
        assert path.name == f"{name}.png"
        assert _numbers(path).items() >= (expected | about).items()
    assert titles[1] == "digits test, last checkpoint, step 20"
    assert titles[3] == "digits, last checkpoint, step 20"


def test_refits_are_of_the_first_split_and_the_last_checkpoint(line, monkeypatch):
    numbers = {"metric": "loss", "split": "validation", "step": 7, "repeats": 1, "points": []}
    curve = {"metrics": {"validation": {"mean": 1.0, "low": None, "high": None}}, "examples": 2}
    monkeypatch.setattr(plots.refits, "learning_curve", lambda run, **_: {**numbers, "points": [curve]})
    path = draw(Subject(line, "best", split="test"), "learning_curve")
    assert path.name == "learning_curve.png"
    assert _numbers(path) == {**numbers, "points": [curve], "checkpoint": "last"}


def test_classes_have_names_where_they_are_known(tmp_path, digits):
    run = _run(logistic_breast_cancer.get_config(), tmp_path)
    subject = Subject(run)
    assert subject.classes == ("malignant", "benign")
    assert Subject(digits).classes == ()
    labels, scores = (subject.columns[name] for name in ("label", "scores"))
    for names, shown in ((subject.classes, "benign, A"), ((), "class 1, A")):
        for drawn in (figures.rocs(labels, scores, names), figures.precision_recalls(labels, scores, names)):
            assert drawn.axes[0].get_legend().get_texts()[0].get_text().startswith(shown)
        (axis,) = figures.confusion_matrix(labels, subject.columns["prediction"], 2, names).axes
        assert [text.get_text() for text in axis.get_yticklabels()] == list(names or "01")


def test_a_confusion_matrix_of_many_classes_is_no_larger_than_a_page(rng):
    sizes = []
    for classes in (20, 21, 1000):
        figure = figures.confusion_matrix(*rng.integers(0, classes, (2, 50)), classes)
        sizes.append(figure.get_size_inches().tolist())
        assert len(figure.axes[0].texts) == (400 if classes == 20 else 0)
    assert sizes[0] == sizes[1] == sizes[2]


def test_a_learning_curve_has_its_band_where_it_is_known():
    """A solver's last point has none."""
    ends = [(1.0, 3.0), (1.5, 2.5), (None, None)]
    points = [
        {"examples": n, "metrics": {"train": {"mean": 2.0, "low": low, "high": high}}}
        for n, (low, high) in zip((10, 20, 40), ends, strict=True)
    ]
    (axis,) = figures.learning_curve(points, metric_name="loss").axes
    band, bars = axis.collections
    corners = band.get_paths()[0].vertices
    assert len(band.get_paths()) == 1
    assert {tuple(corner) for corner in corners.tolist()} == {(10, 1), (10, 3), (20, 1.5), (20, 2.5)}
    drawn = [bar.tolist() for bar in bars.get_segments() if len(bar) and np.isfinite(bar).all()]
    assert drawn == [[[10, 1], [10, 3]], [[20, 1.5], [20, 2.5]]]


def test_a_path_marks_the_best_and_the_runs_own():
    values, paths = [0.1, 1.0, 10.0], np.array([[1.0], [2.0], [3.0]])
    texts = []
    for own in ({"now": 1.0}, {"now": None, "unpenalized": 0.7}):
        labels = {"penalty": "optimizer.C", "metric_name": "accuracy", "names": ["a"]}
        figure = figures.regularization_path(values, paths, [0.5, 0.6, 0.8], best=10.0, **labels, **own)
        right = figure.axes[1]
        star = next(line for line in right.lines if line.get_marker() == "*")
        assert star.get_xydata().tolist() == [[10.0, 0.8]]
        texts.append([text.get_text() for text in right.get_legend().get_texts()])
    assert texts == [["best: 10", "the run's"], ["best: 10", "the run, without a penalty"]]


def test_hidden_labels_have_no_plot(digits, monkeypatch):
    monkeypatch.setattr(
        plots.Trained, "predictions", lambda self, split: ({}, [{"index": 0, "label": -1, "scores": [1.0, 0.0]}])
    )
    with pytest.raises(UserError, match="the labels of split 'validation' are hidden"):
        draw(Subject(digits), "roc")


def test_of_several_seeds_the_first_is_drawn(tmp_path):
    """Its run is that of the seed alone, up to rounding."""
    run = _run(tiny.logistic(steps=5, seeds=2), tmp_path / "two")
    alone = _run(tiny.logistic(steps=5), tmp_path / "one")
    two, one = (_numbers(draw(Subject(of), "roc"))["auc"] for of in (run, alone))
    assert two == pytest.approx(one, abs=1e-3)  # float32 scores differ by rounding, which may swap two of 359
    two, one = (_numbers(draw(Subject(of), "coefficients"))["values"] for of in (run, alone))
    np.testing.assert_allclose(two, one, rtol=1e-5)  # measured: 1.3e-7
