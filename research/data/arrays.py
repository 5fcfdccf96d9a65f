"""Feature vectors -> float64 arrays, which the devices have in the run's type."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.data.cache import Kept
from research.data.checks import check_finite
from research.data.columns import as_labels, column, only
from research.data.examples import ArrayExamples, Columns, Examples
from research.data.splits import BySplit


def standardize(
    splits: Mapping[str, Columns], kept: Kept, *, inputs: tuple[str, ...], label: str
) -> Mapping[str, Examples]:
    """Column `inputs` [N, D] with mean 0 and standard deviation 1 over `train`; constant columns become 0."""
    name = only(inputs)

    def fit() -> str:
        values = np.asarray(column(splits["train"], name, "train"), np.float64)
        check_finite(f"{name} of split 'train'", values)
        with np.errstate(over="ignore", invalid="ignore"):  # values near the type's end
            learnt = {"mean": values.mean(axis=0), "std": values.std(axis=0)}
        for what, column_values in learnt.items():
            check_finite(f"the {what} of {name} of split 'train'", column_values)
        return json.dumps({what: column_values.tolist() for what, column_values in learnt.items()})

    mean, scale = standardization(json.loads(kept.text("standardize.json", fit)))

    def encode(split: str) -> ArrayExamples:
        values = np.asarray(column(splits[split], name, split), np.float64)
        check_finite(f"{name} of split {split!r}", values)
        labels = np.asarray(column(splits[split], label, split))
        # Labels that are neither integers nor yes and no keep their digits too.
        labels = as_labels(labels) if labels.dtype.kind in "biu" else labels.astype(np.float64)
        return ArrayExamples({"features": (values - mean[None, :]) * scale[None, :], "labels": labels})

    return BySplit(splits, encode)


def standardization(learnt: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """mean and scale [D] of what standardize.json holds: a feature x becomes (x − mean) · scale."""
    mean, std = np.asarray(learnt["mean"]), np.asarray(learnt["std"])
    varies = std > 1e-12 * np.abs(mean)  # equal values have a standard deviation of a few rounding errors
    return mean, np.where(varies, 1 / np.where(varies, std, 1), 0)
