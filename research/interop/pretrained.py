"""Resolves a config with `init_from`: the config to run, and the function from fresh to pretrained variables.

Variables are Flax's, {"params": …} and, if there are batch statistics, {"batch_stats": …}; the first part of their
paths is that name, the second a top-level module of the network.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from research.base.errors import UserError, first_line
from research.base.leaves import path_name
from research.base.paths import same_source
from research.base.registry import build, expand_variant
from research.interop import KINDS, source
from research.interop.kinds import Architecture
from research.interop.recipes import follow_encoder
from research.interop.tensors import Tensors, module_of, replaced, some
from research.interop.trained import Match, TrainedWeights, shapes_of, without
from research.models import MODELS
from research.runs.rundir import RunDir


@dataclasses.dataclass(frozen=True)
class Initialization:
    """The resolved initialization of a run.

    Attributes:
      config: the config including what the weights determine: the architecture, an encoder's tokenizer or a ResNet's
        `mean` and `std`, and with `optimizer.follow_encoder` the optimizer's settings. A variant of a model is expanded
        in it.
      load_variables: fresh variables, which are donated -> the same with all except the head's replaced by pretrained
        ones; None if the run does not need it.
      note: what the user should know, in one or two lines.
    """

    config: ConfigDict
    load_variables: Callable[[Any], Any] | None = None
    note: str | None = None


def resolve_init_from(
    config: ConfigDict,
    given: Collection[str],
    workdir: str | Path | None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Initialization:
    """Resolves `config.init_from`: a folder, a hub id, or the run directory of a model of the same kind.

    The weights determine the keys that depend on them, except those in `given`, which the user set. The head is always
    fresh, even if the weights have one with as many classes: its labels belong to another task. A model that
    transformers does not have starts from runs of the same model only, and takes a head of the same size too. If
    `workdir` holds a run from the same weights with a checkpoint, everything is taken from that run, and the weights
    aren't needed; None: there is no such run.

    `say` gets a line about what is known only when the variables are loaded.

    Raises:
      UserError: the weights are unavailable, can't be read, belong to another architecture, or don't fit the settings
        given.
    """
    if not config.init_from:
        if config.init_fresh:
            raise UserError(
                f"init_fresh={config.init_fresh!r} leaves out some of init_from's weights; init_from is None"
            )
        return Initialization(config)
    name = expand_variant(MODELS, config.model)["name"]
    kind = next((kind for kind in KINDS if name in kind.models), None)
    run = None if workdir is None else RunDir(workdir)
    saved = run.config() if run is not None and run.resumable else None
    if kind is None:
        return _from_run(config, saved, say)
    if saved is not None and same_source(saved["init_from"], config.init_from) and saved["model"]["name"] == name:
        config = _with(config, kind, saved["model"], saved["data"]["transform"], given)
        return Initialization(config, note=follow_encoder(config, given))

    weights = _weights(config.init_from)
    if weights.kind is not kind:
        models = weights.kind.models if weights.kind else (weights.model["name"],)
        raise UserError(
            f"init_from={config.init_from!r} has weights for models {', '.join(models)}; this config's is "
            f"{config.model.name!r}"
        )
    config = _with(config, kind, weights.model, weights.transform, given)
    recipe = follow_encoder(config, given)
    abstract = _abstract(config.model, weights.batch)
    wanted = {path: shape for path, shape in shapes_of(abstract).items() if module_of(path) not in kind.heads}
    wanted = without(wanted, config.init_fresh)
    match = weights.match(wanted)
    fresh = sorted((abstract["params"].keys() & set(kind.heads)) | match.fresh)
    fresh += [config.init_fresh] if config.init_fresh else []
    note = f"weights: {weights.what}" + (f"; fresh: {', '.join(fresh)}" if fresh else "")
    note += (f"; not used: {some(match.unused)}" if match.unused else "") + (f"\n{recipe}" if recipe else "")
    return Initialization(config, functools.partial(_load_variables, match, wanted), note)


def _load_variables(match: Any, wanted: Mapping[str, Any], variables: Any) -> Any:
    """Variables with the weights of `match`. Raises UserError if one has another shape than is `wanted`."""
    for path, shape in shapes_of(variables).items():  # images may have more or fewer channels than the weights
        expected = wanted.get(path, shape)
        if shape != expected:
            raise UserError(f"the weights of {path} have shape {expected}; the data of this config needs {shape}")
    return match.load_variables(variables)


def load(init_from: str, num_classes: int | None = None, *, seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a network and its variables, including the head's if the weights have one -> (module, variables).

    An encoder or a ResNet is loaded as a classifier, a decoder as a language model. `num_classes`: that of a
    classifier's head; None for the weights' number. Variables of the head that the weights lack are random. Raises like
    `resolve_init_from`.
    """
    weights = _weights(init_from)
    kind = weights.kind
    if kind is None:
        known = ", ".join(model for kind in KINDS for model in kind.models)
        raise UserError(f"{init_from} is a run of model {weights.model['name']!r}; this function loads {known}")
    model = {**kind.free, **weights.model, "name": kind.models[0]}
    if kind.classifies:
        model["num_classes"] = weights.num_classes if num_classes is None else num_classes
    match = weights.match(shapes_of(_abstract(model, weights.batch)))
    module = build(MODELS, model, "model")

    @jax.jit
    def fresh() -> Any:
        variables = module.init(jax.random.key(seed), weights.batch, train=False)
        # Random numbers, which are replaced anyway, would take seconds to compile.
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if module_of(path_name(path)) in match.fresh else jnp.zeros_like(leaf), variables
        )

    return module, match.load_variables(fresh())


