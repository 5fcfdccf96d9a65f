"""What a form for a model's inputs has to know: the fields of features, the size of images. No training data."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from research.data.arrays import standardization
from research.data.encoder import Encoder
from research.data.images.transform import ImageExamples, ImagesEncoder
from research.data.parts import Part
from research.data.sources.bundled import feature_names
from research.data.table import TableEncoder

# Of a column with more categories the values are not told: they may be names of people.
_MOST_CATEGORIES = 50


def form(encoder: Encoder, example: Part, data_name: str) -> dict[str, Any]:
    """`features`, a field each, or `image`; empty for texts. `data_name`: of the data that the model was trained on."""
    if isinstance(encoder, ImagesEncoder):
        return {"image": _image(encoder, example)}
    if isinstance(encoder, TableEncoder):
        return {"features": list(_columns(encoder))}
    if encoder.signature.kind == "features" and encoder.affine is not None:
        names = encoder.feature_names or feature_names(data_name)
        return {"features": list(_numbers(names, *encoder.affine))}
    return {}


def _columns(encoder: TableEncoder) -> Iterator[dict[str, Any]]:
    for name, learnt in encoder.learnt.items():
        if name in encoder.categories:
            values = encoder.categories[name]
            yield {"name": name, "categories": list(values) if len(values) <= _MOST_CATEGORIES else None}
        else:
            yield _number(name, *standardization(learnt))


def _numbers(names: Sequence[str], mean: np.ndarray, scale: np.ndarray) -> Iterator[dict[str, Any]]:
    for i, pair in enumerate(zip(np.ravel(mean), np.ravel(scale), strict=True)):
        yield _number(names[i] if len(names) == np.size(mean) else f"feature {i}", *pair)


def _number(name: str, mean: Any, scale: Any) -> dict[str, Any]:
    """A number: its mean and standard deviation in training."""
    return {"name": name, "mean": float(mean), "std": 1 / float(scale) if scale else 0.0}


def _image(encoder: ImagesEncoder, example: Part) -> dict[str, Any]:
    """The size that the model reads, the value of white, and the shorter side to which it resizes files, if it does."""
    examples = example.kind
    assert isinstance(examples, ImageExamples)
    images = examples.view.all(examples.store.take(np.arange(len(examples))))
    _, height, width, channels = images.shape
    white = 255 if images.dtype == np.uint8 else float(images.max())
    return {
        "height": height,
        "width": width,
        "channels": channels,
        "white": white,
        "resize": encoder.images.view.resize,
    }
