"""Metrics of a run of several seeds: the values, their mean, and its confidence interval."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# A metric of a run: a number, or None where it has no value; for a run of several seeds, a list of these.
Value = float | None | list[float | None]

CONFIDENCE = 0.95


def mean(value: Value) -> float | None:
    """The mean over the seeds, None where one has no value; for a run of one seed, its value."""
    if not isinstance(value, list):
        return value
    present = [x for x in value if x is not None]
    return float(np.mean(present)) if len(present) == len(value) else None


def interval(values: list[float | None]) -> dict[str, Any]:
    """The `values`, their `mean`, and the 95 % confidence interval of the mean over all seeds, `low` to `high`.

    Student's t-interval: mean ± t · s / √K, s the standard deviation of K values with K − 1 degrees of freedom
    (Student 1908). `mean` is None where a value is missing; `low` and `high` also where one is not finite, and for a
    single seed.
    """
    from scipy.stats import t

    centre, count = mean(values), len(values)
    low = high = None
    if centre is not None and math.isfinite(centre) and count > 1:
        deviation = float(np.std(np.asarray(values, np.float64), ddof=1))
        half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
        low, high = centre - half, centre + half
    return {"values": values, "mean": centre, "low": low, "high": high}


def means(metrics: Mapping[str, Value]) -> dict[str, float | None]:
    """The mean of each metric."""
    return {name: mean(value) for name, value in metrics.items()}


def intervals(metrics: Mapping[str, Value]) -> dict[str, dict[str, Any]]:
    """The `interval` of each metric that has a value for every seed."""
    return {name: interval(value) for name, value in metrics.items() if isinstance(value, list)}


def metric_summary(metrics: Mapping[str, Value]) -> dict[str, Any]:
    """A dict of "metrics", the means, and for several seeds also "intervals"."""
    found = intervals(metrics)
    return {"metrics": means(metrics), **({"intervals": found} if found else {})}
