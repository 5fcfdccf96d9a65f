"""What a kind of networks says of itself, so that reading and writing weights need not ask which it is."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.base import ranges
from research.base.errors import UserError
from research.interop.tensors import Naming
from research.models import MODELS

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
    """What a folder's own files say of its weights.

    Attributes:
      model_type: what transformers calls the architecture.
      naming: what its tensors are called.
      model: every key of a config's `model` that follows the weights.
      transform: the keys of a config's `data.transform` that do.
      batch: inputs that fit the weights; only their shapes are looked at.
    """

    model_type: str
    naming: Naming
    model: dict[str, Any]
    transform: dict[str, Any]
    batch: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What stands beside the weights of an exported run: `files`, {name: text}. `naming`: as in CheckpointSpec."""

    naming: Naming
    files: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One kind of networks that transformers has too.

    Attributes:
      models: the names, in MODELS, of those that can start from its weights. The first is a classifier: what is
        loaded and exported.
      model_types: what transformers calls its architectures.
      companion_files: files of which one must lie beside the weights; empty: none need to.
      heads: modules that answer the question they were trained on: a run's own are always fresh.
      optional: modules that weights may lack.
      free: keys of the classifier's `model` that weights have no say in, with the values they are loaded with.
      transform: keys of a config's `data.transform` that follow the weights.
      batch: the shapes of a run's variables, by path -> inputs that fit them.
      read: a folder and its config.json -> what they say. Raises UserError for what is not known here.
      write: the `model` section of a run, its assets and the shapes of its variables -> what is written of them. Raises
        UserError for a network that transformers has nothing alike of.
    """

    models: tuple[str, ...]
    model_types: tuple[str, ...]
    companion_files: tuple[str, ...]
    heads: tuple[str, ...]
    optional: tuple[str, ...]
    free: Mapping[str, Any]
    transform: tuple[str, ...]
    batch: Callable[[Shapes], dict[str, Any]]
    read: Callable[[Path, Mapping[str, Any]], CheckpointSpec]
    write: Callable[[Mapping[str, Any], Path, Shapes], Exported]


def check_kind(where: object, key: str, value: Any, kinds: tuple[type, ...], what: str) -> None:
    """Raises UserError where a file's value, which JSON's null makes None, is not of the `kinds`, called `what`."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UserError(f"{where} has {key} {value!r}; it must be {what}")


def check_model(where: object, model: Mapping[str, Any]) -> None:
    """Raises UserError, which names the file, where a key of `model` read from it is out of its range."""
    try:
        ranges.check_values({"model": model}, ranges.declared("model", MODELS))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def labels(num_classes: int) -> dict[str, Any]:
    """What a config.json says of a head. Labels are LABEL_0, …: a run does not know their names.

    A head of one output is a regression's, for a classifier has at least two classes.
    """
    names = {str(i): f"LABEL_{i}" for i in range(num_classes)}
    return {
        "id2label": names,
        "label2id": {name: int(i) for i, name in names.items()},
        "problem_type": "regression" if num_classes == 1 else "single_label_classification",
    }
