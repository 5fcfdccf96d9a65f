"""The batch shapes that are compiled, and which one a set of inputs needs. No other shape is ever run."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from research.data.packing import best_fit


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """A batch of `rows` rows. For sequences a row has `length` items, of at most `slots` inputs.

    `length` is None for inputs of a fixed size, of which a row has one.
    """

    rows: int
    length: int | None = None
    slots: int = 1

    @property
    def items(self) -> int:
        """The items that a batch has room for."""
        return self.rows * (self.length or 1)


_SHORTEST = 16  # items: shorter rows are not faster
_PACKED = 8  # items of a row for each slot


def fixed(rows: int) -> tuple[Shape, ...]:
    """Shapes for inputs of a fixed size: 1, 2, 4, …, `rows` rows."""
    return tuple(Shape(1 << power) for power in range(rows.bit_length()))


def packed(longest: int, items: int) -> tuple[Shape, ...]:
    """Shapes for sequences of at most `longest` items, and `items` in a batch if there is more than one row.

    Their lengths are 16, 32, 64, … and `longest`, so that a single short input is fast. Only the longest rows come in
    large numbers, as several inputs share each.
    """
    lengths = [_SHORTEST << power for power in range(longest.bit_length()) if _SHORTEST << power < longest]
    found = []
    for length in [*lengths, longest]:
        most = max(1, items // length if length == longest else min(items, 2 * longest) // length)
        slots = max(1, length // _PACKED)
        found += [Shape(1 << power, length, slots) for power in range(most.bit_length())]
    return tuple(found)


def choose(
    lengths: Sequence[int], seconds: Mapping[Shape, float], slots: Sequence[int] | None = None
) -> tuple[Shape, np.ndarray]:
    """The shape that holds the inputs, or as many of the first ones as any does, in the least time.

    Args:
      lengths: the items of each input; 1 if they have a fixed size.
      seconds: the time that a batch of each shape takes.
      slots: how many of a row's slots each input takes, at least 1; None for 1.

    Returns:
      The shape, and which inputs its rows hold: int [rows, slots], −1 for none. Inputs that are not in it have to wait.

    Raises:
      ValueError: an input is longer, or takes more slots, than any row has.
    """
    best: tuple[int, float, Shape, np.ndarray] | None = None
    layouts: dict[tuple[int | None, int], np.ndarray] = {}
    for shape, time in seconds.items():
        if shape.length is not None and (max(lengths) > shape.length or max(slots or (1,)) > shape.slots):
            continue
        form = (shape.length, shape.slots)
        if form not in layouts:
            layouts[form] = _rows(lengths, shape, slots)
        rows = layouts[form][: shape.rows]
        left = len(lengths) - int(np.count_nonzero(rows >= 0))
        if best is None or (left, time) < best[:2]:
            best = left, time, shape, rows
    if best is None:
        taken = f"{max(lengths)} items" + (f" and {max(slots)} slots" if slots else "")
        raise ValueError(f"an input of {taken} is longer than any row")
    _, _, shape, rows = best
    members = np.full((shape.rows, shape.slots), -1, np.int64)
    members[: len(rows), : rows.shape[1]] = rows
    return shape, members


def _rows(lengths: Sequence[int], shape: Shape, slots: Sequence[int] | None) -> np.ndarray:
    """The inputs in rows, in their order: int [R, E]."""
    if shape.length is None:
        return np.arange(len(lengths))[:, None]
    # Each slot that an input takes is a share of the row.
    taken = np.maximum(lengths, [-(-n * shape.length // shape.slots) for n in slots or [1] * len(lengths)])
    return best_fit(taken, shape.length, np.arange(len(lengths)))


def capacity(seconds: Mapping[Shape, float], batch_ms: float) -> int:
    """The items of the largest batch to make: the smallest, within `batch_ms`, that has almost the best speed.

    A larger one would only make its inputs wait longer.
    """
    longest = max(shape.length or 1 for shape in seconds)
    full = [shape for shape in seconds if (shape.length or 1) == longest]
    fast = [shape for shape in full if seconds[shape] <= batch_ms / 1000] or [min(full)]
    best = max(shape.items / seconds[shape] for shape in fast)
    return min(shape.items for shape in fast if shape.items / seconds[shape] >= 0.9 * best)
