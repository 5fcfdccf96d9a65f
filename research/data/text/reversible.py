"""Tokenizers whose tokens give back the text: bytes, characters, or pairs of bytes merged by frequency.

Each is a tokenizer.json, as any other: what a run needs of it is in that file alone.
"""

import collections
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from research.base.errors import UserError
from research.data.text.wordpiece import tokenizer_of

if TYPE_CHECKING:
    import tokenizers

UNKNOWN = "<unk>"  # of the character tokenizer: any character that the training split lacks


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (Radford et al. 2019, published code).

    Printable bytes of Latin-1 stand for themselves; the others are the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(0x100)]


def byte_tokenizer(texts: Iterable[str], *, vocab_size: int, special: tuple[str, ...]) -> "tokenizers.Tokenizer":
    """One token per byte of UTF-8, whose id is the byte; `special` tokens from 256 on. Learns nothing from `texts`."""
    from tokenizers import models

    _check_size("byte", vocab_size, 256 + len(special))
    return _of_bytes(models.BPE({character: byte for byte, character in enumerate(byte_characters())}, []), special)


def character_tokenizer(texts: Iterable[str], *, vocab_size: int, special: tuple[str, ...]) -> "tokenizers.Tokenizer":
    """One token per character: <unk>, the characters of `texts` in the order of their code points, and `special`.

    If there are more than `vocab_size` allows, the most frequent ones; the others become <unk>.
    """
    import tokenizers
    from tokenizers import decoders, models

    _check_size("character", vocab_size, 2 + len(special))
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(text)
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    known = sorted(frequent[: vocab_size - 1 - len(special)])
    # Without merges, the model makes a token of each character.
    vocabulary = {token: index for index, token in enumerate((UNKNOWN, *known))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([UNKNOWN, *special])
    return tokenizer


def train_byte_pairs(texts: Iterable[str], *, vocab_size: int, special: tuple[str, ...]) -> "tokenizers.Tokenizer":
    """Byte-level BPE as GPT-2's (Radford et al. 2019, section 2.2): `special`, all bytes, then at most as many merges.

    Pairs within a word, a number, a run of signs or of spaces are merged, the most frequent one first, the same ones
    for the same texts.
    """
    from tokenizers import models, trainers

    _check_size("bpe", vocab_size, 256 + len(special))
    tokenizer = _of_bytes(models.BPE(), (), words=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=byte_characters(),
        special_tokens=list(special),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


# By the value of `data.transform.tokenizer`; any other value is the path of a tokenizer.json.
TOKENIZERS: dict[str, Callable[..., "tokenizers.Tokenizer"]] = {
    "bpe": train_byte_pairs,
    "byte": byte_tokenizer,
    "character": character_tokenizer,
}


def _of_bytes(model: Any, special: tuple[str, ...], *, words: bool = False) -> "tokenizers.Tokenizer":
    """A tokenizer of bytes; `words`: text is split into words first, within which GPT-2 merges."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _check_size(name: str, vocab_size: int, least: int) -> None:
    if vocab_size < least:
        raise UserError(f"data.transform.vocab_size is {vocab_size}; tokenizer {name!r} needs at least {least}")


def loaded(definition: str) -> "tokenizers.Tokenizer":
    """The tokenizer of a tokenizer.json that encodes all of a text: a special token in it is text like any other."""
    tokenizer = tokenizer_of(definition)
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_token(tokenizer: "tokenizers.Tokenizer", end_of_text: str) -> int | None:
    """The id of the token that ends texts; None if it is "". Raises UserError if the tokenizer lacks it."""
    if not end_of_text:
        return None
    found: int | None = tokenizer.token_to_id(end_of_text)
    if found is None:
        raise UserError(
            f"the tokenizer has no token {end_of_text!r}; name the one that it has between documents with "
            'data.transform.end_of_text, or give "" for none'
        )
    return found


def token_bytes(definition: str) -> np.ndarray | None:
    """The bytes of text, in UTF-8, that each token of a tokenizer.json stands for: int32 [V].

    Special tokens, and <unk>, stand for none. None if the number is unknown: tokens of other tokenizers than those of
    bytes or of characters do not tell how much text they replace.
    """
    settings = json.loads(definition)
    decoder = (settings["decoder"] or {}).get("type")
    if decoder not in ("ByteLevel", "Fuse"):
        return None
    # Each character of a byte-level token stands for a byte.
    sizes = {
        index: len(token) if decoder == "ByteLevel" else len(token.encode())
        for token, index in settings["model"]["vocab"].items()
    }
    sizes |= {
        added["id"]: 0 if added["special"] else len(added["content"].encode()) for added in settings["added_tokens"]
    }
    found = np.zeros(max(sizes) + 1, np.int32)
    found[list(sizes)] = list(sizes.values())
    return found
