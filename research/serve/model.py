"""A checkpoint of a run as the service runs it: compiled for every batch shape, on one device or several."""

import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from research.base.errors import UserError
from research.core.quantization import applied, dequantized, is_quantized, quantized
from research.data.encoder import Encoder, Signature
from research.data.examples import BagExamples, Columns, TextExamples
from research.data.parts import Part, lay_out
from research.data.text.wordpiece import tokenizer_of
from research.inference.folder import Folder, FolderModel
from research.inference.model import TrainedModel, open_model
from research.inference.samples import Samples, read_samples
from research.runs.rundir import RunDir
from research.serve import encoding, shapes
from research.serve.explainer import Explainer
from research.serve.forms import form
from research.serve.limits import Limits
from research.serve.masks import Masks
from research.serve.operations import OPERATIONS, USUAL, Operation, chosen
from research.serve.programs import Programs
from research.serve.shapes import Shape

# What a model can compute in: int8 is the products of dense layers, with everything else in float32.
COMPUTE = ("float32", "bfloat16", "int8")


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
      programs: those that compute it; `others` with the same batches share them.
    """

    programs: Programs

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
        self.compute = "int8" if is_quantized(model.variables) else compute
        self.operation, *others = chosen(operations, model.module)
        self.samples = samples
        self._model = model
        self._devices = list(devices or jax.local_devices()[:1])
        is_new = self.compute == "int8" and not is_quantized(model.variables)
        variables = self._quantized(model.variables) if is_new else model.variables
        products = functools.partial(applied, variables)
        self._variables = [jax.device_put(variables, device) for device in self._devices]
        self.others = {name: self._for(name) for name in others}
        by_batches: dict[bool, list[ServedModel]] = {}  # those for masks also have their positions
        for each in (self, *self.others.values()):
            by_batches.setdefault(each._operation.per_mask, []).append(each)
        for alike in by_batches.values():
            names = [each.operation for each in alike]
            full_batch = alike[0]._full_batch
            programs = Programs(names, model, self._variables, self._devices, full_batch=full_batch, products=products)
            for each in alike:
                each.programs = programs

    def _for(self, operation: str) -> "ServedModel":
        """The same model with the same parameters for another operation."""
        other = copy.copy(self)
        other.operation, other.others = operation, {}
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
        lengths = sorted({shape.length or 1 for shape in self.programs.seconds})
        # Rounding to integers has no gradient.
        variables = dequantized(self._model.variables) if self.compute == "int8" else self._variables[0]
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
        return tokenizer_of(definition)

    @functools.cached_property
    def masks(self) -> Masks | None:
        """The masks that it fills in; None for a model that fills in none."""
        return Masks.of(self.tokenizer) if self.serves("fill") else None

    @property
    def _masks(self) -> Masks | None:
        """The masks that this operation answers for."""
        return self.masks if self._operation.per_mask else None

    @property
    def device_count(self) -> int:
        """On how many devices it computes."""
        return len(self._devices)

    @property
    def platform(self) -> str:
        """What it computes on: cpu, gpu or tpu."""
        return str(self._devices[0].platform)

    def encode(self, columns: Columns) -> list[Part]:
        """The inputs, encoded. Raises UserError if a column is missing, or a value invalid or of another size."""
        parts = encoding.encode(self._model, columns, self.example)
        if self._masks:
            self._masks.check(parts, max(shape.slots for shape in self.programs.seconds))
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

    @property
    def outputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """The shape and dtype of an answer's values by name, after `warm_up`."""
        return self.programs.outputs[self.operation]

    @property
    def capacity(self) -> int:
        """The items to take for a batch."""
        return self.programs.capacity

    def time_of(self, part: Part) -> float:
        """The share of an input in the time of a full batch, in seconds."""
        return part.length * self.programs.seconds_per_item

    @property
    def _packed_length(self) -> int | None:
        return self.row_length if encoding.is_sequence(self.example) else None

    def probe(self, limits: Limits) -> float:
        """Compiles one shape, for a first look before `warm_up` -> the seconds of an item in a full batch of it."""
        return self.programs.probe(limits, self._packed_length)

    def warm_up(self, limits: Limits) -> Iterator[tuple[Shape, float]]:
        """As `Programs.warm_up`, of all operations."""
        for programs in dict.fromkeys(each.programs for each in (self, *self.others.values())):
            yield from programs.warm_up(limits, self._packed_length)

    def _full_batch(self, shape: Shape) -> dict[str, np.ndarray]:
        """A batch as full as can be."""
        example = self.example
        if shape.length is not None:
            length = max(1, shape.length // shape.slots)
            arrays = {name: np.resize(array, length) for name, array in example.arrays.items()}
            example = dataclasses.replace(example, arrays=arrays, length=length)
        members = np.arange(shape.rows * shape.slots).reshape(shape.rows, shape.slots)
        return self._batch([example] * members.size, members, shape)

    def choose(self, parts: Sequence[Part]) -> tuple[Shape, np.ndarray]:
        """The shape of the next batch, and which of the inputs its rows hold: see `shapes.choose`."""
        masks = self._masks
        slots = [masks.count(part.arrays["tokens"]) for part in parts] if masks else None
        return shapes.choose([part.length for part in parts], self.programs.seconds, slots)

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
        columns = self.programs(batch, shape, device, self.operation)
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
