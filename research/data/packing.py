"""Packs several texts per row, so that hardly any token of a batch is padding."""

import numpy as np

from research.base.errors import UserError


def best_fit(lengths: np.ndarray, capacity: int, order: np.ndarray, unit: str = "tokens") -> np.ndarray:
    """Packs examples into rows of at most `capacity` tokens: int64 [R, E], example indices, −1 where empty.

    Takes the examples in `order` and appends each to the fullest row that still has room (best fit, Johnson 1974).
    Sorting them by length first would fill rows slightly better, but short ones would share rows: the number of
    examples per batch would vary twice as much.

    Raises UserError for an example that is longer than a row, giving its length in `unit`.
    """
    if lengths.min(initial=1) < 1:
        raise ValueError("an example without tokens can't be packed")
    longest = int(lengths.max(initial=0))
    if longest > capacity:
        raise UserError(
            f"an example has {longest} {unit}, but data.transform.row_length is {capacity}; raise it, or lower "
            "data.transform.max_length to truncate longer examples"
        )
    rows: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the tokens they have left
    spaces = 0  # bit s is set where by_space[s] holds a row
    for index in order.tolist():
        length = int(lengths[index])
        enough = spaces >> length
        if enough:
            space = length + (enough & -enough).bit_length() - 1  # the lowest bit
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            row, space = len(rows), capacity
            rows.append([])
        rows[row].append(index)
        by_space[space - length].append(row)
        spaces |= 1 << (space - length)
    packed = np.full((len(rows), max(map(len, rows), default=1)), -1, np.int64)
    for row, members in enumerate(rows):
        packed[row, : len(members)] = members
    return packed
