"""The valid range of every number in a config."""

from collections.abc import Mapping
from typing import Any

from research.base import ranges
from research.base.ranges import (
    COUNT,
    COUNT_OR_ALL,
    COUNT_OR_NONE,
    DECAY,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
)
from research.core.lora import Lora
from research.core.tasks import TASKS
from research.data.load import TRANSFORMS
from research.models import MODELS

# The keys that all configs share. The range of a tuple applies to its items.
RANGES: dict[str, Range] = {
    "seed": Range(0, 2**32 - 1, integer=True),
    "data.train_fraction": Range(0, 1, open="low"),
    "data.validation_fraction": Range(0, 1, open="high"),
    "data.test_fraction": Range(0, 1, open="high"),
    "data.split_seed": Range(0, 2**32 - 1, integer=True),
    "data.shards.weights": Range(0, open="low", may_be_empty=True),
    "data.shards.rows": COUNT,
    "data.shards.documents": COUNT,
    "data.shards.run": COUNT,
    "data.shards.sample": COUNT,
    "data.workers": Range(0, 1024, integer=True),
    "optimizer.learning_rate": NOT_NEGATIVE,
    "optimizer.warmup_fraction": FRACTION,
    "optimizer.end_fraction": FRACTION,
    "optimizer.drops": Range(0, 1, open="low high", may_be_empty=True),
    "optimizer.b1": DECAY,
    "optimizer.b2": DECAY,
    "optimizer.eps": POSITIVE,
    "optimizer.momentum": DECAY,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.C": POSITIVE,
    "optimizer.alpha": NOT_NEGATIVE,
    "optimizer.clip_norm": POSITIVE,
    "optimizer.layer_decay": Range(0, 1, open="low"),
    "optimizer.sparsity": Range(0, 1, open="high"),
    "optimizer.tolerance": NOT_NEGATIVE,
    "optimizer.max_iterations": COUNT,
    "train.epochs": Range(0, 10**9, open="low"),
    "train.steps": COUNT,
    "train.batch_size": COUNT_OR_ALL,
    "train.batch_rows": COUNT_OR_ALL,
    "train.accumulate": COUNT,
    "train.exact_shards": COUNT,
    "train.ema_decay": Range(0, 0.999999),  # above, the change per step is below float32 precision
    "train.seeds": Range(1, 10_000, integer=True),
    **{f"train.lora.{key}": limits for key, limits in Lora.RANGES.items()},
    "train.max_minutes": POSITIVE,
    "train.log_every": COUNT,
    "train.max_data_wait_fraction": FRACTION,
    "eval.batch_size": COUNT,
    "eval.batch_rows": COUNT,
    "eval.every_steps": COUNT_OR_NONE,
    "eval.patience": COUNT_OR_NONE,
    "eval.min_delta": NOT_NEGATIVE,
    "checkpoint.every_steps": COUNT_OR_NONE,
    "mesh.data": COUNT_OR_ALL,
    "mesh.fsdp": COUNT,
    "mesh.tensor": COUNT,
}


def key_ranges(config: Mapping[str, Any]) -> dict[str, Range]:
    """The ranges of a config's keys: RANGES, and what its model, task and transform declare for theirs."""
    sections = (
        ("model", MODELS, config.get("model")),
        ("task", TASKS, config.get("task")),
        ("data.transform", TRANSFORMS, config.get("data", {}).get("transform")),
    )
    found = dict(RANGES)
    for name, table, section in sections:
        if section and section.get("name") in table:
            found |= ranges.declared(name, {section["name"]: table[section["name"]]})
    return found


def check_values(config: Mapping[str, Any]) -> None:
    """Raises UserError, naming key, value and limit, if a number of a config is not finite or out of range."""
    ranges.check_values(config, key_ranges(config))
