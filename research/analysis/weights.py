"""The coefficients of a linear model, one name each, whatever its shape."""

import dataclasses

import numpy as np

from research.errors import UserError
from research.rundir import RunDir
from research.trained import Trained

LINEAR = ("linear", "logistic", "sparse_logistic")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Names [D], values [D] and, where they are known, 95 % intervals: low and high [D]."""

    names: list[str]
    values: np.ndarray
    intervals: tuple[np.ndarray, np.ndarray] | None = None


def weights(run: RunDir, which: str = "last") -> Weights:
    """Of the `last` or `best` checkpoint; those of two classes are class 1's less class 0's. No intercepts.

    Raises UserError where the model is not linear.
    """
    trained = Trained(run, which)
    name = trained.config.model.name
    if name not in LINEAR:
        raise UserError(f"model {name!r} has no coefficients; {', '.join(LINEAR)} have")
    _, state = trained.loaded
    params = state.params if name == "sparse_logistic" else state.params["linear"]
    kernel = np.asarray(params["kernel"], np.float64)
    if kernel.shape[1] == 2:
        kernel = kernel[:, 1:] - kernel[:, :1]
    features, outputs = kernel.shape
    if outputs == 1:
        return Weights([f"feature {i}" for i in range(features)], kernel[:, 0])
    return Weights([f"feature {i}, class {c}" for c in range(outputs) for i in range(features)], kernel.T.ravel())
