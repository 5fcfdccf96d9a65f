"""The compiled programs of a model: one for each batch shape and device."""

import concurrent.futures
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from research.inference.folder import FolderModel
from research.inference.model import TrainedModel
from research.serve import shapes
from research.serve.limits import Limits
from research.serve.operations import run_all
from research.serve.shapes import Shape

_TIMED = 3  # repetitions, of which the fastest counts
_CHOICE = 1.25  # items to choose from, for each that a batch has room for

Batch = Mapping[str, np.ndarray]


class Programs:
    """Programs that each compute some operations of a model, which have the same batches.

    Attributes:
      seconds: the measured time of a batch by its shape, after `warm_up`.
      capacity: the items to take for a batch: more than it has room for where those that fill its rows best are chosen.
      seconds_per_item: the share of an item in the time of a full batch.
      outputs: the shape and dtype of an input's values by operation and name, after `warm_up`.
    """

    def __init__(
        self,
        operations: Sequence[str],
        model: TrainedModel | FolderModel,
        variables: Sequence[Any],
        devices: Sequence[jax.Device],
        *,
        full_batch: Callable[[Shape], Batch],
        products: Callable[[], contextlib.AbstractContextManager[Any]],
    ):
        """
        Args:
          variables: those of the model on each device.
          full_batch: makes a batch of a shape as full as can be.
          products: the context in which the model is traced.
        """
        self.seconds: dict[Shape, float] = {}
        self.capacity = 1
        self.seconds_per_item = 0.0
        self.outputs: dict[str, dict[str, jax.ShapeDtypeStruct]] = {name: {} for name in operations}
        self.compiled: dict[tuple[int, Shape], Any] = {}
        self._run = functools.partial(run_all, list(operations), module=model.module, task=model.task)
        self._variables = variables
        self._devices = devices
        self._full_batch = full_batch
        self._products = products

    @property
    def on_cpu(self) -> bool:
        return bool(self._devices[0].platform == "cpu")

    def probe(self, limits: Limits, row_length: int | None) -> float:
        """Compiles one shape, for a first look before `warm_up` -> the seconds of an item in a full batch of it."""
        found = shapes.packed(row_length, 1) if row_length else shapes.fixed(min(8, limits.batch_rows))
        shape = found[-1]
        self.seconds[shape] = self._prepare(shape, 0)
        return self.seconds[shape] / shape.items

    def warm_up(self, limits: Limits, row_length: int | None) -> Iterator[tuple[Shape, float]]:
        """Compiles and measures a batch of each shape on each device -> the shape and its time in seconds, one by one.

        Of each length, shapes with more rows than the first that takes longer than `limits.batch_ms` are left out.

        Args:
          row_length: the items of the longest row; None for inputs of a fixed size.
        """
        if row_length is None:
            found = shapes.fixed(limits.batch_rows)
        else:
            found = shapes.packed(row_length, limits.batch_items, fine=self.on_cpu)
        if not self.on_cpu:  # which takes long there, and leaves the other cores free
            self._compile_at_once(found)
        slow: dict[int | None, bool] = {}
        for shape in sorted(found, key=lambda shape: (shape.length or 1, shape.rows)):
            if slow.get(shape.length):
                continue
            for device in range(len(self._devices)):
                if shape not in self.seconds or device:  # `probe` has measured one
                    self.seconds[shape] = self._prepare(shape, device)
            slow[shape.length] = self.seconds[shape] > limits.batch_ms / 1000
            yield shape, self.seconds[shape]
        capacity = shapes.capacity(self.seconds, limits.batch_ms)
        self.capacity = capacity if row_length is None else int(_CHOICE * capacity)
        self.seconds_per_item = min(time / shape.items for shape, time in self.seconds.items())

    def __call__(self, batch: Batch, shape: Shape, device: int, operation: str) -> dict[str, np.ndarray]:
        """The values of an operation for a batch of a shape."""
        # As it is in NumPy: to place each array on the device before takes a millisecond.
        arrays = {name: x.astype(_on_device(x.dtype), copy=False) for name, x in batch.items()}
        values = self.compiled[device, shape](self._variables[device], arrays)
        found: dict[str, np.ndarray] = jax.device_get(values[operation])
        return found

    def _compile(self, shape: Shape, device: int) -> None:
        place = jax.sharding.SingleDeviceSharding(self._devices[device])
        batch = self._full_batch(shape)
        abstract = {n: jax.ShapeDtypeStruct(x.shape, _on_device(x.dtype), sharding=place) for n, x in batch.items()}
        with self._products():
            self.compiled[device, shape] = jax.jit(self._run).lower(self._variables[device], abstract).compile()

    def _compile_at_once(self, found: Sequence[Shape]) -> None:
        """Compiles the shapes for all devices, several at the same time."""
        wanted = [(shape, device) for shape in found for device in range(len(self._devices))]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(self._compile, *zip(*wanted, strict=True)))

    def _prepare(self, shape: Shape, device: int) -> float:
        """Compiles a shape for a device, if it is not yet -> the seconds that a full batch takes."""
        if (device, shape) not in self.compiled:
            self._compile(shape, device)
        batch = self._full_batch(shape)
        times = []
        for _ in range(_TIMED):
            start = time.perf_counter()
            self(batch, shape, device, next(iter(self.outputs)))
            times.append(time.perf_counter() - start)
        axes = 2 if shape.length else 1
        for operation, outputs in self.compiled[device, shape].out_info.items():
            self.outputs[operation] = {n: jax.ShapeDtypeStruct(x.shape[axes:], x.dtype) for n, x in outputs.items()}
        return min(times)


def _on_device(dtype: np.dtype) -> Any:
    """The dtype of an array on a device, where there is no float64."""
    return jax.dtypes.canonicalize_dtype(dtype)
