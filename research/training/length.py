"""How long a run is: in steps and rows."""

import dataclasses
import math
from typing import Any

from research.base.errors import UserError
from research.base.ranges import LARGEST


@dataclasses.dataclass(frozen=True)
class Length:
    """The length of a run.

    Attributes:
      batch_rows: rows per step: examples, or rows of packed texts.
      total_steps: steps in the whole run.
      total_rows: rows in the whole run, where its length is given in epochs; the last step may have fewer than
        `batch_rows`.
    """

    batch_rows: int
    total_steps: int
    total_rows: int | None


def length_of(train: Any, rows: int) -> Length:
    """The length of a run whose epoch has `rows` rows. Raises UserError if it is missing or given twice."""
    for one, other in (("epochs", "steps"), ("batch_size", "batch_rows")):
        if (train[one] is None) == (train[other] is None):
            raise UserError(f"train.{one} is {train[one]} and train.{other} is {train[other]}; give one of the two")
    batch_rows = train.batch_size if train.batch_rows is None else train.batch_rows
    if batch_rows == -1:
        batch_rows = rows
    if train.steps is not None:
        steps, total = train.steps, None
    else:
        total = round(train.epochs * rows)
        steps = math.ceil(total / batch_rows)
    if not 1 <= steps <= LARGEST:
        raise UserError(
            f"train.steps={train.steps}, train.epochs={train.epochs} give {steps} steps; there must be 1 to {LARGEST}"
        )
    return Length(batch_rows, steps, total)
