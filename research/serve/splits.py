"""One public name for several models, its variants, which share its requests by weight."""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from research.base.errors import UserError
from research.serve.model import ServedModel

log = logging.getLogger("research.serve")


@dataclasses.dataclass(frozen=True)
class Split:
    """`weights`: the share of each variant, by its name; they add up to 1."""

    name: str
    weights: Mapping[str, float]

    @classmethod
    def of(cls, text: str, models: Collection[str]) -> "Split":
        """From "NAME=MODEL:WEIGHT,MODEL:WEIGHT", of models among `models`.

        Raises UserError for another form, a model that is not served or named twice, or a weight that is not above 0.
        """
        name, _, rest = text.partition("=")
        pairs = [pair.rpartition(":") for pair in rest.split(",")]
        weights = {model: _number(weight) for model, _, weight in pairs}
        if (
            not is_name(name)
            or len(weights) < len(pairs)
            or any(not 0 < weight < math.inf for weight in weights.values())
        ):
            raise UserError(
                f"--split is {text!r}; it must be NAME=MODEL:WEIGHT,MODEL:WEIGHT, each model once and weights above 0"
            )
        unknown = [model for model in weights if model not in models]
        if unknown:
            raise UserError(f"--split={text} names model {unknown[0]!r}; there are {', '.join(models)}")
        if name in models:
            raise UserError(f"--split={text} is called like a model; choose another name")
        total = sum(weights.values())
        return cls(name, {model: weight / total for model, weight in weights.items()})

    def choose(self, ready: Collection[str], key: str) -> str:
        """One of the variants `ready`, of which there is one at least: always the same for a key.

        Over all keys each has its share; the share of the variants that are not ready goes to the others.
        """
        weights = {name: weight for name, weight in self.weights.items() if name in ready}
        digest = hashlib.blake2b(f"{self.name} {key}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest) / 2**64 * sum(weights.values())
        for name, weight in weights.items():
            place -= weight
            if place < 0:
                return name
        return name  # by a rounding error


class Splits(dict[str, Split]):
    """Splits by name."""

    def __init__(self, splits: Mapping[str, Split] | None = None):
        super().__init__(splits or {})
        self._missing: dict[str, list[str]] = {}  # by split, the variants whose share the others had last

    @classmethod
    def of(cls, texts: Iterable[str], models: Collection[str]) -> "Splits":
        """Those of --split flags. Raises UserError as `Split.of`, and if two have the same name."""
        found = cls()
        for text in texts:
            split = Split.of(text, models)
            if split.name in found:
                raise UserError(f"two splits are called {split.name!r}; choose another name")
            found[split.name] = split
        return found

    def choose(self, name: str, models: Mapping[str, ServedModel], key: str, version: str | None = None) -> str | None:
        """The variant of a split for a key, among `models`, of the version if any has it; None if none is there."""
        split = self[name]
        ready = [variant for variant in split.weights if variant in models]
        missing = [variant for variant in split.weights if variant not in models]
        if ready and missing != self._missing.get(name, []):
            self._missing[name] = missing
            shares = f"the share of {', '.join(missing)} goes to" if missing else "these have their shares again:"
            log.warning("split %s: %s %s", name, shares, ", ".join(ready))
        fitting = [variant for variant in ready if version in (None, models[variant].version)]
        return split.choose(fitting or ready, key) if ready else None

    def replaced(self, models: Mapping[str, ServedModel]) -> set[str]:
        """The variants of the splits that have one among `models`, which answers for them."""
        return {name for split in self.values() if split.weights.keys() & models.keys() for name in split.weights}

    def check(self, model: ServedModel, others: Mapping[str, ServedModel]) -> None:
        """Raises UserError if a variant reads or answers something else than another one of its split."""
        for split in self.values():
            for name in split.weights if model.name in split.weights else ():
                if name in others and _interface(others[name]) != _interface(model):
                    raise UserError(
                        f"models {model.name!r} and {name!r} of split {split.name!r} read or answer different things: "
                        f"{_interface(model)} and {_interface(others[name])}"
                    )


def is_name(text: str) -> bool:
    """Whether a model or a split may be called so: letters, digits and . _ -"""
    return text.replace("-", "").replace("_", "").replace(".", "").isalnum()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _interface(model: ServedModel) -> tuple[Any, ...]:
    signature = model.signature
    return signature.kind, signature.inputs, signature.label_names, model.operation
