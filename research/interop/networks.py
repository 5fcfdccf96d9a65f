"""The whole network of a folder in the layout of transformers, with its head: what can predict without any training."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from research.base.errors import UserError, first_line
from research.base.leaves import path_name
from research.base.registry import build
from research.interop import source
from research.interop.kinds import CheckpointSpec, check_kind
from research.interop.tensors import Tensors
from research.interop.trained import shapes_of
from research.models import MODELS
from research.models.transformer import Encoder, EncoderSizes

ENCODER = "encoder"  # a text encoder without a head
# The end of a class's name in transformers -> the model of MODELS, or ENCODER.
_MODELS = {
    "ForSequenceClassification": "bert",
    "ForMaskedLM": "bert_mlm",
    "ForPreTraining": "bert_mlm",
    "ForImageClassification": "resnet",
    "ForCausalLM": "decoder",
    "LMHeadModel": "decoder",  # GPT-2's
    "Model": ENCODER,
}
# Settings under which a head computes something else than the model here.
_EXPECTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "bert": {"problem_type": (None, "single_label_classification", "regression")},
    "resnet": {"problem_type": (None, "single_label_classification")},
    "bert_mlm": {"tie_word_embeddings": (None, True)},
}
_SIZES = frozenset(field.name for field in dataclasses.fields(EncoderSizes))


@dataclasses.dataclass(frozen=True)
class Network:
    """A network in a folder, whose weights are not read yet.

    Attributes:
      folder: where it is.
      model: its name in MODELS, or ENCODER.
      spec: what its files say.
      label_names: the classes of its head, in order; one for a regression; none without such a head.
    """

    folder: Path
    model: str
    spec: CheckpointSpec
    label_names: tuple[str, ...]

    def module(self, dtype: Any = jnp.float32) -> nn.Module:
        """The module, which computes in `dtype`."""
        sizes = {key: value for key, value in self.spec.model.items() if key in _SIZES}
        if self.model == ENCODER:
            return Encoder(**sizes, dtype=dtype)
        if self.model == "bert_mlm":
            section = {"name": self.model, **sizes}
        elif self.model == "decoder":
            free = dict.fromkeys(("dropout", "attention_dropout", "initializer_range"), 0.0)  # only for training
            compiled = {"scale_residual_init": False, "remat": False, "remat_policy": "nothing", "scan": False}
            section = {**free, **compiled, **self.spec.model, "name": self.model}
        else:
            free = {"stochastic_depth": 0.0, "test_flip": False} if self.model == "resnet" else {}
            section = {**free, **self.spec.model, "name": self.model, "num_classes": len(self.label_names)}
        module: nn.Module = build(MODELS, section, "model", dtype=dtype)
        return module

    def _matched(self) -> tuple[Any, dict[str, str], Tensors]:
        """The shapes of the variables, their tensors by path, and the files. Raises UserError if they don't fit."""
        module = self.module()
        try:
            abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), self.spec.batch, train=False))
        except (ValueError, TypeError, ArithmeticError) as error:
            raise UserError(f"the model of {self.folder} can't be built: {first_line(error)}") from error
        if self.model == ENCODER:  # as within the models that have a head
            abstract = {"params": {"encoder": abstract["params"]}}
        tensors = Tensors(self.folder)
        found, _ = tensors.match(self.spec.naming, shapes_of(abstract), optional=())
        return abstract, found, tensors

    def variables(self) -> dict[str, Any]:
        """The variables in float32; those of a bare encoder are under `params/encoder` as well.

        Raises UserError if a tensor is missing or of another shape, or a file is damaged.
        """
        abstract, found, tensors = self._matched()

        def read(path: Any, _: Any) -> np.ndarray:
            return tensors.read(self.spec.naming, path_name(path), found[path_name(path)])

        variables: dict[str, Any] = jax.tree_util.tree_map_with_path(read, abstract)
        return variables

    def check(self) -> None:
        """Raises UserError as `variables` does, but reads only the headers of the files."""
        self._matched()


def read_network(folder: Path) -> Network:
    """Reads the config.json and the tokenizer of a folder.

    Raises UserError for an architecture or settings that are unsupported, and for a folder without a tokenizer.
    """
    kind, config = source.kind_of(folder)
    where = folder / "config.json"
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    model = next((model for end, model in _MODELS.items() if isinstance(name, str) and name.endswith(end)), None)
    if model is None or model not in (*kind.models, *((ENCODER,) if "bert" in kind.models else ())):
        known = ", ".join(f"…{end}" for end in _MODELS)
        raise UserError(f"{where} has architectures {architectures!r}; what can be served is {known}")
    for key, allowed in _EXPECTED.get(model, {}).items():
        if config.get(key) not in allowed:
            known = ", ".join(str(value) for value in allowed if value is not None)
            raise UserError(f"{where} has {key} {config[key]!r}; what can be served has {known}")
    spec = kind.read(folder, config)
    if model == "bert_mlm" and spec.model_type != "roberta" and spec.model["activation"] != "gelu":
        raise UserError(f"{where} has the activation {spec.model['activation']!r}; masked language models have gelu")
    names = _label_names(config, where) if model in ("bert", "resnet") else ()
    regresses = config.get("problem_type") == "regression"
    if (regresses and len(names) != 1) or (model == "resnet" and len(names) == 1):
        raise UserError(
            f"{where} has {len(names)} labels and problem_type {config.get('problem_type')!r}; a regression has one "
            "label, and is of texts; a classifier has more"
        )
    return Network(folder, model, spec, names)


def _label_names(config: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """The names of the classes in order; of two, the default, which is not written, those of transformers."""
    names = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    check_kind(where, "id2label", names, (dict,), "an object with a name for each class")
    if sorted(names) != sorted(map(str, range(len(names)))) or not names:
        raise UserError(f"{where} has id2label of {', '.join(names)}; its keys must be 0 to the number of classes - 1")
    return tuple(str(names[str(i)]) for i in range(len(names)))
