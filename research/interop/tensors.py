"""Safetensors files and this project's variables: names, shapes, reading and writing, one tensor at a time.

Variables are Flax's: {"params": …} and, where there are batch statistics, {"batch_stats": …}. A path begins with the
collection: "params/encoder/layer_0/mlp_in/kernel".
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from research.base.errors import UserError
from research.base.leaves import path_name
from research.base.paths import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
# A leaf here -> its names there: the current one, then that of BERT's first files.
_LEAVES = {
    "kernel": ("weight",),
    "embedding": ("weight",),
    "scale": ("weight", "gamma"),
    "bias": ("bias", "beta"),
    "output_bias": ("bias",),
    "mean": ("running_mean",),
    "var": ("running_var",),
}
# torch's count of the batches in a running variance, which it uses only without a momentum.
_COUNTER = "num_batches_tracked"
# Ends of the names of tensors that are not weights; the last ones are constants in old files of GPT-2 and Llama.
_NO_WEIGHTS = (f".{_COUNTER}", ".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
# The number of a layer, a stage or a block in the path of a module.
_NUMBER = r"(?<=layer_|stage_|block_)\d+"
# The order of a kernel's axes there: [I, O] is [O, I] and [H, W, I, O] is [O, I, H, W].
_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


@dataclasses.dataclass(frozen=True)
class Naming:
    """The names of the modules of a class in transformers.

    prefix: the prefix of all modules except the head's; a file of the bare network lacks it.
    modules: a module here -> theirs; "" is the network itself. `{}` is the number of a layer, a stage or a block.
    columns: a module here that is (part of) a Conv1D of theirs, whose kernel is [I, O] as here -> (i, n), its outputs
      being the i-th of n equal parts of theirs.
    """

    prefix: str
    modules: Mapping[str, str]
    columns: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


def tensor_names(naming: Naming, path: str) -> list[str]:
    """The possible names in a file of the variable at `path`; the first is the one to write."""
    module, _, leaf = path.partition("/")[2].rpartition("/")
    theirs = naming.modules[re.sub(_NUMBER, "{}", module)].format(*re.findall(_NUMBER, module))
    bare = theirs.removeprefix(f"{naming.prefix}.")
    return [f"{name}.{ending}" for name in dict.fromkeys((theirs, bare)) for ending in _LEAVES[leaf]]


def module_of(path: str) -> str:
    """The top-level module of a variable: "encoder" for "params/encoder/layer_0/mlp_in/kernel"."""
    return path.split("/")[1]


def _columns(naming: Naming, path: str) -> tuple[int, int] | None:
    """The part (i, n) of a Conv1D's outputs that the variable at `path` has; None for one of another module."""
    module = path.partition("/")[2].rpartition("/")[0]
    return naming.columns.get(re.sub(_NUMBER, "{}", module))


def _axes(naming: Naming, path: str, count: int) -> tuple[int, ...]:
    """The axis here of each of their axes."""
    transposed = path.endswith("/kernel") and _columns(naming, path) is None
    return _AXES[count] if transposed else tuple(range(count))


