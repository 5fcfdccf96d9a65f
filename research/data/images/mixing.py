"""Mixup and CutMix: training images that combine two images and have the labels of both."""

import numpy as np

from research.data import stateless_rng


def mixed(
    images: np.ndarray, others: np.ndarray, keys: np.ndarray, *, mixup: float, cutmix: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mixes two images [B, H, W, C] in each row -> the mixed image, and the share s of `others` in it.

    Mixup (Zhang et al. 2018): s times `others` plus 1 − s times the first, with 1 − s ~ Beta(mixup, mixup); bytes are
    rounded. CutMix (Yun et al. 2019): a box of `others` replaces that of the first, with 1 − its fraction of the area ~
    Beta(cutmix, cutmix), centred anywhere and clipped at the edges; s is the fraction after clipping. With both
    enabled, each is used with probability 1/2. Both papers' code draws one s per batch; here each example has its own.

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
    """The interval of that length around the centre, clipped to [0, size]."""
    return max(centre - length // 2, 0), min(centre + length // 2, size)


def _beta(uniform: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Samples of Beta(alpha, alpha) by inverting its distribution function: float64 [B]."""
    from scipy.special import betaincinv

    return betaincinv(alpha, alpha, uniform)