def _from_run(config: ConfigDict, saved: Mapping[str, Any] | None, say: Callable[[str], None]) -> Initialization:
    """The initialization of a model that only runs of this project have; parameters are matched when they are loaded.

    `saved`: the config of the run that is continued, if any.

    The shapes of such a model may depend on the data, so what differs is found, and said, only then.
    """
    if saved and same_source(saved["init_from"], config.init_from):
        return Initialization(config)
    folder = source.folder(config.init_from)
    if not RunDir(folder).checkpoints.is_dir():
        known = ", ".join(model for kind in KINDS for model in kind.models)
        raise UserError(
            f"init_from={config.init_from!r} is not a run directory with a checkpoint, which model "
            f"{config.model.name!r} needs; other weights are for models {known}"
        )
    weights = TrainedWeights(folder)
    said: set[str] = set()

    def load_variables(variables: Any) -> Any:
        shapes = shapes_of(variables)
        head = weights.head(shapes)
        if head and not said:  # called for each of several seeds
            said.add("head")
            say(f"fresh: {', '.join(head)}, of another size in the run")
        wanted = without({path: shape for path, shape in shapes.items() if path not in head}, config.init_fresh)
        return weights.match(wanted).load_variables(variables)

    return Initialization(config, load_variables, f"weights: {weights.what}")


def _weights(init_from: str) -> "_Files | TrainedWeights":
    folder = source.folder(init_from)
    return TrainedWeights(folder) if RunDir(folder).checkpoints.is_dir() else _Files(folder)


def _with(
    config: ConfigDict,
    kind: Architecture,
    model: Mapping[str, Any],
    transform: Mapping[str, Any],
    given: Collection[str],
) -> ConfigDict:
    """A copy of the config with the keys that the weights determine, except those in `given`."""
    config = config.copy_and_resolve_references()
    if "model.name" in given:  # then so are all keys of the variant
        given = {*given, *(f"model.{key}" for key in set(expand_variant(MODELS, config.model)) - set(config.model))}
    config.model = ConfigDict(expand_variant(MODELS, config.model))
    for key in set(model) & set(config.model) - {"name", "num_classes", *kind.free}:
        if f"model.{key}" not in given:
            config.model[key] = model[key]
    for key in transform.keys() & set(kind.transform):
        if f"data.transform.{key}" not in given and key in config.data.transform:
            config.data.transform[key] = transform[key]
    return config


def _abstract(model: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes of a model's variables. Raises UserError for one that can't be built."""
    module = build(MODELS, model, "model")
    try:
        return jax.eval_shape(lambda: module.init(jax.random.key(0), batch, train=False))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"the model can't be built: {first_line(error)}") from error


class _Files:
    """A folder in the layout of transformers."""

    def __init__(self, folder: Path):
        self.kind, config = source.kind_of(folder)
        self._described = self.kind.read(folder, config)
        self._tensors = Tensors(folder)
        self.what = f"{folder} ({self._described.model_type})"
        self.model = self._described.model
        self.transform = self._described.transform
        self.batch = self._described.batch
        self._names = config.get("id2label", {"0": None, "1": None})  # the default, two, is not written
        self._where = folder / "config.json"

    @property
    def num_classes(self) -> int:
        """The number of classes of the head, read only if needed. Raises UserError if config.json does not have it."""
        if not isinstance(self._names, dict) or not self._names:
            raise UserError(
                f"{self._where} has id2label {self._names!r}; it must be an object with a name for each class"
            )
        return len(self._names)

    def match(self, shapes: Mapping[str, tuple[int, ...]]) -> Match:
        """Matches weights to variables with these shapes, by path. Raises UserError if the weights don't fit."""
        tensors, naming = self._tensors, self._described.naming
        found, unused = tensors.match(naming, shapes, optional=self.kind.optional)

        def load_variables(variables: Any) -> Any:
            return replaced(variables, lambda path: tensors.read(naming, path, found[path]) if path in found else None)

        return Match(load_variables, frozenset(map(module_of, shapes.keys() - found.keys())), tuple(unused))
