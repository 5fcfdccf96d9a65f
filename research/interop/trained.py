"""Variables of this project's own runs, as weights to start from: matched by path and shape, read from a checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from research.base.errors import UserError
from research.base.leaves import path_name
from research.base.registry import expand_variant, regex
from research.core.lora import Lora, detached, join
from research.core.metrics import AVERAGE
from research.core.quantization import dequantized, is_quantized
from research.interop import KINDS
from research.interop.tensors import module_of
from research.models import MODELS
from research.runs.checkpoint import Checkpoints
from research.runs.rundir import RunDir


def checkpoints_of(run: RunDir) -> Checkpoints:
    """Opens the checkpoints of a run for reading."""
    ranking = run.config()["eval"]
    return Checkpoints(run.checkpoints, metric=ranking["metric"], mode=ranking["mode"], writable=False)


def shapes_of(variables: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each variable, by path."""
    return {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def without(shapes: dict[str, tuple[int, ...]], init_fresh: str) -> dict[str, tuple[int, ...]]:
    """The shapes whose path the regex does not match.

    It may match an encoder's top layers (Zhang et al. 2021, section 5). Raises UserError if it matches none, or all.
    """
    pattern = regex("init_fresh", init_fresh)
    # Paths as for `freeze`: without the name of the collection.
    names = {path: path.partition("/")[2] for path in shapes}
    kept = {path: shape for path, shape in shapes.items() if not (init_fresh and pattern.search(names[path]))}
    if not kept or (init_fresh and len(kept) == len(shapes)):
        which, one = "no" if kept else "every", next(iter(names.values()))
        raise UserError(f"init_fresh={init_fresh!r} finds {which} parameter that init_from has; one is {one}")
    return kept


@dataclasses.dataclass(frozen=True)
class Match:
    """`load_variables` as in Initialization; the modules without weights; the tensors that are not used."""

    load_variables: Callable[[Any], Any]
    fresh: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()


def average_of(run: RunDir) -> float | None:
    """The decay of a run's averaged parameters if its `eval.metric` ranks by them, else None."""
    config = run.config()
    return config["train"]["ema_decay"] if config["eval"]["metric"].startswith(AVERAGE) else None


def own_variables(checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    """The shapes and types of the variables of the model itself, without low-rank additions."""
    saved = jax.eval_shape(dequantized, checkpoints.variables(step))
    return {**saved, "params": detached(saved["params"])[0]}


def restore_own(run: RunDir, checkpoints: Checkpoints, abstract: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Restores those variables of `step` that are in `abstract`, a part of `own_variables`, with its shardings.

    Low-rank additions are merged, and the values are averages if the run ranks by them. Raises UserError if the
    checkpoint is damaged.
    """
    saved_as = checkpoints.variables(step)
    if is_quantized(saved_as):
        return _restore_dequantized(checkpoints, saved_as, abstract, step)
    own = abstract.get("params", {})
    kernels = flatten_dict(own)
    saved = flatten_dict(detached(saved_as["params"])[1])
    wanted = {}
    for path, leaf in saved.items():
        if (kernel := kernels.get((*path[:-1], "kernel"))) is not None:
            wanted[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_whole(kernel.sharding))
    everything = {**abstract, "params": join(own, unflatten_dict(wanted))} if own else abstract
    loaded = checkpoints.restore_variables(everything, step, average=average_of(run))
    if not wanted:
        return loaded
    params = Lora(**run.config()["train"]["lora"]).merged(loaded["params"])
    return {**loaded, "params": jax.device_put(params, jax.tree.map(lambda x: x.sharding, own))}


def _restore_dequantized(
    checkpoints: Checkpoints, saved: Mapping[str, Any], abstract: Mapping[str, Any], step: int
) -> dict[str, Any]:
    """As `restore_own`, for a run whose weights are in int8."""
    leaf = jax.tree.leaves(abstract)[0]
    everywhere = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_whole(leaf.sharding)), saved)
    found = flatten_dict(dequantized(checkpoints.restore_variables(everywhere, step)))
    wanted = {path: jax.device_put(found[path], x.sharding) for path, x in flatten_dict(dict(abstract)).items()}
    return unflatten_dict(wanted)


def _whole(sharding: Any) -> Any:
    """The sharding over the same devices that splits nothing."""
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding


class TrainedWeights:
    """A run directory of this project: its last checkpoint, with averaged parameters if it ranks by them.

    `kind` is None for a model that transformers does not have; `batch` fits the variables of the others.
    """

    def __init__(self, folder: Path):
        self._run = RunDir.open(folder)
        self._run.check_one_seed("init_from")
        saved = self._run.config()
        self.model = expand_variant(MODELS, saved["model"])
        self.kind = next((kind for kind in KINDS if self.model["name"] in kind.models), None)
        self.what = f"the run {folder}"
        self.transform = saved["data"]["transform"] | {"tokenizer": str(self._run.assets / "tokenizer.json")}
        if "chat_template" in self.transform:  # of a folder that need not exist any more
            self.transform["chat_template"] = str(self._run.assets)
        self.num_classes = self.model.get("num_classes", 2)
        with checkpoints_of(self._run) as checkpoints:
            self._step = checkpoints.step("last")
            self._shapes = shapes_of(own_variables(checkpoints, self._step))
        self.batch = self.kind.batch(self._shapes) if self.kind else {}

    def match(self, shapes: Mapping[str, tuple[int, ...]]) -> Match:
        """Like `_Files.match`."""
        own = self._shapes
        optional = frozenset(self.kind.optional if self.kind else ())
        fresh = optional.intersection(map(module_of, shapes)).difference(map(module_of, own))
        shapes = {path: shape for path, shape in shapes.items() if module_of(path) not in fresh}
        for path, shape in shapes.items():
            if own.get(path) != shape:
                has = f"has {path} of shape {own[path]}" if path in own else f"lacks {path}"
                raise UserError(f"the run {self._run.path} {has}; the model of this config needs {shape}")

        def load_variables(variables: Any) -> Any:
            flat = flatten_dict(variables, sep="/")
            wanted = {path: flat[path] for path in shapes}
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)
            jax.tree.map(lambda x: x.delete(), wanted)
            with checkpoints_of(self._run) as checkpoints:
                saved = restore_own(self._run, checkpoints, unflatten_dict(abstract, sep="/"), self._step)
            return {**variables, **unflatten_dict(flat | flatten_dict(saved, sep="/"), sep="/")}

        return Match(load_variables, fresh)

    def head(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """The variables of the output layer, if a model with these shapes has another number of outputs than the run's.

        They differ in the last axis, that of the outputs, and nothing else differs: another width of a hidden layer
        changes another axis of the layer that reads it. Raises UserError for any other difference.
        """
        lacking = sorted(shapes.keys() ^ self._shapes.keys())
        if lacking:
            which = "lacks" if lacking[0] in shapes else "also has"
            raise UserError(f"the run {self._run.path} {which} {lacking[0]}; init_from needs a run of the same model")
        differing = sorted(path for path in shapes if shapes[path] != self._shapes[path])
        for path in differing:
            if shapes[path][:-1] != self._shapes[path][:-1]:
                raise UserError(
                    f"the run {self._run.path} has {path} of shape {self._shapes[path]}, and the model of this config "
                    f"{shapes[path]}; only the number of outputs of the last layer may differ"
                )
        return differing
