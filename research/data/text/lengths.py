"""What follows from `data.transform.max_length`, in tokens or terms, so that it can be set alone."""

from collections.abc import Collection, Mapping
from typing import Any


def lengths_of(max_length: int, pad_to: Collection[int]) -> tuple[int, ...]:
    """The row lengths up to `max_length`: the shorter ones of `pad_to`, doublings of their largest, and itself.

    Each is at most twice the one before, except where `pad_to` has larger steps, so that padding at most doubles a row
    and few shapes are compiled.
    """
    lengths = sorted(length for length in set(pad_to) if length < max_length)
    while lengths and 2 * lengths[-1] < max_length:
        lengths.append(2 * lengths[-1])
    return (*lengths, max_length)


def following(config: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The keys that follow a given `data.transform.max_length`, with their values, except those in `given`.

    `pad_to` ends at the new maximum; `row_length` and, of a model with random weights, `max_positions` are raised to it
    where they are smaller.
    """
    if "data.transform.max_length" not in given:
        return {}
    transform, model, found = config["data"]["transform"], config["model"], {}
    longest = transform["max_length"]
    if transform.get("pad_to"):
        found["data.transform.pad_to"] = lengths_of(longest, transform["pad_to"])
    if transform.get("row_length", longest) < longest:
        found["data.transform.row_length"] = longest
    # Pretrained weights have as many positions as they have.
    if not config.get("init_from") and model.get("max_positions", longest) < longest:
        found["model.max_positions"] = longest
    return {key: value for key, value in found.items() if key not in given}
