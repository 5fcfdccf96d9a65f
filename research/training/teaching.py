"""The examples that a run trains on, with what another model gives for them."""

from typing import Any

import numpy as np

from research.base.errors import UserError
from research.data import soft_labels
from research.data.checks import check_inputs
from research.data.load import Dataset
from research.data.pipeline import Stream
from research.inference.model import arrange


def taught(config: Any, dataset: Dataset, stream: Stream) -> Stream:
    """The rows of `train`, with what `data.soft_labels`, `data.unlabelled` and `data.soft_hidden` add to them.

    All of `data.unlabelled` is trained on, whatever `data.train_fraction` is. Raises UserError if the files do not fit
    the data, the task or the model.
    """
    section, classes = config.data, config.model.get("num_classes")
    examples = soft_labels.taught(stream.examples, section, dataset.encoder)
    if examples is stream.examples:
        return stream
    if "soft_weight" not in config.task:
        raise UserError(f"task {config.task.name!r} does not learn data.soft_labels; classification does")
    batch = examples.batch(np.zeros((1, 1), np.int64))
    found = batch["soft_labels"].shape[-1]
    if found != classes:
        raise UserError(
            f"data.soft_labels={section.soft_labels} has scores of {found} classes, and model.num_classes is {classes}"
        )
    if section.unlabelled is not None and config.task.soft_weight == 0:
        raise UserError("nothing can be learnt from data.unlabelled with task.soft_weight=0; raise it")
    size = config.model.get("hidden_size")
    if "soft_hidden" in batch and batch["soft_hidden"].shape[-1] != size:
        raise UserError(
            f"data.soft_hidden={section.soft_hidden} has states of size {batch['soft_hidden'].shape[-1]}, and "
            f"model.hidden_size is {size}; they must be equal"
        )
    check_inputs(
        "train",
        examples,
        vocab_size=config.model.get("vocab_size"),
        max_positions=config.model.get("max_positions"),
        num_features=config.model.get("num_features"),
    )
    more = np.arange(len(stream.examples), len(examples))
    return arrange(config, examples, np.concatenate([stream.members, more]))
