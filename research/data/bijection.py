"""Random permutations of [0, n) that are computed one item at a time: an order of 10^9 items needs no memory.

A Feistel network is a bijection of b-bit numbers whatever its round function is, and with enough rounds of a random
one it can't be told from a random permutation (Luby & Rackoff 1988). The smallest b with 2^b ≥ n is taken; an image
that is not below n is mapped again until it is ("cycle walking", Black & Rogaway 2002, section 3), on average fewer
than twice. Keys and round functions are SplitMix64's mixer, chosen for speed: the order is good enough to shuffle
data, and must not be used to keep anything secret.
"""

import dataclasses
import functools

import numpy as np

from research.base.errors import UserError
from research.data import stateless_rng

# Luby and Rackoff need 4 rounds, of perfectly random functions of many bits; a half here may have a few bits only.
ROUNDS = 10

LARGEST = 2**62

# The keys of orders are those of an "example" that no dataset has.
_ORDER = 2**63


def order_key(seed: int, epoch: int, stream: int = 0) -> int:
    """The key of the order of an epoch; `stream` tells apart several orders of one seed and epoch."""
    index = np.array([[_ORDER + stream]], np.uint64)
    return int(stateless_rng.keys(seed, np.array([epoch], np.int64), index)[0, 0])


@dataclasses.dataclass(frozen=True)
class Bijection:
    """The permutation of [0, size) that a 64-bit `key` selects. Raises UserError for a size beyond LARGEST."""

    size: int
    key: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST:
            raise UserError(f"{self.size:,} items can't be ordered; there must be 1 to {LARGEST:,}")

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The items at `places`, int64 [...] in [0, size), in the permuted order: int64 [...]."""
        images = self._network(places.astype(np.uint64).ravel())
        outside = np.flatnonzero(images >= self.size)
        while len(outside):
            again = self._network(images[outside])
            images[outside] = again
            outside = outside[again >= self.size]
        return images.astype(np.int64).reshape(places.shape)

    @functools.cached_property
    def _keys(self) -> np.ndarray:
        """The key of each round: uint64 [ROUNDS]."""
        return stateless_rng.numbers(np.array([self.key], np.uint64), ROUNDS)[0]

    def _network(self, numbers: np.ndarray) -> np.ndarray:
        """The bijection of [0, 2^bits) before cycle walking: uint64 [N]."""
        bits = max((self.size - 1).bit_length(), 2)
        low = bits // 2
        masks = np.uint64((1 << low) - 1), np.uint64((1 << (bits - low)) - 1)
        right, left = numbers & masks[0], numbers >> np.uint64(low)
        for i in range(0, ROUNDS, 2):  # the halves may differ by a bit, so each is replaced in its place
            left = left ^ (stateless_rng.mixed(right ^ self._keys[i]) & masks[1])
            right = right ^ (stateless_rng.mixed(left ^ self._keys[i + 1]) & masks[0])
        return (left << np.uint64(low)) | right
