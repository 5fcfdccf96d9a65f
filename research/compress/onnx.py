"""A run's network for ONNX Runtime: as a file, fused, with 8-bit products; and predictions from such a file.

Measured on SST-2's 872 dev sentences and in throughput: benchmarks/results/compress.md.
"""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.base.errors import UserError
from research.base.paths import read_json
from research.base.registry import build
from research.compress.extra import imported
from research.compress.onnx_graph import FEATURES, OUTPUT, TEXT_INPUTS, network, writer
from research.core.quantization import dequantized
from research.core.tasks import TASKS, Task
from research.data import load as data
from research.data.encoder import FILE as ENCODER_FILE
from research.data.encoder import Encoder, Signature, to_json
from research.data.examples import Columns, Examples, TextExamples
from research.data.pipeline import Batch, make_batch
from research.inference.evaluation import Records, records
from research.inference.model import TrainedModel

MODEL, OPTIMIZED, INT8 = "model.onnx", "optimized.onnx", "int8.onnx"

# Files of a run's assets that no encoder reads.
_NOT_READ = (ENCODER_FILE, "samples.json", "data_fingerprint.txt")


def write_onnx(model: TrainedModel, folder: Path, *, assets: Path) -> Path:
    """Writes the network as model.onnx, and beside it what encodes its inputs -> the path of model.onnx.

    The network computes in float32, also with weights that the run has in int8; `research.compress.onnx_graph.network`
    names its inputs and outputs. Of several seeds it is that of the first.

    Args:
      assets: the folder of the run's encoder, of which the files are copied.

    Raises:
      UserError: the model is not supported, the folder has a model.onnx, or the package onnx is not installed.
    """
    path = folder / MODEL
    if path.exists():
        raise UserError(f"{path} exists; choose another folder")
    model = model.single
    _check(model)
    made = network(model.module, dequantized(model.variables)["params"])
    # The tokenizer, which may have been a file elsewhere, is among the assets.
    transform = {key: None if key == "tokenizer" else x for key, x in model.config.data.transform.to_dict().items()}
    task = {"name": model.config.task.name, **dataclasses.asdict(model.task)}  # type: ignore[call-overload]
    folder.mkdir(parents=True, exist_ok=True)
    for file in assets.iterdir():
        if file.is_file() and file.name not in _NOT_READ:
            shutil.copyfile(file, folder / file.name)
    (folder / ENCODER_FILE).write_text(to_json(model.signature, transform=transform, task=task) + "\n")
    imported("onnx").save_model(made, str(path))
    return path


def _check(model: TrainedModel) -> None:
    """Raises UserError for a model that can't be written."""
    writer(model.module)
    name = model.config.data.transform.name
    if name not in data.TRANSFORMS:
        raise UserError(f"data.transform {name!r} is not one of the project's, and an ONNX folder can't hold its code")


def optimized(path: Path) -> Path:
    """Writes the network with the fused operators of ONNX Runtime's optimizer for BERT -> optimized.onnx beside it.

    It also holds for texts padded on the left. Raises UserError if the packages are not installed.
    """
    imported("onnx")
    optimizer = imported("onnxruntime.transformers.optimizer")
    options = imported("onnxruntime.transformers.fusion_options").FusionOptions("bert")
    options.use_raw_attention_mask(True)  # not the number of its tokens
    with _quiet():
        made = optimizer.optimize_model(str(path), "bert", optimization_options=options)
    made.save_model_to_file(str(path.with_name(OPTIMIZED)))
    return path.with_name(OPTIMIZED)


def quantized(path: Path) -> Path:
    """Writes the network, best an `optimized` one, with 8-bit weights and dynamic products -> int8.onnx beside it.

    A weight's scale is that of its column; an activation's is that of the whole batch, so that a prediction depends on
    the others of its batch. Raises UserError if the packages are not installed.
    """
    onnx, quantization = imported("onnx"), imported("onnxruntime.quantization")
    with _quiet():
        quantization.quantize_dynamic(
            str(path),
            str(path.with_name(INT8)),
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of what the fused operators return
        )
    return path.with_name(INT8)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: that PyTorch did not write the file, and that it was not prepared for other kinds of 8 bits."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@dataclasses.dataclass(frozen=True)
