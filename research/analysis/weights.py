"""The coefficients of a linear model, one name each, whatever its shape."""

import dataclasses

import numpy as np

from research.errors import UserError
from research.rundir import RunDir
from research.trained import Trained

LINEAR = ("linear", "logistic", "sparse_logistic")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Values [D] and, where they are known, 95 % intervals, low and high [D]: those of one output after another's."""

    values: np.ndarray
    outputs: int  # D is a multiple of it
    intervals: tuple[np.ndarray, np.ndarray] | None = None

    def name(self, index: int) -> str:
        """What the coefficient `index` is of."""
        output, feature = divmod(index, len(self.values) // self.outputs)
        return f"feature {feature}" + (f", class {output}" if self.outputs > 1 else "")


def weights(run: RunDir, which: str = "last") -> Weights:
    """Of the `last` or `best` checkpoint; those of two classes are class 1's less class 0's. No intercepts; of
    several seeds the first one's.

    Raises UserError where the model is not linear.
    """
    trained = Trained(run, which)
    name = trained.config.model.name
    if name not in LINEAR:
        raise UserError(f"model {name!r} has no coefficients; {', '.join(LINEAR)} have")
    _, state = trained.single
    params = state.params if name == "sparse_logistic" else state.params["linear"]
    kernel = np.asarray(params["kernel"], np.float64)
    if kernel.shape[1] == 2:
        kernel = kernel[:, 1:] - kernel[:, :1]
    return Weights(kernel.T.ravel(), kernel.shape[1])
