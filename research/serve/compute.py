"""Chooses what a model computes in: the fastest of what agrees with float32, by a short measurement at the start."""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from research.base.errors import UserError
from research.serve.limits import Limits
from research.serve.model import COMPUTE, ServedModel

log = logging.getLogger("research.serve")

AUTO = "auto"

# How far predictions may be from those in float32: probabilities absolutely, numbers relative to the largest. Classes
# must be equal.
BOUND = 0.02
# How much faster than float32 another must be to be chosen: the measurement is short.
_WORTH = 1.1

Predictions = Sequence[Mapping[str, np.ndarray]]


def fastest(name: str, make: Callable[[str], ServedModel], limits: Limits) -> ServedModel:
    """The model in the dtype of COMPUTE that is fastest among those that agree with float32 on the sample inputs.

    Args:
      make: opens the model to compute in a dtype.
    """
    best = make("float32")
    best_time = reference_time = best.probe(limits)
    if best.samples is None:
        log.warning("model %s: computes in float32, as the run has no sample inputs to try others by", name)
        return best
    if best.compute != "float32":
        return best  # a run that was compressed computes in nothing else
    reference = predictions(best)
    for compute in COMPUTE[1:]:
        try:
            model = make(compute)
        except UserError as error:
            log.info("%s", error)
            continue
        time = model.probe(limits)
        difference = disagreement(reference, predictions(model))
        log.info(
            "model %s: %s takes %.2f of float32's time, predictions differ by %.2g",
            name,
            compute,
            time / reference_time,
            difference,
        )
        if difference <= BOUND and time * _WORTH <= reference_time and time < best_time:
            best, best_time = model, time
    log.info("model %s: computes in %s", name, best.compute)
    return best


def predictions(model: ServedModel) -> Predictions:
    """The model's predictions for its sample inputs, in as many batches as it takes."""
    assert model.samples is not None
    parts = model.encode(model.samples.columns)
    found: dict[int, Mapping[str, np.ndarray]] = {}
    while waiting := [i for i in range(len(parts)) if i not in found]:
        answers, _ = model.answer([parts[i] for i in waiting])
        found |= {i: answer.values for i, answer in zip(waiting, answers, strict=True) if answer is not None}
    return [found[i] for i in range(len(parts))]


def disagreement(one: Predictions, other: Predictions) -> float:
    """The largest difference of scores, or of numbers relative to the largest; infinite if a class differs."""
    largest = 0.0
    for expected, found in zip(one, other, strict=True):
        if "scores" in expected and expected["prediction"] != found["prediction"]:
            return float("inf")
        name = "scores" if "scores" in expected else "prediction"
        largest = max(largest, relative_difference(expected[name], found[name]))
    return largest


def relative_difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference, relative to the largest number if that is above 1."""
    numbers = np.asarray(expected, np.float64)
    return float(np.abs(found - numbers).max() / max(1.0, np.abs(numbers).max()))
