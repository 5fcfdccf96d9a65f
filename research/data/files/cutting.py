"""Cuts rows into splits: stratified by class, by group, or by time."""

from collections.abc import Mapping

import numpy as np

from research.base.errors import UserError

_CHOICE = 0x63757420  # separates these random numbers from others of the same seed


def cut(
    size: int,
    fractions: Mapping[str, float],
    *,
    seed: int,
    classes: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    times: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The rows of each split: int64, ascending; together 0, …, size − 1. "train" has what `fractions` leave.

    Args:
      fractions: the fraction of the rows of each split other than "train".
      seed: of the order in which rows, or groups, are drawn.
      classes: int [size]; each split has each class's share of rows, up to rounding.
      groups: int [size]; all rows of a group are in one split. Takes the place of `classes`.
      times: [size]; the latest rows are in the last split, then come the others, and "train" has the earliest. Takes
        the place of all chance.

    Raises:
      UserError: a split is empty.
    """
    if times is not None:
        order = np.argsort(times, kind="stable")[::-1]
        place = np.empty(size, np.int64)
        place[order] = np.arange(size)
        fractions = dict(reversed(list(fractions.items())))
        splits = _by_place(place, size, fractions)
    elif groups is not None:
        splits = _by_group(groups, fractions, seed)
    else:
        splits = _by_class(np.zeros(size, np.int64) if classes is None else classes, fractions, seed)
    empty = next((name for name in splits if not len(splits[name])), None)
    if empty:
        asked = f"data.{empty}_fraction={fractions[empty]:g} of " if empty in fractions else ""
        of = "its groups" if groups is not None else "its rows"
        raise UserError(f"split {empty!r} is empty: {asked}{size:,} rows and {of} leave none; give a file of its own")
    return splits


def _bounds(size: int, fractions: Mapping[str, float]) -> dict[str, tuple[int, int]]:
    """The places of each split in an order of `size` rows, "train" last."""
    ends = np.rint(np.cumsum(list(fractions.values())) * size).astype(np.int64).tolist()
    return dict(zip((*fractions, "train"), zip((0, *ends), (*ends, size), strict=True), strict=True))


def _by_place(place: np.ndarray, size: int, fractions: Mapping[str, float]) -> dict[str, np.ndarray]:
    return {
        name: np.flatnonzero((place >= start) & (place < stop))
        for name, (start, stop) in _bounds(size, fractions).items()
    }


def _by_class(classes: np.ndarray, fractions: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """By rank within the class divided by the class's size: any part of that order has its share of each class."""
    size = len(classes)
    numbers = np.random.RandomState([seed, _CHOICE]).random_sample(size)
    order = np.lexsort((numbers, classes))
    counts = np.bincount(classes[order]) if size else np.zeros(0, np.int64)
    starts = np.cumsum(counts) - counts
    rank = np.empty(size, np.int64)
    rank[order] = np.arange(size) - starts[classes[order]]
    share = (rank + 0.5) / counts[classes]
    place = np.empty(size, np.int64)
    place[np.lexsort((numbers, share))] = np.arange(size)
    return _by_place(place, size, fractions)


def _by_group(groups: np.ndarray, fractions: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Whole groups in random order, each to the split in whose places the middle of its rows is."""
    counts = np.bincount(groups)
    drawn = np.random.RandomState([seed, _CHOICE]).permutation(len(counts))
    ends = np.cumsum(counts[drawn])
    middle = np.empty(len(counts))
    middle[drawn] = ends - counts[drawn] / 2
    return _by_place(middle[groups], len(groups), fractions)
