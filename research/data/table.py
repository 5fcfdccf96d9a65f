"""Columns of numbers and categories as feature vectors: numbers standardized, categories one-hot."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from research.base.errors import UserError
from research.data.arrays import standardization
from research.data.cache import ArtifactCache
from research.data.columns import as_labels, column, place
from research.data.encoder import Encoder, Signature
from research.data.examples import Columns, first, labels_of
from research.data.files.columns import Categories, Rows
from research.data.files.kinds import MISSING_NUMBERS

# Examples that are read together where all are.
_PIECE = 2**16

_UNKNOWN = -1  # the code of a category that does not occur in training

# The way out of a missing value, in training (True: there are labels) and in prediction.
_WAY_OUT = {
    True: "give it, leave the column out, or take the column's mean (text: a category of its own) with "
    "--config.data.transform.missing=impute",
    False: "give it or remove the row; to predict for rows with missing values, train with "
    "--config.data.transform.missing=impute",
}

# What stands for a missing category that is imputed.
MISSING = "(missing)"


@dataclasses.dataclass(frozen=True)
class TableExamples:
    """Examples by column, each encoded when it is needed. A batch has features, float [B, D], and labels.

    `columns`: as `encoder.features` takes them.
    """

    row_axes: ClassVar[int] = 1

    columns: tuple[Any, ...]
    encoder: "TableEncoder"
    labels: np.ndarray | None
    size: int

    def __len__(self) -> int:
        return self.size

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        indices = first(members, rows)
        return {"features": self.encoder.features(self.columns, indices), **labels_of(self.labels, indices)}

    def unknown(self) -> dict[str, np.ndarray]:
        """By column of categories, the examples whose value is none of the known ones."""
        named = zip(self.encoder.learnt, self.columns, strict=True)
        return {name: np.flatnonzero(codes == _UNKNOWN) for name, codes in named if name in self.encoder.categories}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of numbers and of text -> feature vectors, as scikit-learn's StandardScaler and OneHotEncoder make them.

    A number is standardized to mean 0 and standard deviation 1 on `train`. A text is a category: a feature for each
    value that occurs in `train`, in the order of the values, of which that of its value is 1 and the others are 0; all
    are 0 for a value that does not occur there.

    Attributes:
      inputs: the columns.
      missing: "error" refuses a missing value; "impute" takes the column's mean for a number, and for a text a category
        of its own.
    """

    inputs: tuple[str, ...]
    label: str
    missing: str

    def __post_init__(self) -> None:
        if self.missing not in ("error", "impute"):
            raise UserError(f"data.transform.missing is {self.missing!r}; known: error, impute")
        if not self.inputs:
            raise UserError("data.transform.inputs is (); it must name at least one column of numbers or categories")

    def fit(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> "TableEncoder":
        def learn() -> str:
            train = splits["train"]
            return json.dumps({name: _learn(train, name) for name in self.inputs})

        learnt = json.loads(cache.text("table.json", learn, key=(1, tuple(self.inputs))))
        return TableEncoder(self, {name: learnt[name] for name in self.inputs})


def _learn(train: Columns, name: str) -> dict[str, Any]:
    """What is learnt of a column: {"mean", "std"} of its numbers, or its "categories", sorted.

    Raises UserError for a number that is not finite.
    """
    values = column(train, name, "train")
    if _is_text(values):
        return {"categories": sorted(_names(values))}
    count, mean, squares = 0, 0.0, 0.0
    for start in range(0, len(values), _PIECE):  # merged as in Chan et al. 1983
        piece = np.asarray(values[start : start + _PIECE], np.float64)
        infinite = np.flatnonzero(np.isinf(piece))
        if len(infinite):
            raise _infinite(place(train, "train", start + int(infinite[0])), name, piece[infinite[0]])
        piece = piece[~np.isnan(piece)]
        if len(piece):
            total, delta = count + len(piece), piece.mean() - mean
            squares += ((piece - piece.mean()) ** 2).sum() + delta**2 * count * len(piece) / total
            mean += delta * len(piece) / total
            count = total
    return {"mean": float(mean), "std": math.sqrt(squares / max(count, 1))}


def _infinite(where: str, name: str, value: float) -> UserError:
    return UserError(f"{where}: column {name!r} is {value}; every number must be finite")


def _names(values: Any) -> set[str]:
    """The distinct values of a column of text, except missing ones."""
    if isinstance(values, Rows) and isinstance(values.values, Categories):
        codes = values.take(slice(None)).codes
        return {values.values.names[code] for code in np.unique(codes) if code >= 0}
    if isinstance(values, Categories):
        return {values.names[code] for code in np.unique(values.codes) if code >= 0}
    return {name for name in map(as_category, values) if name is not None}


def _is_text(values: Any) -> bool:
    """Whether a column is of text. Raises UserError if it has several types."""
    values = values.values if isinstance(values, Rows) else values
    if isinstance(values, Categories):
        return True
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return False
    kinds = {isinstance(value, str | bytes) for value in values if value is not None}
    if len(kinds) > 1:
        raise UserError("a column has both numbers and text")
    return kinds == {True}


def as_category(value: Any) -> str | None:
    """A value as the name of a category: whole numbers without a decimal point; None where it is missing."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return value.strip() or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()  # as Arrow writes it
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else str(value)


def as_number(value: Any) -> float:
    """A value as a number: NaN where it is missing. Raises ValueError for text that is not a number."""
    if value is None or (isinstance(value, str) and value.strip() in MISSING_NUMBERS):
        return math.nan
    return float(value)


@dataclasses.dataclass(frozen=True)
class TableEncoder(Encoder):
    """Encodes columns of numbers and text. `learnt`: for each column its "mean" and "std", or its "categories"."""

    options: Table
    learnt: Mapping[str, Mapping[str, Any]]

    @property
    def signature(self) -> Signature:
        return Signature("table", tuple(self.options.inputs), self.options.label, {"features": len(self.feature_names)})

    @functools.cached_property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """The categories of each column that has them, with that of missing values at the end."""
        extra = (MISSING,) if self.options.missing == "impute" else ()
        return {name: (*learnt["categories"], *extra) for name, learnt in self.learnt.items() if "categories" in learnt}

    @functools.cached_property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the features [D]: of a number its column, of a category COLUMN=VALUE."""
        return tuple(
            feature
            for name in self.learnt
            for feature in (
                [f"{name}={value}" for value in self.categories[name]] if name in self.categories else [name]
            )
        )

    @property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        kept = [
            (np.zeros(len(self.categories[name])), np.ones(len(self.categories[name])))
            if name in self.categories
            else standardization(learnt)
            for name, learnt in self.learnt.items()
        ]
        mean, scale = (np.concatenate([np.atleast_1d(pair[i]) for pair in kept]) for i in (0, 1))
        return mean, scale

    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> TableExamples:
        read = tuple(self._column(columns, name, split, labels) for name in self.learnt)
        given = None
        if labels:
            given = np.asarray(column(columns, self.options.label, split))
            given = as_labels(given) if given.dtype.kind in "biu" else given.astype(np.float64)
        return TableExamples(read, self, given, len(read[0]))

    def _column(self, columns: Columns, name: str, split: str, labels: bool) -> Any:
        """A column as numbers, float [N], or as codes of its categories, int [N]; _UNKNOWN: another value."""
        values = column(columns, name, split)

        def missing(index: int) -> UserError:
            return UserError(f"{place(columns, split, index)}: column {name!r} has no value; {_WAY_OUT[labels]}")

        if name in self.categories:
            return self._codes(values, name, missing)
        return self._numbers(values, name, lambda index: place(columns, split, index), missing)

    def _numbers(self, values: Any, name: str, where: Callable[[int], str], missing: Callable[[int], UserError]) -> Any:
        if not (isinstance(values, Rows | np.ndarray) and np.asarray(values[:1]).dtype.kind in "biuf"):
            values = np.array([_number(value, name, where, i) for i, value in enumerate(values)], np.float64)
        for start in range(0, len(values), _PIECE):
            piece = np.asarray(values[start : start + _PIECE], np.float64)
            wrong = np.flatnonzero(np.isinf(piece) | (np.isnan(piece) & (self.options.missing == "error")))
            if len(wrong):
                value, index = piece[wrong[0]], start + int(wrong[0])
                if np.isnan(value):
                    raise missing(index)
                raise _infinite(where(index), name, value)
        return values

    def _codes(self, values: Any, name: str, missing: Callable[[int], UserError]) -> np.ndarray:
        position = {value: i for i, value in enumerate(self.categories[name])}
        absent = position.get(MISSING, -2)
        whole = values.take(slice(None)) if isinstance(values, Rows) else values
        if isinstance(whole, Categories):
            table = np.array([*(position.get(value, _UNKNOWN) for value in whole.names), absent], np.int32)
            codes = table[whole.codes]
        else:
            names = [as_category(value) for value in values]
            codes = np.array([absent if value is None else position.get(value, _UNKNOWN) for value in names], np.int32)
        empty = np.flatnonzero(codes == -2)
        if len(empty):
            raise missing(int(empty[0]))
        return codes

    def features(self, columns: Sequence[Any], indices: np.ndarray) -> np.ndarray:
        """The features of the examples `indices` [B] of columns as `_column` returns them: float64 [B, D]."""
        parts = []
        for (name, learnt), values in zip(self.learnt.items(), columns, strict=True):
            if name in self.categories:
                parts.append(values[indices][:, None] == np.arange(len(self.categories[name]))[None, :])
            else:
                mean, scale = standardization(learnt)
                numbers = (np.asarray(values[indices], np.float64) - mean) * scale
                parts.append(np.nan_to_num(numbers, nan=0.0)[:, None])
        return np.concatenate(parts, axis=1, dtype=np.float64)


def _number(value: Any, name: str, where: Callable[[int], str], index: int) -> float:
    try:
        return as_number(value)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{where(index)}: column {name!r} is {value!r:.40}, not a number") from None
