"""The masks in texts: where they are, and what is written for them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.data.parts import Part

# In BERT's vocabularies and in RoBERTa's.
_TOKENS = ("[MASK]", "<mask>")


@dataclasses.dataclass(frozen=True)
class Masks:
    """The token that stands for one to fill in, as text and as a number."""

    token: str
    number: int

    @classmethod
    def of(cls, tokenizer: Any) -> "Masks":
        """That of a tokenizer. Raises UserError if it has none."""
        for token in _TOKENS:
            number = tokenizer.token_to_id(token)
            if number is not None:
                return cls(token, number)
        raise UserError(f"the tokenizer has neither {' nor '.join(_TOKENS)}, so that no mask can be filled in")

    def count(self, tokens: np.ndarray) -> int:
        """How many of the tokens are masks."""
        return int(np.count_nonzero(tokens == self.number))

    def check(self, parts: Sequence[Part], most: int) -> None:
        """Raises UserError for an input without a mask, or with more than `most`."""
        for i, part in enumerate(parts):
            count = self.count(part.arrays["tokens"])
            if not count:
                where = f" among the {part.length} tokens that the model reads" if part.truncated else ""
                raise UserError(f"input {i} has no {self.token}{where}; put one where a token is to be filled in")
            if count > most:
                raise UserError(f"input {i} has {count} of {self.token}; at most {most} are allowed")

    def positions(self, batch: Mapping[str, np.ndarray], most: int) -> np.ndarray:
        """Where the masks of a batch's rows are, in order: int32 [R, `most`], 0 in unused places."""
        is_mask = (batch["tokens"] == self.number) & (batch["segments"] > 0)
        places = np.argsort(~is_mask, axis=1, kind="stable")[:, :most]
        return np.where(np.take_along_axis(is_mask, places, axis=1), places, 0).astype(np.int32)
