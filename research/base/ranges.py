"""Ranges of the numbers in a config. Models, tasks and transforms check any further conditions themselves."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from research.base.errors import UserError
from research.base.trees import flatten

LARGEST = 2**31 - 1  # the largest int32, as counters on devices are int32


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, including the ends not named in `open`, and the numbers in `also`."""

    low: float
    high: float = math.inf
    open: str = ""  # "low", "high" or "low high"
    also: tuple[int, ...] = ()
    integer: bool = False
    may_be_empty: bool = False  # for a tuple, to whose items the range applies

    def __contains__(self, value: float) -> bool:
        above = value > self.low if "low" in self.open else value >= self.low
        below = value < self.high if "high" in self.open else value <= self.high
        return (above and below) or value in self.also

    def __str__(self) -> str:
        if self.low == -math.inf:
            return "finite"
        if not self.open and self.high not in (math.inf, LARGEST):
            text = f"{self.low} to {self.high}"
        else:
            text = f"above {self.low}" if "low" in self.open else f"at least {self.low}"
            if self.high != math.inf:
                text += f" and {'below' if 'high' in self.open else 'at most'} {self.high}"
        return text + "".join(f", or {value}" for value in self.also)


COUNT = Range(1, LARGEST, integer=True)
COUNT_OR_NONE = Range(0, LARGEST, integer=True)
COUNT_OR_ALL = Range(1, LARGEST, also=(-1,), integer=True)
LAYERS = Range(1, 10_000, integer=True)  # each is compiled separately
PIXELS = Range(1, 8192, integer=True)
TOKENS = Range(1, 2**24, integer=True)
FRACTION = Range(0, 1)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, open="low")
ANY = Range(-math.inf, open="low")
DECAY = Range(0, 1, open="high")  # of a running mean: at 1 new values have no weight
RATE = Range(0, 1)


# Replacements for infinities that are meaningful.
_WAYS = {"optimizer.C": "no penalty is optimizer.C=None", "train.max_minutes": "no limit is train.max_minutes=None"}


def declared(section: str, table: Mapping[str, Any]) -> dict[str, Range]:
    """The ranges that a table's classes declare as `RANGES` for their keys, by the full keys in a config."""
    classes = [function.func if isinstance(function, functools.partial) else function for function in table.values()]
    return {f"{section}.{key}": limits for cls in classes for key, limits in getattr(cls, "RANGES", {}).items()}


def check_values(config: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Raises UserError, naming key, value and limit, if a number of a config is not finite or out of range."""
    for key, value in flatten(config).items():
        limits = ranges.get(key)
        if isinstance(value, str) or value is None:
            continue
        items = value if isinstance(value, Sequence) else (value,)
        if limits is not None and not items and not limits.may_be_empty:
            raise UserError(f"{key} is empty; it must be a tuple of at least one number, each {limits}")
        for item in items:
            check_finite(key, item, shown=value)
            if limits is not None:
                _check(key, item, limits, shown=value)


def _check(key: str, item: Any, limits: Range, *, shown: Any) -> None:
    kinds = (int,) if limits.integer else (int, float)
    if isinstance(item, kinds) and not isinstance(item, bool) and item in limits:
        return
    if isinstance(shown, Sequence):
        kind = "integers" if limits.integer else "numbers"
        raise UserError(f"{key} is {_short(tuple(shown))}; it must be {kind}, each {limits}")
    kind = "" if isinstance(item, kinds) else "an integer, " if limits.integer else "a number, "
    raise UserError(f"{key} is {_short(shown)}; it must be {kind}{limits}")


def check_finite(key: str, value: Any, *, shown: Any) -> None:
    """Raises UserError for a number, also in nested tuples, that JSON can't represent or that exceeds 64 bits."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            check_finite(key, item, shown=shown)
    elif isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            raise UserError(f"{key} is {_short(shown)}; it must be a number")
        raise UserError(f"{key} is {_short(shown)}; it must be finite" + (f"; {_WAYS[key]}" if key in _WAYS else ""))
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{key} is {_short(shown)}; it must fit into 64 bits")


def _short(value: Any) -> str:
    """A value as shown in an error message, truncated if it is long."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
