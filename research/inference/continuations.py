"""Texts that a decoder continues together: they join and leave between steps, and none depends on the others.

    continuations = Continuations(module, variables, rows=8, length=2048)
    one = continuations.add(prompt, Sampling(temperature=0))
    while ...:
        for continuation, token in continuations.step():
            ...
    continuations.remove(one)

A step reads at most one part of one prompt, and then one token of every text, so that a long prompt holds up no other
text for long. The arrays have the next larger of a few sizes, so that few programs are compiled.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core.sampling import Kind, Rows, Sampling
from research.inference.rows import choose_tokens, empty_settings, lengthened, move_row, place_row, resized
from research.models.decoder import Cache, Decoder

_SHORTEST = 256  # tokens of a cache
_LISTED = 20  # of the most likely tokens, if any are
PARTS = (32, 256)  # tokens of a prompt that are read at once


@dataclasses.dataclass(frozen=True)
class Token:
    """A token that continues a text.

    Attributes:
      id: its number.
      logprob: the logarithm of its probability, before any temperature, penalty or restriction.
      top: the most likely tokens with theirs, as many as the text asks for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(eq=False)
class Continuation:
    """A text and how it is continued.

    Attributes:
      prompt: its tokens at first, at least one.
      top: how many of the most likely tokens each Token lists.
      tokens: those that were added.
      read: the tokens of the prompt that the cache has, all but the last once it is being continued.
    """

    prompt: Sequence[int]
    sampling: Sampling
    top: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    read: int = 0

    @property
    def size(self) -> int:
        """The tokens of the text so far."""
        return len(self.prompt) + len(self.tokens)

    @property
    def last(self) -> int:
        """The token that the model reads next."""
        return self.tokens[-1] if self.tokens else self.prompt[-1]


