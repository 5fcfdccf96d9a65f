"""Choosing the next token from a language model's logits: greedy, or at random from a restricted distribution.

Every row of a batch has its own settings and its own random numbers, so that what it draws does not depend on the
others. V is the size of the vocabulary.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from research.base.errors import UserError
from research.base.ranges import COUNT_OR_NONE, NOT_NEGATIVE, POSITIVE, Range

_LOWEST = jnp.finfo(jnp.float32).min
_BITS = 32


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the tokens of a text are chosen. The restrictions are applied in the order in which they are listed.

    Attributes:
      repetition_penalty: divides the positive logits of the tokens that the text or its prompt has already, and
        multiplies the negative ones (Keskar et al. 2019, section 4.1); 1 for none.
      temperature: divides the logits; 0 for the most likely token.
      top_k: only the k most likely tokens; 0 for all.
      top_p: only the most likely tokens that together have this probability (Holtzman et al. 2020); 1 for all.
      min_p: only tokens that are at least this fraction as likely as the most likely one (Nguyen et al. 2024); 0 for
        all.
      seed: of the random numbers. The same seed draws the same text.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "repetition_penalty": POSITIVE,
        "temperature": NOT_NEGATIVE,
        "top_k": COUNT_OR_NONE,
        "top_p": Range(0, 1, open="low"),
        "min_p": Range(0, 1),
        "seed": Range(0, 2**32 - 1, integer=True),
    }

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in self.RANGES.items():
            value = getattr(self, name)
            if not math.isfinite(value) or value not in allowed:
                raise UserError(f"{name} is {value}; it must be {allowed}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


class Rows(NamedTuple):
    """The settings of B rows, and what they depend on: one array [B] for each of `Sampling`, and

    Attributes:
      drawn: int32 [B], the tokens that the row has drawn so far.
      seen: bool [B, V], the tokens that its text or its prompt has.
    """

    repetition_penalty: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array
    drawn: jax.Array
    seen: jax.Array


class Kind(NamedTuple):
    """What any row of a batch needs, which decides what is compiled.

    Attributes:
      draws: random numbers; otherwise all rows are greedy.
      restricts: top_k, top_p or min_p.
      penalizes: a repetition penalty.
    """

    draws: bool = False
    restricts: bool = False
    penalizes: bool = False

    @classmethod
    def of(cls, settings: Iterable[Sampling]) -> "Kind":
        settings = list(settings)
        drawn = [each for each in settings if not each.is_greedy]
        return cls(
            draws=bool(drawn),
            restricts=any(each.top_k or each.top_p < 1 or each.min_p for each in drawn),
            penalizes=any(each.repetition_penalty != 1 for each in settings),
        )


def choose(logits: jax.Array, rows: Rows, kind: Kind) -> tuple[jax.Array, Rows]:
    """Logits [B, V] -> the chosen tokens, int32 [B], and the rows after them.

    A row's token is the same under every `kind` that has what the row needs.
    """
    scores = logits.astype(jnp.float32)
    if kind.penalizes:
        penalty = rows.repetition_penalty[:, None]
        scores = jnp.where(rows.seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    greedy = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    tokens = greedy
    if kind.draws:
        is_greedy = rows.temperature == 0
        scores = scores / jnp.where(is_greedy, 1, rows.temperature)[:, None]
        if kind.restricts:
            scores = jnp.where(_allowed(scores, rows), scores, _LOWEST)
        drawn = jnp.argmax(scores + jax.vmap(_gumbel, (0, 0, None))(rows.seed, rows.drawn, scores.shape[-1]), axis=-1)
        tokens = jnp.where(is_greedy, greedy, drawn.astype(jnp.int32))
    seen = rows.seen.at[jnp.arange(len(tokens)), tokens].set(True) if kind.penalizes else rows.seen
    return tokens, rows._replace(drawn=rows.drawn + 1, seen=seen)


def _gumbel(seed: jax.Array, count: jax.Array, size: int) -> jax.Array:
    """Noise whose addition to logits makes the largest one a sample of their softmax (Gumbel 1954)."""
    return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), count), (size,))


def _allowed(scores: jax.Array, rows: Rows) -> jax.Array:
    """The tokens that top_k, top_p and min_p leave: bool [B, V]. Equal scores are left or removed together."""
    order = _ordered(scores)
    size = scores.shape[-1]
    k = jnp.where(rows.top_k == 0, size, jnp.minimum(rows.top_k, size)).astype(jnp.float32)
    allowed = order >= _threshold(order, jnp.ones_like(scores), k)[:, None]
    weights = jnp.where(allowed, jnp.exp(scores - scores.max(axis=-1, keepdims=True)), 0)
    wanted = rows.top_p * weights.sum(axis=-1)
    # All of the probability is rounded to a little less by a sum in another order.
    enough = _threshold(order, weights, jnp.where(rows.top_p == 1, 0, wanted))
    allowed &= (order >= enough[:, None]) | (rows.top_p == 1)[:, None]
    # The largest weight is 1.
    return allowed & (weights >= rows.min_p[:, None])


def _ordered(scores: jax.Array) -> jax.Array:
    """uint32 numbers in the order of the float32 scores."""
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    sign = jnp.uint32(1 << (_BITS - 1))
    return jnp.where(bits & sign != 0, ~bits, bits | sign)


def _threshold(order: jax.Array, weights: jax.Array, wanted: jax.Array) -> jax.Array:
    """The largest number t of which the weights [B, V] of all with order >= t sum up to `wanted` [B]: uint32 [B].

    By bisection, bit by bit: to sort the scores of a large vocabulary takes far longer on a CPU.
    """

    def with_bit(i: Any, low: jax.Array) -> jax.Array:
        tried = low | (jnp.uint32(1) << (jnp.uint32(_BITS - 1) - i.astype(jnp.uint32)))
        total = jnp.sum(jnp.where(order >= tried[:, None], weights, 0), axis=-1)
        return jnp.where(total >= wanted, tried, low)

    return jax.lax.fori_loop(0, _BITS, with_bit, jnp.zeros(len(order), jnp.uint32))
