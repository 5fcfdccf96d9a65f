"""A checkpoint of a run as the service runs it: compiled for every batch shape, on one device or several."""

import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from research.base.errors import UserError
from research.data.encoder import Encoder, Signature
from research.data.examples import BagExamples, Columns, TextExamples
from research.data.parts import Part, lay_out
from research.inference.folder import Folder, FolderModel
from research.inference.model import TrainedModel, open_model
from research.inference.quantization import int8_products, quantized
from research.inference.samples import Samples, read_samples
from research.runs.rundir import RunDir
from research.serve import encoding, shapes
from research.serve.explainer import Explainer
from research.serve.forms import form
from research.serve.limits import Limits
from research.serve.masks import Masks
from research.serve.operations import OPERATIONS, USUAL, Operation, chosen, run_all
from research.serve.shapes import Shape

# What a model can compute in: int8 is the products of dense layers, with everything else in float32.
COMPUTE = ("float32", "bfloat16", "int8")

_TIMED = 3  # repetitions, of which the fastest counts
_CHOICE = 1.25  # items to choose from, for each that a batch has room for


@dataclasses.dataclass(frozen=True)
class Answer:
    """The predictions for one input.

    Attributes:
      values: by name. Predictions are those of the task, such as `prediction` and `scores`, and `outputs`, what the
        model returned; embeddings are `embedding`, [D], or [T, D] of every token; for masks `token` and `score`,
        [M, K], and those of the input, `tokens`, [T].
      version: that of the model that made them.
    """

    values: Mapping[str, np.ndarray]
    version: str