class Continuations:
    """The texts that are being continued, and the arrays of their rows. For one thread.

    Attributes:
      most: the texts that are continued at the same time; others wait.
      length: the tokens of the longest text with its continuation.
    """

    def __init__(
        self,
        module: Decoder,
        variables: Mapping[str, Any],
        *,
        rows: int,
        length: int,
        products: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        least: int = 1,
    ):
        """
        Args:
          rows: `most`.
          length: `length`; no more than the model's positions.
          products: the context in which the module is traced, such as `int8_products`.
          least: the rows of the smallest batch.
        """
        self.length = min(length, module.max_positions)
        self.most = rows
        self._module, self._variables, self._least = module, variables, least
        self._waiting: list[Continuation] = []
        self._reading: tuple[Continuation, Cache] | None = None  # the prompt that is being read
        self._rows: list[Continuation] = []  # by row
        self._cache: Cache | None = None
        self._settings: Rows | None = None
        apply = functools.partial(_applied, module, products)
        self._read = jax.jit(functools.partial(_read, apply), donate_argnums=3)
        self._forward = jax.jit(functools.partial(_forward, apply), donate_argnums=3)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._rows) + (self._reading is not None)

    def add(self, prompt: Sequence[int], sampling: Sampling, *, top: int = 0) -> Continuation:
        """Adds a text. Raises ValueError if its prompt is empty, or has no room for another token."""
        if not 0 < len(prompt) < self.length:
            raise ValueError(f"a prompt has 1 to {self.length - 1} tokens, not {len(prompt)}")
        continuation = Continuation(prompt, sampling, top)
        self._waiting.append(continuation)
        return continuation

    def remove(self, continuation: Continuation) -> None:
        """Removes a text: its row is free for another. No effect if it was removed before."""
        if continuation in self._waiting:
            self._waiting.remove(continuation)
        elif self._reading and self._reading[0] is continuation:
            self._reading = None
        elif continuation in self._rows:
            row, last = self._rows.index(continuation), len(self._rows) - 1
            assert self._cache is not None
            assert self._settings is not None
            if row != last:  # the rows in use stay the first ones
                self._cache, self._settings = move_row((self._cache, self._settings), last, row)
                self._rows[row] = self._rows[last]
            self._rows.pop()
            if not self._rows:  # the next arrays are of the size of the next texts
                self._cache = self._settings = None

    def clear(self) -> None:
        """Removes all texts, also after an error in a step, which may have taken their arrays with it."""
        self._waiting.clear()
        self._rows.clear()
        self._reading = self._cache = self._settings = None

    @property
    def fill(self) -> float:
        """The share of the rows of the batch that are of texts."""
        return len(self._rows) / self._count(len(self._rows)) if self._rows else 0.0

    def step(self) -> list[tuple[Continuation, Token]]:
        """Reads a part of a prompt, and adds one token to each text whose prompt has been read -> the tokens."""
        self._read_prompt()
        if not self._rows:
            self._cache = self._settings = None
            return []
        self._fit(len(self._rows), max(row.size for row in self._rows))
        assert self._cache is not None
        assert self._settings is not None
        count = len(self._cache.lengths)
        tokens, active = np.zeros(count, np.int32), np.zeros(count, np.int32)
        for row, continuation in enumerate(self._rows):
            tokens[row], active[row] = continuation.last, 1
        logits, self._cache = self._forward(self._variables, tokens, active, self._cache)
        kind = Kind.of(row.sampling for row in self._rows)
        top = self._listed(max(row.top for row in self._rows))
        found, self._settings = choose_tokens(logits, self._settings, kind, top)
        found = jax.device_get(found)
        return [(continuation, self._token(continuation, row, found)) for row, continuation in enumerate(self._rows)]

    @staticmethod
    def _token(continuation: Continuation, row: int, found: tuple[np.ndarray, ...]) -> Token:
        chosen, logprob, top, top_logprobs = found
        token = int(chosen[row])
        continuation.tokens.append(token)
        count = continuation.top
        likely = zip(top[row, :count].tolist(), top_logprobs[row, :count].tolist(), strict=True)
        return Token(token, float(logprob[row]), tuple(likely))

    def _read_prompt(self) -> None:
        """Reads a part of the next prompt, if there is a row for it; once it is read, the text gets the row."""
        if self._reading is None:
            if not self._waiting or len(self._rows) == self.most:
                return
            first = self._waiting.pop(0)
            self._reading = first, self._module.empty_cache(1, self.size(1))
        continuation, cache = self._reading
        left = len(continuation.prompt) - 1 - continuation.read  # the last one is read to continue it
        if left:
            part = next((part for part in PARTS if part >= left), PARTS[-1])
            count = min(left, part)
            if (length := self.size(continuation.read + count)) > cache.length:  # attention takes time for all of it
                cache = lengthened(cache, length)
            tokens = np.zeros((1, part), np.int32)
            tokens[0, :count] = continuation.prompt[continuation.read : continuation.read + count]
            cache = self._read(self._variables, tokens, np.array([count], np.int32), cache)
            continuation.read += count
            self._reading = continuation, cache
        if continuation.read == len(continuation.prompt) - 1:
            self._enter(continuation, cache)
            self._reading = None

    def _enter(self, continuation: Continuation, cache: Cache) -> None:
        row = len(self._rows)
        self._fit(row + 1, max(continuation.size, *(row.size for row in self._rows), 0))
        self._rows.append(continuation)
        seen = np.zeros(self._module.vocab_size, bool)
        seen[list(continuation.prompt)] = True
        values = dataclasses.asdict(continuation.sampling)
        assert self._cache is not None
        assert self._settings is not None
        settings = Rows(
            **{name: jnp.asarray(value, getattr(self._settings, name).dtype) for name, value in values.items()},
            drawn=jnp.int32(0),
            seen=jnp.asarray(seen),
        )
        self._cache, self._settings = place_row((self._cache, self._settings), (cache, settings), row)

    def size(self, tokens: int) -> int:
        """The length of the cache for so many tokens."""
        return _step(_SHORTEST, tokens, self.length)

    def warm_up(self) -> Iterator[str]:
        """Compiles the programs of all sizes -> what was compiled, one by one.

        Those for repetition penalties are compiled when they are first needed.
        """
        length = 0
        prompts: list[Cache] = []
        while length < self.length:
            length = self.size(length + 1)
            one = lengthened(prompts[-1], length) if prompts else self._module.empty_cache(1, length)
            for part in PARTS:
                one = self._read(self._variables, np.zeros((1, part), np.int32), np.ones(1, np.int32), one)
            prompts.append(one)
            yield f"prompts of up to {length} tokens"
            rows = 0
            while rows < self.most:
                rows = self._count(rows + 1)
                self._warm_up(rows, length, prompts)
                yield f"{min(rows, self.most)} texts of up to {length} tokens"

    def _warm_up(self, rows: int, length: int, prompts: Sequence[Cache]) -> None:
        cache, settings = self._module.empty_cache(rows, length), empty_settings(rows, self._module.vocab_size)
        nothing = np.zeros(rows, np.int32)
        logits, cache = self._forward(self._variables, nothing, nothing, cache)
        for kind in (Kind(), Kind(draws=True), Kind(draws=True, restricts=True)):
            for top in (0, self._listed(1)):
                _, settings = choose_tokens(logits, settings, kind, top)
        settings_of_one = jax.tree.map(lambda array: array[0], settings)
        for one in prompts:
            cache, settings = place_row((cache, settings), (one, settings_of_one), 0)
        jax.block_until_ready(move_row((cache, settings), 0, 0))

    def _count(self, rows: int) -> int:
        """The rows of the batch for so many texts."""
        return _step(self._least, rows, max(self.most, self._least))

    def _listed(self, top: int) -> int:
        """How many tokens are listed for so many: few numbers, as each is compiled."""
        return min(top and max(top, _LISTED), self._module.vocab_size)

    def _fit(self, rows: int, tokens: int) -> None:
        """Makes the arrays as large as so many rows of so many tokens need, and not much larger."""
        wanted = self._count(rows)
        length = self.size(tokens)
        if self._cache is None:
            self._cache = self._module.empty_cache(wanted, length)
            self._settings = empty_settings(wanted, self._module.vocab_size)
            return
        present, size = len(self._cache.lengths), self._cache.length
        if wanted != present or length > size:
            self._cache, self._settings = resized((self._cache, self._settings), wanted, length)


def _step(first: int, wanted: int, last: int) -> int:
    """The first of the sizes `first`, 4 · `first`, 16 · `first`, … that has room for `wanted`, at most `last`."""
    while first < wanted:
        first *= 4
    return min(first, last)


# (method, variables, tokens, counts, cache) -> (logits, cache): see `Decoder`.
_Apply = Callable[..., tuple[jax.Array, Cache]]


def _applied(
    module: Decoder, products: Callable[[], contextlib.AbstractContextManager[Any]], method: str, *arguments: Any
) -> tuple[jax.Array, Cache]:
    with products():
        found: Any = module.apply(*arguments, method=method)
    return found


def _read(apply: _Apply, variables: Any, tokens: jax.Array, counts: jax.Array, cache: Cache) -> Cache:
    return apply("prefill", variables, tokens, counts, cache)[1]


def _forward(
    apply: _Apply, variables: Any, tokens: jax.Array, active: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """The logits [B, V] after the tokens [B], which are read in the active rows."""
    logits, cache = apply("step", variables, tokens[:, None], active, cache)
    return logits[:, 0], cache
