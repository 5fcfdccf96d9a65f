"""Figures from arrays. Nothing is read or written here: a notebook displays the result, or calls `savefig`.

Class labels are −1 where they are hidden; these examples are left out. All other numbers must be finite.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from research.analysis.curves import Curve, confusion, precision_recall, roc
from research.base.errors import UserError

MOST_LINES = 10  # lines with a name in the legend; more would be hard to distinguish
MOST_COEFFICIENTS = 30
MOST_COUNTED = 20  # classes: with more, numbers in the cells are unreadable
MOST_BINS = 100  # in a histogram; a single outlier might require millions
AREA_IN_CORNER = 0.95  # ROC and precision-recall curves of at least this area lie near a corner
HIGH = 0.9  # an accuracy from which on differences are easier to see in the error
LONGEST_NAME = 40  # characters of a name next to an axis or in a legend
_TITLE_POINTS = 11
_LETTER = 0.075  # upper bound in inches on the average width of a letter of 8 points


def _figure(
    columns: int = 1, *, width: float = 5.5, height: float = 4.0, square: bool = False
) -> tuple[Figure, list[Axes]]:
    """Makes an empty figure. `square`: whether the axes will have equal scales, which needs another layout."""
    figure = Figure(figsize=(width * columns, height), layout="compressed" if square else "constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def add_title(figure: Figure, text: str) -> None:
    """Adds a line of text above a figure, below any earlier one, wrapped to its width; the figure grows by it."""
    # The layout reserves space for a title's height, not for its width. A letter is about 0.6 of its size wide.
    width = int(figure.get_figwidth() * 72 / (0.6 * _TITLE_POINTS))
    lines = textwrap.wrap(_literal(text), width, break_on_hyphens=False)
    figure.suptitle("\n".join(filter(None, (figure.get_suptitle(), *lines))), fontsize=_TITLE_POINTS)
    figure.set_figheight(figure.get_figheight() + len(lines) * 1.2 * _TITLE_POINTS / 72)


def class_name(c: int, names: Sequence[str]) -> str:
    """The name of class `c`; `names` is empty if the classes have none."""
    return names[c] if names else f"class {c}"


def _literal(text: str) -> str:
    """The text escaped for matplotlib, in which a dollar sign would begin a formula."""
    return " ".join(text.split()).replace("$", r"\$")


def _short(name: str, longest: int = LONGEST_NAME) -> str:
    """Shortens a name to fit next to an axis: keeps the beginning and the end."""
    half = (longest - 1) // 2
    return _literal(name if len(name) <= longest else f"{name[:half]}…{name[-half:]}")


def _width_beside(texts: Sequence[str]) -> float:
    """The width in inches of a legend of these texts next to an axis."""
    return 0.6 + _LETTER * max(map(len, texts))


def _legend_beside(axis: Axes) -> None:
    """Adds a legend to the right of the axis, where it hides nothing."""
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def fitted_line(x: np.ndarray, labels: np.ndarray, predictions: np.ndarray, *, name: str = "x") -> Figure:
    """Plots labels and predictions over one feature, in its own units: x, labels, predictions [N]."""
    figure, (axis,) = _figure()
    order = np.argsort(x)
    axis.scatter(x, labels, s=8, alpha=0.5, label="data")
    axis.plot(x[order], predictions[order], color="C3", label="fit")
    axis.set(xlabel=_short(name), ylabel="label")
    _legend_beside(axis)
    return figure


def residuals(labels: np.ndarray, predictions: np.ndarray) -> Figure:
    """Plots label − prediction over the prediction, and the histogram of the differences: labels, predictions [N].

    The curve over the histogram is the normal density with the same mean and standard deviation.
    """
    difference = labels - predictions
    figure, (over, spread) = _figure(2)
    over.scatter(predictions, difference, s=8, alpha=0.5)
    over.axhline(0, color="C3", linewidth=1)
    over.set(xlabel="prediction", ylabel="label − prediction")
    spread.hist(difference, bins=bin_edges(difference).tolist(), density=True, alpha=0.6)
    mean, deviation = difference.mean(), difference.std()
    if deviation > 0:
        at = np.linspace(difference.min(), difference.max(), 200)
        density = np.exp(-((at - mean) ** 2) / (2 * deviation**2)) / (deviation * np.sqrt(2 * np.pi))
        spread.plot(at, density, color="C3")
        spread.set_title(f"curve: normal, {mean:.3g} ± {deviation:.3g}", fontsize=9)
    spread.set(xlabel="label − prediction", ylabel="density")
    for axis in (over, spread):
        axis.ticklabel_format(scilimits=(-3, 5))  # longer numbers overlap
    return figure


def bin_edges(values: np.ndarray) -> np.ndarray:
    """The edges of a histogram's equal bins, at most `MOST_BINS`, over values [N].

    Their width is the smaller of Freedman and Diaconis' (1981), 2 · IQR / N^⅓, and Sturges' (1926),
    range / (1 + log₂ N); the former is ignored where it is 0 because half of the values are equal.
    """
    low, high, count = float(values.min()), float(values.max()), len(values)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-100):  # equal up to rounding: bins would have no width
        reach = max(0.5, 0.5 * abs(low))
        return np.array([low - reach, high + reach])
    quartiles = float(np.subtract(*np.percentile(values, [75, 25])))
    widths = 2 * quartiles / np.cbrt(count), (high - low) / (1 + math.log2(count))
    bins = (high - low) / min(width for width in widths if width > 0)
    return np.linspace(low, high, math.ceil(min(bins, MOST_BINS)) + 1)


def coefficients(
    names: Sequence[str],
    values: np.ndarray,
    intervals: tuple[np.ndarray, np.ndarray] | None,
    *,
    scale: np.ndarray,
    title: str,
) -> Figure:
    """Plots one coefficient per line, the last on top: values [D], intervals (low [D], high [D]) if there are any.

    `scale` [D]: coefficients of standardized features are values / scale. If the scales differ, only these can be
    compared with each other, and are shown on the left.
    """
    per_unit = np.ones(len(values)), "coefficient,\nof one unit of the feature"
    if np.ptp(scale) > 0:
        # The coefficient of a constant feature, whose scale is 0, is 0.
        panels = [(np.where(scale > 0, scale, 1), "coefficient,\nof one standard deviation of the feature"), per_unit]
    else:
        panels = [per_unit]
    figure, axes = _figure(len(panels), height=1.4 + 0.22 * len(names))
    at = np.arange(len(names))
    for axis, (unit, label) in zip(axes, panels, strict=True):
        if intervals is None:
            axis.barh(at, values / unit, alpha=0.7)
        else:
            axis.hlines(at, *(end / unit for end in intervals), linewidth=3, alpha=0.4)
            axis.plot(values / unit, at, "o", markersize=4)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_yticks(at, [_short(name) for name in names], fontsize=8)
        axis.tick_params(labelleft=axis is axes[0])
        axis.set(xlabel=label, ylim=(-0.7, len(names) - 0.3))
    add_title(figure, title if intervals is None else f"{title}, 95 % intervals")
    return figure


def rocs(labels: np.ndarray, scores: np.ndarray, names: Sequence[str] = ()) -> Figure:
    """Plots ROC curves: labels [N], scores [N, C], names [C] or none.

    For two classes, that of class 1; for more, each class against the rest.
    """
    found = areas(labels, scores, roc)
    figure, axis = _one_versus_rest(found, "AUC", names)
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    axis.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    _magnify_corner(axis, found, right=False)
    return figure


def precision_recalls(labels: np.ndarray, scores: np.ndarray, names: Sequence[str] = ()) -> Figure:
    """Plots precision over recall, for the same classes as `rocs`."""
    found = areas(labels, scores, precision_recall)
    figure, axis = _one_versus_rest(found, "AP", names)
    axis.set(xlabel="recall", ylabel="precision", ylim=(0, 1.03), aspect="equal")
    _magnify_corner(axis, found, right=True)
    return figure


def areas(
    labels: np.ndarray, scores: np.ndarray, curve: Callable[[np.ndarray, np.ndarray], Curve | None]
) -> dict[int, Curve]:
    """`roc` or `precision_recall` of each class that has one, against the rest; for two classes, only of class 1."""
    classes = range(scores.shape[1]) if scores.shape[1] > 2 else (1,)
    labels, scores = labels[labels >= 0], scores[labels >= 0]
    found = {c: curve(scores[:, c], labels == c) for c in classes}
    return {c: line for c, line in found.items() if line is not None}


def _one_versus_rest(found: Mapping[int, Curve], area: str, names: Sequence[str]) -> tuple[Figure, Axes]:
    """Plots the curves by class, with a legend next to the axis. Raises UserError if there is no curve."""
    if not found:
        raise UserError("no class has a curve: the labels must include at least two classes")
    texts = [f"{_short(class_name(c, names))}, {area} {line.area:.4f}" for c, line in found.items()]
    mean = f"mean of {len(found)} classes, {area} {np.mean([line.area for line in found.values()]):.4f}"
    named = len(found) <= MOST_LINES
    shown = [*(texts if named else ()), *([mean] if len(found) > 1 else ())]
    figure, (axis,) = _figure(width=4.5 + _width_beside(shown), square=True)
    for text, line in zip(texts, found.values(), strict=True):
        axis.plot(line.x, line.y, label=text if named else None, linewidth=1.2)
    if len(found) > 1:
        axis.plot([], [], " ", label=mean)
    _legend_beside(axis)
    return figure, axis


def _magnify_corner(axis: Axes, found: Mapping[int, Curve], *, right: bool) -> None:
    """Adds an inset of the upper left corner, or the `right` one, if all curves pass through it: AREA_IN_CORNER."""
    if min(line.area for line in found.values()) < AREA_IN_CORNER:
        return
    inset = axis.inset_axes((0.14 if right else 0.38, 0.14, 0.5, 0.5))
    for line in found.values():
        inset.plot(line.x, line.y, linewidth=1.2)
    inset.set(xlim=(0.9, 1.005) if right else (-0.005, 0.1), ylim=(0.9, 1.005))
    inset.set_xticks((0.9, 0.95, 1.0) if right else (0, 0.05, 0.1))
    inset.set_yticks((0.9, 0.95, 1.0))
    inset.tick_params(labelsize=7)
    inset.grid(alpha=0.3)
    axis.indicate_inset_zoom(inset, edgecolor="black")


def confusion_matrix(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, names: Sequence[str] = ()
) -> Figure:
    """Plots counts of (class, prediction), coloured by fraction of the class: labels, predictions int [N], names [C].

    For more than 20 classes the cells are smaller, not the figure larger, and have neither numbers nor names.
    """
    counts = confusion(labels, predictions, num_classes)
    marks = [_short(name, 24) for name in names] or [str(c) for c in range(num_classes)]
    shown = min(num_classes, MOST_COUNTED)
    letters = _LETTER * max(map(len, marks))
    size = max(4.5, 2.5 + 0.42 * shown + (letters if names and shown == num_classes else 0.0))
    figure, (axis,) = _figure(width=size, height=size, square=True)
    axis.grid(visible=False)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if num_classes <= MOST_COUNTED:
        for i, j in np.ndindex(counts.shape):
            colour = "white" if share[i, j] > 0.5 else "black"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=7)
        axis.set_xticks(range(num_classes), marks, fontsize=8)
        axis.set_yticks(range(num_classes), marks, fontsize=8)
        if letters > (size - 1.5) / num_classes:  # wider than a cell
            _tilt(axis, 45)
    axis.set(xlabel="prediction", ylabel="label")
    add_title(figure, f"accuracy {np.trace(counts) / counts.sum():.4f}")
    return figure


def _tilt(axis: Axes, degrees: float) -> None:
    """Rotates the tick labels of the horizontal axis, each about its end, so that long ones don't overlap."""
    for mark in axis.get_xticklabels():
        mark.set(rotation=degrees, horizontalalignment="right", rotation_mode="anchor")


