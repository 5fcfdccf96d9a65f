"""Configs as runs save them: which values can be saved, which may change, and what older ones lack."""

import copy
import json
from collections.abc import Mapping
from typing import Any

from research.base.errors import UserError
from research.base.paths import same_source
from research.base.trees import flatten, jsonable

# Keys that, like those of `mesh`, may differ when a run is resumed: none of them changes what is computed, or from
# which examples.
FREE_KEYS = (
    "train.log_every",
    "train.max_minutes",
    "train.max_data_wait_fraction",
    "data.data_dir",
    "data.train",
    "data.validation",
    "data.test",
    "data.workers",
)

# Keys that no longer have an effect; they are dropped from older configs and command lines.
RETIRED_KEYS = ("task.label_shift",)

# Keys that the config of an older run lacks, with the values that preserve its behaviour.
_LATER_KEYS: dict[tuple[str, str], Any] = {
    ("data", "train_fraction"): 1.0,
    **dict.fromkeys((("data", key) for key in ("train", "validation", "test", "group_by", "time_by")), None),
    ("data", "validation_fraction"): 0.1,
    ("data", "test_fraction"): 0.0,
    ("data", "split_seed"): 0,
    **dict.fromkeys((("data", key) for key in ("soft_labels", "unlabelled", "soft_hidden")), None),
    ("data", "kinds"): [],
    ("data", "shards"): {"weights": [], "rows": 256, "documents": None, "run": 1, "sample": 10_000},
    ("train", "seeds"): None,
    ("train", "exact_shards"): None,
    ("train", "lora"): {"rank": None, "alpha": 16.0, "dropout": 0.0, "targets": "", "trains": ""},
    ("optimizer", "C"): None,
    ("optimizer", "alpha"): None,
    ("optimizer", "tolerance"): 1e-4,
    ("optimizer", "max_iterations"): 1000,
    ("optimizer", "factorization"): "qr",
    ("optimizer", "follow_encoder"): False,
    ("optimizer", "sparsity"): 0.0,
}
# The same of a model and of a task, by its name.
_COMPILED: dict[str, Any] = {"remat": False, "remat_policy": "nothing", "scan": False}
_LATER_MODEL_KEYS = dict.fromkeys(("bert", "bert_mlm", "decoder"), _COMPILED)
_LATER_TASK_KEYS: dict[str, dict[str, Any]] = {
    "classification": {"soft_weight": 0.5, "temperature": 1.0, "hidden_weight": 0.0}
}


def check_jsonable(config: Mapping[str, Any]) -> None:
    """Raises UserError for a value of a config that would not survive the round trip through config.json."""
    for key, value in flatten(config).items():
        try:
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{key} is {value!r}, which config.json can't hold; it must be a finite number, text, or a tuple"
            ) from error


def without_retired(config: Any) -> dict[str, Any]:
    """A copy of a config, a mapping or a ConfigDict, without RETIRED_KEYS."""
    return {
        name: {key: x for key, x in section.items() if f"{name}.{key}" not in RETIRED_KEYS}
        if hasattr(section, "items")
        else section
        for name, section in config.items()
    }


def completed(saved: Any) -> dict[str, Any]:
    """A saved config with the keys that it lacks because its run is older than they are, without RETIRED_KEYS."""
    config = {"imports": [], **without_retired(saved)}
    for (section, key), value in _LATER_KEYS.items():
        if section in config:
            config[section].setdefault(key, copy.deepcopy(value))
    if "model" in config:
        config["model"] = {**_LATER_MODEL_KEYS.get(config["model"]["name"], {}), **config["model"]}
    if "task" in config:
        config["task"] = {**_LATER_TASK_KEYS.get(config["task"]["name"], {}), **config["task"]}
    return config


def differences(saved: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The keys, with both values, in which a config is not that of the run that saved `saved`."""
    old, new = flatten(saved), flatten(completed(jsonable(config)))

    def same(key: str) -> bool:
        if key == "init_from":
            return same_source(old.get(key), new.get(key))
        if key.startswith("train.lora.") and old.get("train.lora.rank") is new.get("train.lora.rank") is None:
            return True  # without a rank the others have no effect
        return old.get(key) == new.get(key) or key in FREE_KEYS or key.startswith("mesh.")

    keys = sorted(key for key in old.keys() | new.keys() if not same(key))
    return [f"{key} is {old.get(key)!r} there and {new.get(key)!r} here" for key in keys]
