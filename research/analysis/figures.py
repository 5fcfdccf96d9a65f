"""Numbers -> figures. Nothing is read or written here: a notebook shows what is returned, or calls `savefig`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research.analysis.curves import Curve, confusion, precision_recall, roc

MOST_LINES = 10  # that a legend can name and an eye tell apart
MOST_COEFFICIENTS = 30
MOST_COUNTED = 20  # classes: numbers in more cells than theirs can't be read


def _figure(columns: int = 1, *, width: float = 5.5, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def add_title(figure: Figure, text: str) -> None:
    """Puts a line above a figure, below the one it may have."""
    figure.suptitle("\n".join(filter(None, (figure.get_suptitle(), text))), fontsize=11)


def class_name(c: int, names: Sequence[str]) -> str:
    """What class `c` is called; `names` is empty where they have none."""
    return names[c] if names else f"class {c}"


def fitted_line(x: np.ndarray, labels: np.ndarray, predictions: np.ndarray, *, name: str = "x") -> Figure:
    """The data over one feature, in its own units, and what the model makes of it: x, labels, predictions [N]."""
    figure, (axis,) = _figure()
    order = np.argsort(x)
    axis.scatter(x, labels, s=8, alpha=0.5, label="data")
    axis.plot(x[order], predictions[order], color="C3", label="fit")
    axis.set(xlabel=name, ylabel="label")
    axis.legend()
    return figure


def residuals(labels: np.ndarray, predictions: np.ndarray) -> Figure:
    """Label − prediction over the prediction, and how the differences are distributed: labels, predictions [N].

    The curve beside the histogram is the normal density of the same mean and standard deviation.
    """
    difference = labels - predictions
    figure, (over, spread) = _figure(2)
    over.scatter(predictions, difference, s=8, alpha=0.5)
    over.axhline(0, color="C3", linewidth=1)
    over.set(xlabel="prediction", ylabel="label − prediction")
    spread.hist(difference, bins="auto", density=True, alpha=0.6)
    mean, deviation = difference.mean(), difference.std()
    if deviation > 0:
        at = np.linspace(difference.min(), difference.max(), 200)
        density = np.exp(-((at - mean) ** 2) / (2 * deviation**2)) / (deviation * np.sqrt(2 * np.pi))
        spread.plot(at, density, color="C3", label=f"normal: {mean:.3g} ± {deviation:.3g}")
        spread.legend()
    spread.set(xlabel="label − prediction", ylabel="density")
    return figure


def coefficients(
    names: Sequence[str],
    values: np.ndarray,
    intervals: tuple[np.ndarray, np.ndarray] | None,
    *,
    scale: np.ndarray,
    title: str,
) -> Figure:
    """One coefficient a line, the last on top: values [D], intervals (low [D], high [D]) where there are any.

    `scale` [D]: those of standardized features are values / scale. Where it is not the same for all, only they can be
    compared with one another, and are on the left.
    """
    per_unit = np.ones(len(values)), "coefficient, of one unit of the feature"
    if np.ptp(scale) > 0:
        # The coefficient of a constant feature, whose scale is 0, is 0.
        panels = [(np.where(scale > 0, scale, 1), "coefficient, of one standard deviation of the feature"), per_unit]
    else:
        panels = [per_unit]
    figure, axes = _figure(len(panels), height=1.6 + 0.22 * len(names))
    at = np.arange(len(names))
    for axis, (unit, label) in zip(axes, panels, strict=True):
        if intervals is None:
            axis.barh(at, values / unit, alpha=0.7)
        else:
            axis.hlines(at, *(end / unit for end in intervals), linewidth=3, alpha=0.4)
            axis.plot(values / unit, at, "o", markersize=4)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_yticks(at, names, fontsize=8)
        axis.set(xlabel=label, ylim=(-0.7, len(names) - 0.3))
    figure.suptitle(title if intervals is None else f"{title}, 95 % intervals", fontsize=11)
    return figure


def rocs(labels: np.ndarray, scores: np.ndarray, names: Sequence[str] = ()) -> Figure:
    """ROC curves: labels [N], scores [N, C], names [C] or none.

    Of two classes that of class 1, of more each one against the rest.
    """
    figure, (axis,) = _figure()
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    _one_versus_rest(axis, labels, scores, curve=roc, area="AUC", names=names)
    axis.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    return figure


def precision_recalls(labels: np.ndarray, scores: np.ndarray, names: Sequence[str] = ()) -> Figure:
    """Precision over recall, for the same curves as `rocs`."""
    figure, (axis,) = _figure()
    _one_versus_rest(axis, labels, scores, curve=precision_recall, area="AP", names=names)
    axis.set(xlabel="recall", ylabel="precision", ylim=(0, 1.03), aspect="equal")
    return figure


def areas(
    labels: np.ndarray, scores: np.ndarray, curve: Callable[[np.ndarray, np.ndarray], Curve | None]
) -> dict[int, Curve]:
    """`roc` or `precision_recall` of each class that has one, against the rest; of two classes of class 1 alone."""
    classes = range(scores.shape[1]) if scores.shape[1] > 2 else (1,)
    found = {c: curve(scores[:, c], labels == c) for c in classes}
    return {c: line for c, line in found.items() if line is not None}


def _one_versus_rest(
    axis: Axes,
    labels: np.ndarray,
    scores: np.ndarray,
    *,
    curve: Callable[[np.ndarray, np.ndarray], Curve | None],
    area: str,
    names: Sequence[str],
) -> None:
    found = areas(labels, scores, curve)
    for c, line in found.items():
        name = f"{class_name(c, names)}, {area} {line.area:.4f}" if len(found) <= MOST_LINES else None
        axis.plot(line.x, line.y, label=name, linewidth=1.2)
    if len(found) > 1:
        mean = np.mean([line.area for line in found.values()])
        axis.plot([], [], " ", label=f"mean of {len(found)} classes, {area} {mean:.4f}")
    axis.legend(fontsize=8)


def confusion_matrix(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, names: Sequence[str] = ()
) -> Figure:
    """Counts of (class, prediction), coloured by their part of the class: labels, predictions int [N], names [C].

    Of more than 20 classes the cells are smaller, not the figure larger, and have neither numbers nor names.
    """
    counts = confusion(labels, predictions, num_classes)
    size = 2.5 + 0.42 * min(num_classes, MOST_COUNTED)
    figure, (axis,) = _figure(width=size, height=size)
    axis.grid(visible=False)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if num_classes <= MOST_COUNTED:
        for i, j in np.ndindex(counts.shape):
            colour = "white" if share[i, j] > 0.5 else "black"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=7)
        marks = names or [str(c) for c in range(num_classes)]
        axis.set_xticks(range(num_classes), marks, rotation=30 if names else 0)
        axis.set_yticks(range(num_classes), marks)
    axis.set(xlabel="prediction", ylabel="label", title=f"accuracy {np.trace(counts) / counts.sum():.4f}")
    return figure


def regularization_path(
    values: Sequence[float],
    paths: np.ndarray,
    metric: Sequence[float],
    *,
    penalty: str,
    metric_name: str,
    names: Sequence[str],
    now: float | None,
    best: float,
    unpenalized: float | None = None,
) -> Figure:
    """Coefficients [V, D] and a metric [V] over the penalties `values` [V].

    `now` is the run's own penalty, None without one; `best`, of `values`, has the best metric; `unpenalized` is the
    metric of a run without a penalty. The coefficients that grow largest are named; of more than 30 only these are
    drawn.
    """
    figure, (left, right) = _figure(2)
    largest = np.argsort(-np.abs(paths).max(axis=0), kind="stable")[:MOST_COEFFICIENTS]
    for rank, i in enumerate(largest):
        left.plot(values, paths[:, i], linewidth=1.2, label=names[i] if rank < MOST_LINES else None)
    left.axhline(0, color="black", linewidth=1)
    title = f"the {len(largest)} that grow largest" if len(names) >= MOST_COEFFICIENTS else ""
    left.set(ylabel="coefficient, of features as the model reads them", title=title)
    left.legend(fontsize=7)
    right.plot(values, metric, "o-", markersize=4)
    right.plot([best], [metric[values.index(best)]], "*", markersize=13, color="C3", label=f"best: {best:.3g}")
    if unpenalized is not None:
        right.axhline(unpenalized, color="grey", linewidth=1, linestyle=":", label="the run, without a penalty")
    right.set(ylabel=metric_name)
    for axis in (left, right):
        axis.set(xscale="log", xlabel=penalty)
        if now is not None:
            axis.axvline(now, color="grey", linewidth=1, linestyle="--", label="the run's" if axis is right else None)
    right.legend(fontsize=8)
    return figure


def learning_curve(points: Sequence[Mapping[str, Any]], *, metric_name: str) -> Figure:
    """A metric over the number of training examples: points with "examples" and, for each split under "metrics",
    "mean", "low" and "high", the last two None without repeats: there the band has a gap."""
    figure, (axis,) = _figure()
    examples = [point["examples"] for point in points]
    for split in points[0]["metrics"]:
        of_split = [point["metrics"][split] for point in points]
        (line,) = axis.plot(examples, [point["mean"] for point in of_split], "o-", markersize=4, label=split)
        low, high = (np.array([point[end] for point in of_split], np.float64) for end in ("low", "high"))  # None: nan
        axis.fill_between(examples, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        axis.vlines(examples, low, high, alpha=0.5, color=line.get_color(), linewidth=1)  # a lone point has no band
    axis.set(xscale="log", xlabel="training examples", ylabel=metric_name)
    axis.set_xticks(examples, [f"{n:,}" for n in examples])
    axis.minorticks_off()
    axis.legend()
    return figure


def ladder(rows: Sequence[Mapping[str, Any]], *, split: str) -> Figure:
    """Error over the time that training takes, both logarithmic: rows with "rung", "accuracy" and "train_seconds".

    An error of 0, which has no place there, is drawn as that of half an example. A row whose time is None is not drawn.
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
    return figure