def regularization_path(
    values: Sequence[float],
    paths: np.ndarray,
    metric: Sequence[float | None],
    *,
    penalty: str,
    metric_name: str,
    names: Sequence[str],
    now: float | None,
    best: float,
    unpenalized: float | None = None,
) -> Figure:
    """Plots coefficients [V, D] and a metric [V], None where it has no value, over the penalties `values` [V].

    `now` is the run's own penalty, None without one; `best` is that of `values` with the best metric; `unpenalized` is
    the metric of a run without a penalty. The coefficients that grow largest are named; of more than 30 only these are
    drawn.
    """
    largest = np.argsort(-np.abs(paths).max(axis=0), kind="stable")[:MOST_COEFFICIENTS]
    named = [_short(names[i]) for i in largest[:MOST_LINES]]
    figure, (left, right) = _figure(2, width=5.5 + _width_beside(named) / 2)
    for rank, i in enumerate(largest):
        left.plot(values, paths[:, i], linewidth=1.2, label=named[rank] if rank < MOST_LINES else None)
    left.axhline(0, color="black", linewidth=1)
    title = f"the {len(largest)} that grow largest" if len(names) >= MOST_COEFFICIENTS else ""
    left.set(ylabel="coefficient,\nof features as the model reads them", title=title)
    _legend_beside(left)
    heights = np.array(metric, np.float64)  # None: nan
    right.plot(values, heights, "o-", markersize=4)
    right.plot([best], [heights[values.index(best)]], "*", markersize=13, color="C3", label=f"best: {best:.3g}")
    if unpenalized is not None:
        right.axhline(unpenalized, color="grey", linewidth=1, linestyle=":", label="the run, without a penalty")
    right.set(ylabel=_short(metric_name))
    for axis in (left, right):
        axis.set(xscale="log", xlabel=penalty)
        if now is not None:
            axis.axvline(now, color="grey", linewidth=1, linestyle="--", label="the run's" if axis is right else None)
    _legend_beside(right)
    return figure


