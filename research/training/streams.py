"""The rows of a run's splits, checked on first use."""

import functools
from collections.abc import Callable
from typing import Any

from research.data import load as data
from research.data import pipeline, splits
from research.data.examples import Examples
from research.inference.model import arrange
from research.training import checks


def split_streams(config: Any, dataset: data.Dataset, *, training: bool) -> Callable[[str], pipeline.Stream]:
    """Returns the function from a split's name, or a part's such as "test[:5%]", to its rows, checked on first use.

    With `training`, `train` is the `train_fraction` of that split, and is checked as training data; parts are always
    taken from the whole split.
    """
    fraction = config.data.train_fraction if training else 1.0

    @functools.cache
    def checked(split: str) -> Examples:
        examples = dataset.split(split)
        checks.check_split(config, split, examples, training=training and split == "train")
        return examples

    @functools.cache
    def stream(split: str) -> pipeline.Stream:
        examples = checked(splits.whole(split))
        members = splits.members(split, len(examples))
        if split == "train" and fraction < 1:
            members = pipeline.sample_subset(len(examples), fraction, config.seed)
        return arrange(config, examples, members)

    return stream
