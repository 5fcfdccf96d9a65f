# mypy: disable-error-code="attr-defined"
"""Splits encoded by a transform with these options, fitted to `train`, as in `research.data.load`."""

import functools

from research.data.arrays import Standardize
from research.data.encoder import ColumnsOf
from research.data.images import store
from research.data.images.transform import ImageTransform, PixelTransform
from research.data.splits import BySplit
from research.data.text.bag_of_words import BagOfWords
from research.data.text.chats import Chats
from research.data.text.language_model import LanguageModelRows
from research.data.text.masked_lm import MaskedLanguageModel
from research.data.text.wordpiece import WordPiece


def _encoded(transform, splits, cache, **options):
    encoder = transform(**options).fit(splits, cache)
    return BySplit(splits, lambda split: encoder.encode(ColumnsOf(splits, split), split=split, cache=cache))


bag_of_words = functools.partial(_encoded, BagOfWords)
chat = functools.partial(_encoded, Chats)
image = functools.partial(_encoded, ImageTransform)
language_model = functools.partial(_encoded, LanguageModelRows)
masked_lm = functools.partial(_encoded, MaskedLanguageModel)
pixels = functools.partial(_encoded, PixelTransform)
standardize = functools.partial(_encoded, Standardize)
wordpiece = functools.partial(_encoded, WordPiece)


def tokenized(splits, cache, **options):
    """The tokenizer, and the documents of each split."""
    encoder = MaskedLanguageModel(**options, row_length=8, mask_rate=0.5, whole_words=False).fit(splits, cache)

    def documents(split):
        return encoder.encode(ColumnsOf(splits, split), split=split, cache=cache).documents

    return encoder.tokenizer, BySplit(splits, documents)


def read(splits, cache, *, name, label, channels):
    """The images and labels of each split."""
    options = {"name": name, "label": label, "channels": channels}
    return BySplit(splits, lambda split: store.read(ColumnsOf(splits, split), split, cache, **options))
