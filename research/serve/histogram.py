"""Histograms as plain numbers."""

import bisect
import itertools

SECONDS = tuple(float(f"{digit}e{power}") for power in range(-4, 2) for digit in (1, 2.5, 5))
SHARES = tuple(tenth / 10 for tenth in range(1, 11))


class Histogram:
    """Counts of values between bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """The counts up to each bound, as Prometheus has them."""
        return list(zip([*map(str, self.bounds), "+Inf"], itertools.accumulate(self.counts), strict=True))