def learning_curve(
    points: Sequence[Mapping[str, Any]],
    *,
    metric_name: str,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    repeats: int | None = None,
    steps: int | None = None,
) -> Figure:
    """Plots a metric over the number of training examples.

    The points have "examples" and, for each split under "metrics", "mean", "low" and "high". The last two are None
    without repeats, where the band has a gap. All are None where the metric has no value: the line has a gap there, and
    a split without any value has no line. The band is clipped to `bounds`, the range of the metric. A metric from 0 to
    1 that is high throughout is drawn as the error, 1 − metric, on a logarithmic axis. `repeats` and `steps`, if given,
    are the number of seeds at a point and of steps of each refit.
    """
    splits = [split for split in points[0]["metrics"] if any(_value(point, split) is not None for point in points)]
    figure, (axis,) = _figure(width=5.5 + _width_beside(["evaluated on", *splits]))
    examples = [point["examples"] for point in points]
    everything = [value for point in points for split in splits if (value := _value(point, split)) is not None]
    as_error = bounds == (0, 1) and min(everything) >= HIGH and max(everything) < 1
    for split in splits:
        of_split = [point["metrics"][split] for point in points]
        mean, low, high = (np.array([point[key] for point in of_split], np.float64) for key in ("mean", "low", "high"))
        low, high = np.clip(low, *bounds), np.clip(high, *bounds)
        if as_error:
            mean, low, high = 1 - mean, 1 - high, 1 - low
        (line,) = axis.plot(examples, mean, "o-", markersize=4, label=split)
        axis.fill_between(examples, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        axis.vlines(examples, low, high, alpha=0.5, color=line.get_color(), linewidth=1)  # a single point has no band
    axis.set(xscale="log", xlabel="examples trained on", ylabel=_short(metric_name))
    if as_error:
        axis.set_ylabel(f"error, 1 − {_short(metric_name)}")
        axis.set_yscale("log", nonpositive="clip")
    axis.set_xticks(examples, [f"{n:,}" for n in examples])
    if max(examples) >= 100_000:
        _tilt(axis, 30)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.legend(title="evaluated on", fontsize=8, title_fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    seeds = f"mean and 95 % interval of {repeats} seeds" if repeats and repeats > 1 else ""
    lasting = f"{steps:,} steps at each size" if steps and steps > 1 else ""
    add_title(figure, "; ".join(filter(None, (seeds, lasting))) or "by the number of training examples")
    return figure


def _value(point: Mapping[str, Any], split: str) -> float | None:
    """The mean of a split at a point of a learning curve; None if it is missing or not finite."""
    value = point["metrics"][split]["mean"]
    return value if value is not None and math.isfinite(value) else None


def ladder(rows: Sequence[Mapping[str, Any]], *, split: str) -> Figure:
    """Plots error over training time, both logarithmic: rows with "rung", "accuracy" and "train_seconds".

    An error of 0, which a logarithmic axis can't show, is drawn as half an example. Rows whose time is None are not
    drawn.
    """
    figure, (axis,) = _figure()
    for row in rows:
        accuracy, seconds = row["accuracy"], row["train_seconds"]
        if seconds is None:
            continue
        error = max(1 - accuracy["mean"], 0.5 / row["examples"])
        around = None if accuracy["low"] is None else accuracy["high"] - accuracy["mean"]
        axis.errorbar(seconds, error, yerr=around, fmt="o", capsize=3, markersize=5, color="C0")
        axis.annotate(row["rung"], (seconds, error), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axis.set(xscale="log", xlabel="training, seconds", ylabel=f"{split} error, 1 − accuracy")
    axis.set_yscale("log", nonpositive="clip")
    axis.margins(0.15)
    add_title(figure, f"{split} error by training time")
    return figure
