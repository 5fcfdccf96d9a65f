"""Attributions as JSON: of words by their places in the text, of pixels as a map, of features by name."""

import asyncio
import collections
import concurrent.futures
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from research.data.encoder import Place
from research.data.examples import Columns
from research.data.parts import Part
from research.data.table import TableEncoder
from research.serve.errors import Kind, ServiceError
from research.serve.limits import Limits
from research.serve.model import ServedModel

# The rows and columns of a map at most: larger images have the sums of blocks of pixels.
_MAP = 64


def explanation(model: ServedModel, columns: Columns, part: Part, label: int | None) -> dict[str, Any]:
    """What adds to the score of a class, or to a number, for the only input of the columns, encoded as `part`.

    `score` and `baseline`, those of the input and of one without information; `gap`, how far the sum of the
    attributions is from their difference; `points`, where the gradient was taken; and the attributions as `tokens`,
    `map` or `features`.
    """
    places = model.encoder.places(columns)
    outputs = math.prod(model.outputs["outputs"].shape)
    found = model.explainer.explain(part, places, outputs, label)
    summed = {"score": found.score, "baseline": found.baseline, "gap": found.gap, "points": found.points}
    kind = model.signature.kind
    if kind == "image":
        return {**summed, "map": _map(found.values, model).tolist()}
    if kind in ("text", "text_pair"):
        return {**summed, "tokens": _tokens(found.values, places, columns)}
    return {**summed, "features": _features(found.values, model)}


def _tokens(values: np.ndarray, places: Sequence[tuple[Place, ...]], columns: Columns) -> list[dict[str, Any]]:
    """In the order of the text. What stands in several places, as a term of a bag does, is shared evenly by them."""
    by_place: dict[Place, float] = collections.defaultdict(float)
    for value, where in zip(values, places, strict=True):
        for place in where:
            by_place[place] += float(value) / len(where)
    return [
        {
            "input": place.column,
            "start": place.start,
            "stop": place.stop,
            "text": columns[place.column][0][place.start : place.stop],
            "word": place.word,
            "attribution": value,
        }
        for place, value in sorted(by_place.items(), key=lambda pair: (pair[0].word, pair[0].start))
    ]


def _map(values: np.ndarray, model: ServedModel) -> np.ndarray:
    """[h, w], at most _MAP each, for pixels [H, W] or the values of an image [H · W · C]."""
    if values.ndim == 1:
        size = model.form["image"]
        values = values.reshape(size["height"], size["width"], -1).sum(axis=2)
    for axis in (0, 1):
        block = -(-values.shape[axis] // _MAP)
        values = np.add.reduceat(values, np.arange(0, values.shape[axis], block), axis)
    return values


def _features(values: np.ndarray, model: ServedModel) -> list[dict[str, Any]]:
    """By column: a category's is the sum of its features'."""
    encoder = model.encoder
    if isinstance(encoder, TableEncoder):
        counts = [len(encoder.categories.get(name, (name,))) for name in encoder.learnt]
        values = np.add.reduceat(values, np.cumsum([0, *counts[:-1]]))
        names: tuple[str, ...] = tuple(encoder.learnt)
    else:
        fields = model.form.get("features", [{"name": f"feature {i}"} for i in range(len(values))])
        names = tuple(field["name"] for field in fields)
    return [{"name": name, "attribution": float(value)} for name, value in zip(names, values, strict=True)]


class Explanations:
    """Explains one prediction at a time, in a thread of its own.

    An explanation takes many times as long as a prediction, and compiles a program when it is first asked for.
    """

    def __init__(self, limits: Limits):
        self._seconds = limits.timeout_ms / 1000
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "explain")
        self._working = False

    async def get(self, model: ServedModel, columns: Columns, part: Part, label: int | None) -> dict[str, Any]:
        """As `explanation`. Raises ServiceError if the model has no attributions, or another one is computed."""
        if not model.explainer.supports(part):
            raise ServiceError(Kind.FAILED, f"model {model.name!r} can't be explained")
        if self._working:
            raise ServiceError(Kind.OVERLOADED, "another prediction is being explained", retry_after=1.0)
        self._working = True
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, explanation, model, columns, part, label)
        future.add_done_callback(self._ended)
        try:
            # Shielded: what was compiled by then is of use to the next request.
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(future)
        except TimeoutError:
            message = "the explanation takes too long; the next one may be faster, as the model is compiled by then"
            raise ServiceError(Kind.OVERLOADED, message, retry_after=self._seconds) from None
        except Exception as error:  # whatever a model raises
            raise ServiceError.of(error) from error

    def _ended(self, future: asyncio.Future[dict[str, Any]]) -> None:
        self._working = False
        if not future.cancelled():
            future.exception()  # so that asyncio does not report one that nobody waits for any more

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
