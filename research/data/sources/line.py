"""A minimal generated dataset: noisy points on a straight line."""

import numpy as np

from research.data.examples import Columns

SLOPE, INTERCEPT, NOISE = 2.0, 1.0, 0.5
SIZES = {"train": 200, "validation": 100, "test": 100}


def line() -> dict[str, Columns]:
    """y = 2x + 1 + ε with x uniform on [−1, 3] and ε normal with standard deviation 0.5; always the same points."""
    random = np.random.RandomState(0)

    def points(size: int) -> Columns:
        x = random.uniform(-1, 3, size)
        return {"features": x[:, None], "label": SLOPE * x + INTERCEPT + random.normal(0, NOISE, size)}

    return {split: points(size) for split, size in SIZES.items()}
