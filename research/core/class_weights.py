"""Weights of classes in a task's loss, which depend on the training split's labels."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.core.tasks import SquaredHinge, Task


def with_class_weights(task: Task, labels: np.ndarray, num_classes: int | None) -> Task:
    """The task with class_weight as one number per class, computed from the training split's labels [N].

    Raises UserError unless it is "balanced" or a finite number of at least 0 for each class.
    """
    given = getattr(task, "class_weight", None)
    if given is None:
        return task
    if isinstance(given, str):
        if given != "balanced":
            raise UserError(f"task.class_weight is {given!r}; known: balanced, or a number for each class")
        counts = np.bincount(labels, minlength=num_classes or 0)
        given = np.where(counts > 0, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0)
    elif not isinstance(given, Sequence) or len(given) != num_classes or not all(map(_weighs, given)):
        raise UserError(
            f"task.class_weight is {given}; it must be {num_classes} numbers, none below 0, one for each class in "
            "order, or balanced"
        )
    return dataclasses.replace(task, class_weight=tuple(map(float, given)))  # type: ignore[type-var]


def _weighs(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def training_weight(task: Task, labels: np.ndarray) -> float:
    """The total weight in the loss of training examples with these labels [N], −1 where hidden."""
    weights = getattr(task, "class_weight", None)
    if weights is None or (isinstance(task, SquaredHinge) and len(weights) > 2):
        return float(len(labels))
    total = float(np.asarray(weights)[labels[labels >= 0]].sum())
    if total <= 0:
        raise UserError(
            f"task.class_weight is {tuple(weights)}; at least one training example must have a positive weight"
        )
    return total
