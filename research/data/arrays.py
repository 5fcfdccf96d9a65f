"""Feature vectors, standardized."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.data.cache import ArtifactCache
from research.data.columns import as_labels, check_finite, column, only
from research.data.encoder import Encoder, Signature
from research.data.examples import ArrayExamples, Columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standardize:
    """Standardizes the column `inputs` [N, D] to mean 0 and standard deviation 1 on `train`; constants become 0."""

    inputs: tuple[str, ...]
    label: str

    def fit(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> "StandardizingEncoder":
        name = only(self.inputs)

        def learn() -> str:
            values = np.asarray(column(splits["train"], name, "train"), np.float64)
            check_finite(f"{name} of split 'train'", values)
            with np.errstate(over="ignore", invalid="ignore"):  # values near the type's limit
                learnt = {"mean": values.mean(axis=0), "std": values.std(axis=0)}
            for what, column_values in learnt.items():
                check_finite(f"the {what} of {name} of split 'train'", column_values)
            return json.dumps({what: column_values.tolist() for what, column_values in learnt.items()})

        mean, scale = standardization(json.loads(cache.text("standardize.json", learn)))
        return StandardizingEncoder(name, self.label, mean, scale)


@dataclasses.dataclass(frozen=True)
class StandardizingEncoder(Encoder):
    """Transforms a feature x to (x − mean) · scale, each [D]."""

    name: str
    label: str
    mean: np.ndarray
    scale: np.ndarray

    @property
    def signature(self) -> Signature:
        return Signature("features", (self.name,), self.label, {"features": int(np.size(self.mean))})

    @property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        return self.mean, self.scale

    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> ArrayExamples:
        values = np.asarray(column(columns, self.name, split), np.float64)
        if values.shape[1:] != self.mean.shape:
            raise UserError(
                f"{self.name} of split {split!r} has the shape {list(values.shape)}; it must be [N, "
                f"{', '.join(map(str, self.mean.shape))}], as in training"
            )
        check_finite(f"{self.name} of split {split!r}", values)
        features = (values - self.mean[None, :]) * self.scale[None, :]
        if not labels:
            return ArrayExamples({"features": features})
        given = np.asarray(column(columns, self.label, split))
        # Labels that are neither integers nor booleans keep their precision too.
        given = as_labels(given) if given.dtype.kind in "biu" else given.astype(np.float64)
        return ArrayExamples({"features": features, "labels": given})


def standardization(learnt: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The mean and scale [D] from the contents of standardize.json: a feature x becomes (x − mean) · scale."""
    mean, std = np.asarray(learnt["mean"]), np.asarray(learnt["std"])
    varies = std > 1e-12 * np.abs(mean)  # equal values have a standard deviation of a few rounding errors
    return mean, np.where(varies, 1 / np.where(varies, std, 1), 0)
