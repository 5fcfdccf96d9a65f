"""Figures of a classifier's predictions, from arrays, as in `research.analysis.figures`.

Class labels are −1 where they are hidden; these examples are left out.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research.analysis.canvas import (
    LETTER,
    MOST_LINES,
    add_title,
    class_name,
    legend_beside,
    new_figure,
    short,
    tilt,
    width_beside,
)
from research.analysis.curves import Curve, confusion, precision_recall, roc
from research.base.errors import UserError

MOST_COUNTED = 20  # classes: with more, numbers in the cells are unreadable
AREA_IN_CORNER = 0.95  # ROC and precision-recall curves of at least this area lie near a corner


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
    texts = [f"{short(class_name(c, names))}, {area} {line.area:.4f}" for c, line in found.items()]
    mean = f"mean of {len(found)} classes, {area} {np.mean([line.area for line in found.values()]):.4f}"
    named = len(found) <= MOST_LINES
    shown = [*(texts if named else ()), *([mean] if len(found) > 1 else ())]
    figure, (axis,) = new_figure(width=4.5 + width_beside(shown), square=True)
    for text, line in zip(texts, found.values(), strict=True):
        axis.plot(line.x, line.y, label=text if named else None, linewidth=1.2)
    if len(found) > 1:
        axis.plot([], [], " ", label=mean)
    legend_beside(axis)
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
    marks = [short(name, 24) for name in names] or [str(c) for c in range(num_classes)]
    shown = min(num_classes, MOST_COUNTED)
    letters = LETTER * max(map(len, marks))
    size = max(4.5, 2.5 + 0.42 * shown + (letters if names and shown == num_classes else 0.0))
    figure, (axis,) = new_figure(width=size, height=size, square=True)
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
            tilt(axis, 45)
    axis.set(xlabel="prediction", ylabel="label")
    add_title(figure, f"accuracy {np.trace(counts) / counts.sum():.4f}")
    return figure
