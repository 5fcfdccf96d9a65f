"""The plots of a run, their requirements, and where they are written."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from research.analysis import canvas, class_figures, figures, refits
from research.analysis.coefficients import coefficients
from research.analysis.curves import confusion, precision_recall, roc
from research.base.errors import UserError
from research.base.registry import lookup
from research.core.metrics import metric_bounds
from research.core.tasks import TASKS, capabilities
from research.data import load as data
from research.data.splits import whole
from research.runs.rundir import RunDir
from research.training.summary import seconds_of_a_seed
from research.training.trained_run import TrainedRun

# The overhead of a refit besides its steps: data, compilation, evaluation, a checkpoint.
REFIT_SECONDS = 4.0


@dataclasses.dataclass(frozen=True)
class PlotContext:
    """A split as a checkpoint of a run sees it; computed, or read from the run directory, when first used."""

    run: RunDir
    which: str = "last"  # checkpoint: last, best
    split: str | None = None  # None: the first of the run's eval.splits
    repeats: int = 3  # of each point of a learning curve
    load_variables: refits.Initial = None  # as in `train_and_evaluate`, if the run's config has `init_from`

    @functools.cached_property
    def trained(self) -> TrainedRun:
        return TrainedRun(self.run, self.which)

    @property
    def config(self) -> Any:
        return self.trained.config

    @property
    def of_split(self) -> str:
        """The split's name."""
        return self.split or self.config.eval.splits[0]

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """index, label, prediction [N] and, for a classifier, scores [N, C], of examples whose label is not hidden.

        For a run of several seeds, of the first. Raises UserError if all labels are hidden, or if a number is not
        finite.
        """
        _, records = self.trained.predictions(self.of_split)
        if not records:
            raise UserError(f"split {self.of_split!r} has no examples")
        # Records may also have the examples' keys and inputs.
        names = ("index", "label", "prediction", "scores")
        columns = {name: np.asarray([record[name] for record in records]) for name in names if name in records[0]}
        hidden = _hidden_label(self.config.task)
        if hidden is not None:
            # Compared as on the device: 0.1 in float32 is a different number in float64.
            shown = columns["label"].astype(np.float32) != np.float32(hidden)
            if not shown.any():
                raise UserError(f"the labels of split {self.of_split!r} are hidden")
            columns = {name: column[shown] for name, column in columns.items()}
        if self.config.train.seeds is not None:
            columns |= {name: columns[name][:, 0] for name in columns.keys() - {"index", "label"}}
        for name in columns.keys() - {"index"}:
            self.check_finite(name, columns[name], columns["index"])
        return columns

    def check_finite(self, name: str, values: np.ndarray, index: np.ndarray) -> None:
        """Raises UserError if some of the values [N, …] of the examples `index` [N] are not finite."""
        wrong = np.argwhere(~np.isfinite(values.astype(np.float64)))  # null in JSON becomes NaN
        if len(wrong):
            value = values[tuple(wrong[0])]
            raise UserError(
                f"{name} of example {index[wrong[0][0]]} of split {self.of_split!r} is {value}; a plot requires finite "
                "numbers"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty if they have none."""
        return self.trained.label_names(self.columns["scores"].shape[1])

    def needs(self, predicts: str) -> None:
        """Raises UserError if the task does not predict a "class", or a "number".

        For a task that does not declare this, the records decide: classes have scores.
        """
        stated = _predicts(self.config.task)
        if stated is None:
            scores = self.columns.get("scores")
            stated = "class" if scores is not None and scores.ndim == 2 else "number"
        if stated != predicts:
            raise UserError(
                f"the run's task {self.config.task.name} predicts a {stated}; this plot requires a {predicts}"
            )


def _hidden_label(task: Any) -> float | None:
    """The number that marks a hidden label; None if no label is hidden."""
    return task.get("hidden_label") if _predicts(task) == "number" else -1


def _predicts(task: Any) -> str | None:
    """What the task of a config states that it predicts."""
    return capabilities(TASKS.get(task.name)).predicts


Drawing = tuple[Figure, dict[str, Any]]


def _fit(subject: PlotContext) -> Drawing:
    subject.needs("number")
    columns = subject.columns  # first, as its error names the existing splits
    inputs = subject.config.data.transform.inputs
    raw = data.raw(subject.config.data)[whole(subject.of_split)][inputs[0]]
    first = np.asarray(raw[0])
    if len(inputs) != 1 or first.size != 1 or first.dtype.kind not in "fiu":
        raise UserError(
            f"this plot requires a single input number per example; this run has {', '.join(inputs)} of shape "
            f"{first.shape}"
        )
    x = np.asarray([raw[int(i)] for i in columns["index"]], np.float64).reshape(-1)
    subject.check_finite(inputs[0], x, columns["index"])
    figure = figures.fitted_line(x, columns["label"], columns["prediction"], name=inputs[0])
    return figure, {"x": x.tolist(), "label": columns["label"].tolist(), "prediction": columns["prediction"].tolist()}


def _residuals(subject: PlotContext) -> Drawing:
    subject.needs("number")
    labels, predictions = subject.columns["label"], subject.columns["prediction"]
    if len(labels) < 2:
        raise UserError(f"split {subject.of_split!r} has one label; a distribution of residuals requires at least two")
    difference = labels - predictions
    numbers = {"mean": float(difference.mean()), "standard_deviation": float(difference.std())}
    return figures.residuals(labels, predictions), numbers


def _coefficients(subject: PlotContext) -> Drawing:
    found = coefficients(subject.run.path, subject.which)
    standardized, values = found.standardized.ravel(), found.values.ravel()
    if not (values.size and np.isfinite(values).all()):
        raise UserError(
            f"{np.count_nonzero(~np.isfinite(values))} of the {values.size} coefficients are not finite; this plot "
            "requires at least one, and finite values"
        )
    # In its own units a feature that hardly varies may have a large coefficient.
    shown = np.argsort(np.abs(standardized), kind="stable")[-figures.MOST_COEFFICIENTS :]
    names = [found.label(int(i)) for i in shown]
    numbers: dict[str, Any] = {
        "names": names,
        "values": values[shown].tolist(),
        "standardized": standardized[shown].tolist(),
        "intercept": found.intercept.tolist(),
        "of": len(values),
    }
    intervals = None
    if found.intervals is not None:
        low, high = found.intervals
        intervals = low.ravel()[shown], high.ravel()[shown]
        numbers |= {"low": intervals[0].tolist(), "high": intervals[1].tolist()}
    scale = found.scale[shown // found.values.shape[1]]
    title = f"{subject.config.model.name}: {len(shown)} largest of {len(values):,}"
    return figures.coefficients(names, values[shown], intervals, scale=scale, title=title), numbers


def _ranked(subject: PlotContext) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and scores [N, C]. Raises UserError if the labels are not of at least two classes."""
    subject.needs("class")
    labels, scores = subject.columns["label"], subject.columns["scores"]
    if (labels == labels[0]).all():
        only = canvas.class_name(labels[0], subject.classes)
        raise UserError(f"split {subject.of_split!r} has only {only}; this plot requires two classes")
    return labels, scores


def _roc(subject: PlotContext) -> Drawing:
    labels, scores = _ranked(subject)
    found = class_figures.areas(labels, scores, roc)
    numbers = {"auc": {str(c): curve.area for c, curve in found.items()}}
    return class_figures.rocs(labels, scores, subject.classes), numbers


def _precision_recall(subject: PlotContext) -> Drawing:
    labels, scores = _ranked(subject)
    found = class_figures.areas(labels, scores, precision_recall)
    numbers = {"average_precision": {str(c): curve.area for c, curve in found.items()}}
    return class_figures.precision_recalls(labels, scores, subject.classes), numbers


def _confusion(subject: PlotContext) -> Drawing:
    subject.needs("class")
    labels, predictions = subject.columns["label"], subject.columns["prediction"]
    classes = subject.columns["scores"].shape[1]
    numbers = {"counts": confusion(labels, predictions, classes).tolist()}
    return class_figures.confusion_matrix(labels, predictions, classes, subject.classes), numbers


def _regularization_path(subject: PlotContext) -> Drawing:
    found = refits.regularization_path(subject.run)
    points = [point for point in found["points"] if "failed" not in point]
    figure = figures.regularization_path(
        [point["value"] for point in points],
        np.asarray([point["coefficients"] for point in points]),
        [point["metric"] for point in points],
        penalty=found["penalty"],
        metric_name=f"{found['split']} {found['metric']}",
        names=found["names"],
        now=found["now"],
        best=found["best"]["value"],
        unpenalized=found["unpenalized"],
    )
    return figure, found


def _learning_curve(subject: PlotContext) -> Drawing:
    found = refits.learning_curve(subject.run, repeats=subject.repeats, load_variables=subject.load_variables)
    means = [value["mean"] for point in found["points"] for value in point["metrics"].values()]
    if not any(mean is not None and math.isfinite(mean) for mean in means):
        raise UserError(f"eval.metric {found['metric']!r} has no value on {found['split']!r} for any refit")
    return _drawn(found), found


def _drawn(found: dict[str, Any]) -> Figure:
    metric = found["metric"]
    return figures.learning_curve(
        found["points"],
        metric_name=metric,
        bounds=metric_bounds(metric),
        repeats=found["repeats"],
        steps=found["step"],
    )


@dataclasses.dataclass(frozen=True)
class Plot:
    """A kind of plot, with its title.

    `draw` raises UserError if a run can't have the plot, and `check` if its config can't. `refits` is the most times
    that `draw` trains the config, by `repeats`. `of` is what is drawn: a split as a checkpoint sees it, a checkpoint,
    or refits, which do not depend on --split and --checkpoint.
    """

    title: str
    draw: Callable[[PlotContext], Drawing]
    of: Literal["split", "checkpoint", "refits"] = "split"
    refits: Callable[[int], int] = lambda repeats: 0
    check: Callable[[Any], None] = lambda config: None


PLOTS: dict[str, Plot] = {
    "fit": Plot("fit", _fit),
    "residuals": Plot("residuals", _residuals),
    "coefficients": Plot("coefficients", _coefficients, "checkpoint"),
    "roc": Plot("ROC", _roc),
    "precision_recall": Plot("precision and recall", _precision_recall),
    "confusion": Plot("confusion matrix", _confusion),
    "regularization_path": Plot(
        "regularization path",
        _regularization_path,
        "refits",
        lambda repeats: len(refits.penalties(None)),
        refits.check_path,
    ),
    "learning_curve": Plot(
        "training-size curve", _learning_curve, "refits", lambda repeats: repeats * len(refits.FRACTIONS)
    ),
}


def draw(subject: PlotContext, what: str) -> Path:
    """Draws one of PLOTS and writes it, and its numbers, to the run's plots/ -> the path of the PNG.

    The numbers include the "split" (None if the plot has none), the "checkpoint" and its "step". Only plots of the
    first of eval.splits and of the last checkpoint are called `what` alone.

    Raises UserError if there is no such plot, or the run can't have it.
    """
    plot = lookup(PLOTS, what, "--what")
    figure, numbers = plot.draw(subject)
    name, split, which, step = what, None, subject.which, subject.trained.step
    if plot.of == "refits":
        split, which, step = numbers["split"], "last", numbers["step"]
    elif plot.of == "split":
        split = subject.of_split
        name += f"-{split}" if split != subject.config.eval.splits[0] else ""
    name += f"-{which}" if which != "last" else ""
    of = "refits" if plot.of == "refits" else f"{which} checkpoint, step {step:,}"
    section = subject.config.data
    subjects = " ".join(filter(None, (Path(section.train).name if section.name == "files" else section.name, split)))
    canvas.add_title(figure, f"{plot.title}: {subjects}, {of}")
    return subject.run.write_plot(name, figure, {"split": split, "checkpoint": which, "step": step, **numbers})


def draw_all(subject: PlotContext) -> Iterable[tuple[str, Path | None, str | None]]:
    """Draws all plots that apply to the run, except those that train its config again.

    Yields (name, PNG or None, why not or None), each as soon as it is drawn.
    """
    training = seconds_of_a_seed(subject.run.summary() or {}) or 0.0  # if unknown, only the overhead counts
    for what, plot in PLOTS.items():
        try:
            if plot.of == "refits":
                plot.check(subject.config)
                seconds = plot.refits(subject.repeats) * (REFIT_SECONDS + training)
                raise UserError(
                    f"it trains the config again, which takes about {math.ceil(seconds / 60)} min; --what={what} "
                    "draws it"
                )
            yield what, draw(subject, what), None
        except UserError as error:
            yield what, None, str(error)
