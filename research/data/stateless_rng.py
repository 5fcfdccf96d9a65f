"""Random numbers that are a function of what they are for: no state, so no order in which they must be drawn.

What is drawn for an example depends on (seed, epoch, example index) alone: neither on the batch it is in, nor on the
devices, nor on where a run was resumed.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every input bit moves every output bit: SplitMix64's (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seed: int, epochs: np.ndarray, members: np.ndarray) -> np.ndarray:
    """A key for each example in each epoch: uint64 [B, E] for epochs int [B] and example indices int [B, E].

    What stands for −1, no example, is of no account.
    """
    key = _mix(np.array([seed], np.uint64) + _GAMMA)  # an array: numpy warns where a scalar wraps around
    key = _mix((key ^ epochs.astype(np.uint64)) + _GAMMA)
    return _mix((key[:, None] ^ members.astype(np.uint64)) + _GAMMA)


def numbers(keys: np.ndarray, count: int, stream: int = 0) -> np.ndarray:
    """`count` random numbers of each key: uint64 [..., count] for keys [...]; `stream` s gives others than stream t.

    These are the numbers s · count + 1, …, (s + 1) · count of the SplitMix64 generator that starts at the key.
    """
    place = np.arange(stream * count + 1, (stream + 1) * count + 1, dtype=np.uint64)
    return _mix(keys[..., None] + place * _GAMMA)


def uniform(numbers: np.ndarray) -> np.ndarray:
    """As float64 in [0, 1), of the highest 53 bits."""
    return (numbers >> np.uint64(11)) * 2.0**-53


def below(numbers: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
    """As int64 in [0, limit), for one limit or one each.

    Up to a limit of 2^20 no value is likelier than another by more than 2^-33 of that.
    """
    return (uniform(numbers) * limit).astype(np.int64)
