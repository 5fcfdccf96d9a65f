"""Dense layers with 8-bit integer products: weights by output column, activations by row, as they come (dynamic).

A product of a row x and a kernel W is computed as Σ_i x'_i · W'_io · s · t_o, where x' = round(x / s) and
W' = round(W / t) are integers of −127 to 127, s = max |x| / 127 and t_o = max_i |W_io| / 127; sums are exact in int32.
A row's result does not depend on the other rows, unlike with one scale for a whole batch. Where only weights are in
int8, W' · t takes the place of W. Embeddings are in int8 by row.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from research.models.layers import dense_layers, is_dense

# The collections of scales: of kernels with products of integers, and of other weights.
_PRODUCTS, _WEIGHTS = "scales", "weight_scales"
_COLLECTIONS = (_PRODUCTS, _WEIGHTS)
_SMALLEST = 2**14  # weights: smaller layers gain nothing
_LEVELS = 127.0

Variables = Mapping[str, Any]
Path = tuple[str, ...]


def large_layers(variables: Variables, apply: Callable[[Variables], Any]) -> list[Path]:
    """The paths of the Dense layers that `apply` calls and that are not small, in the order of their first calls."""
    params = flatten_dict(variables["params"])
    # An encoder alone has its parameters one level deeper than its modules.
    paths = [path if (*path, "kernel") in params else ("encoder", *path) for path in dense_layers(apply, variables)]
    return [path for path in paths if params[(*path, "kernel")].size >= _SMALLEST]


def quantized(
    variables: Variables,
    apply: Callable[[Variables], Any],
    *,
    products: bool = True,
    skip: Collection[Path] = (),
    embeddings: bool = False,
) -> dict[str, Any]:
    """Variables with kernels in int8, and their scales, for the `large_layers`.

    Run them under `int8_products`. Raises ValueError if there is no such layer.

    Args:
      products: whether to multiply integers; otherwise only the weights are in int8.
      skip: the paths of layers to leave as they are.
      embeddings: whether large embeddings are in int8 too; not for ones that are also an output layer.
    """
    params = flatten_dict(variables["params"])
    scales: dict[str, dict[Path, jax.Array]] = {_PRODUCTS: {}, _WEIGHTS: {}}
    for path in large_layers(variables, apply):
        if path not in skip:
            kernel = (*path, "kernel")
            params[kernel], scales[_PRODUCTS if products else _WEIGHTS][kernel] = _quantize(params[kernel], axis=0)
    if not any(scales.values()):
        raise ValueError(f"no dense layer has {_SMALLEST} weights or more")
    for path, value in params.items() if embeddings else ():
        if path[-1] == "embedding" and value.size >= _SMALLEST:
            params[path], scales[_WEIGHTS][path] = _quantize(value, axis=1)
    found = {name: unflatten_dict(each) for name, each in scales.items() if each}
    return {**variables, "params": unflatten_dict(params), **found}


def is_quantized(variables: Variables) -> bool:
    """Whether weights are in int8."""
    return any(name in variables for name in _COLLECTIONS)


def dequantized(variables: Variables) -> dict[str, Any]:
    """The variables with all weights in float32, as `int8_products` reads those in int8."""
    params = flatten_dict(variables["params"])
    for name in _COLLECTIONS:
        for path, scales in flatten_dict(variables.get(name, {})).items():
            params[path] = _dequantize(params[path], scales, axis=_axis(path))
    rest = {name: value for name, value in variables.items() if name not in _COLLECTIONS}
    return {**rest, "params": unflatten_dict(params)}


def int8_products() -> Any:
    """The context in which modules are traced that have `quantized` variables."""
    return nn.intercept_methods(_intercepted)


def applied(variables: Variables) -> contextlib.AbstractContextManager[Any]:
    """The context in which modules with these variables are traced."""
    context: contextlib.AbstractContextManager[Any] = (
        int8_products() if is_quantized(variables) else contextlib.nullcontext()
    )
    return context


def simulated(flags: Mapping[Path, jax.Array], *, products: bool) -> Any:
    """The context in which modules without `quantized` variables compute as with them, up to the order of sums.

    A layer whose flag is false computes as it is: one program tries all choices of layers.
    """

    def rounded(x: jax.Array, flag: jax.Array, axis: int) -> jax.Array:
        return jnp.where(flag, _dequantize(*_quantize(x.astype(jnp.float32), axis), axis), x)

    def intercepted(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if not is_dense(context) or module.path not in flags:
            return call(*args, **kwargs)
        (x,), flag = args, flags[module.path]
        kernel = rounded(_get(module, "params", "kernel"), flag, 0)
        return _with_bias(module, (rounded(x, flag, -1) if products else x) @ kernel, x)

    return nn.intercept_methods(intercepted)


def _intercepted(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    module = context.module
    if is_dense(context):
        if module.has_variable(_PRODUCTS, "kernel"):
            return _product(module, *args)
        if module.has_variable(_WEIGHTS, "kernel"):
            (x,) = args
            kernel = _dequantize(_get(module, "params", "kernel"), _get(module, _WEIGHTS, "kernel"), axis=0)
            return _with_bias(module, x.astype(module.dtype or x.dtype) @ kernel.astype(module.dtype or x.dtype), x)
    is_embedding = isinstance(module, nn.Embed) and context.method_name == "__call__"
    if is_embedding and module.has_variable(_WEIGHTS, "embedding"):
        (ids,) = args
        rows = _get(module, "params", "embedding")[ids], _get(module, _WEIGHTS, "embedding")[ids]
        return _dequantize(*rows, axis=-1).astype(module.dtype)
    return call(*args, **kwargs)


def _product(module: Any, x: jax.Array) -> jax.Array:
    rows, scales = _quantize(x.astype(jnp.float32), axis=-1)
    kernel = _get(module, "params", "kernel")
    sums = jax.lax.dot_general(rows, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    columns = jnp.expand_dims(_get(module, _PRODUCTS, "kernel"), range(x.ndim - 1))
    return _with_bias(module, sums.astype(jnp.float32) * scales[..., None] * columns, x)


def _with_bias(module: Any, y: jax.Array, x: jax.Array) -> jax.Array:
    if module.use_bias:
        y = y + jnp.expand_dims(_get(module, "params", "bias"), range(x.ndim - 1))
    return y.astype(module.dtype or x.dtype)  # nn.Dense without a dtype computes in that of its inputs


def _get(module: Any, collection: str, name: str) -> jax.Array:
    value: jax.Array = module.get_variable(collection, name)
    return value


def _axis(path: Path) -> int:
    """The axis of a weight over which a scale was computed."""
    return 0 if path[-1] == "kernel" else -1


def _quantize(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """x as int8, and the scales, without the axis; x is all zeros where the scale is 0."""
    scales = jnp.max(jnp.abs(x), axis=axis) / _LEVELS
    safe = jnp.expand_dims(jnp.where(scales == 0, 1, scales), axis)
    return jnp.round(x / safe).astype(jnp.int8), scales


def _dequantize(x: jax.Array, scales: jax.Array, axis: int) -> jax.Array:
    return x.astype(scales.dtype) * jnp.expand_dims(scales, axis)
