"""From the raw inputs of requests to what a model reads: encoded, and checked against an example."""

import dataclasses

import numpy as np

from research.base.errors import UserError
from research.data.examples import BagExamples, Columns, TextExamples
from research.data.parts import Part, split
from research.data.text.masked_lm import MaskedEncoder
from research.inference.folder import FolderModel
from research.inference.model import TrainedModel
from research.inference.samples import Samples


def of_texts(model: TrainedModel) -> TrainedModel:
    """The model itself, or one of documents as a model of texts."""
    if not isinstance(model.encoder, MaskedEncoder):
        return model
    encoder = model.encoder.of_texts
    return dataclasses.replace(model, encoder=encoder, signature=encoder.signature)


def example(model: TrainedModel | FolderModel, samples: Samples | None) -> Part:
    """An input of the size that the model reads: its values do not matter.

    Raises UserError where none is known: for a run of images or features from before runs kept samples, and one of
    documents that are cut into rows.
    """
    signature = model.signature
    if signature.kind == "documents":
        raise UserError("the model predicts the tokens of long rows, not a value for each input, and can't be served")
    columns = samples.columns if samples else {}
    if not columns and signature.kind in ("text", "text_pair", "text_or_pair"):
        columns = {name: ["a text"] for name in signature.required}
    if not columns and signature.kind == "image" and "size" in signature.limits:
        size = signature.limits["size"]
        image = np.zeros((1, size, size, signature.limits["channels"]), np.uint8)
        columns = dict.fromkeys(signature.inputs, image)
    if columns:
        return split(model.encode(columns, "the run's sample"))[0]
    raise UserError(
        f"the model has no sample of its inputs ({signature.kind}), from which their size is known. A run "
        "gets one when it is finished by this version: python -m research.train --workdir=RUN --extend=1; a "
        "folder when research.export writes it"
    )


def encode(model: TrainedModel | FolderModel, columns: Columns, example: Part) -> list[Part]:
    """The inputs, encoded. Raises UserError if a column is missing, or a value invalid or not as in the example."""
    parts = split(model.encode(columns, "the request"))
    if not is_sequence(example):
        for i, part in enumerate(parts):
            for name, array in part.arrays.items():
                part.arrays[name] = _as_read(array, example.arrays[name], f"input {i} has {name}")
    return parts


def is_sequence(part: Part) -> bool:
    """Whether the input has items, such as tokens, of which several inputs share a row."""
    return isinstance(part.kind, TextExamples | BagExamples)


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
