"""Safetensors files and this project's parameters: names, shapes, reading and writing, one tensor at a time."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from research.errors import UserError
from research.interop.families import Family
from research.state import path_name

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
# A leaf here -> its names there, the present one first, then that of BERT's first files.
_LEAVES = {"kernel": ("weight",), "embedding": ("weight",), "scale": ("weight", "gamma"), "bias": ("bias", "beta")}


def tensor_names(family: Family, path: str) -> list[str]:
    """What the parameter `path` ("encoder/layer_0/mlp_in/kernel") may be called in a file, first the name to write."""
    module, _, leaf = path.rpartition("/")
    layer = re.search(r"(?<=layer_)\d+", module)
    theirs = family.modules[re.sub(r"(?<=layer_)\d+", "{}", module)].format(layer and layer.group())
    bare = theirs.removeprefix(f"{family.prefix}.")
    return [f"{name}.{ending}" for name in dict.fromkeys((theirs, bare)) for ending in _LEAVES[leaf]]


def theirs(path: str, of: Any) -> Any:
    """An array or a shape turned as it is there: a kernel, [I, O] here, is [O, I]. It is its own inverse."""
    if not path.endswith("/kernel"):
        return of
    return of[::-1] if isinstance(of, tuple) else of.T


class Tensors:
    """The tensors of a folder: of `model.safetensors`, or of the files that `model.safetensors.index.json` names.

    Only the headers are read until a tensor is asked for.
    """

    def __init__(self, folder: Path):
        """Raises UserError where there are none, or a file is missing or damaged."""
        self._folder = folder
        self._files = {name: file for file in map(self._open, weight_files(folder)) for name in file.keys()}  # noqa: SIM118

    @staticmethod
    def _open(path: Path) -> Any:
        try:
            return safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} can't be read, it may be cut off: {error}") from error

    def match(self, family: Family, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, str], list[str]]:
        """The tensor of each parameter of `shapes` -> {path: tensor}, and the tensors that are none's.

        Only the pooler and the classifier may lack theirs.

        Raises:
          UserError: a tensor of the encoder is missing, or one has another shape or is not of floats.
        """
        found, missing = {}, []
        for path, shape in shapes.items():
            names = tensor_names(family, path)
            name = next((name for name in names if name in self._files), None)
            if name is not None:
                self._check(name, theirs(path, shape))
                found[path] = name
            elif path.startswith("encoder/"):
                missing.append(names[0])
        if missing:
            raise UserError(f"{self._folder} lacks {some(missing)}, which the encoder needs")
        return found, sorted(set(self._files) - set(found.values()))

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

    def read(self, path: str, name: str) -> np.ndarray:
        """The tensor `name` as the parameter `path` has it, in float32."""
        return theirs(path, self._files[name].get_tensor(name).astype(np.float32, copy=False))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, which need not all be there. Raises UserError where there is none."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        files = read_json(folder / INDEX).get("weight_map")
        if not isinstance(files, dict):
            raise UserError(f"{folder / INDEX} has no weight_map")
        return [folder / Path(name).name for name in sorted(set(files.values()))]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    raise UserError(
        f"{folder} has no {SINGLE}"
        + (f", only {some(pickles)}: a pickle can run any code and is never opened" if pickles else "")
        + "; weights are read from safetensors, which transformers' save_pretrained writes"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError where `path` is not there or holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return ", ".join(names[:3] if more else names) + more


def replaced(params: Any, read: Callable[[str], np.ndarray | None]) -> Any:
    """The tree with each leaf replaced, in its place on the devices, by `read(path)` where that is not None.

    A leaf that is replaced is freed at once, so that no more than one tensor is held twice.
    """

    def replace(path: Any, leaf: jax.Array) -> jax.Array:
        array = read(path_name(path))
        if array is None:
            return leaf
        shape, sharding = leaf.shape, leaf.sharding
        leaf.delete()
        return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, lambda index: array[index]))

    return jax.tree_util.tree_map_with_path(replace, params)


def write(path: Path, family: Family, params: Any) -> None:
    """Writes parameters as one safetensors file, under the names and in the layout of `family`."""
    tensors = {}
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(leaf_path)
        tensors[tensor_names(family, name)[0]] = np.ascontiguousarray(theirs(name, np.asarray(leaf)))
    save_file(tensors, path, metadata={"format": "pt"})
