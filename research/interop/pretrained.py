"""A config with `init_from` -> the config that is run, and what makes its fresh parameters pretrained ones."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from research.build import build, regex
from research.checkpoint import Checkpoints
from research.errors import UserError
from research.interop import source
from research.interop.tensors import Tensors, replaced, some
from research.models import MODELS
from research.rundir import RunDir
from research.state import path_name

# The models that have the encoder. Only `bert` has what classifies by it.
_MODELS = ("bert", "bert_mlm")
# Their inputs; only the shapes are looked at.
_INPUTS = ("tokens", "segments", "positions", "type_ids", "starts", "masked_positions")
_BATCH = dict.fromkeys(_INPUTS, np.zeros((1, 1), np.int32))
_TOKENIZER = ("tokenizer", "lowercase", "vocab_size")


@dataclasses.dataclass(frozen=True)
class Start:
    """How a run starts.

    Attributes:
      config: with the architecture and the tokenizer of the weights in it.
      initial: fresh parameters, which are given up -> those with the encoder's and the pooler's replaced by
        pretrained ones; None where the run needs none.
      note: one line for the user.
    """

    config: ConfigDict
    initial: Callable[[Any], Any] | None = None
    note: str | None = None


def start(config: ConfigDict, given: Collection[str], workdir: str | Path) -> Start:
    """Resolves `config.init_from`: a folder, a hub id, or the run directory of a BERT, classifier or language model.

    The model's settings and the tokenizer are those of the weights, but for keys in `given`, which the user set. Where
    `workdir` holds a run from the same weights with a checkpoint, they are that run's, and the weights aren't needed.

    Raises:
      UserError: the weights can't be had or read, are another architecture's, or don't fit the settings given.
    """
    if not config.init_from:
        if config.init_fresh:
            raise UserError(
                f"init_fresh={config.init_fresh!r} leaves out some of init_from's weights; init_from is None"
            )
        return Start(config)
    if config.model.name not in _MODELS:
        raise UserError(
            f"init_from={config.init_from!r} is for models {' and '.join(_MODELS)}; this config's is "
            f"{config.model.name!r}"
        )
    run = RunDir(workdir)
    if run.resumable:
        saved = run.config()
        if saved["init_from"] == config.init_from and saved["model"]["name"] == config.model.name:
            return Start(_with(config, saved["model"], saved["data"]["transform"], given))

    weights = _weights(config.init_from)
    config = _with(config, weights.model, weights.transform, given)
    params = abstract_params(config.model)
    # The classifier of the weights answers another question; a language model's head is not read.
    wanted = {name: params[name] for name in ("encoder", "pooler") if name in params}
    match = weights.match(_without(_shapes(wanted), config.init_fresh))
    fresh = [
        *sorted((params.keys() - wanted.keys()) | match.fresh),
        *([config.init_fresh] if config.init_fresh else []),
    ]
    note = f"weights: {weights.what}; fresh: {', '.join(fresh)}"
    return Start(config, match.initial, note + (f"; not used: {some(match.unused)}" if match.unused else ""))


def load(init_from: str, num_classes: int = 2, *, seed: int = 0) -> tuple[nn.Module, Any]:
    """A model and its parameters, the classifier's too where the weights have one -> (module, params).

    What the weights lack of the pooler and the classifier is random. Raises as `start`.
    """
    weights = _weights(init_from)
    model = {**weights.model, "name": "bert", "num_classes": num_classes}
    match = weights.match(_shapes(abstract_params(model)))
    module = build(MODELS, model, "model")

    @jax.jit
    def fresh() -> dict[str, Any]:
        params = module.init(jax.random.key(seed), _BATCH, train=False)["params"]
        # Random numbers that are about to be replaced would take seconds to compile.
        return {
            name: part if name in match.fresh else jax.tree.map(jnp.zeros_like, part) for name, part in params.items()
        }

    return module, match.initial(fresh())


def _weights(init_from: str) -> "_Files | _Run":
    folder = source.folder(init_from)
    return _Run(folder) if RunDir(folder).checkpoints.is_dir() else _Files(folder)


def _with(config: ConfigDict, model: Mapping[str, Any], transform: Mapping[str, Any], given: Collection[str]) -> Any:
    """A copy of the config with these settings, but for keys in `given`."""
    config = config.copy_and_resolve_references()
    for key in set(model) - {"name", "num_classes"}:
        if f"model.{key}" not in given and key in config.model:
            config.model[key] = model[key]
    for key in _TOKENIZER:
        if f"data.transform.{key}" not in given and key in config.data.transform:
            config.data.transform[key] = transform[key]
    return config


def abstract_params(model: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes of a BERT's parameters. Raises UserError for one that can't be built."""
    module = build(MODELS, model, "model")
    try:
        return jax.eval_shape(lambda: module.init(jax.random.key(0), _BATCH, train=False))["params"]
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"the model can't be built: {str(error).splitlines()[0]}") from error


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _without(shapes: dict[str, tuple[int, ...]], init_fresh: str) -> dict[str, tuple[int, ...]]:
    """Those whose path the regex does not find, which an encoder's top layers may (Zhang et al. 2021, section 5).

    Raises UserError where it finds none, or leaves none.
    """
    pattern = regex("init_fresh", init_fresh)
    kept = {path: shape for path, shape in shapes.items() if not (init_fresh and pattern.search(path))}
    if not kept or (init_fresh and len(kept) == len(shapes)):
        which = "no" if kept else "every"
        raise UserError(
            f"init_fresh={init_fresh!r} finds {which} parameter that init_from has; one is {next(iter(shapes))}"
        )
    return kept


