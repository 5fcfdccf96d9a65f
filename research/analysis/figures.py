"""Figures from arrays. Nothing is read or written here: a notebook displays the result, or calls `savefig`.

All numbers must be finite. Those of a classifier's predictions are in `research.analysis.class_figures`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from research.analysis.canvas import MOST_LINES, add_title, legend_beside, new_figure, short, tilt, width_beside

MOST_COEFFICIENTS = 30
MOST_BINS = 100  # in a histogram; a single outlier might require millions
HIGH = 0.9  # an accuracy from which on differences are easier to see in the error


def fitted_line(x: np.ndarray, labels: np.ndarray, predictions: np.ndarray, *, name: str = "x") -> Figure:
    """Plots labels and predictions over one feature, in its own units: x, labels, predictions [N]."""
    figure, (axis,) = new_figure()
    order = np.argsort(x)
    axis.scatter(x, labels, s=8, alpha=0.5, label="data")
    axis.plot(x[order], predictions[order], color="C3", label="fit")
    axis.set(xlabel=short(name), ylabel="label")
    legend_beside(axis)
    return figure


def residuals(labels: np.ndarray, predictions: np.ndarray) -> Figure:
    """Plots label − prediction over the prediction, and the histogram of the differences: labels, predictions [N].

    The curve over the histogram is the normal density with the same mean and standard deviation.
    """
    difference = labels - predictions
    figure, (over, spread) = new_figure(2)
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
    figure, axes = new_figure(len(panels), height=1.4 + 0.22 * len(names))
    at = np.arange(len(names))
    for axis, (unit, label) in zip(axes, panels, strict=True):
        if intervals is None:
            axis.barh(at, values / unit, alpha=0.7)
        else:
            axis.hlines(at, *(end / unit for end in intervals), linewidth=3, alpha=0.4)
            axis.plot(values / unit, at, "o", markersize=4)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_yticks(at, [short(name) for name in names], fontsize=8)
        axis.tick_params(labelleft=axis is axes[0])
        axis.set(xlabel=label, ylim=(-0.7, len(names) - 0.3))
    add_title(figure, title if intervals is None else f"{title}, 95 % intervals")
    return figure


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
    named = [short(names[i]) for i in largest[:MOST_LINES]]
    figure, (left, right) = new_figure(2, width=5.5 + width_beside(named) / 2)
    for rank, i in enumerate(largest):
        left.plot(values, paths[:, i], linewidth=1.2, label=named[rank] if rank < MOST_LINES else None)
    left.axhline(0, color="black", linewidth=1)
    title = f"the {len(largest)} that grow largest" if len(names) >= MOST_COEFFICIENTS else ""
    left.set(ylabel="coefficient,\nof features as the model reads them", title=title)
    legend_beside(left)
    heights = np.array(metric, np.float64)  # None: nan
    right.plot(values, heights, "o-", markersize=4)
    right.plot([best], [heights[values.index(best)]], "*", markersize=13, color="C3", label=f"best: {best:.3g}")
    if unpenalized is not None:
        right.axhline(unpenalized, color="grey", linewidth=1, linestyle=":", label="the run, without a penalty")
    right.set(ylabel=short(metric_name))
    for axis in (left, right):
        axis.set(xscale="log", xlabel=penalty)
        if now is not None:
            axis.axvline(now, color="grey", linewidth=1, linestyle="--", label="the run's" if axis is right else None)
    legend_beside(right)
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
    figure, (axis,) = new_figure(width=5.5 + width_beside(["evaluated on", *splits]))
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
    axis.set(xscale="log", xlabel="examples trained on", ylabel=short(metric_name))
    if as_error:
        axis.set_ylabel(f"error, 1 − {short(metric_name)}")
        axis.set_yscale("log", nonpositive="clip")
    axis.set_xticks(examples, [f"{n:,}" for n in examples])
    if max(examples) >= 100_000:
        tilt(axis, 30)
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
    figure, (axis,) = new_figure()
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
