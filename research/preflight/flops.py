"""Operations of the matrix products and convolutions of a program, counted before it is compiled or split."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend import core

# The scope that JAX gives to what `jax.checkpoint` computes again.
_AGAIN = "rematted_computation"


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of all devices together, a multiplication and an addition being two.

    Attributes:
      total: of all products.
      again: of those in `total` that are computed for the second time, to save memory.
      unknown: how many products are in loops of unknown length; they are counted once.
    """

    total: float = 0.0
    again: float = 0.0
    unknown: int = 0

    @property
    def model(self) -> float:
        """Those that the model itself needs, as usual for an MFU."""
        return self.total - self.again

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.total + other.total, self.again + other.again, self.unknown + other.unknown)

    def __mul__(self, times: float) -> "Flops":
        return Flops(self.total * times, self.again * times, self.unknown)


def count(jaxpr: Any) -> Flops:
    """The products of a jaxpr, with those of its loops as often as they are executed; of a `cond`, the most."""
    return _count(jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr, again=False)


def _count(jaxpr: Any, *, again: bool) -> Flops:
    total = Flops()
    for equation in jaxpr.eqns:
        own = again or _AGAIN in str(equation.source_info.name_stack)
        name, parameters = equation.primitive.name, equation.params
        if name in _PRODUCTS:
            flops = float(_PRODUCTS[name](equation))
            total += Flops(flops, flops if own else 0.0)
            continue
        inner = [_count(part, again=own) for part in _jaxprs(parameters)]
        if name == "cond":
            total += max(inner, key=lambda flops: flops.total)
            continue
        found = sum(inner, Flops())
        if name == "scan":
            found *= parameters["length"]
        elif name == "shard_map":
            found *= math.prod(parameters["mesh"].shape[axis] for axis in parameters["manual_axes"])
        elif name == "while" and found.total:
            found = dataclasses.replace(found, unknown=found.unknown + 1)
        total += found
    return total


def _jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    (left, _), (out,) = equation.invars[:2], equation.outvars
    return 2 * math.prod(out.aval.shape) * math.prod(left.aval.shape[i] for i in contracted)


def _convolution(equation: Any) -> float:
    """Products with padding, and with the zeros of a dilated input, do not count."""
    parameters = equation.params
    numbers = parameters["dimension_numbers"]
    (left, right), (out,) = [v.aval.shape for v in equation.invars], [v.aval.shape for v in equation.outvars]
    (batch, feature, *places), (_, channels, *window) = numbers.out_spec, numbers.rhs_spec
    pairs = math.prod(
        _pairs(left[numbers.lhs_spec[2 + i]], right[window[i]], out[places[i]], parameters, i)
        for i in range(len(places))
    )
    return 2 * out[batch] * out[feature] * right[channels] * pairs


def _pairs(size: int, window: int, out: int, parameters: dict[str, Any], axis: int) -> int:
    """The products of an output's and a window's places along an axis that use a value of the input."""
    stride, dilation = parameters["window_strides"][axis], parameters["rhs_dilation"][axis]
    spread, low = parameters["lhs_dilation"][axis], parameters["padding"][axis][0]
    place = np.arange(out)[:, None] * stride + np.arange(window) * dilation - low
    return int(np.count_nonzero((place >= 0) & (place <= (size - 1) * spread) & (place % spread == 0)))


_PRODUCTS = {"dot_general": _dot, "conv_general_dilated": _convolution}