@dataclasses.dataclass(frozen=True)
class _Match:
    """What replaces parameters, as in Start; the modules that have no weights; tensors that are not used."""

    initial: Callable[[Any], Any]
    fresh: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()


class _Files:
    """A folder in the layout of transformers."""

    def __init__(self, folder: Path):
        self._encoder = source.read_encoder(folder)
        self._tensors = Tensors(folder)
        self.what = f"{folder} ({self._encoder.family.model_type})"
        self.model = self._encoder.model
        values = (str(self._encoder.tokenizer), self._encoder.lowercase, self.model["vocab_size"])
        self.transform = dict(zip(_TOKENIZER, values, strict=True))

    def match(self, shapes: Mapping[str, tuple[int, ...]]) -> _Match:
        """`shapes`: of the parameters that are asked for, by path. Raises UserError where the weights don't fit."""
        tensors = self._tensors
        found, unused = tensors.match(self._encoder.family, shapes)

        def initial(params: Any) -> Any:
            return replaced(params, lambda path: tensors.read(path, found[path]) if path in found else None)

        return _Match(initial, frozenset(path.split("/")[0] for path in shapes.keys() - found.keys()), tuple(unused))


def checkpoints_of(run: RunDir) -> Checkpoints:
    """The checkpoints of a run, to read."""
    ranking = run.config()["eval"]
    return Checkpoints(run.checkpoints, metric=ranking["metric"], mode=ranking["mode"], writable=False)


class _Run:
    """A run directory of this project: its last checkpoint."""

    def __init__(self, folder: Path):
        self._run = RunDir.open(folder)
        saved = self._run.config()
        if saved["model"]["name"] not in _MODELS:
            raise UserError(
                f"{folder} is a run of model {saved['model']['name']!r}; init_from needs one of {' or '.join(_MODELS)}"
            )
        self.what = f"the run {folder}"
        self.model = saved["model"]
        self.transform = saved["data"]["transform"] | {"tokenizer": str(self._run.assets / "tokenizer.json")}

    def match(self, shapes: Mapping[str, tuple[int, ...]]) -> _Match:
        """As that of _Files. A language model has no pooler."""
        own = _shapes(abstract_params(self.model))
        fresh = frozenset({"pooler"} if self.model["name"] == "bert_mlm" else ())
        shapes = {path: shape for path, shape in shapes.items() if path.split("/")[0] not in fresh}
        for path, shape in shapes.items():
            if own.get(path) != shape:
                has = f"has {path} of shape {own[path]}" if path in own else f"lacks {path}"
                raise UserError(f"the run {self._run.path} {has}; the model of this config needs {shape}")
        with checkpoints_of(self._run) as checkpoints:
            step = checkpoints.step("last")

        def initial(params: Any) -> Any:
            flat = flatten_dict(params, sep="/")
            wanted = {path: flat[path] for path in shapes}
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)
            jax.tree.map(lambda x: x.delete(), wanted)
            with checkpoints_of(self._run) as checkpoints:
                saved = checkpoints.restore_params(unflatten_dict(abstract, sep="/"), step)
            return unflatten_dict(flat | flatten_dict(saved, sep="/"), sep="/")

        return _Match(initial, fresh)
