"""A checkpoint of a run as the service runs it: compiled for every batch shape, on one device or several."""

import copy
import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from research.base.errors import UserError
from research.data.encoder import Signature
from research.data.examples import BagExamples, Columns, TextExamples
from research.data.parts import Part, lay_out, split
from research.inference.model import TrainedModel, open_model
from research.inference.samples import Samples, read_samples
from research.runs.rundir import RunDir
from research.serve import shapes
from research.serve.limits import Limits
from research.serve.operations import OPERATIONS, Operation
from research.serve.shapes import Shape

# What a client may ask the service to compute in.
COMPUTE = ("float32", "bfloat16")

_PAIR_CHARS = 64  # of a text of a pair, for each token that the model reads
_TIMED = 3  # repetitions, of which the fastest counts


@dataclasses.dataclass(frozen=True)
class Answer:
    """The predictions for one input.

    Attributes:
      values: by name. Predictions are those of the task, such as `prediction` and `scores`, and `outputs`, what the
        model returned; embeddings are `embedding`, [D], or [T, D] of every token.
      version: that of the model that made them.
    """

    values: Mapping[str, np.ndarray]
    version: str


class ServedModel:
    """A model on some devices, for one operation. `warm_up` compiles it; until then it answers nothing.

    Attributes:
      name, version: what requests call it; the version is the step of the checkpoint.
      compute: the dtype that it computes in.
      operation: what it answers with, a name in OPERATIONS.
      others: the same model for other operations, by their names; `warm_up` compiles them too.
      samples: sample inputs of the run.
      outputs: the shape and dtype of an answer's values by name, after `warm_up`.
      seconds: the measured time of a batch by its shape, after `warm_up`.
      capacity: the items of the largest batch to make.
    """

    def __init__(
        self,
        name: str,
        model: TrainedModel,
        *,
        samples: Samples | None = None,
        compute: str = "float32",
        operations: Sequence[str] = ("predict",),
        devices: Sequence[jax.Device] | None = None,
    ):
        """`operations`: which it is for; one that the model does not support is left out."""
        self.name = name
        self.version = str(model.step)
        self.compute = compute
        self.operation = "predict"
        self.samples = samples
        self.outputs: dict[str, jax.ShapeDtypeStruct] = {}
        self.seconds: dict[Shape, float] = {}
        self.capacity = 1
        self._seconds_per_item = 0.0
        self._model = model
        self._devices = list(devices or jax.local_devices()[:1])
        state = model.predicting_state
        variables = {"params": state.params, **state.model_state}
        self._variables = [jax.device_put(variables, device) for device in self._devices]
        self._programs: dict[tuple[int, Shape], Any] = {}
        names = [name for name in operations if name != "predict" and OPERATIONS[name].supports(model.module)]
        self.others = {name: self._for(name) for name in names}

    def _for(self, operation: str) -> "ServedModel":
        """The same model with the same parameters for another operation."""
        other = copy.copy(self)
        other.operation, other.seconds, other._programs, other.others = operation, {}, {}, {}
        return other

    @classmethod
    def open(
        cls, name: str, run: RunDir, checkpoint: str = "last", *, compute: str = "float32", **options: Any
    ) -> "ServedModel":
        """Opens a checkpoint of a run, the first seed's if it has several. Raises UserError if there is none."""
        if compute not in COMPUTE:
            raise UserError(f"--compute is {compute!r}; known: {', '.join(COMPUTE)}")
        model = open_model(run, checkpoint, dtype=compute).single
        return cls(name, model, samples=read_samples(run), compute=compute, **options)

    @property
    def signature(self) -> Signature:
        """The columns that it reads, and the names of the labels if they are known."""
        return self._model.signature

    @property
    def _operation(self) -> Operation:
        return OPERATIONS[self.operation]

    @property
    def is_cached(self) -> bool:
        """Whether its answers are small enough to be kept."""
        return not self._operation.per_item

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of a model of texts, without truncation; None for one that reads no tokens."""
        definition = getattr(self._model.encoder, "definition", None)
        if definition is None:
            return None
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(definition)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @property
    def platform(self) -> str:
        """What it computes on: cpu, gpu or tpu."""
        return str(self._devices[0].platform)

    def encode(self, columns: Columns) -> list[Part]:
        """The inputs, encoded. Raises UserError if a column is missing, or a value invalid or of another size."""
        if self.signature.kind == "text_pair":
            # The tokenizer combines every cut-off piece of one text with every one of the other: two texts of 80,000
            # characters took more than 14 GB. Few tokens have as many characters.
            most = _PAIR_CHARS * int(self.signature.limits["max_length"])
            columns = {n: [x[:most] if isinstance(x, str) else x for x in values] for n, values in columns.items()}
        parts = split(self._model.encode(columns, "the request"))
        if not _is_sequence(self._example):
            for i, part in enumerate(parts):
                for name, array in part.arrays.items():
                    part.arrays[name] = _as_read(array, self._example.arrays[name], f"input {i} has {name}")
        return parts

    @functools.cached_property
    def _example(self) -> Part:
        """An input by which the programs are compiled: its values do not matter.

        Raises UserError where none is known: for a run of images or features from before runs kept samples.
        """
        columns = self.samples.columns if self.samples else {}
        if not columns and self.signature.kind in ("text", "text_pair"):
            columns = {name: ["a text"] for name in self.signature.inputs}
        if columns:
            return split(self._model.encode(columns, "the run's sample"))[0]
        raise UserError(
            f"the run has no sample of its inputs ({self.signature.kind}), which it gets when it is finished by this "
            "version; to finish it again: python -m research.train --workdir=RUN --extend=1"
        )

    @functools.cached_property
    def row_length(self) -> int:
        """The items of the longest row, as in training: tokens of a text; 1 for inputs of a fixed size."""
        kind = self._example.kind
        if isinstance(kind, TextExamples):
            return max(kind.row_length, int(self.signature.limits["max_length"]))
        return kind.row_length if isinstance(kind, BagExamples) else 1

    def time_of(self, part: Part) -> float:
        """The share of an input in the time of a full batch, in seconds."""
        return part.length * self._seconds_per_item

    def warm_up(self, limits: Limits) -> Iterator[tuple[Shape, float]]:
        """Compiles and measures a batch of each shape on each device -> the shape and its time in seconds, one by one.

        Of each length, shapes with more rows than the first that takes longer than `limits.batch_ms` are left out.
        """
        example = self._example
        packs = _is_sequence(example)
        found = shapes.packed(self.row_length, limits.batch_items) if packs else shapes.fixed(limits.batch_rows)
        slow: dict[int | None, bool] = {}
        for shape in sorted(found, key=lambda shape: (shape.length or 1, shape.rows)):
            if slow.get(shape.length):
                continue
            for device in range(len(self._devices)):
                self.seconds[shape] = self._prepare(shape, device)
            slow[shape.length] = self.seconds[shape] > limits.batch_ms / 1000
            yield shape, self.seconds[shape]
        self.capacity = shapes.capacity(self.seconds, limits.batch_ms)
        self._seconds_per_item = min(time / (shape.rows * (shape.length or 1)) for shape, time in self.seconds.items())
        for other in self.others.values():
            yield from other.warm_up(limits)

    def _prepare(self, shape: Shape, device: int) -> float:
        """Compiles a shape for a device -> the seconds that a full batch takes."""
        example = self._example
        if shape.length is not None:  # as full as can be
            length = max(1, shape.length // shape.slots)
            arrays = {name: np.resize(array, length) for name, array in example.arrays.items()}
            example = dataclasses.replace(example, arrays=arrays, length=length)
        members = np.arange(shape.rows * shape.slots).reshape(shape.rows, shape.slots)
        batch = lay_out([example] * members.size, members, shape.length)
        place = jax.sharding.SingleDeviceSharding(self._devices[device])
        abstract = {n: jax.ShapeDtypeStruct(x.shape, _on_device(x.dtype), sharding=place) for n, x in batch.items()}
        run = self._operation.run
        program = jax.jit(functools.partial(run, module=self._model.module, task=self._model.task))
        self._programs[device, shape] = program.lower(self._variables[device], abstract).compile()
        times = []
        for _ in range(_TIMED):
            start = time.perf_counter()
            found = self._run(batch, shape, device)
            times.append(time.perf_counter() - start)
        axes = 2 if shape.length else 1
        self.outputs = {name: jax.ShapeDtypeStruct(x.shape[axes:], x.dtype) for name, x in found.items()}
        return min(times)

    def _run(self, batch: Mapping[str, np.ndarray], shape: Shape, device: int) -> dict[str, np.ndarray]:
        put = {name: jax.device_put(x.astype(_on_device(x.dtype)), self._devices[device]) for name, x in batch.items()}
        found: dict[str, np.ndarray] = jax.device_get(self._programs[device, shape](self._variables[device], put))
        return found

    def answer(self, parts: Sequence[Part], device: int = 0) -> tuple[list[Answer | None], Shape]:
        """The answers of the inputs, in order; None for one that the largest batch had no room for, and has to wait.

        The first one always has an answer. Raises ValueError if an input has another shape than the model reads.
        """
        shape, members = shapes.choose([part.length for part in parts], self.seconds)
        batch = lay_out(parts, members, shape.length)
        columns = self._run(batch, shape, device)
        answers: list[Answer | None] = [None] * len(parts)
        for row, slot in np.argwhere(members >= 0):
            member, where = members[row, slot], (row, slot) if shape.length else (row,)
            if self._operation.per_item:
                start = batch["starts"][row, slot]
                where = (row, slice(start, start + parts[member].length))
            # Copied, as an answer that is cached must not keep the whole batch.
            answers[member] = Answer({name: x[where].copy() for name, x in columns.items()}, self.version)
        return answers, shape


def _as_read(array: np.ndarray, example: np.ndarray, what: str) -> np.ndarray:
    """An array with the dtype of the example. Raises UserError if it has another size, or values that need another."""
    if array.shape != example.shape:
        found, wanted = ("x".join(map(str, x.shape)) for x in (array, example))
        raise UserError(f"{what} of size {found}; the model reads {wanted}")
    if array.dtype == example.dtype:
        return array
    with np.errstate(invalid="ignore"):
        cast = array.astype(example.dtype)
    rounds = array.dtype.kind == example.dtype.kind == "f"
    if not rounds and not np.array_equal(cast, array):
        raise UserError(f"{what} of {array.dtype}; the model reads {example.dtype}")
    return cast


def _is_sequence(part: Part) -> bool:
    return isinstance(part.kind, TextExamples | BagExamples)


def _on_device(dtype: np.dtype) -> Any:
    """The dtype of an array on a device, where there is no float64."""
    return jax.dtypes.canonicalize_dtype(dtype)
