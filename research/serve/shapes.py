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
_FULL = 0.9  # of the best speed: a larger batch would only make its inputs wait longer


def fixed(rows: int) -> tuple[Shape, ...]:
    """Shapes for inputs of a fixed size: 1, 2, 4, …, `rows` rows."""
    return tuple(Shape(1 << power) for power in range(rows.bit_length()))


def packed(longest: int, items: int, *, fine: bool = True) -> tuple[Shape, ...]:
    """Shapes for sequences of at most `longest` items, and `items` in a batch if there is more than one row.

    A single row has 16, 24, 32, 48, 64, … or `longest` items, so that few or short inputs are fast. Of more rows, which
    several inputs share, each has `longest`.

    Args:
      fine: if not, each step is a factor of 4: for a device that takes long to compile, and about as long for a short
        row as for a longer one.
    """
    steps = _fine_steps if fine else _coarse_steps
    lengths = [*(length for length in steps(_SHORTEST, longest) if length < longest), longest]
    rows = steps(1, max(1, items // longest))
    return tuple(
        Shape(count, length, max(1, length // _PACKED))
        for length in lengths
        for count in (rows if length == longest else (1,))
    )


def _coarse_steps(first: int, last: int) -> list[int]:
    """The powers of 4 times `first`, up to `last`."""
    return [first << power for power in range(0, last.bit_length(), 2) if first << power <= last]


def _fine_steps(first: int, last: int) -> list[int]:
    """The powers of 2 times `first`, and 1.5 times those that are even, in order, up to `last`."""
    powers = [first << power for power in range(last.bit_length())]
    halves = [3 * power // 2 for power in powers if power % 2 == 0]
    return sorted(step for step in (*powers, *halves) if step <= last)


def choose(
    lengths: Sequence[int], seconds: Mapping[Shape, float], slots: Sequence[int] | None = None
) -> tuple[Shape, np.ndarray]:
    """The shape that has the most items of the inputs for its time. It holds the first input.

    Args:
      lengths: the items of each input; 1 if they have a fixed size.
      seconds: the time that a batch of each shape takes.
      slots: how many of a row's slots each input takes, at least 1; None for 1.

    Returns:
      The shape, and which inputs its rows hold: int [rows, slots], −1 for none. Inputs that are not in it have to wait.

    Raises:
      ValueError: an input is longer, or takes more slots, than any row has.
    """
    best: tuple[float, Shape, np.ndarray] | None = None
    layouts: dict[tuple[int | None, int], tuple[np.ndarray, np.ndarray]] = {}
    for shape, time in seconds.items():
        if shape.length is not None and (max(lengths) > shape.length or max(slots or (1,)) > shape.slots):
            continue
        form = (shape.length, shape.slots)
        if form not in layouts:
            rows = _rows(lengths, shape, slots)
            layouts[form] = rows, np.cumsum(np.append(lengths, 0)[rows].sum(axis=1))
        rows, items = layouts[form]
        count = min(shape.rows, len(rows))
        speed = items[count - 1] / time
        if best is None or speed > best[0]:
            best = speed, shape, rows[:count]
    if best is None:
        taken = f"{max(lengths)} items" + (f" and {max(slots)} slots" if slots else "")
        raise ValueError(f"an input of {taken} is longer than any row")
    _, shape, rows = best
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
    """The items of the largest batch to make: the smallest, within `batch_ms`, that has almost the best speed."""
    longest = max(shape.length or 1 for shape in seconds)
    full = [shape for shape in seconds if (shape.length or 1) == longest]
    fast = [shape for shape in full if seconds[shape] <= batch_ms / 1000] or [min(full)]
    best = max(shape.items / seconds[shape] for shape in fast)
    return min(shape.items for shape in fast if shape.items / seconds[shape] >= _FULL * best)
