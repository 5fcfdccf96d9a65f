"""Where arrays live: a device mesh, and ordered (regex, axes) rules that place every leaf of the train state.

The batch is split over the axes `data` and `fsdp`; parameters and optimizer state are replicated unless a rule says
otherwise. The optimizer's moments follow the rules of their parameters, as their paths end with the parameters' paths.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.base.errors import UserError
from research.base.leaves import path_name
from research.base.registry import regex

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# A rule: a regular expression for a leaf's path, and one entry per dimension: a mesh axis' name, several, or None.
Rule = tuple[str, Sequence[Any]]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the three axes over `devices` (default: all available); `data` −1 takes what the others leave.

    Raises UserError if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1:
        if len(devices) % (fsdp * tensor):
            raise UserError(
                f"mesh.fsdp={fsdp} × mesh.tensor={tensor} is {fsdp * tensor}, which must divide the number of devices, "
                f"{len(devices)}"
            )
        data = len(devices) // (fsdp * tensor)
    if data * fsdp * tensor != len(devices):
        raise UserError(
            f"mesh.data={data} × mesh.fsdp={fsdp} × mesh.tensor={tensor} is {data * fsdp * tensor}, but there are "
            f"{len(devices)} devices; set mesh.data=-1 to use the remaining devices"
        )
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_parts(mesh: Mesh) -> int:
    """The number of parts into which the batch axis is split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def process_share(mesh: Mesh) -> float:
    """The fraction of a batch's rows that this process makes."""
    parts = batch_parts(mesh)
    return len(process_rows(mesh, parts)) / parts


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Splits the batch axis over the devices: the leading axis, or the second if an axis of replicas precedes it."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def with_leading_axes(shardings: Any, count: int) -> Any:
    """Adds `count` unsharded leading axes to all shardings."""
    return jax.tree.map(lambda s: NamedSharding(s.mesh, PartitionSpec(*[None] * count, *s.spec)), shardings)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(abstract_state: Any, rules: Sequence[Rule], mesh: Mesh) -> Any:
    """A NamedSharding for every leaf: from the first rule whose regex matches its path; otherwise it is replicated.

    Raises UserError if a rule is not of the form `Rule`, has more entries than the leaf has dimensions, names an
    unknown axis or one twice, or does not divide the leaf's shape. A rule with fewer entries than dimensions does not
    split the last ones.
    """
    _check_rules(rules)

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, axes in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, _checked_spec(name, leaf.shape, tuple(axes), mesh))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, abstract_state)


def _check_rules(rules: Any) -> None:
    """Raises UserError if `rules` is not a sequence of `Rule`s."""
    for rule in rules if _is_list(rules) else [rules]:
        formed = _is_list(rule) and len(rule) == 2 and isinstance(rule[0], str) and _is_list(rule[1])
        if not formed or not all(_is_entry(entry) for entry in rule[1]):
            raise UserError(
                f"mesh.rules has the rule {rule!r}; it must be (regex of a path, (axis, …)) with a mesh axis' name, a "
                "tuple of names or None for each dimension, such as ('kernel', (None, 'tensor'))"
            )
        regex("mesh.rules", rule[0])


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_entry(entry: Any) -> bool:
    return entry is None or isinstance(entry, str) or (_is_list(entry) and all(isinstance(a, str) for a in entry))


def _checked_spec(name: str, shape: tuple[int, ...], axes: tuple[Any, ...], mesh: Mesh) -> PartitionSpec:
    if len(axes) > len(shape):
        raise UserError(f"mesh.rules gives {len(axes)} axes {axes} to {name}, which has shape {shape}")
    used: set[str] = set()
    for size, entry in zip(shape, axes, strict=False):
        parts = 1
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            if axis not in mesh.shape:
                raise UserError(f"mesh.rules names the axis {axis!r} for {name}; known: {', '.join(mesh.shape)}")
            if axis in used:
                raise UserError(f"mesh.rules gives the axis {axis!r} twice to {name}: {axes}")
            used.add(axis)
            parts *= mesh.shape[axis]
        if size % parts:
            raise UserError(f"mesh.rules splits a dimension of {size} of {name} into {parts} parts; it must divide")
    return PartitionSpec(*(tuple(entry) if _is_list(entry) else entry for entry in axes))


def process_rows(mesh: Mesh, batch_rows: int) -> np.ndarray:
    """The rows of a global batch on this process's devices, ascending, whatever the mesh's order of devices."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_rows,)).values()
    return np.unique(np.concatenate([np.arange(batch_rows)[index] for index in slices]))


def prefetch_to_device(
    batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, axis: int = 0
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, jax.Array]]]:
    """Yields each batch and its copy on the devices; the copy of the next batch is started before."""
    ready = None
    for batch in batches:
        placed = batch, put_batch(batch, mesh, axis)
        if ready:
            yield ready
        ready = placed
    if ready:
        yield ready


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, axis: int = 0) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays split over the mesh. Returns before the copy is done.

    `axis`: the axis of rows; 1 if an axis of replicas precedes it. float64 arrays remain so only with `jax.enable_x64`.
    """
    sharding, parts = batch_sharding(mesh, axis), batch_parts(mesh)
    own_parts = len(process_rows(mesh, parts))  # with one row per part, rows are parts
    batch_rows = next(iter(batch.values())).shape[axis] * parts // own_parts
    rows = process_rows(mesh, batch_rows)

    def put(array: np.ndarray) -> jax.Array:
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)

        def local(index: Any) -> np.ndarray:
            start, stop, _ = index[axis].indices(batch_rows)
            first = int(np.searchsorted(rows, start))
            return array[(slice(None),) * axis + (slice(first, first + stop - start),)]

        shape = (*array.shape[:axis], batch_rows, *array.shape[axis + 1 :])
        return jax.make_array_from_callback(shape, sharding, local)

    return {name: put(array) for name, array in batch.items()}
