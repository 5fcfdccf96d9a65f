"""What each key of a config may be: ranges of numbers. A model, a task or a transform of its own checks what else it
needs, such as a text that names something."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from research.base.errors import UserError
from research.runs.rundir import flatten

LARGEST = 2**31 - 1  # of an int32, as devices count


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, with the ends unless `open` names them, and those of `also`."""

    low: float
    high: float = math.inf
    open: str = ""  # "low", "high" or "low high"
    also: tuple[int, ...] = ()
    integer: bool = False

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


_COUNT = Range(1, LARGEST, integer=True)
_COUNT_OR_NONE = Range(0, LARGEST, integer=True)
_COUNT_OR_ALL = Range(1, LARGEST, also=(-1,), integer=True)
_LAYERS = Range(1, 10_000, integer=True)  # each is compiled by itself
_PIXELS = Range(1, 8192, integer=True)
_TOKENS = Range(1, 2**24, integer=True)
_FRACTION = Range(0, 1)
_NOT_NEGATIVE = Range(0)
_POSITIVE = Range(0, open="low")
_ANY = Range(-math.inf, open="low")
_DECAY = Range(0, 1, open="high")  # of a running mean: at 1 nothing new counts
_RATE = Range(0, 1)

# A tuple's range is that of its items.
RANGES: dict[str, Range] = {
    "seed": Range(0, 2**32 - 1, integer=True),
    "data.train_fraction": Range(0, 1, open="low"),
    "data.workers": Range(0, 1024, integer=True),
    "data.transform.buckets": Range(1, 2**26, integer=True),
    "data.transform.channels": Range(1, 3, integer=True),
    "data.transform.mask_rate": Range(0, 1, open="low high"),
    "data.transform.max_length": _TOKENS,
    "data.transform.mean": _ANY,
    "data.transform.ngrams": Range(1, 100, integer=True),
    "data.transform.pad_to": _TOKENS,
    "data.transform.resize": _PIXELS,
    "data.transform.row_length": _TOKENS,
    "data.transform.size": _PIXELS,
    "data.transform.std": _POSITIVE,
    "data.transform.vocab_size": Range(5, 2**24, integer=True),  # the special tokens at least
    "data.transform.augment.aspect_ratio": _POSITIVE,
    "data.transform.augment.crop_padding": Range(0, 1024, integer=True),
    "data.transform.augment.cutmix": Range(0, 1000),
    "data.transform.augment.erasing": _FRACTION,
    "data.transform.augment.mixup": Range(0, 1000),
    "data.transform.augment.randaugment_magnitude": Range(0, 30, integer=True),
    "data.transform.augment.randaugment_ops": Range(0, 100, integer=True),
    "data.transform.augment.random_resized_crop": Range(0, 1, open="low"),
    "model.attention_dropout": _RATE,
    "model.classifier_dropout": _RATE,
    "model.dropout": _RATE,
    "model.hidden_size": _COUNT,
    "model.hidden_sizes": _COUNT,
    "model.initializer_range": _NOT_NEGATIVE,
    "model.layer_norm_eps": _POSITIVE,
    "model.max_positions": _COUNT,
    "model.mean": _ANY,
    "model.mlp_size": _COUNT,
    "model.num_classes": _COUNT,
    "model.num_features": _COUNT,
    "model.num_heads": _COUNT,
    "model.num_layers": _LAYERS,
    "model.pooler_dropout": _RATE,
    "model.position_offset": _COUNT_OR_NONE,
    "model.stage_sizes": _LAYERS,
    "model.std": _POSITIVE,
    "model.stochastic_depth": _RATE,
    "model.type_vocab_size": _COUNT_OR_NONE,
    "model.vocab_size": _COUNT,
    "model.width": _COUNT,
    "task.class_weight": _NOT_NEGATIVE,
    "task.hidden_label": _ANY,
    "task.label_smoothing": _FRACTION,
    "optimizer.learning_rate": _NOT_NEGATIVE,
    "optimizer.warmup_fraction": _FRACTION,
    "optimizer.end_fraction": _FRACTION,
    "optimizer.drops": Range(0, 1, open="low high"),
    "optimizer.b1": _DECAY,
    "optimizer.b2": _DECAY,
    "optimizer.eps": _POSITIVE,
    "optimizer.momentum": _DECAY,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.C": _POSITIVE,
    "optimizer.alpha": _NOT_NEGATIVE,
    "optimizer.clip_norm": _POSITIVE,
    "optimizer.layer_decay": Range(0, 1, open="low"),
    "optimizer.tolerance": _NOT_NEGATIVE,
    "optimizer.max_iterations": _COUNT,
    "train.epochs": Range(0, 10**9, open="low"),
    "train.steps": _COUNT,
    "train.batch_size": _COUNT_OR_ALL,
    "train.batch_rows": _COUNT_OR_ALL,
    "train.accumulate": _COUNT,
    "train.ema_decay": Range(0, 0.999999),  # beyond, a step changes less than float32 can tell
    "train.seeds": Range(1, 10_000, integer=True),
    "train.max_minutes": _POSITIVE,
    "train.log_every": _COUNT,
    "train.max_data_wait_fraction": _FRACTION,
    "eval.batch_size": _COUNT,
    "eval.batch_rows": _COUNT,
    "eval.every_steps": _COUNT_OR_NONE,
    "eval.patience": _COUNT_OR_NONE,
    "eval.min_delta": _NOT_NEGATIVE,
    "checkpoint.every_steps": _COUNT_OR_NONE,
    "mesh.data": _COUNT_OR_ALL,
    "mesh.fsdp": _COUNT,
    "mesh.tensor": _COUNT,
}

# Tuples that may be empty; the others with a range need an item.
_MAY_BE_EMPTY = ("model.hidden_sizes", "model.mean", "model.std", "optimizer.drops")

# What to write for an infinity that has a meaning.
_WAYS = {"optimizer.C": "no penalty is optimizer.C=None", "train.max_minutes": "no limit is train.max_minutes=None"}


def check_values(config: Mapping[str, Any]) -> None:
    """Raises UserError, which names key, value and limit, where a number of a config is not finite or out of range."""
    for key, value in flatten(config).items():
        limits = RANGES.get(key)
        if isinstance(value, str) or value is None:
            continue
        items = value if isinstance(value, Sequence) else (value,)
        if limits is not None and not items and key not in _MAY_BE_EMPTY:
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
    """Raises UserError for a number that JSON can't hold, or that is no 64-bit integer, wherever in nested tuples."""
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
    """A value as an error message shows it: of a long one the beginning."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