def _stored_shape(naming: Naming, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the tensor that holds a variable of `shape`."""
    _, parts = _columns(naming, path) or (0, 1)
    *others, last = (shape[axis] for axis in _axes(naming, path, len(shape)))
    return (*others, last * parts)


class Tensors:
    """The tensors of a folder: in `model.safetensors`, or in the files that `model.safetensors.index.json` names.

    Only the headers are read until a tensor is accessed.
    """

    def __init__(self, folder: Path):
        """Opens the files. Raises UserError if there are none, or one is missing or damaged."""
        self._folder = folder
        self._files = {name: file for file in map(self._open, weight_files(folder)) for name in file.keys()}  # noqa: SIM118

    @staticmethod
    def _open(path: Path) -> Any:
        try:
            return safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} can't be read; it may be truncated: {error}") from error

    def match(
        self, naming: Naming, shapes: Mapping[str, tuple[int, ...]], *, optional: Collection[str]
    ) -> tuple[dict[str, str], list[str]]:
        """Matches a tensor to each variable of `shapes` -> {path: tensor}, and the unused tensors.

        Only `optional` modules may lack tensors.

        Raises:
          UserError: a required tensor is missing, or one has a different shape or is not of floats.
        """
        found, missing = {}, []
        for path, shape in shapes.items():
            names = tensor_names(naming, path)
            name = next((name for name in names if name in self._files), None)
            if name is not None:
                self._check(name, _stored_shape(naming, path, shape))
                found[path] = name
            elif module_of(path) not in optional:
                missing.append(names[0])
        if missing:
            raise UserError(f"{self._folder} lacks {some(missing)}, which the model needs")
        unused = sorted(set(self._files) - set(found.values()))
        return found, [name for name in unused if not name.endswith(_NO_WEIGHTS)]

    def _check(self, name: str, expected: tuple[int, ...]) -> None:
        header = self._files[name].get_slice(name)
        shape = tuple(header.get_shape())
        if shape != expected:
            raise UserError(
                f"tensor {name} of {self._folder} has shape {shape}; the model of this config needs {expected}"
            )
        if header.get_dtype() not in _FLOATS:
            raise UserError(
                f"tensor {name} of {self._folder} is of type {header.get_dtype()}; known: {', '.join(_FLOATS)}"
            )

    def read(self, naming: Naming, path: str, name: str) -> np.ndarray:
        """Reads the tensor `name`, or the part that is the variable at `path`, in float32 and in that one's layout."""
        tensor = self._files[name].get_tensor(name)
        part, parts = _columns(naming, path) or (0, 1)
        tensor = np.split(tensor, parts, axis=-1)[part].astype(np.float32, copy=False)
        return tensor.transpose(np.argsort(_axes(naming, path, tensor.ndim)))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, some of which may be missing. Raises UserError if it has none."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        files = read_json(folder / INDEX).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise UserError(
                f"{folder / INDEX} has weight_map {files!r}; it must be an object with the file of each tensor"
            )
        return [folder / Path(name).name for name in sorted(set(files.values()))]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    raise UserError(
        f"{folder} has no {SINGLE}"
        + (f", only {some(pickles)}: a pickle can run any code and is never opened" if pickles else "")
        + "; weights are read from safetensors, which transformers' save_pretrained writes"
    )


def weights_version(folder: Path) -> str:
    """A short hash of a folder's safetensors files, which are read again only when one has changed."""
    return _version(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(folder)))


@functools.lru_cache(maxsize=64)
def _version(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:8]


def some(names: Sequence[str]) -> str:
    """Names for a message: all of a few, or the first of many."""
    more = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return ", ".join(names[:3] if more else names) + more


def replaced(variables: Any, read: Callable[[str], np.ndarray | None]) -> Any:
    """The tree with each leaf replaced, with its sharding, by `read(path)` unless that is None.

    A replaced leaf is freed at once, so that at most one tensor is held twice.
    """

    def replace(path: Any, leaf: jax.Array) -> jax.Array:
        array = read(path_name(path))
        if array is None:
            return leaf
        shape, sharding = leaf.shape, leaf.sharding
        leaf.delete()
        return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, lambda index: array[index]))

    return jax.tree_util.tree_map_with_path(replace, variables)


def write(path: Path, naming: Naming, variables: Any) -> None:
    """Writes variables as one safetensors file, under the names and in the layout of `naming`."""
    tensors: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        leaf_name = path_name(leaf_path)
        name = tensor_names(naming, leaf_name)[0]
        part, _ = _columns(naming, leaf_name) or (0, 1)
        parts.setdefault(name, {})[part] = np.asarray(leaf).transpose(_axes(naming, leaf_name, leaf.ndim))
        if leaf_name.endswith("/var"):
            tensors[name.removesuffix("running_var") + _COUNTER] = np.zeros((), np.int64)
    for name, found in parts.items():
        whole = next(iter(found.values())) if len(found) == 1 else np.concatenate([found[i] for i in sorted(found)], -1)
        tensors[name] = np.ascontiguousarray(whole)
    save_file(tensors, path, metadata={"format": "pt"})
