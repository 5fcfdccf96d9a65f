"""Replicas: models of different seeds that one program trains together, along a leading axis of their state."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The models that a state holds.

    Attributes:
      count: the length of the leading replica axis of all leaves; None: one model, without that axis.
      unrolled: whether to compute them one after another; see `vmap_or_unroll`.
    """

    count: int | None = None
    unrolled: bool = False

    @property
    def size(self) -> int:
        """The number of models."""
        return 1 if self.count is None else self.count

    @property
    def axes(self) -> int:
        """The number of leading axes for them: 0 or 1."""
        return 0 if self.count is None else 1

    def map(self, function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
        """The function for all models. `in_axes`: 0 or None for each argument, as in `vmap_or_unroll`."""
        if self.count is None:
            return function
        mapped: Callable[..., Any] = vmap_or_unroll(function, self.count, in_axes, unrolled=self.unrolled)
        return mapped

    def split(self, tree: Any, axis: int = 0) -> Iterator[Any]:
        """Splits arrays along the replica axis `axis`: one part per model."""
        if self.count is None:
            yield tree
        else:
            before = (slice(None),) * axis
            for i in range(self.count):
                yield jax.tree.map(lambda x, i=i: x[(*before, i)], tree)

    def first(self, tree: Any) -> Any:
        """The part of the first model."""
        return next(self.split(tree))

    def join(self, values: list[Any]) -> Any:
        """Values as reported: the list, or its only entry for a state without the replica axis."""
        return values[0] if self.count is None else values


def vmap_or_unroll(function: Callable[..., Any], count: int, in_axes: tuple[int | None, ...], *, unrolled: bool) -> Any:
    """`jax.vmap` of a function over `count` entries, `in_axes` 0 or None for each argument; or the same, `unrolled`.

    An unrolled program has the operations of each entry one after another. It takes several times as long to compile,
    but keeps convolutions; `jax.vmap` turns them into grouped ones, which XLA runs half as fast on a CPU.
    """
    if not unrolled:
        return jax.vmap(function, in_axes)

    def of_all(*arguments: Any) -> Any:
        def of_one(i: int) -> Any:
            own = zip(arguments, in_axes, strict=True)
            return function(*(x if axis is None else jax.tree.map(lambda x: x[i], x) for x, axis in own))

        return jax.tree.map(lambda *x: jnp.stack(x), *map(of_one, range(count)))

    return of_all
