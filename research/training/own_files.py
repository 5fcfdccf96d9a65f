"""Own files as data: what a config leaves open follows from the files.

These are the columns and their kinds, the task, the number of classes, the images' sizes, mean and standard deviation,
and a length of the run that gives enough updates. Keys that the user set are kept.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from research.base.errors import UserError
from research.base.paths import shown
from research.base.trees import flatten
from research.core.tasks import TASKS, capabilities
from research.data.files import source
from research.data.files.kinds import declare
from research.training.files_found import Found, look
from research.training.method import is_deterministic

# The length of a run: at least and at most this many updates, the latter in no less than one epoch.
_UPDATES = (300, 20_000)
_UPDATES_FINE_TUNING = 100  # the fewest from pretrained weights
_UPDATES_AUGMENTED = 1000  # the fewest on images of which each epoch crops other parts
_UPDATES_PER_EPOCH = 10
_SMALLEST_BATCH = 8
_PIECES_PER_WORD = 1.4  # of a WordPiece tokenizer, roughly


def fill_in(config: ConfigDict, given: Collection[str]) -> tuple[ConfigDict, tuple[str, ...]]:
    """The config with everything that follows from its files, and lines that describe it; the same for other data.

    Args:
      given: the keys that the user set, which are kept.

    Raises:
      UserError: a file is missing, not valid or not of the transform's kind; a column's kind can't be inferred; the
        label is not found.
    """
    if config.data.name != source.NAME:
        return config, ()
    config = config.copy_and_resolve_references()
    for split, path in source.paths(config.data).items():
        config.data[split] = str(path)
    found = look(config, shown(Path(config.data.train)))
    with config.unlocked():
        for key, value in found.settings.items():
            if key not in given:
                _set(config, key, value)
        _fit_task(config, found, given)
        if "eval.splits" not in given:
            config.eval.splits = _splits(config.data)
        length = _fit_length(config, found, given)
    return config, (*found.lines, f"  {length}")


def inferred(config: ConfigDict) -> tuple[str, ...]:
    """The keys of a config whose values `fill_in` replaces by what follows from the files, unless they are given."""
    if config.data.name != source.NAME:
        return ()
    keys = ["data.kinds", "data.transform.inputs", "data.transform.label", "model.num_classes", "eval.splits"]
    if config.data.transform.name in ("image", "pixels"):
        keys += [f"data.transform.{key}" for key in ("channels", "resize", "size")] + ["model.mean", "model.std"]
    if not is_deterministic(config.optimizer.name):
        batch = "batch_size" if config.train.batch_rows is None else "batch_rows"
        keys += [f"train.{batch}", "eval.every_steps", "model.output_mean", "model.output_std"]
        keys += ["train.epochs"] if config.train.steps is None else []
    known = flatten(config.to_dict())
    return tuple(key for key in keys if key in known)


def _set(config: ConfigDict, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    if name in config:
        config[name] = value


def _splits(section: Mapping[str, Any]) -> tuple[str, ...]:
    has = [split for split in ("validation", "test") if section[split] or section[f"{split}_fraction"]]
    if not has:
        raise UserError(
            "there is nothing to evaluate: data.validation_fraction and data.test_fraction are 0, and there is no file "
            "data.validation or data.test"
        )
    return tuple(has)


def _fit_task(config: ConfigDict, found: Found, given: Collection[str]) -> None:
    """Sets the task and the model's outputs for the label's classes, or its numbers."""
    regresses = found.classes is None
    predicts = capabilities(TASKS[config.task.name]).predicts if config.task.name in TASKS else None
    if predicts == "token":
        return
    if regresses and predicts == "class":
        _regression(config, given)
    elif not regresses and predicts == "number":
        raise UserError(
            f"the label has {len(found.classes or ())} classes, and task {config.task.name!r} predicts numbers; if "
            f"they are numbers, declare it: {declare(config.data.transform.label, 'number')}"
        )
    if "num_classes" in config.model and "model.num_classes" not in given:
        config.model.num_classes = 1 if regresses else len(found.classes or ())
    if regresses and "output_std" in config.model:
        labels = _numbers(config)
        for key, value in (("output_mean", float(labels.mean())), ("output_std", float(labels.std()) or 1.0)):
            if f"model.{key}" not in given:
                config.model[key] = value


def _numbers(config: ConfigDict) -> np.ndarray:
    return np.asarray(source.load(config.data)["train"][config.data.transform.label], np.float64)


def _regression(config: ConfigDict, given: Collection[str]) -> None:
    if config.model.name in ("sparse_logistic",):
        raise UserError(
            f"the label {config.data.transform.label!r} has numbers, which model {config.model.name!r} does not "
            f"predict; if they are classes, declare it: {declare(config.data.transform.label, 'category')}"
        )
    if config.model.name == "logistic":
        config.model = ConfigDict({"name": "linear"})
    config.task = ConfigDict({"name": "regression", "hidden_label": None})
    if config.optimizer.C is not None:
        config.optimizer.alpha, config.optimizer.C = 1.0 / config.optimizer.C, None
    if config.optimizer.name == "lbfgs":
        config.optimizer.name = "closed_form"
    if "eval.metric" not in given:
        config.eval.metric, config.eval.mode = "loss", "min"


def _fit_length(config: ConfigDict, found: Found, given: Collection[str]) -> str:
    """Sets the batch and the number of epochs so that the run has enough updates, and not too many -> a line."""
    section, data = config.train, config.data
    cut = sum(data[f"{split}_fraction"] for split in ("validation", "test") if not data[split])
    examples = max(1, round(found.rows * (1 - cut) * data.train_fraction))
    packs = section.batch_rows is not None
    per_row = 1.0
    if packs and "row_length" in data.transform:
        length = min(_PIECES_PER_WORD * found.words + 2, data.transform.max_length)
        per_row = max(1.0, data.transform.row_length / length)
    key = "batch_rows" if packs else "batch_size"
    batch = section[key]
    if batch != -1 and f"train.{key}" not in given:
        smallest = 1 if packs else _SMALLEST_BATCH
        while batch // 2 >= smallest and examples / (batch * per_row) < _UPDATES_PER_EPOCH:
            batch //= 2
        section[key] = batch
    crops = "augment" in data.transform and data.transform.augment.random_resized_crop is not None
    fewest = _UPDATES_FINE_TUNING if config.init_from else _UPDATES_AUGMENTED if crops else _UPDATES[0]
    if section.epochs is not None and batch != -1 and not {"train.epochs", "train.steps"} & set(given):
        updates = examples / (batch * per_row)
        least, most = fewest / updates, max(1.0, _UPDATES[1] / updates)
        section.epochs = float(math.ceil(min(max(section.epochs, least), most)))
    every = "eval.every_steps"
    if every not in given and section.epochs is not None and batch != -1:
        config.eval.every_steps = max(10, round(section.epochs * examples / (batch * per_row) / 10))
    what = (
        f"{section.steps} step{'' if section.steps == 1 else 's'}"
        if section.epochs is None
        else f"{section.epochs:g} epochs"
    )
    of = "all examples" if batch == -1 else f"about {round(batch * per_row)} examples"
    if is_deterministic(config.optimizer.name):  # which fits all examples in one step
        return f"{what}, {of}"
    return f"{what}, {of} an update; to change it: --config.train.epochs, --config.train.{key}"
