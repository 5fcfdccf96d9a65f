"""ResNets, with the normalization of their images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.base.paths import read_json
from research.interop.kinds import Architecture, CheckpointSpec, Exported, Shapes, check_kind, check_model, labels
from research.interop.tensors import Naming

_PREPROCESSOR = "preprocessor_config.json"
# Statistics of ImageNet's pixels between 0 and 1, with which transformers' ResNets were trained.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WHITE = 255.0  # the largest value of a stored pixel; 1 in transformers
# Pillow's numbers of what resizes images, and the size from which on transformers does not keep their aspect ratio.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
_WARPED = 384
_WIDENING = {"basic": 1, "bottleneck": 4}

# Transformers' defaults for keys missing from a config.json.
_DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
}
_WHAT = {int: "an integer", str: "text", list: "a list of integers"}
# Required values of settings that would change what a ResNet computes; the last is True for v1, whose stride is on a
# 1×1.
_EXPECTED = {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False}
# The settings here of a ResNet from transformers.
_FIXED = {"stem": "imagenet", "shortcut": "projection", "norm": "batch"}

_BLOCK = {
    **{f"{part}_{i}": f"layer.{i - 1}" for i in (1, 2, 3) for part in ("conv", "norm")},
    **{f"{part}_shortcut": "shortcut" for part in ("conv", "norm")},
}
_PARTS = {"conv": "convolution", "norm": "normalization"}
NAMING = Naming(
    prefix="resnet",
    modules={
        "conv_stem": "resnet.embedder.embedder.convolution",
        "norm_stem": "resnet.embedder.embedder.normalization",
        "classifier": "classifier.1",
    }
    | {
        f"stage_{{}}_block_{{}}/{own}": f"resnet.encoder.stages.{{}}.layers.{{}}.{name}.{_PARTS[own[:4]]}"
        for own, name in _BLOCK.items()
    },
)


def read(folder: Path, config: Mapping[str, Any]) -> CheckpointSpec:
    """Reads a ResNet's config.json. Raises UserError for unsupported ResNets, and for settings of the wrong type."""
    where = folder / "config.json"
    for key, expected in _EXPECTED.items():
        if config.get(key, expected) != expected:
            raise UserError(f"{where} has {key} {config[key]!r}; only {expected!r} is supported")
    settings = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
    for key, default in _DEFAULTS.items():
        value = settings[key]
        check_kind(where, key, value, (type(default),), _WHAT[type(default)])
        if isinstance(value, list) and any(type(item) is not int for item in value):
            raise UserError(f"{where} has {key} {value!r}; it must be a list of integers")
    block, width, depths = settings["layer_type"], settings["embedding_size"], settings["depths"]
    if block not in _WIDENING:
        raise UserError(f"{where} has layer_type {block!r}; known: {', '.join(_WIDENING)}")
    known = _hidden_sizes(block, width, len(depths))
    if settings["hidden_sizes"] != known:
        raise UserError(
            f"{where} has hidden_sizes {settings['hidden_sizes']}; only {known} is supported for {len(depths)} stages "
            f"after an embedding_size of {width}"
        )
    mean, std = _normalization(folder)
    model = {**_FIXED, "block": block, "stage_sizes": tuple(depths), "width": width, "mean": mean, "std": std}
    check_model(where, model)
    return CheckpointSpec("resnet", NAMING, model, {}, _inputs(settings["num_channels"]))


def write(model: Mapping[str, Any], _: Mapping[str, Any], assets: Path, shapes: Shapes) -> Exported:
    """Makes config.json and preprocessor_config.json, which leaves the size of images unchanged.

    model.test_flip is not part of the network: transformers computes the logits of one image.

    Raises UserError for a ResNet that transformers lacks.
    """
    differing = [f"model.{key}={model[key]!r}" for key, value in _FIXED.items() if model[key] != value]
    if differing:
        raise UserError(f"the ResNet of transformers has no {', '.join(differing)}")
    channels = _channels(shapes)
    config = {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "num_channels": channels,
        "embedding_size": model["width"],
        "hidden_sizes": _hidden_sizes(model["block"], model["width"], len(model["stage_sizes"])),
        "depths": list(model["stage_sizes"]),
        "layer_type": model["block"],
        **_EXPECTED,
        **labels(model["num_classes"]),
    }
    images = {
        "image_processor_type": "ConvNextImageProcessor",  # transformers' image processor for ResNets
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / _WHITE,
        "do_normalize": True,
        **{
            f"image_{key}": [value / _WHITE for value in np.broadcast_to(model[key], channels).tolist()]
            for key in ("mean", "std")
        },
    }
    texts = {"config.json": config, _PREPROCESSOR: images}
    return Exported(NAMING, {name: json.dumps(value, indent=2) + "\n" for name, value in texts.items()})


def _hidden_sizes(block: str, width: int, stages: int) -> list[int]:
    return [_WIDENING[block] * width * 2**i for i in range(stages)]


def _normalization(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of stored pixels, i.e. before scaling them to between 0 and 1."""
    path = folder / _PREPROCESSOR
    settings = read_json(path) if path.is_file() else {}
    settings = {key: value for key, value in settings.items() if value is not None}
    for key in ("do_rescale", "do_normalize"):
        if not settings.get(key, True):
            raise UserError(f"{path} has {key} {settings[key]!r}; only True is supported")
    factor = settings.get("rescale_factor", 1 / _WHITE)
    found = []
    for key, default in (("image_mean", _MEAN), ("image_std", _STD)):
        values = settings.get(key, default)
        try:
            found.append(tuple(float(value) / factor for value in values))
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"{path} has {key} {values!r} and rescale_factor {factor!r}; they must be numbers"
            ) from error
    return found[0], found[1]


def read_resizing(folder: Path) -> dict[str, Any]:
    """How images are resized before a ResNet reads them: `resize`, `size` and `interpolation` of `data.transform`.

    As transformers' ConvNextImageProcessor, except that an image that has the size already is unchanged. Raises
    UserError for another image processor.
    """
    path = folder / _PREPROCESSOR
    settings = read_json(path) if path.is_file() else {}
    if not settings.get("do_resize", True):
        return {"resize": None, "size": None, "interpolation": "bicubic"}
    given, fraction = settings.get("size", 224), settings.get("crop_pct", 0.875)
    size = given.get("shortest_edge") if isinstance(given, dict) else given
    resample = settings.get("resample", 3)
    if type(size) is not int or not 0 < size < _WARPED or not 0 < fraction <= 1 or resample not in _INTERPOLATIONS:
        raise UserError(
            f"{path} has size {given!r}, crop_pct {fraction!r} and resample {resample!r}; only a shortest_edge below "
            f"{_WARPED} and resample {' or '.join(map(str, _INTERPOLATIONS))} can be served"
        )
    return {"resize": int(size / fraction), "size": size, "interpolation": _INTERPOLATIONS[resample]}


def _channels(shapes: Shapes) -> int:
    return shapes["params/conv_stem/kernel"][2]


def _inputs(channels: int) -> dict[str, Any]:
    return {"images": np.zeros((1, 32, 32, channels), np.float32), "weight": np.ones(1, np.float32)}


RESNETS = Architecture(
    models=("resnet",),
    model_types=("resnet",),
    companion_files=(),
    heads=("classifier",),
    optional=("classifier",),
    free={"stochastic_depth": 0.0, "test_flip": False},
    transform=(),
    batch=lambda shapes: _inputs(_channels(shapes)),
    read=read,
    write=write,
)
