"""ROC and precision-recall curves, and confusion counts, of a classifier: numpy, float64."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of a curve, [N] each, and its area."""

    x: np.ndarray
    y: np.ndarray
    area: float


def roc(scores: np.ndarray, positive: np.ndarray) -> Curve | None:
    """The receiver operating characteristic of scores [N] for the true labels `positive`, bool [N].

    False positive rate against true positive rate, a point for each distinct score (Fawcett 2006, algorithm 1); `area`
    is the probability that a positive example has a higher score than a negative one, ties counting half. None if
    there are no positive or no negative examples: the curve is then undefined.
    """
    true, false = _counts(scores, positive)
    if not (true[-1] and false[-1]):
        return None
    x, y = np.append(0, false / false[-1]), np.append(0, true / true[-1])
    return Curve(x, y, float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)))


def precision_recall(scores: np.ndarray, positive: np.ndarray) -> Curve | None:
    """Recall against precision, a point for each distinct score in descending order, starting with (0, 1).

    `area` is the average precision Σ (R_n − R_{n−1}) P_n, which does not interpolate: between two points the
    trapezoid is too optimistic (Davis & Goadrich 2006, section 4). None without positive examples.
    """
    true, false = _counts(scores, positive)
    if not true[-1]:
        return None
    recall, precision = np.append(0, true / true[-1]), np.append(1, true / (true + false))
    return Curve(recall, precision, float(np.sum(np.diff(recall) * precision[1:])))


def _counts(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives for each distinct score as the threshold for positive predictions."""
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order].astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of equal scores
    true = np.cumsum(positive)[last]
    return true, last + 1 - true


def confusion(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """The confusion matrix, int64 [C, C]: rows are labels, columns predictions. Hidden labels, −1, don't count."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels[labels >= 0], predictions[labels >= 0]), 1)
    return counts
