"""Where arrays live: a device mesh, and ordered (regex, axes) rules that place every leaf of the train state.

The batch is split over the axes `data` and `fsdp`; parameters and optimizer state are replicated unless a rule says
otherwise. The optimizer's moments follow the rules of their parameters, as their paths end with the parameters' paths.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.base.errors import UserError
from research.base.leaves import path_name
from research.devices.rules import resolve_rules, spec_of

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


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


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """The function, traced with the mesh in its context, so that models split activations by its axes.

    Not where only the batch is split: XLA then splits the activations by itself.
    """
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return function

    @functools.wraps(function)
    def traced(*arguments: Any, **options: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments, **options)

    return traced


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


def state_shardings(abstract_state: Any, rules: Any, mesh: Mesh, module: Any = None) -> Any:
    """A NamedSharding for every leaf: from the first rule whose regex matches its path; otherwise it is replicated.

    Args:
      rules: the name of a rule set of `module`, a sequence of `Rule`s, or None.
      module: the model, whose `MESH_RULES` are its rules over both axes.

    Raises UserError if a rule is not of the form `Rule`, has more entries than the leaf has dimensions, names an
    unknown axis or one twice, or does not divide the leaf's shape. A rule with fewer entries than dimensions does not
    split the last ones.
    """
    resolved = resolve_rules(rules, module)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path_name(path), leaf.shape, resolved, mesh)), abstract_state
    )


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
