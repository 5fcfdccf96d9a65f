"""Which plots a run can have, what each needs, and where they are written."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from research.analysis import figures, refits
from research.analysis.coefficients import LINEAR, coefficients
from research.analysis.curves import confusion, precision_recall, roc
from research.build import lookup
from research.data import load as data
from research.errors import UserError
from research.rundir import RunDir
from research.trained import Trained

# What a refit takes beside its steps: data, compiling, evaluation, a checkpoint.
REFIT_SECONDS = 4.0

# A plot that takes longer is only drawn where it is asked for.
UNASKED_SECONDS = 300.0


class DoesNotApplyError(UserError):
    """Why a run can't have a plot."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A split as a checkpoint of a run sees it; worked out, or read from the run directory, when first asked for."""

    run: RunDir
    which: str = "last"  # checkpoint: last, best
    split: str | None = None  # None: the first of the run's eval.splits
    repeats: int = 3  # of each point of a learning curve
    initial: refits.Initial = None  # as in `train_and_evaluate`, where the run's config has `init_from`

    @functools.cached_property
    def trained(self) -> Trained:
        return Trained(self.run, self.which)

    @property
    def config(self) -> Any:
        return self.trained.config

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """index, label, prediction [N] and, of a classifier, scores [N, C], where the label is not hidden.

        Of a run of several seeds they are the first one's.
        """
        _, records = self.trained.predictions(self.split or self.config.eval.splits[0])
        hidden = self.config.task.get("hidden_label", -1)
        shown = [record for record in records if record["label"] != hidden]
        if not shown:
            raise DoesNotApplyError("the labels of the split are hidden")
        columns = {name: np.asarray([record[name] for record in shown]) for name in shown[0]}
        if self.config.train.seeds is not None:
            columns |= {name: columns[name][:, 0] for name in columns.keys() - {"index", "label"}}
        return columns

    def needs_task(self, *names: str) -> None:
        if self.config.task.name not in names:
            raise DoesNotApplyError(f"is of task {' or '.join(names)}; the run's is {self.config.task.name}")


Drawing = tuple[Figure, dict[str, Any]]


def _fit(subject: Subject) -> Drawing:
    subject.needs_task("regression")
    columns = subject.columns  # first: it says which splits there are
    inputs, split = subject.config.data.transform.inputs, subject.split or subject.config.eval.splits[0]
    raw = data.raw(subject.config.data.name, subject.config.data.data_dir)[split][inputs[0]]
    first = np.asarray(raw[0])
    if len(inputs) != 1 or first.size != 1 or first.dtype.kind not in "fiu":
        raise DoesNotApplyError(f"is of one number a label; the run's have {', '.join(inputs)} of shape {first.shape}")
    x = np.asarray([raw[int(i)] for i in columns["index"]], np.float64).reshape(-1)
    figure = figures.fitted_line(x, columns["label"], columns["prediction"], name=inputs[0])
    return figure, {"x": x.tolist(), "label": columns["label"].tolist(), "prediction": columns["prediction"].tolist()}


def _residuals(subject: Subject) -> Drawing:
    subject.needs_task("regression")
    labels, predictions = subject.columns["label"], subject.columns["prediction"]
    difference = labels - predictions
    numbers = {"mean": float(difference.mean()), "standard_deviation": float(difference.std())}
    return figures.residuals(labels, predictions), numbers