class ServedModel:
    """A model on some devices, for one operation. `warm_up` compiles it; until then it answers nothing.

    Attributes:
      name, version: what requests call it; the version is the step of the checkpoint, or a hash of a folder's weights.
      compute: the dtype that it computes in.
      operation: what it answers with, a name in OPERATIONS.
      others: the same model for other operations, by their names; `warm_up` compiles them too.
      samples: sample inputs of the run.
      outputs: the shape and dtype of an answer's values by name, after `warm_up`.
      seconds: the measured time of a batch by its shape, after `warm_up`.
      capacity: the items to take for a batch: more than it has room for where those that fill its rows best are chosen.
    """

    def __init__(
        self,
        name: str,
        model: TrainedModel | FolderModel,
        *,
        version: str,
        samples: Samples | None = None,
        compute: str = "float32",
        operations: Sequence[str] = USUAL,
        devices: Sequence[jax.Device] | None = None,
    ):
        """`operations`: which it is for; one that the model does not support is left out: see `chosen`."""
        self.name = name
        self.version = version
        self.compute = compute
        self.operation, *others = chosen(operations, model.module)
        self.samples = samples
        self.outputs: dict[str, jax.ShapeDtypeStruct] = {}
        self.seconds: dict[Shape, float] = {}
        self.capacity = 1
        self._seconds_per_item = 0.0
        self._model = model
        self._devices = list(devices or jax.local_devices()[:1])
        variables = model.variables
        self._products: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        if compute == "int8":
            variables = self._quantized(variables)
            self._products = int8_products
        self._variables = [jax.device_put(variables, device) for device in self._devices]
        self._programs: dict[tuple[int, Shape], Any] = {}
        self._together = [self]  # this and the others that the same programs compute; the first one compiles them
        self.others: dict[str, ServedModel] = {}
        for name in others:
            self.others[name] = self._for(name)

    def _for(self, operation: str) -> "ServedModel":
        """The same model with the same parameters for another operation.

        It shares the programs of one that has the same batches: those for masks also have their positions.
        """
        per_mask = OPERATIONS[operation].per_mask
        alike = [each for each in (self, *self.others.values()) if each._operation.per_mask == per_mask]
        other = copy.copy((*alike, self)[0])
        other.operation, other.others = operation, {}
        if not alike:
            other.seconds, other._programs, other._together = {}, {}, []
        other._together.append(other)
        return other

    @classmethod
    def open(
        cls, name: str, run: RunDir | Folder, checkpoint: str = "last", *, compute: str = "float32", **options: Any
    ) -> "ServedModel":
        """Opens a folder, or a checkpoint of a run: the first seed's if it has several.

        Raises UserError if there is none.
        """
        if compute not in COMPUTE:
            raise UserError(f"--compute is {compute!r}; known: {', '.join(COMPUTE)}")
        dtype = "float32" if compute == "int8" else compute
        if isinstance(run, Folder):
            version, folder = run.version, run.model(dtype=dtype)
            return cls(name, folder, version=version, samples=run.samples, compute=compute, **options)
        model = encoding.of_texts(open_model(run, checkpoint, dtype=dtype).single)
        return cls(name, model, version=str(model.step), samples=read_samples(run), compute=compute, **options)

    def serves(self, operation: str) -> bool:
        """Whether it, or one of `others`, is for the operation."""
        return operation == self.operation or operation in self.others

    def _quantized(self, variables: Any) -> Any:
        example = self.example
        batch = lay_out(
            [example], np.zeros((1, 1), np.int64), example.length if encoding.is_sequence(example) else None
        )
        run = functools.partial(self._operation.run, module=self._model.module, task=self._model.task)
        try:
            return quantized(variables, lambda variables: run(variables, batch))
        except ValueError as error:
            raise UserError(f"model {self.name!r} can't compute in int8: {error}") from error

    @property
    def signature(self) -> Signature:
        """The columns that it reads, and the names of the labels if they are known."""
        return self._model.signature

    @property
    def encoder(self) -> Encoder:
        """What makes examples of raw inputs."""
        return self._model.encoder

    @functools.cached_property
    def form(self) -> dict[str, Any]:
        """What a form for its inputs has to know."""
        trained_on = self._model.config.data.name if isinstance(self._model, TrainedModel) else ""
        return form(self.encoder, self.example, trained_on)

    @functools.cached_property
    def explainer(self) -> Explainer:
        """What explains its predictions, once it is warmed up; it compiles when it is first asked. For one thread."""
        lengths = sorted({shape.length or 1 for shape in self.seconds})
        # Rounding to integers has no gradient.
        variables = self._model.variables if self.compute == "int8" else self._variables[0]
        return Explainer(self._model, variables, self._devices[0], lengths)

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

    @functools.cached_property
    def masks(self) -> Masks | None:
        """The masks that it fills in; None for a model that fills in none."""
        return Masks.of(self.tokenizer) if self.serves("fill") else None

    @property
    def _masks(self) -> Masks | None:
        """The masks that this operation answers for."""
        return self.masks if self._operation.per_mask else None

    @property
    def platform(self) -> str:
        """What it computes on: cpu, gpu or tpu."""
        return str(self._devices[0].platform)

    def encode(self, columns: Columns) -> list[Part]:
        """The inputs, encoded. Raises UserError if a column is missing, or a value invalid or of another size."""
        parts = encoding.encode(self._model, columns, self.example)
        if self._masks:
            self._masks.check(parts, max(shape.slots for shape in self.seconds))
        return parts

    @functools.cached_property
    def example(self) -> Part:
        """An input by which the programs are compiled: its values do not matter.

        Raises UserError where none is known: for a run of images or features from before runs kept samples.
        """
        return encoding.example(self._model, self.samples)

    @functools.cached_property
    def row_length(self) -> int:
        """The items of the longest row, as in training: tokens of a text; 1 for inputs of a fixed size."""
        kind = self.example.kind
        if isinstance(kind, TextExamples):
            return max(kind.row_length, int(self.signature.limits["max_length"]))
        return kind.row_length if isinstance(kind, BagExamples) else 1

    def time_of(self, part: Part) -> float:
        """The share of an input in the time of a full batch, in seconds."""
        return part.length * self._seconds_per_item

    def probe(self, limits: Limits) -> float:
        """Compiles one shape, for a first look before `warm_up` -> the seconds of an item in a full batch of it."""
        packs = encoding.is_sequence(self.example)
        shape = shapes.packed(self.row_length, 1)[-1] if packs else shapes.fixed(min(8, limits.batch_rows))[-1]
        self.seconds[shape] = self._prepare(shape, 0)
        return self.seconds[shape] / shape.items

    def warm_up(self, limits: Limits) -> Iterator[tuple[Shape, float]]:
        """Compiles and measures a batch of each shape on each device -> the shape and its time in seconds, one by one.

        Of each length, shapes with more rows than the first that takes longer than `limits.batch_ms` are left out.
        """
        for each in (self, *self.others.values()):
            if each._together[0] is each:
                yield from each._prepare_all(limits)

    def _prepare_all(self, limits: Limits) -> Iterator[tuple[Shape, float]]:
        packs = encoding.is_sequence(self.example)
        on_cpu = self.platform == "cpu"
        if packs:
            found = shapes.packed(self.row_length, limits.batch_items, fine=on_cpu)
        else:
            found = shapes.fixed(limits.batch_rows)
        if not on_cpu:  # which takes long there, and leaves the other cores free
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
        for each in self._together:
            each.capacity = int(_CHOICE * capacity) if packs else capacity
            each._seconds_per_item = min(time / shape.items for shape, time in self.seconds.items())

    def _full_batch(self, shape: Shape) -> dict[str, np.ndarray]:
        """A batch as full as can be."""
        example = self.example
        if shape.length is not None:
            length = max(1, shape.length // shape.slots)
            arrays = {name: np.resize(array, length) for name, array in example.arrays.items()}
            example = dataclasses.replace(example, arrays=arrays, length=length)
        members = np.arange(shape.rows * shape.slots).reshape(shape.rows, shape.slots)
        return self._batch([example] * members.size, members, shape)

    def _compile(self, shape: Shape, device: int) -> None:
        batch = self._full_batch(shape)
        place = jax.sharding.SingleDeviceSharding(self._devices[device])
        abstract = {n: jax.ShapeDtypeStruct(x.shape, _on_device(x.dtype), sharding=place) for n, x in batch.items()}
        run = functools.partial(run_all, [each.operation for each in self._together])
        program = jax.jit(functools.partial(run, module=self._model.module, task=self._model.task))
        with self._products():
            self._programs[device, shape] = program.lower(self._variables[device], abstract).compile()

    def _compile_at_once(self, found: Sequence[Shape]) -> None:
        """Compiles the shapes for all devices, several at the same time."""
        wanted = [(shape, device) for shape in found for device in range(len(self._devices))]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(self._compile, *zip(*wanted, strict=True)))

    def _prepare(self, shape: Shape, device: int) -> float:
        """Compiles a shape for a device, if it is not yet -> the seconds that a full batch takes."""
        if (device, shape) not in self._programs:
            self._compile(shape, device)
        batch = self._full_batch(shape)
        times = []
        for _ in range(_TIMED):
            start = time.perf_counter()
            self._run(batch, shape, device)
            times.append(time.perf_counter() - start)
        axes = 2 if shape.length else 1
        for each in self._together:
            outputs = self._programs[device, shape].out_info[each.operation]
            each.outputs = {name: jax.ShapeDtypeStruct(x.shape[axes:], x.dtype) for name, x in outputs.items()}
        return min(times)

    def _run(self, batch: Mapping[str, np.ndarray], shape: Shape, device: int) -> dict[str, np.ndarray]:
        # As it is in NumPy: to place each array on the device before takes a millisecond.
        arrays = {name: x.astype(_on_device(x.dtype), copy=False) for name, x in batch.items()}
        values = self._programs[device, shape](self._variables[device], arrays)
        found: dict[str, np.ndarray] = jax.device_get(values[self.operation])
        return found

    def choose(self, parts: Sequence[Part]) -> tuple[Shape, np.ndarray]:
        """The shape of the next batch, and which of the inputs its rows hold: see `shapes.choose`."""
        masks = self._masks
        slots = [masks.count(part.arrays["tokens"]) for part in parts] if masks else None
        return shapes.choose([part.length for part in parts], self.seconds, slots)

    def answer(
        self, parts: Sequence[Part], device: int = 0, chosen: tuple[Shape, np.ndarray] | None = None
    ) -> tuple[list[Answer | None], Shape]:
        """The answers of the inputs, in order; None for one that the batch had no room for, and has to wait.

        The first one always has an answer. Raises ValueError if an input has another shape than the model reads.

        Args:
          chosen: what `choose` returned for the inputs, if it was called.
        """
        masks = self._masks
        shape, members = chosen or self.choose(parts)
        batch = self._batch(parts, members, shape)
        columns = self._run(batch, shape, device)
        answers: list[Answer | None] = [None] * len(parts)
        for row, slot in np.argwhere(members >= 0):
            member, where = members[row, slot], (row, slot) if shape.length else (row,)
            if self._operation.per_item:
                start = batch["starts"][row, slot]
                where = (row, slice(start, start + parts[member].length))
            elif masks:
                before = masks.count(batch["tokens"][row, : batch["starts"][row, slot]])
                where = (row, slice(before, before + masks.count(parts[member].arrays["tokens"])))
            # Copied, as an answer that is cached must not keep the whole batch.
            values = {name: x[where].copy() for name, x in columns.items()}
            if masks:
                values["tokens"] = parts[member].arrays["tokens"].copy()
            answers[member] = Answer(values, self.version)
        return answers, shape

    def _batch(self, parts: Sequence[Part], members: np.ndarray, shape: Shape) -> dict[str, np.ndarray]:
        """The batch of a shape with the parts `members`; for masks with `masked_positions` [R, E], 0 where unused."""
        batch = dict(lay_out(parts, members, shape.length))
        if self._masks:
            batch["masked_positions"] = self._masks.positions(batch, shape.slots)
        return batch


def _on_device(dtype: np.dtype) -> Any:
    """The dtype of an array on a device, where there is no float64."""
    return jax.dtypes.canonicalize_dtype(dtype)
