"""Splits by name: a value for each, made on first use, and parts of a split such as "test[:5%]"."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from research.base.errors import UserError

Value = TypeVar("Value")


class BySplit(Mapping[str, Value]):
    """The result of `make` for each split in `splits`, called once, when the split is first accessed."""

    def __init__(self, splits: Mapping[str, object], make: Callable[[str], Value]):
        self._splits = splits
        self._make = functools.cache(make)

    def __getitem__(self, split: str) -> Value:
        return self._make(split)  # not looked up in `splits`: cached values need no source

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)


_BOUND = r"-?\d+(?:_\d+)*|-?\d+(?:\.\d+)?%"
_SLICE = re.compile(rf"[^\[\]]+\[(?P<start>{_BOUND})?:(?P<stop>{_BOUND})?\]")


def whole(split: str) -> str:
    """The split that "test[:5%]" is a part of: "test"."""
    return split.partition("[")[0]


def members(split: str, size: int) -> np.ndarray | None:
    """The indices of a part's examples among the `size` of its whole split: int64 [M]; None for a whole split.

    A part is written as in TFDS: train[100:200], test[:5%], test[-10%:]. Percentages are rounded to the closest
    example, TFDS's default.

    Raises UserError for invalid notation, a part that reaches beyond the split, and an empty one.
    """
    if "[" not in split and "]" not in split:
        return None
    match = _SLICE.fullmatch(split)
    bounds = match.group("start", "stop") if match else ()
    given = [bound for bound in bounds if bound is not None]
    if not given or len({bound.endswith("%") for bound in given}) > 1:
        raise UserError(
            f"split {split!r} is not valid; write NAME[START:STOP], both in examples or both in percent, such as "
            "train[100:200], test[:5%] or test[-10%:]"
        )
    start, stop = (_position(bound, size, default) for bound, default in zip(bounds, (0, size), strict=True))
    if max(abs(start), abs(stop)) > size:
        raise UserError(f"split {split!r} reaches beyond the {size:,} examples of {whole(split)!r}")
    indices = np.arange(*slice(start, stop).indices(size))  # not a slice of all of them, which may be many
    if not len(indices):
        raise UserError(f"split {split!r} has no examples: {whole(split)!r} has {size:,}")
    return indices


def _position(bound: str | None, size: int, default: int) -> int:
    if bound is None:
        return default
    if bound.endswith("%"):
        return round(float(bound[:-1]) * size / 100)
    return int(bound)
