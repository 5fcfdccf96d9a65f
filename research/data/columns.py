"""The columns of a split as transforms read them: by name, as text, as labels."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.data.examples import Columns

# The column of the examples' own keys, which predictions carry: optional, and not part of a dataset's fingerprint.
KEY = "_key"


def as_text(value: str | bytes) -> str:
    """Decodes bytes as UTF-8, invalid ones as U+FFFD. Raises UserError for a value that is neither text nor bytes."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise UserError(f"{value!r} is not text but of type {type(value).__name__}")
    return value.decode("utf-8", errors="replace")


def column(columns: Columns, name: str, split: str) -> Any:
    """A column by name. Raises UserError if it does not exist, naming those that do."""
    if name not in columns:
        raise UserError(f"split {split!r} has no column {name!r}; it has {', '.join(columns)}")
    return columns[name]


def place(columns: Columns, split: str, index: int) -> str:
    """Where the example `index` of a split comes from, for an error message: the row or file of own files, if known."""
    where = getattr(columns, "where", None)
    return where(index) if where else f"example {index} of split {split!r}"


# Columns of a TFDS dataset that name an example.
_TFDS_KEYS = ("idx", "id")


def keys(columns: Columns) -> Callable[[int], Any] | None:
    """The function from an example's index to its own key, a number or text; None if keys are unknown.

    The key is the value of the column KEY, or of TFDS's "idx" or "id"; else the place of a TFDS record in its files,
    FILE__NUMBER, as TFDS's `add_tfds_id` names it.
    """
    for name in (KEY, *_TFDS_KEYS):
        values = columns.get(name)
        if values is not None:
            return functools.partial(_value, values)
    for values in columns.values():
        shards = getattr(values, "shards", None)
        if shards is not None:
            found: Callable[[int], Any] = shards.record
            return found
    return None


def _value(values: Any, index: int) -> Any:
    return plain(values[index])


def plain(value: Any) -> Any:
    """A value of a column for JSON: numbers, lists and text; bytes are decoded as UTF-8."""
    if isinstance(value, bytes):
        return as_text(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def only(inputs: tuple[str, ...]) -> str:
    """The only column that a transform reads. Raises UserError if `data.transform.inputs` does not name exactly one."""
    if len(inputs) != 1:
        raise UserError(f"data.transform.inputs is {tuple(inputs)}; it must name one column")
    return inputs[0]


def labels_entry(columns: Columns, name: str, split: str, labels: bool) -> dict[str, np.ndarray]:
    """{"labels": the column `name` as labels}; empty without `labels`."""
    return {"labels": as_labels(column(columns, name, split))} if labels else {}


def as_labels(values: Any) -> np.ndarray:
    """Casts labels: integers and booleans to int32, integers of more than 31 bits to float64, the rest to float32."""
    array = np.asarray(values)
    if array.dtype.kind not in "biu":
        return array.astype(np.float32)
    limits = np.iinfo(np.int32)
    fits = not array.size or (array.min() >= limits.min and array.max() <= limits.max)
    return array.astype(np.int32 if fits else np.float64)


def check_finite(what: str, values: np.ndarray) -> None:
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        where = ", ".join(map(str, wrong[0]))
        raise UserError(f"{what} holds {values[tuple(wrong[0])]} at [{where}]; every value must be finite")
