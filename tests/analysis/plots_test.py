# mypy: disable-error-code="arg-type, attr-defined, call-arg, misc, operator"
"""Every plot, on small runs: which ones apply, and that their numbers match scikit-learn."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics
from ml_collections import ConfigDict

from research import plot
from research.analysis import canvas, class_figures, figures, plots
from research.analysis.plots import PLOTS, PlotContext, draw, draw_all
from research.base.errors import UserError
from research.configs import linear_line, logistic_breast_cancer
from research.data.sources.line import INTERCEPT, SLOPE
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate
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


def test_help_lists_the_plots():
    assert plot.WHAT.split(", ") == list(PLOTS)


@pytest.mark.extended
def test_curves_of_a_classifier_match_scikit_learn(digits):
    subject = PlotContext(digits)
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


def test_line_is_drawn_in_the_units_of_the_data(line):
    fit = _numbers(draw(PlotContext(line), "fit"))
    slope, intercept = np.polyfit(fit["x"], fit["prediction"], 1)
    # 200 points with a noise of 0.5: standard errors of 0.03 and 0.05.
    assert slope == pytest.approx(SLOPE, abs=0.1)
    assert intercept == pytest.approx(INTERCEPT, abs=0.15)
    np.testing.assert_allclose(slope * np.array(fit["x"]) + intercept, fit["prediction"], atol=1e-5)
    residuals = _numbers(draw(PlotContext(line, split="test"), "residuals"))
    columns = _columns(line, "test")
    assert residuals["mean"] == pytest.approx(np.mean(columns["label"] - columns["prediction"]), abs=1e-12)
    assert residuals["standard_deviation"] ** 2 + residuals["mean"] ** 2 == pytest.approx(
        line.summary()["metrics"]["test"]["loss"], rel=1e-6
    )


def test_coefficients_come_from_the_checkpoint(digits, line):
    numbers = _numbers(draw(PlotContext(line), "coefficients"))
    assert numbers["names"] == ["feature 0"]
    (slope,), (standardized,), (intercept,) = (numbers[key] for key in ("values", "standardized", "intercept"))
    # 200 points with a noise of 0.5: standard errors of 0.03 and 0.05.
    assert slope == pytest.approx(SLOPE, abs=0.1)
    assert intercept == pytest.approx(INTERCEPT, abs=0.15)
    assert numbers["low"][0] < slope < numbers["high"][0]
    assert standardized == pytest.approx(SLOPE * 1.15, rel=0.1)  # deviation 4 / √12
    shown = _numbers(draw(PlotContext(digits), "coefficients"))
    assert shown["of"] == 640
    assert "low" not in shown
    kernel = np.asarray(PlotContext(digits).trained.model.state.params["linear"]["kernel"])
    assert np.abs(kernel).max() == np.abs(shown["standardized"][-1])
    feature, of_class = shown["names"][-1].split(", class ")
    row, column = (int(part) for part in feature.removeprefix("pixel_").split("_"))
    assert kernel[8 * row + column, int(of_class)] == pytest.approx(shown["standardized"][-1], rel=1e-7)
    assert shown["values"][-1] == pytest.approx(shown["standardized"][-1] / 6)  # the standard deviation of the pixels


def test_comparable_coefficients_come_first():
    """Standardized coefficients are shown in addition to raw ones only if they rank differently."""
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


@pytest.mark.extended
def test_decision_values_are_ranked_like_probabilities(tmp_path):
    config = logistic_breast_cancer.get_config()
    config.task = {"name": "squared_hinge", "class_weight": None}
    run = _run(config, tmp_path)
    columns = _columns(run)
    auc = _numbers(draw(PlotContext(run), "roc"))["auc"]
    assert auc == {"1": pytest.approx(sklearn.metrics.roc_auc_score(columns["label"], columns["scores"][:, 1]))}
    counts = _numbers(draw(PlotContext(run), "confusion"))["counts"]
    assert counts == sklearn.metrics.confusion_matrix(columns["label"], columns["prediction"]).tolist()


def test_applicable_plots_are_drawn_and_the_others_give_a_reason(digits, line):
    found = {name: (path, why) for name, path, why in draw_all(PlotContext(digits))}
    assert list(found) == list(PLOTS)
    assert {name for name, (path, _) in found.items() if path} == {
        "coefficients",
        "roc",
        "precision_recall",
        "confusion",
    }
    assert found["fit"][1] == "the run's task classification predicts a class; this plot requires a number"
    assert (
        found["regularization_path"][1]
        == "optimizer 'adamw' has no penalty; optimizers with a penalty: closed_form, lbfgs, adam, sgd, rmsprop"
    )
    assert found["learning_curve"][1].endswith("--what=learning_curve draws it")
    found = {name: why for name, path, why in draw_all(PlotContext(line)) if not path}
    assert set(found) == {"roc", "precision_recall", "confusion", "regularization_path", "learning_curve"}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fit", "the run's task classification predicts a class; this plot requires a number"),
        (
            "regularization_path",
            "optimizer 'adamw' has no penalty; optimizers with a penalty: closed_form, lbfgs, adam, sgd, rmsprop",
        ),
        ("rock", "did you mean 'roc'"),
    ],
)
def test_inapplicable_plot_on_request_is_an_error(digits, what, message):
    with pytest.raises(UserError, match=message):
        draw(PlotContext(digits), what)


def test_command_draws_the_requested_plots(line, capsys):
    assert plot.main([f"--workdir={line.path}", "--what=residuals,fit", "--split=test"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [f"{name}: {line.plots / name}-test.png" for name in ("residuals", "fit")]
    with pytest.raises(UserError, match="--what 'fti' is unknown; did you mean 'fit'"):
        plot.main([f"--workdir={line.path}", "--what=residuals,fti"])
    with pytest.raises(UserError, match="has no split 'tets'; did you mean 'test'"):
        plot.main([f"--workdir={line.path}", "--split=tets"])


def test_requested_plots_are_drawn_before_the_error(line, capsys):
    with pytest.raises(UserError) as error:
        plot.main([f"--workdir={line.path}", "--what=roc,residuals,confusion,fit"])
    assert str(error.value) == (
        "roc, confusion not drawn: the run's task regression predicts a number; this plot requires a class"
    )
    out = capsys.readouterr().out.splitlines()
    assert out == [f"{name}: {line.plots / name}.png" for name in ("residuals", "fit")]


@pytest.mark.extended
def test_plot_names_its_data_and_checkpoint(digits, monkeypatch):
    """A plot of another split or checkpoint does not replace the first."""
    titles = []
    add = canvas.add_title
    monkeypatch.setattr(canvas, "add_title", lambda figure, text: add(figure, text) or titles.append(text))
    expected = {"split": "validation", "checkpoint": "last", "step": 20}
    test, best = PlotContext(digits, split="test"), PlotContext(digits, "best", split="test")
    for subject, what, name, about in [
        (PlotContext(digits), "roc", "roc", {}),
        (test, "roc", "roc-test", {"split": "test"}),
        (best, "roc", "roc-test-best", {"split": "test", "checkpoint": "best"}),
        (test, "coefficients", "coefficients", {"split": None}),
        (best, "coefficients", "coefficients-best", {"split": None, "checkpoint": "best"}),
    ]:
        path = draw(subject, what)
        assert path.name == f"{name}.png"
        assert _numbers(path).items() >= (expected | about).items()
    assert titles[1].endswith(": digits test, last checkpoint, step 20")
    assert any(title.endswith(": digits, last checkpoint, step 20") for title in titles)


def test_refits_use_the_first_split_and_the_last_checkpoint(line, monkeypatch):
    numbers = {"metric": "loss", "split": "validation", "step": 7, "repeats": 1, "points": []}
    curve = {"metrics": {"validation": {"mean": 1.0, "low": None, "high": None}}, "examples": 2}
    monkeypatch.setattr(plots.refits, "learning_curve", lambda run, **_: {**numbers, "points": [curve]})
    path = draw(PlotContext(line, "best", split="test"), "learning_curve")
    assert path.name == "learning_curve.png"
    assert _numbers(path) == {**numbers, "points": [curve], "checkpoint": "last"}


@pytest.mark.extended
def test_classes_are_named_if_names_are_known(tmp_path, digits):
    run = _run(logistic_breast_cancer.get_config(), tmp_path)
    subject = PlotContext(run)
    assert subject.classes == ("malignant", "benign")
    assert PlotContext(digits).classes == ()
    labels, scores = (subject.columns[name] for name in ("label", "scores"))
    for names, shown in ((subject.classes, "benign, A"), ((), "class 1, A")):
        for draw_curves in (class_figures.rocs, class_figures.precision_recalls):
            drawn = draw_curves(labels, scores, names)
            assert drawn.axes[0].get_legend().get_texts()[0].get_text().startswith(shown)
        (axis,) = class_figures.confusion_matrix(labels, subject.columns["prediction"], 2, names).axes
        assert [text.get_text() for text in axis.get_yticklabels()] == list(names or "01")


def test_confusion_matrix_of_many_classes_fits_a_page(rng):
    sizes = []
    for classes in (20, 21, 1000):
        figure = class_figures.confusion_matrix(*rng.integers(0, classes, (2, 50)), classes)
        sizes.append(figure.get_size_inches().tolist())
        assert len(figure.axes[0].texts) == (400 if classes == 20 else 0)
    assert sizes[0] == sizes[1] == sizes[2]


def test_learning_curve_has_a_band_where_it_is_known():
    """The last point of a solver has no band."""
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


def test_path_marks_the_best_value_and_that_of_the_run():
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


def _subject(records, **task):
    """A context whose split has these records; with several seeds if their predictions are lists."""
    seeds = 2 if isinstance(records[0]["prediction"], list) else None
    config = {"task": task, "train": {"seeds": seeds}, "eval": {"splits": ("test",)}, "data": {"name": "own"}}
    subject = PlotContext(None)
    trained = SimpleNamespace(
        config=ConfigDict(config), predictions=lambda split: ({}, records), label_names=lambda count: (), step=1
    )
    subject.__dict__["trained"] = trained
    return subject


@pytest.mark.parametrize("seeds", [None, 2])
@pytest.mark.parametrize("hidden", [-1.0, -0.1])
def test_hidden_labels_of_a_regression_are_excluded(hidden, seeds):
    """Records store hidden labels as the data does, in float32."""
    labels = np.array([0.5, hidden, 2.0], np.float32).tolist()
    records = [
        {"index": i, "label": label, "prediction": [float(i), 9.0] if seeds else float(i)}
        for i, label in enumerate(labels)
    ]
    subject = _subject(records, name="regression", hidden_label=hidden)
    columns = {name: column.tolist() for name, column in subject.columns.items()}
    assert columns == {"index": [0, 2], "label": [0.5, 2.0], "prediction": [0.0, 2.0]}
    _, numbers = plots.PLOTS["residuals"].draw(subject)
    assert numbers["mean"] == pytest.approx(0.25)
    with pytest.raises(UserError, match="'test' are hidden"):
        _ = _subject(records[1:2], name="regression", hidden_label=hidden).columns


@pytest.mark.parametrize("task", [{}, {"hidden_label": None}])
def test_label_minus_one_is_shown_if_none_are_hidden(task):
    records = [{"index": i, "label": label, "prediction": 0.0} for i, label in enumerate((-1.0, 1.0))]
    assert _subject(records, name="regression", **task).columns["label"].tolist() == [-1.0, 1.0]


def _classified(labels, seeds=None):
    scores = [[0.1 * (i + 1), 1 - 0.1 * (i + 1)] for i in range(len(labels))]
    return [
        {
            "index": i,
            "label": label,
            "prediction": [int(row[1] > 0.5)] * seeds if seeds else int(row[1] > 0.5),
            "scores": [row, row[::-1]] if seeds else row,
        }
        for i, (label, row) in enumerate(zip(labels, scores, strict=True))
    ]


@pytest.mark.parametrize("seeds", [None, 2])
def test_hidden_labels_of_a_classifier_are_excluded(seeds):
    subject = _subject(_classified([1, -1, 0, -1], seeds), name="classification")
    assert subject.columns["index"].tolist() == [0, 2]
    assert plots.PLOTS["confusion"].draw(subject)[1] == {"counts": [[0, 1], [0, 1]]}
    assert plots.PLOTS["roc"].draw(subject)[1] == {"auc": {"1": 1.0}}


@pytest.mark.parametrize("what", ["roc", "precision_recall", "confusion"])
def test_split_with_hidden_labels_has_no_plot(what):
    with pytest.raises(UserError, match="'test' are hidden"):
        plots.PLOTS[what].draw(_subject(_classified([-1, -1]), name="classification"))


def test_figure_excludes_hidden_labels(rng):
    """A notebook may pass the predictions of a run unchanged."""
    labels, scores = rng.integers(0, 3, 30), rng.random((30, 3))
    hidden = np.where(np.arange(30) % 3 == 0, -1, labels)
    shown = hidden >= 0
    for curve in (plots.roc, plots.precision_recall):
        found, expected = (
            {c: line.area for c, line in class_figures.areas(*columns, curve).items()}
            for columns in ((hidden, scores), (labels[shown], scores[shown]))
        )
        assert found == expected
    counts = plots.confusion(hidden, scores.argmax(axis=1), 3)
    assert counts.sum() == shown.sum()
    np.testing.assert_array_equal(counts, plots.confusion(labels[shown], scores[shown].argmax(axis=1), 3))


@pytest.mark.parametrize("what", ["roc", "precision_recall"])
@pytest.mark.parametrize("only", [0, 1])
def test_split_of_one_class_has_no_curve(what, only):
    with pytest.raises(UserError, match=f"'test' has only class {only}"):
        plots.PLOTS[what].draw(_subject(_classified([only, -1, only]), name="classification"))
    with pytest.raises(UserError, match="two classes"):
        class_figures.rocs(np.zeros(3, int), np.ones((3, 2)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_values_that_are_not_finite_have_no_plot(value):
    """None is how JSON stores nan."""
    records = [{"index": i, "label": 1.0, "prediction": x} for i, x in enumerate((0.5, value))]
    with pytest.raises(UserError, match="prediction of example 1 of split 'test'"):
        plots.PLOTS["residuals"].draw(_subject(records, name="regression"))
    records = _classified([0, 1])
    records[1]["scores"] = [value, 1.0]
    with pytest.raises(UserError, match="scores of example 1 of split 'test'"):
        plots.PLOTS["roc"].draw(_subject(records, name="classification"))


def test_one_residual_has_no_distribution():
    with pytest.raises(UserError, match="'test' has one label"):
        plots.PLOTS["residuals"].draw(_subject([{"index": 0, "label": 1.0, "prediction": 2.0}], name="regression"))


def test_coefficients_that_are_not_finite_have_no_plot(monkeypatch):
    for values in (np.array([[1.0], [np.inf]]), np.zeros((0, 1))):
        found = SimpleNamespace(values=values, standardized=values)
        monkeypatch.setattr(plots, "coefficients", lambda *_, found=found: found)
        with pytest.raises(UserError, match="coefficients are not finite"):
            plots._coefficients(SimpleNamespace(run=SimpleNamespace(path=""), which="last"))


def test_metric_without_a_value_has_no_learning_curve(monkeypatch):
    none = {"values": [None], "mean": None, "low": None, "high": None}
    some = {**none, "mean": 0.5}
    found = {"metric": "r2", "split": "test", "repeats": 1, "step": 1}
    found["points"] = [{"examples": 5, "metrics": {"test": none, "train": none}}]
    monkeypatch.setattr(plots.refits, "learning_curve", lambda *_, **__: found)
    with pytest.raises(UserError, match=r"eval\.metric 'r2'"):
        plots.PLOTS["learning_curve"].draw(PlotContext(None))
    found["points"].append({"examples": 9, "metrics": {"test": some, "train": none}})
    figure, _ = plots.PLOTS["learning_curve"].draw(PlotContext(None))
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, 0.5])


def _point(examples, mean, half):
    return {"examples": examples, "metrics": {"test": {"mean": mean, "low": mean - half, "high": mean + half}}}


def test_bands_are_clipped_to_what_is_possible():
    figure = figures.learning_curve([_point(5, 0.5, 0.6), _point(9, 0.8, 0.6)], metric_name="accuracy", bounds=(0, 1))
    heights = np.asarray(figure.axes[0].collections[0].get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == (0, 1)
    assert figure.axes[0].get_yscale() == "linear"


def test_high_accuracies_are_drawn_as_errors():
    figure = figures.learning_curve([_point(5, 0.95, 0.01), _point(9, 0.99, 0.1)], metric_name="f1", bounds=(0, 1))
    assert figure.axes[0].get_yscale() == "log"
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [0.05, 0.01])


@pytest.mark.parametrize(("noise", "insets"), [(0.2, 1), (3.0, 0)])
def test_curves_near_a_corner_are_magnified(noise, insets, rng):
    labels = np.arange(400) % 2
    scores = labels + noise * rng.normal(size=400)
    for draw_curves in (class_figures.rocs, class_figures.precision_recalls):
        figure = draw_curves(labels, np.column_stack([-scores, scores]))
        assert len(figure.axes[0].child_axes) == insets


def test_names_of_features_come_from_the_encoder(digits, monkeypatch):
    trained = PlotContext(digits).trained
    assert trained.feature_names(64)[0] == "pixel_0_0"
    encoder, _ = trained._encoder
    monkeypatch.setattr(type(encoder), "feature_names", ("first", "second"), raising=False)
    assert trained.feature_names(2) == ("first", "second")
    assert trained.feature_names(3) == ()


class TestBins:
    def test_bins_match_numpy(self, rng):
        for size in (2, 50, 1000):
            values = rng.normal(size=size)
            np.testing.assert_allclose(figures.bin_edges(values), np.histogram_bin_edges(values, "auto"), rtol=1e-12)

    def test_outlier_does_not_require_millions_of_bins(self, rng):
        values = np.append(rng.normal(size=1000), 1e9)
        edges = figures.bin_edges(values)
        assert len(edges) == figures.MOST_BINS + 1
        assert (edges[0], edges[-1]) == (values.min(), 1e9)

    @pytest.mark.parametrize("value", [0.0, 3.0, -1e20])
    def test_equal_values_have_one_bin(self, value):
        values = np.full(5, value)
        values[0] = np.nextafter(value, 1e30)
        counts, _ = np.histogram(values, figures.bin_edges(values))
        assert counts.tolist() == [5]


LONG = "a_dataset/of_somebody_else-with_a_long_name:3.0.1 validation_mismatched, best checkpoint, step 1,234,567"
CLASSES = [f"soc.religion.class_{'with_a_long_name_' * 4}{i}" for i in range(20)]


def _long_figures():
    rng = np.random.default_rng(0)
    names, values = [f"$ and _{name}$" for name in CLASSES], rng.normal(size=20)
    yield figures.fitted_line(values, values, values, name=names[0])
    yield figures.residuals(1e5 * values, np.zeros(20))
    yield figures.coefficients(names, values, (values - 1, values + 1), scale=np.arange(20.0), title="logistic")
    yield figures.coefficients(names[:1], values[:1], None, scale=np.ones(1), title="logistic")
    labels, scores = rng.integers(0, 5, 50), rng.random((50, 5))
    yield class_figures.rocs(labels, scores, names[:5])
    yield class_figures.precision_recalls(labels, scores)
    yield class_figures.confusion_matrix(labels % 2, labels % 2, 2)
    yield class_figures.confusion_matrix(labels, labels, 20, names)
    yield figures.regularization_path(
        [0.1, 1.0, 10.0], rng.normal(size=(3, 20)), [0.5, None, 0.8], names=names, now=1.0, best=10.0,
        penalty="optimizer.weight_decay", metric_name="validation_mismatched ema_mean_absolute_error",
    )  # fmt: skip
    some = {"test": {"mean": 2.0, "low": 1.0, "high": 3.0}}
    sizes = (128_116, 256_233, 512_467, 896_816, 1_281_167)
    yield figures.learning_curve([{"examples": n, "metrics": some} for n in sizes], metric_name="ema_mean_squared")


@pytest.mark.extended
def test_nothing_is_clipped_and_no_tick_labels_overlap():
    for figure in _long_figures():
        canvas.add_title(figure, LONG)
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01, figure.get_suptitle()
        for axis in figure.axes:
            low, high = sorted(axis.get_xlim())
            marks = [mark for mark in axis.get_xticklabels() if low <= mark.get_position()[0] <= high]
            boxes = [mark.get_window_extent() for mark in marks if mark.get_text() and not mark.get_rotation()]
            assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes)), axis.get_xlabel()


@pytest.mark.extended
def test_several_seeds_draw_the_first(tmp_path):
    """It matches a run of that seed alone, up to rounding."""
    run = _run(tiny.logistic(steps=5, seeds=2), tmp_path / "two")
    alone = _run(tiny.logistic(steps=5), tmp_path / "one")
    two, one = (_numbers(draw(PlotContext(of), "roc"))["auc"] for of in (run, alone))
    assert two == pytest.approx(one, abs=1e-3)  # float32 scores differ by rounding, which may swap two of 359
    two, one = (_numbers(draw(PlotContext(of), "coefficients"))["values"] for of in (run, alone))
    np.testing.assert_allclose(two, one, rtol=1e-5)  # measured: 1.3e-7
