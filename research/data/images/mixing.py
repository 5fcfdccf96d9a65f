"""Mixup and CutMix: training images that are made of two, and have the labels of both."""

import numpy as np

from research.data import stateless_rng


def mixed(
    images: np.ndarray, others: np.ndarray, keys: np.ndarray, *, mixup: float, cutmix: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two images [B, H, W, C] a row -> the one that is made of them, and the share that `others` has in it.

    Mixup (Zhang et al. 2018): s of `others`' values and 1 − s of the first's, 1 − s ~ Beta(mixup, mixup); bytes are
    rounded. CutMix (Yun et al. 2019): a box of `others` in the first's place, 1 − its part of the area ~ Beta(cutmix,
    cutmix), its centre anywhere, cut off at the edges; s is the part that is left. With both on, one or the other, each
    with probability 1/2. Both papers' code draws one s for a whole batch; here each example has its own.

    Args:
      keys: uint64 [B].
      mixup, cutmix: alpha; 0: never.

    Returns:
      [B, H, W, C] of the images' type, and float32 [B].
    """
    which, quantile, *place = stateless_rng.numbers(keys, 4).T
    cut = stateless_rng.uniform(which) * ((mixup > 0) + (cutmix > 0)) >= (mixup > 0)
    kept = _beta(stateless_rng.uniform(quantile), np.where(cut, cutmix, mixup))
    shares = (1 - kept).astype(np.float32)
    result = images.copy()

    blended = np.flatnonzero(~cut)
    if len(blended):
        part = shares[blended][:, None, None, None]
        blend = images[blended] * (1 - part) + others[blended] * part
        result[blended] = np.rint(blend) if images.dtype == np.uint8 else blend

    height, width = images.shape[1:3]
    sides = np.sqrt(1 - kept)
    for i in np.flatnonzero(cut):
        (top, bottom), (left, right) = (
            _interval(int(size * sides[i]), int(stateless_rng.below(number[i], size)), size)
            for size, number in zip((height, width), place, strict=True)
        )
        result[i, top:bottom, left:right] = others[i, top:bottom, left:right]
        shares[i] = (bottom - top) * (right - left) / (height * width)
    return result, shares


def _interval(length: int, centre: int, size: int) -> tuple[int, int]:
    """Of the interval of that length around the centre, what lies in [0, size]."""
    return max(centre - length // 2, 0), min(centre + length // 2, size)


def _beta(uniform: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Numbers distributed as Beta(alpha, alpha), by the inverse of its distribution function: float64 [B]."""
    from scipy.special import betaincinv

    return betaincinv(alpha, alpha, uniform)
