"""Architecture descriptors for weight import and export."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.base import ranges
from research.base.errors import UserError
from research.interop.tensors import Naming
from research.models import MODELS

if TYPE_CHECKING:
    import tokenizers

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
    """The specification of a folder's weights, from its files.

    Attributes:
      model_type: transformers' name of the architecture.
      naming: the names of its tensors.
      model: every key of a config's `model` that the weights determine.
      transform: the keys of a config's `data.transform` that they determine.
      batch: inputs that fit the weights; only their shapes are used.
    """

    model_type: str
    naming: Naming
    model: dict[str, Any]
    transform: dict[str, Any]
    batch: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Exported:
    """The other files of an exported run besides its weights: {name: text}.

    Attributes:
      naming: as in CheckpointSpec.
      complete: adds to the variables those that transformers has and that change nothing here.
    """

    naming: Naming
    files: dict[str, str]
    complete: Callable[[Any], Any] = lambda variables: variables


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A kind of network that transformers also has.

    Attributes:
      models: the names in MODELS of models that can start from its weights. The first is the one that is loaded and
        exported.
      model_types: transformers' names of its architectures.
      companion_files: one of these files must accompany the weights; empty: none is needed.
      heads: modules specific to the task they were trained on; in a run they are always fresh.
      optional: modules that weights may lack.
      free: keys of the first one's `model` that weights do not determine, with the values they are loaded with.
      transform: keys of a config's `data.transform` that the weights determine.
      batch: the shapes of a run's variables, by path -> inputs that fit them.
      read: a folder and its config.json -> the specification. Raises UserError for unsupported settings.
      write: the `model` and `data.transform` sections of a run, its assets and the shapes of its variables -> the
        exported files. Raises UserError for a network without a counterpart in transformers.
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
    write: Callable[[Mapping[str, Any], Mapping[str, Any], Path, Shapes], Exported]

    @property
    def classifies(self) -> bool:
        """Whether the first model is a classifier, with `num_classes`."""
        return "classifier" in self.heads


def check_kind(where: object, key: str, value: Any, kinds: tuple[type, ...], what: str) -> None:
    """Raises UserError if a file's value (JSON's null is None) is not of the types `kinds`, described by `what`."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UserError(f"{where} has {key} {value!r}; it must be {what}")


def check_rows(tokenizer: "tokenizers.Tokenizer", rows: int, path: Path, key: str) -> int:
    """The number of token ids, which may be below that of the embedding's rows, often padded to a multiple of 8.

    Raises UserError if it is above.
    """
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if tokens > rows:
        raise UserError(
            f"{path} has token ids up to {tokens - 1}, out of range for an embedding of {rows} rows ({key}); "
            "use the tokenizer that the weights were trained with"
        )
    return tokens


def check_model(where: object, model: Mapping[str, Any]) -> None:
    """Raises UserError, naming the file, if a key of `model` read from it is out of its range."""
    try:
        ranges.check_values({"model": model}, ranges.declared("model", MODELS))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def labels(num_classes: int) -> dict[str, Any]:
    """The settings of a head in config.json. Labels are LABEL_0, …: a run does not know their names.

    A head with one output is a regression, as a classifier has at least two classes.
    """
    names = {str(i): f"LABEL_{i}" for i in range(num_classes)}
    return {
        "id2label": names,
        "label2id": {name: int(i) for i, name in names.items()},
        "problem_type": "regression" if num_classes == 1 else "single_label_classification",
    }
