"""A config whose data and weights can be had here, and whose batches and model have the same shapes."""

import copy
import tempfile
from collections.abc import Collection
from typing import Any

from research.base.errors import UserError
from research.data import load as data

_DOCUMENTS: dict[str, Any] = {"name": "python_docs", "inputs": ("text",), "heading": ""}
_SENTENCES: dict[str, Any] = {"name": "sentiment", "inputs": ("sentence",), "label": "label"}
# Embedded data for the kinds of transform, with the columns that they read.
_STAND_INS: dict[str, dict[str, Any]] = {
    "bag_of_words": _SENTENCES,
    "chat": {"name": "instructions"},
    "language_model": _DOCUMENTS,
    "masked_lm": _DOCUMENTS,
    "wordpiece": _SENTENCES,
}
_VOCABULARY = 2000  # of a tokenizer that is learned in seconds; its size does not appear in a shape


def with_shapes(config: Any, given: Collection[str]) -> tuple[Any, list[str], bool]:
    """The config to compile, lines about what was replaced, and whether the number of its epochs' steps is known.

    `given`: the keys that the user set. Raises UserError for a dataset that has no embedded one of its kind.
    """
    config, notes = copy.deepcopy(config), []
    if config.init_from:
        config, note = _with_weights(config, given)
        notes.append(note)
    pad_to = config.data.transform.get("pad_to")
    if pad_to and config.train.batch_rows is None:
        config.data.transform.pad_to = (max(pad_to),)
    reason = data.missing(config.data)
    if reason is None:
        return config, notes, True
    kind = config.data.transform.name
    if kind not in _STAND_INS:
        raise UserError(f"{reason}; there is no embedded data of the kind of {kind!r} whose shapes could replace it")
    stand_in = dict(_STAND_INS[kind])
    name = stand_in.pop("name")
    notes.append(f"{config.data.name} is not here; its shapes are those of {name}, in rows of the same length")
    transform = config.data.transform
    config.data.update(name=name, data_dir=None)
    config.eval.splits = ("validation",)
    transform.update({key: value for key, value in stand_in.items() if key in transform})
    if transform.get("replace"):
        transform.replace = ()
    if transform.get("vocab_size"):
        transform.vocab_size = min(transform.vocab_size, _VOCABULARY)
    return config, notes, config.train.steps is not None


def _with_weights(config: Any, given: Collection[str]) -> tuple[Any, str]:
    """The config with the sizes of its pretrained weights, where they are here."""
    from research.interop import pretrained, source

    if source.missing(config.init_from) is None:
        with tempfile.TemporaryDirectory() as folder:
            return pretrained.resolve_init_from(config, given, folder).config, f"sizes are those of {config.init_from}"
    note = f"{config.init_from} is not here; the model's sizes are those of the config"
    with config.unlocked():
        config.init_from = None
        config.init_fresh = ""
    return config, note