class OnnxModel:
    """A network in ONNX Runtime, with the encoder of its inputs and the task that makes its predictions.

    Attributes:
      session: ONNX Runtime's, which computes it.
    """

    session: Any
    encoder: Encoder
    signature: Signature
    task: Task

    @classmethod
    def open(cls, folder: Path, file: str = MODEL, *, threads: int | None = None) -> "OnnxModel":
        """Opens a file of a folder that `write_onnx` wrote, to compute on the CPU with `threads`; None: on all cores.

        Raises UserError if a file is missing or can't be read, or ONNX Runtime is not installed.
        """
        runtime = imported("onnxruntime")
        saved = read_json(folder / ENCODER_FILE)
        if "task" not in saved:
            raise UserError(f"{folder / ENCODER_FILE} has no task; write the folder again")
        encoder, signature = data.open_encoder(saved, folder)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            session = runtime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's own exceptions have no common class
            raise UserError(f"{folder / file} can't be opened: {str(error).splitlines()[0]}") from error
        return cls(session, encoder, signature, build(TASKS, saved["task"], "task"))

    def predict(self, columns: Columns, *, batch_rows: int = 32) -> Records:
        """The records of the examples, in order, as `research.inference.predictor.Predictor` returns them.

        Raises UserError if a column is missing, or a value is not valid for the model.
        """
        logits = self.logits(columns, batch_rows=batch_rows)
        weight = np.ones(len(logits), np.float32)
        found = jax.device_get(self.task.predictions(jnp.asarray(logits), {"weight": jnp.asarray(weight)}))
        names = self.signature.label_names or ()
        return [
            {**record, "label_name": names[record["prediction"]]}
            if isinstance(record["prediction"], int) and record["prediction"] < len(names)
            else record
            for record in records(np.arange(len(logits)), found)
        ]

    def logits(self, columns: Columns, *, batch_rows: int = 32) -> np.ndarray:
        """The logits of the examples: float32 [N, C]. Raises UserError as `predict` does."""
        with data.fitting(self.signature.kind, "the input"):
            examples = self.encoder.encode(columns, labels=False)
        return np.concatenate([self.run(batch) for _, batch in batches(examples, batch_rows)])

    def run(self, batch: Batch) -> np.ndarray:
        """The logits of a batch with an example in each row: float32 [B, C]."""
        (logits,) = self.session.run([OUTPUT], self.inputs(batch))
        return np.asarray(logits)

    def inputs(self, batch: Batch) -> dict[str, np.ndarray]:
        """The network's inputs for a batch."""
        if "tokens" not in batch:
            return {FEATURES: np.asarray(batch[FEATURES], np.float32)}
        found = {theirs: batch[ours].astype(np.int64) for ours, theirs in TEXT_INPUTS.items()}
        return {each.name: found[each.name] for each in self.session.get_inputs()}


def batches(examples: Examples, batch_rows: int, *, pad: bool = False) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches of an example in each row, in order, with their indices; texts are as long as the longest of the batch.

    `pad`: to one of the lengths that the run pads to.
    """
    for start in range(0, len(examples), batch_rows):
        indices = np.arange(start, min(start + batch_rows, len(examples)))
        own = examples
        if isinstance(examples, TextExamples) and not pad:
            own = dataclasses.replace(examples, pad_to=(int(examples.lengths[indices].max()),))
        yield indices, make_batch(own, indices[:, None])


def check(
    model: TrainedModel, folder: Path, columns: Columns, *, file: str = MODEL, batch_rows: int = 32
) -> tuple[float, float]:
    """Compares a file with the network that it was written from, in float32, for raw inputs.

    The network here reads texts padded to one of the run's lengths, ONNX Runtime as long as the longest of the batch.

    Returns:
      The largest difference of logits, and the fraction of examples with the same largest logit.
    """
    model, theirs = model.single, OnnxModel.open(folder, file)
    examples = model.encode(columns, "the input")
    forward = jax.jit(model.module.clone(dtype=jnp.float32).apply, static_argnames="train")
    variables, expected = dequantized(model.variables), []
    for indices, batch in batches(examples, batch_rows, pad=True):
        outputs: Any = forward(variables, batch, train=False)
        expected.append(np.asarray(outputs).reshape(len(indices), -1))
    ours, found = np.concatenate(expected), theirs.logits(columns, batch_rows=batch_rows)
    return float(np.abs(ours - found).max()), float(np.mean(ours.argmax(axis=1) == found.argmax(axis=1)))
