"""Models with a table of parameters, from which a batch reads some rows by number: only these rows are fitted.

A row that no training example reads has no gradient. If it is penalized its solution is 0; otherwise any value is as
good as its initial one. In SST-2 a bag of words in 2**20 buckets reads 78,000 of them: the solver's vectors are that
much shorter, and the rows that are read are contiguous in the processor's cache.

Such models have an attribute `table`: the names of the parameter [rows, …], of the batch's entry with the row numbers,
and of the module's attribute with the number of rows.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from research.core.optim import decay_mask
from research.core.state import param_count
from research.core.tasks import Batch


@dataclasses.dataclass(frozen=True)
class Table:
    """The table in a module's parameters, and the number of its rows that the training batch reads."""

    parameter: str
    entry: str
    attribute: str
    rows: int

    @classmethod
    def of(cls, module: nn.Module, batch: Callable[[], Mapping[str, np.ndarray]]) -> "Table | None":
        """The table of a model, if it has one; `batch` makes a batch of all training examples."""
        if not hasattr(module, "table"):
            return None
        parameter, entry, attribute = module.table
        read = np.zeros(getattr(module, attribute), bool)
        read[batch()[entry]] = True
        read[0] = True  # read by rows of padding
        return cls(parameter, entry, attribute, int(np.count_nonzero(read)))

    def count(self, params: Any) -> int:
        """The number of parameters that are fitted."""
        table = params[self.parameter]
        return param_count(params) - param_count(table) // table.shape[0] * (table.shape[0] - self.rows)

    def narrowed(
        self, module: nn.Module, params: Any, batch: Batch, *, weight_decay: float, decay_exclude: str
    ) -> tuple[nn.Module, Any, Batch, Callable[[Any], Any]]:
        """The problem with only the rows that are read, and the function from its solution to all parameters."""
        table, numbers = params[self.parameter], batch[self.entry]
        read = jnp.zeros(len(table), bool).at[numbers.reshape(-1)].set(True)
        # Past the end if fewer rows are read than were counted.
        (rows,) = jnp.nonzero(read, size=self.rows, fill_value=len(table))
        new_numbers = jnp.cumsum(read, dtype=numbers.dtype) - 1
        penalized = weight_decay > 0 and decay_mask(params, decay_exclude)[self.parameter]

        def widened(found: Any) -> Any:
            start = jnp.zeros_like(table) if penalized else table
            return {**found, self.parameter: start.at[rows].set(found[self.parameter], mode="drop")}

        size: dict[str, Any] = {self.attribute: self.rows}
        return (
            module.clone(**size),
            {**params, self.parameter: table.at[rows].get(mode="fill", fill_value=0)},
            {**batch, self.entry: new_numbers[numbers]},
            widened,
        )