def _coefficients(subject: Subject) -> Drawing:
    if subject.config.model.name not in LINEAR:
        raise DoesNotApplyError(f"is of models {', '.join(LINEAR)}; the run's is {subject.config.model.name}")
    found = coefficients(subject.run.path, subject.which)
    standardized, values = found.standardized.ravel(), found.values.ravel()
    # In their own units a large coefficient may be that of a feature which hardly varies.
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
    if found.low is not None and found.high is not None:
        intervals = found.low.ravel()[shown], found.high.ravel()[shown]
        numbers |= {"low": intervals[0].tolist(), "high": intervals[1].tolist()}
    scale = found.scale[shown // found.values.shape[1]]
    title = f"{subject.config.model.name}: {len(shown)} largest of {len(values):,}"
    return figures.coefficients(names, values[shown], intervals, scale=scale, title=title), numbers


def _roc(subject: Subject) -> Drawing:
    subject.needs_task("classification", "squared_hinge")
    labels, scores = subject.columns["label"], subject.columns["scores"]
    found = figures.areas(labels, scores, roc)
    return figures.rocs(labels, scores), {"auc": {str(c): curve.area for c, curve in found.items()}}


def _precision_recall(subject: Subject) -> Drawing:
    subject.needs_task("classification", "squared_hinge")
    labels, scores = subject.columns["label"], subject.columns["scores"]
    found = figures.areas(labels, scores, precision_recall)
    numbers = {"average_precision": {str(c): curve.area for c, curve in found.items()}}
    return figures.precision_recalls(labels, scores), numbers


def _confusion(subject: Subject) -> Drawing:
    subject.needs_task("classification", "squared_hinge")
    labels, predictions = subject.columns["label"], subject.columns["prediction"]
    classes = subject.columns["scores"].shape[1]
    numbers = {"counts": confusion(labels, predictions, classes).tolist()}
    return figures.confusion_matrix(labels, predictions, classes), numbers


def _check_path(subject: Subject) -> None:
    if subject.config.model.name not in LINEAR:
        raise DoesNotApplyError(f"is of models {', '.join(LINEAR)}; the run's is {subject.config.model.name}")
    if refits.penalty(subject.config) is None:
        raise DoesNotApplyError(
            f"is of optimizers {', '.join(refits.PENALIZED)}; the run's is {subject.config.optimizer.name}"
        )


def _regularization_path(subject: Subject) -> Drawing:
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
    )
    return figure, found


def _learning_curve(subject: Subject) -> Drawing:
    found = refits.learning_curve(subject.run, repeats=subject.repeats, initial=subject.initial)
    return figures.learning_curve(found["points"], metric_name=found["metric"]), found


@dataclasses.dataclass(frozen=True)
class Plot:
    """`check` and `draw` raise DoesNotApplyError, `check` before anything takes long; `refits` says how often `draw`
    trains the config, once for each of `repeats`."""

    draw: Callable[[Subject], Drawing]
    refits: Callable[[int], int] = lambda repeats: 0
    check: Callable[[Subject], None] = lambda subject: None


PLOTS: dict[str, Plot] = {
    "fit": Plot(_fit),
    "residuals": Plot(_residuals),
    "coefficients": Plot(_coefficients),
    "roc": Plot(_roc),
    "precision_recall": Plot(_precision_recall),
    "confusion": Plot(_confusion),
    "regularization_path": Plot(_regularization_path, lambda repeats: len(refits.penalties(1.0)), _check_path),
    "learning_curve": Plot(_learning_curve, lambda repeats: repeats * len(refits.FRACTIONS)),
}


def draw(subject: Subject, what: str) -> Path:
    """Draws one of PLOTS and writes it to the run's plots/, its numbers beside it -> the PNG.

    Raises UserError: there is no such plot, or the run can't have it.
    """
    plot = lookup(PLOTS, what, "--what")
    try:
        plot.check(subject)
        figure, numbers = plot.draw(subject)
    except DoesNotApplyError as error:
        raise DoesNotApplyError(f"{what} {error}") from None
    return subject.run.write_plot(what, figure, numbers)


def draw_all(subject: Subject) -> Iterable[tuple[str, Path | None, str | None]]:
    """Draws what applies to the run, but for what would take minutes -> (name, PNG or None, why not or None), each as
    soon as it is there."""
    for what, plot in PLOTS.items():
        seconds = plot.refits(subject.repeats) * (REFIT_SECONDS + training_seconds(subject.run))
        try:
            plot.check(subject)
            if seconds > UNASKED_SECONDS:
                raise UserError(f"would take about {seconds / 60:.0f} minutes; --what={what} draws it")
            yield what, draw(subject, what), None
        except UserError as error:
            yield what, None, str(error).removeprefix(f"{what} ")


def training_seconds(run: RunDir) -> float:
    """What the steps of a run took, without compiling and evaluating; 0 if nothing is known of it."""
    summary = run.summary() or {}
    return summary.get("step", 0) * ((summary.get("throughput") or {}).get("step_time_ms") or 0.0) / 1e3
