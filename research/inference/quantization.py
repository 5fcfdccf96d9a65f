"""Dense layers with 8-bit integer products: weights by output column, activations by row, as they come (dynamic).

A product of a row x and a kernel W is computed as Σ_i x'_i · W'_io · s · t_o, where x' = round(x / s) and
W' = round(W / t) are integers of −127 to 127, s = max |x| / 127 and t_o = max_i |W_io| / 127; sums are exact in int32.
A row's result does not depend on the other rows, unlike with one scale for a whole batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from research.models.layers import dense_layers, is_dense

_SCALES = "scales"  # the collection of the kernels' scales
_SMALLEST = 2**14  # weights: smaller layers gain nothing
_LEVELS = 127.0

Variables = Mapping[str, Any]


def quantized(variables: Variables, apply: Callable[[Variables], Any]) -> dict[str, Any]:
    """Variables with kernels in int8, and their scales, for all Dense layers that `apply` calls and that are not small.

    Run them under `int8_products`. Raises ValueError if there is no such layer.
    """
    params, scales = flatten_dict(variables["params"]), {}
    for path in dense_layers(apply, variables):
        if (*path, "kernel") not in params:  # an encoder alone
            path = ("encoder", *path)
        kernel = params[(*path, "kernel")]
        if kernel.size >= _SMALLEST:
            params[(*path, "kernel")], scales[(*path, "kernel")] = _quantize(kernel, axis=0)
    if not scales:
        raise ValueError(f"no dense layer has {_SMALLEST} weights or more")
    return {**variables, "params": unflatten_dict(params), _SCALES: unflatten_dict(scales)}


def int8_products() -> Any:
    """The context in which modules are traced that have `quantized` variables."""
    return nn.intercept_methods(_product)


def _product(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    module = context.module
    if not is_dense(context) or not module.has_variable(_SCALES, "kernel"):
        return call(*args, **kwargs)
    (x,) = args
    rows, scales = _quantize(x.astype(jnp.float32), axis=-1)
    kernel: jax.Array = module.get_variable("params", "kernel")
    sums = jax.lax.dot_general(rows, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    columns = jnp.expand_dims(module.get_variable(_SCALES, "kernel"), range(x.ndim - 1))
    y = sums.astype(jnp.float32) * scales[..., None] * columns
    if module.use_bias:
        y = y + jnp.expand_dims(module.get_variable("params", "bias"), range(x.ndim - 1))
    return y.astype(module.dtype or x.dtype)  # nn.Dense without a dtype computes in that of its inputs


def _quantize(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """x as int8, and the scales, without the axis; x is all zeros where the scale is 0."""
    scales = jnp.max(jnp.abs(x), axis=axis) / _LEVELS
    safe = jnp.expand_dims(jnp.where(scales == 0, 1, scales), axis)
    return jnp.round(x / safe).astype(jnp.int8), scales
