"""The largest batch that fits."""

from collections.abc import Callable


def largest(fits: Callable[[int], bool], start: int, limit: int) -> int:
    """The largest n ≤ `limit` for which `fits`, to within a sixteenth; 0 if not even 1 does.

    Args:
      fits: whether n multiples of the smallest batch do; slow, called about log2(limit) times.
      start: the first to try.
    """
    low, high, n = 0, limit + 1, min(start, limit)
    while high - low > max(1, low // 16):
        if fits(n):
            low = n
            n = 2 * n if high > limit else (low + high) // 2
        else:
            high = n
            n = (low + high) // 2
        n = max(low + 1, min(n, high - 1))
    return low
