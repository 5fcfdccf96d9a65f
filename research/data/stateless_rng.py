"""Stateless random numbers: a function of their purpose, so the order in which they are drawn does not matter.

The numbers for an example depend only on (seed, epoch, example index), not on its batch, the devices, or where a run
was resumed.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


def mixed(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every input bit affects every output bit: SplitMix64's (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seed: int, epochs: np.ndarray, members: np.ndarray) -> np.ndarray:
    """A key for each example in each epoch: uint64 [B, E] for epochs int [B] and example indices int [B, E].

    Keys for −1, no example, are meaningless.
    """
    key = mixed(np.array([seed], np.uint64) + _GAMMA)  # an array: numpy warns where a scalar wraps around
    key = mixed((key ^ epochs.astype(np.uint64)) + _GAMMA)
    return mixed((key[:, None] ^ members.astype(np.uint64)) + _GAMMA)


def numbers(keys: np.ndarray, count: int, stream: int = 0) -> np.ndarray:
    """`count` random numbers per key: uint64 [..., count] for keys [...]; different for each `stream` s.

    These are the numbers s · count + 1, …, (s + 1) · count of the SplitMix64 generator that starts at the key.
    """
    place = np.arange(stream * count + 1, (stream + 1) * count + 1, dtype=np.uint64)
    return mixed(keys[..., None] + place * _GAMMA)


def uniform(numbers: np.ndarray) -> np.ndarray:
    """Converts to float64 in [0, 1), using the highest 53 bits."""
    return (numbers >> np.uint64(11)) * 2.0**-53


def below(numbers: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
    """Converts to int64 in [0, limit), for one limit or one limit each.

    For limits up to 2^20 no value is more likely than another by more than a relative 2^-33.
    """
    return (uniform(numbers) * limit).astype(np.int64)
