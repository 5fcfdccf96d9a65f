"""The order of the documents of one or several corpora: which one stands at a position, for any position.

Documents are an infinite sequence. The source of position p is a function of p alone: weights are made whole numbers
c_s without a common divisor, and each period of Σ c_s positions draws source s exactly c_s times, spread as evenly as
possible. So the number of earlier draws of a source is known in closed form, and with it the place in the source's own
epoch, whose order is a keyed permutation (research/data/bijection.py): no document is repeated within an epoch of its
source, and seeking takes as long as taking the next one.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from research.base.errors import UserError
from research.data.bijection import Bijection, order_key

LONGEST_PERIOD = 10_000


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The source of each position; `counts`: how often each source is drawn in a period."""

    counts: tuple[int, ...]

    @classmethod
    def of(cls, weights: Sequence[float]) -> "Schedule":
        """The shortest exact schedule of these weights. Raises UserError for one that is not positive, or too precise.

        Weights are taken as they are written: 0.1 is a tenth.
        """
        for weight in weights:
            if not 0 < weight < math.inf:
                raise UserError(f"data.shards.weights is {tuple(weights)}; each must be above 0 and finite")
        exact = [Fraction(repr(float(weight))) for weight in weights]
        scale = math.lcm(*(each.denominator for each in exact))
        whole = [int(each * scale) for each in exact]
        counts = tuple(count // math.gcd(*whole) for count in whole)
        if sum(counts) > LONGEST_PERIOD:
            raise UserError(
                f"data.shards.weights is {tuple(weights)}, which are exact only in {sum(counts):,} documents; at most "
                f"{LONGEST_PERIOD:,}: give weights of fewer digits"
            )
        return cls(counts)

    @property
    def period(self) -> int:
        return sum(self.counts)

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each position in a period, the source and how often it was drawn before: int64 [P] each."""
        sources = np.repeat(np.arange(len(self.counts)), self.counts)
        ranks = np.concatenate([np.arange(count) for count in self.counts])
        due = (ranks + 0.5) / np.repeat(self.counts, self.counts)  # the middles of equal parts of the period
        order = np.argsort(due, kind="stable")
        return sources[order], ranks[order]

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position [N], and how often it was drawn before: int64 [N] each."""
        periods, within = np.divmod(positions, self.period)
        sources, ranks = self._table
        counts = np.array(self.counts, np.int64)
        return sources[within], periods * counts[sources[within]] + ranks[within]


@dataclasses.dataclass(frozen=True)
class Order:
    """The documents at positions, for any seed.

    Attributes:
      sizes: the number of documents of each source.
      schedule: which source a position draws.
      run: so many documents that are neighbours in the files remain neighbours, in another order; 1: none.
    """

    sizes: tuple[int, ...]
    schedule: Schedule
    run: int = 1

    def __call__(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The source, and the index in it, of the documents at `positions` [N]: int64 [N] each."""
        sources, draws = self.schedule(positions)
        indices = np.zeros(len(positions), np.int64)
        for source in np.unique(sources).tolist():
            places = np.flatnonzero(sources == source)
            epochs, within = np.divmod(draws[places], self.sizes[source])
            for epoch in np.unique(epochs).tolist():
                mine = epochs == epoch
                indices[places[mine]] = self._shuffled(within[mine], source, order_key(seed, epoch, source))
        return sources, indices

    def _shuffled(self, places: np.ndarray, source: int, key: int) -> np.ndarray:
        """The documents at `places` [N] of an epoch of a source."""
        size, run = self.sizes[source], min(self.run, self.sizes[source])
        if run == 1:
            return Bijection(size, key)(places)
        # Whole runs are shuffled, and the documents in each, all in the same way; the fewer than `run` documents that
        # are left over come last.
        whole = size // run
        number, place = np.divmod(places, run)
        inside = Bijection(run, key ^ 1)(place)
        shuffled = Bijection(whole, key)(np.minimum(number, whole - 1)) * run + inside
        return np.where(number < whole, shuffled, places)
