"""Compresses a run by a chain of methods."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from research.base.errors import UserError
from research.compress import onnx
from research.compress.calibration import Calibration
from research.compress.certify import certify
from research.compress.context import Context, Say
from research.compress.methods import Step
from research.compress.network import Network, check_new, write_run
from research.compress.tuning import Tuning, tuned
from research.data.examples import TextExamples
from research.data.splits import whole
from research.training.trained_run import TrainedRun


def to_onnx(source: TrainedRun, folder: Path, *, say: Say = print) -> None:
    """Writes model.onnx, its fused form and that with 8-bit products, and compares them on the run's main split.

    Raises UserError if the folder has something in it, or the model is not supported.
    """
    check_new(folder)
    path = onnx.write_onnx(source.model, folder, assets=source.run.assets)
    split = source.config.eval.splits[0]
    columns = source.dataset().columns[whole(split)]
    for file in (path, onnx.optimized(path), onnx.quantized(path.with_name(onnx.OPTIMIZED))):
        largest, same = onnx.check(source.model, folder, columns, file=file.name)
        size = file.stat().st_size / 1e6
        say(f"  {file.name}, {size:.1f} MB: logits of {split} differ by at most {largest:.2g}, {same:.2%} same class")


def check_corpus(source: TrainedRun) -> None:
    """Raises UserError if the run's dataset is not the one that it was trained on, or its classes have other names."""
    saved, names = source.class_names
    if saved is not None and names != saved:
        section = source.config.data
        raise UserError(
            f"{section.train or section.name} has other classes than {source.run.path}: now {_list(names)}, when the "
            f"run was trained {_list(saved)}; give it the data that it was trained on, or train it again"
        )
    source.dataset()


def _list(names: tuple[str, ...] | None) -> str:
    return "unknown ones" if names is None else ", ".join(names)


class Compression:
    """A run to be compressed; what several methods need is computed once."""

    def __init__(self, source: TrainedRun, which: str, *, student: ConfigDict | None = None, say: Say = print):
        """`student`: the config of the method `distill`."""
        self.source = source
        self.original = Network.open(source.run, which)
        tokenizer = source.run.assets / "tokenizer.json"
        self.calibration = functools.cache(functools.partial(Calibration.of, source))
        self._context = Context(
            calibration=self.calibration,
            pieces=functools.cache(self._pieces),
            tokenizer=tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None,
            assets=source.run.assets,
            student=student,
            say=say,
        )
        self._say = say

    def _pieces(self) -> np.ndarray:
        examples = self.source.dataset().split("train")
        if not isinstance(examples, TextExamples):
            raise UserError("vocab is for texts")
        return np.bincount(examples.tokens.values, minlength=self.original.config.model.vocab_size)

    def run(
        self, steps: Sequence[Step], folder: Path, tuning: Tuning | None, *, seconds: float = 2.0
    ) -> dict[str, Any]:
        """Applies the methods in order, and after the last one that removes something trains -> the certificate.

        What trains is in the folder called like `folder`, with "-tuned" added. Raises UserError as the methods do.
        """
        check_new(folder)
        check_corpus(self.source)
        if tuning is not None:
            tuning.check(self.original.config.task.name)
        context = dataclasses.replace(self._context, trains=tuning is not None)
        network, last = self.original, max((i for i, step in enumerate(steps) if step.method.removes), default=None)
        for i, step in enumerate(steps):
            self._say(f"{step}")
            network = step.method.apply(network, step.value, context)
            if i == last and tuning is not None:
                self._say(f"training for {tuning.epochs:g} epochs")
                network = tuned(network, self.source, folder.with_name(f"{folder.name}-tuned"), tuning, say=self._say)
        names = [str(step) for step in steps]
        result = write_run(network, self.source, folder, names)
        self._say("measuring")
        return certify(self.original, network, self.source, result, self.calibration(), names, seconds=seconds)
