"""Feature vectors -> float64 arrays, which the devices have in the run's type."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.data.checks import check_finite
from research.data.examples import ArrayExamples, Columns, Examples
from research.data.kept import Kept
from research.data.splits import BySplit
from research.data.text import as_labels, column


def standardize(
    splits: Mapping[str, Columns], kept: Kept, *, inputs: tuple[str, ...], label: str
) -> Mapping[str, Examples]:
    """Column `inputs` [N, D] with mean 0 and standard deviation 1 over `train`; constant columns become 0."""
    (name,) = inputs

    def fit() -> str:
        values = np.asarray(column(splits["train"], name, "train"), np.float64)
        check_finite(f"{name} of split 'train'", values)
        return json.dumps({"mean": values.mean(axis=0).tolist(), "std": values.std(axis=0).tolist()})

    mean, scale = standardization(json.loads(kept.text("standardize.json", fit)))

    def encode(split: str) -> ArrayExamples:
        values = np.asarray(column(splits[split], name, split), np.float64)
        check_finite(f"{name} of split {split!r}", values)
        labels = np.asarray(column(splits[split], label, split))
        # Labels that are no integers keep their digits too.
        labels = as_labels(labels) if np.issubdtype(labels.dtype, np.integer) else labels.astype(np.float64)
        return ArrayExamples({"features": (values - mean[None, :]) * scale[None, :], "labels": labels})

    return BySplit(splits, encode)


def standardization(learnt: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """mean and scale [D] of what standardize.json holds: a feature x becomes (x − mean) · scale."""
    mean, std = np.asarray(learnt["mean"]), np.asarray(learnt["std"])
    varies = std > 1e-12 * np.abs(mean)  # equal values have a standard deviation of a few rounding errors
    return mean, np.where(varies, 1 / np.where(varies, std, 1), 0)
