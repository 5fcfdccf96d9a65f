"""Tokens that continue a text, as text: piece by piece, up to a token or a string at which it stops."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from research.inference.continuations import Token

if TYPE_CHECKING:
    import tokenizers

STOP, LENGTH = "stop", "length"  # why a text ended: a stop token or string; the limit of tokens


@dataclasses.dataclass(frozen=True)
class Piece:
    """What a token added to a text.

    Attributes:
      text: the characters that are final; those that may be the beginning of a stop string, or of a character of
        several tokens, come with a later piece.
      token: the token; None for a stop token, which is not part of the text.
      finish: STOP or LENGTH for the last piece; "" before.
    """

    text: str
    token: Token | None
    finish: str = ""


class Writing:
    """A text in the making."""

    def __init__(
        self, tokenizer: "tokenizers.Tokenizer", *, ends: frozenset[int], stop: Sequence[str], max_tokens: int
    ):
        """
        Args:
          ends: tokens at which the text stops.
          stop: strings before which it stops.
          max_tokens: at which it stops anyway.
        """
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._ends, self._stop, self._left = ends, tuple(stop), max_tokens
        self._held = ""  # what may be the beginning of a stop string
        self._seen = 0  # characters that came from tokens

    def add(self, token: Token) -> Piece:
        """Adds the next token -> what is final by it. Not to be called after the last piece."""
        self._left -= 1
        if token.id in self._ends:
            return Piece(self._held, None, STOP)
        self._tokens.append(token.id)
        new = self._stream.step(self._tokenizer, token.id) or ""
        self._seen += len(new)
        self._held += new
        where = min((place for place in map(self._held.find, self._stop) if place >= 0), default=-1)
        if where >= 0:
            return Piece(self._held[:where], token, STOP)
        if not self._left:
            return Piece(self._held + self._rest(), token, LENGTH)
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return Piece(text, token)

    def _rest(self) -> str:
        """The end of the text that is not final: the beginning of a character of several tokens."""
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))[self._seen :]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of the text with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
