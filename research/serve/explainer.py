"""What adds to a prediction of a model: integrated gradients, compiled when they are first asked for."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from research.data.encoder import Place
from research.data.images.transform import PixelEncoder
from research.data.parts import Part, lay_out
from research.inference.folder import FolderModel
from research.inference.model import TrainedModel
from research.models.transformer import EncoderSizes
from research.serve import gradients
from research.serve.gradients import ENTRIES, Attributions

_DENSE = ENTRIES[1:]  # entries that are numbers already


class Explainer:
    """Attributions of a model's predictions, on one device. For one thread."""

    def __init__(self, model: TrainedModel | FolderModel, variables: Any, device: jax.Device, lengths: Sequence[int]):
        """`lengths`: the lengths of rows for sequences, each of which is compiled when an input first needs it."""
        self._model = model
        self._variables = variables
        self._device = device
        self._lengths = lengths
        self._programs: dict[tuple[tuple[int, ...], ...], Any] = {}

    def supports(self, part: Part) -> bool:
        """Whether the model's inputs, such as this one, have attributions."""
        return isinstance(self._model.module, EncoderSizes) or any(name in part.arrays for name in _DENSE)

    def explain(self, part: Part, places: Sequence[tuple[Place, ...]], outputs: int, label: int | None) -> Attributions:
        """What adds to the score of a class, or to a number if `label` is None; see `gradients.direction`.

        Args:
          places: of each item of the input; tokens without one, such as [CLS], are the same in the baseline.
          outputs: how many the model has.
        """
        length = next((each for each in self._lengths if each >= part.length), part.length)
        batch = lay_out([part], np.zeros((1, 1), np.int64), length)
        name = next(name for name in ENTRIES if name in batch)
        free = np.ones(batch[name].shape[:3], np.float32)
        if name == "tokens":
            free = np.zeros(batch[name].shape, np.float32)
            free[0, : part.length] = [bool(each) for each in places]
        baseline = self._baseline(name, batch[name])
        direction = gradients.direction(outputs, label)

        def part_of_line(places: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            values = (batch, baseline, free, places, weights, direction)
            found: tuple[np.ndarray, np.ndarray] = jax.device_get(self._run(values))
            return found

        found = gradients.integrate(part_of_line)
        if name in ("tokens", "values"):
            return dataclasses.replace(found, values=found.values[: part.length])
        return found

    def _run(self, values: tuple[Any, ...]) -> Any:
        values = jax.tree.map(lambda x: x.astype(jax.dtypes.canonicalize_dtype(x.dtype)), values)
        put = jax.device_put(values, self._device)
        key = tuple(x.shape for x in jax.tree.leaves(put))
        if key not in self._programs:
            program = jax.jit(functools.partial(gradients.walk, module=self._model.module))
            self._programs[key] = program.lower(self._variables, *put).compile()
        return self._programs[key](self._variables, *put)

    def _baseline(self, name: str, values: np.ndarray) -> np.ndarray:
        """Black images; the mean of standardized features, and no category; no term, no embedding."""
        encoder = self._model.encoder
        if name == "features" and isinstance(encoder, PixelEncoder):
            black = -encoder.mean / encoder.std  # of a pixel's channels
            return np.resize(black, values.shape).astype(np.float32)
        return np.zeros([1] * values.ndim, np.float32)
