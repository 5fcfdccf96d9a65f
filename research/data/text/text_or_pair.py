"""Single texts and pairs of them in one encoder, for a classifier whose files do not say which of them it reads."""

import dataclasses

import numpy as np

from research.data.cache import ArtifactCache
from research.data.columns import column
from research.data.encoder import Encoder, Signature
from research.data.examples import Columns, Examples, Ragged, TextExamples
from research.data.text.wordpiece import TextEncoder


@dataclasses.dataclass(frozen=True)
class TextOrPairEncoder(Encoder):
    """An example is a pair if it has a second text: without one, None, it is a single text. It has no labels."""

    text: TextEncoder
    pair: TextEncoder

    @property
    def definition(self) -> str:
        """The tokenizer.json."""
        return self.text.definition

    @property
    def signature(self) -> Signature:
        return dataclasses.replace(self.pair.signature, kind="text_or_pair", label=None)

    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> Examples:
        first, second = (self.pair.options.inputs[i] for i in (0, 1))
        texts = column(columns, first, split)
        others = columns.get(second) or [None] * len(texts)
        is_pair = np.array([other is not None for other in others], bool)
        found: list[TextExamples] = []
        order = []
        for encoder, members in ((self.text, np.flatnonzero(~is_pair)), (self.pair, np.flatnonzero(is_pair))):
            chosen = {first: [texts[i] for i in members], second: [others[i] for i in members]}
            examples = encoder.encode(chosen, split=split, labels=False)
            assert isinstance(examples, TextExamples)
            found.append(examples)
            order.append(members)
        places = np.argsort(np.concatenate(order))

        def in_order(name: str) -> Ragged:
            joined = Ragged.joined([getattr(part, name) for part in found], np.int32)
            return Ragged.of(joined.take(places), np.int32)

        full_lengths = np.concatenate([part.full_lengths for part in found if part.full_lengths is not None])
        return dataclasses.replace(
            found[0], tokens=in_order("tokens"), type_ids=in_order("type_ids"), full_lengths=full_lengths[places]
        )
