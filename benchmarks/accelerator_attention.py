# mypy: disable-error-code="call-overload, union-attr"
"""The part `attention` of accelerator.py: this project's attention and jax.nn.dot_product_attention.

One attention layer with its four projections, forward and backward, on packed rows. The projections alone are also
measured: `attention_ms` is the time beyond theirs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from parts import Deadline, Emit, Line

from research.models.layers import Dense
from research.models.transformer import SelfAttention

MEAN_LENGTH = 13  # mean number of tokens per text in SST-2
CONTENDERS = ("projections only", "ours", "ours with dropout", "xla", "cudnn")


class Alternative(nn.Module):
    """`SelfAttention` with the same parameters, computed by jax.nn.dot_product_attention.

    Attributes:
      implementation: "xla", "cudnn", or None, which computes the projections only.
    """

    num_heads: int
    implementation: str | None
    kernel_init: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array, *, train: bool) -> jax.Array:
        """Like `SelfAttention`."""

        def project(name: str, x: jax.Array) -> jax.Array:
            return Dense(x.shape[-1], dtype=self.dtype, kernel_init=self.kernel_init, name=name)(x)

        heads = (*x.shape[:2], self.num_heads, x.shape[-1] // self.num_heads)
        query, key, value = (project(name, x).reshape(heads) for name in ("query", "key", "value"))
        if self.implementation is None:
            mixed = query + key + value  # all three, so that each has a gradient
        else:
            visible = segments[:, None, :, None] == segments[:, None, None, :]
            mixed = jax.nn.dot_product_attention(query, key, value, mask=visible, implementation=self.implementation)
        return project("output", mixed.reshape(x.shape))


def packed_segments(rows: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """int32 [rows, length]: consecutive texts of SST-2's mean length, 0 in the padding at the end."""
    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        at, number = 0, 1
        while (size := 3 + rng.poisson(MEAN_LENGTH - 3)) <= length - at:
            row[at : at + size] = number
            at, number = at + size, number + 1
    return segments


def _module(name: str, heads: int, dtype: Any) -> nn.Module:
    init = nn.initializers.truncated_normal(0.02)
    if name.startswith("ours"):
        return SelfAttention(heads, 0.1 if "dropout" in name else 0.0, init, dtype)
    return Alternative(heads, None if name == "projections only" else name, init, dtype)


def gradients(name: str, heads: int, dtype: Any) -> Callable[..., Any]:
    """(params, x, segments, cotangent) -> output, and the gradients of params and x; not yet compiled."""
    module = _module(name, heads, dtype)

    def loss(params: Any, x: jax.Array, segments: jax.Array, cotangent: jax.Array) -> Any:
        output = module.apply({"params": params}, x, segments, train=True, rngs={"dropout": jax.random.key(0)})
        return jnp.sum((output * cotangent).astype(jnp.float32)), output

    def both(*arguments: Any) -> Any:
        (_, output), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*arguments)
        return output, *grads

    return both


def attention(emit: Emit, *, deadline: Deadline, options: argparse.Namespace) -> None:
    """Emits a line per shape and contender: milliseconds, temporary memory, and error relative to float32."""
    heads, width, shapes = (
        (2, 16, ((2, 32), (1, 64))) if options.rehearse else (12, 64, ((64, 128), (16, 512), (8, 1024)))
    )
    repeats, steps = (2, 2) if options.rehearse else (5, 20)
    for rows, length in shapes:
        inputs = _inputs(rows, length, heads, width)
        reference = _reference(inputs, heads)
        base: float | None = None
        for name in CONTENDERS:
            facts: Line = {"rows": rows, "row_length": length, "heads": heads, "width": width, "contender": name}
            if deadline.remaining < 3:
                emit({**facts, "status": "skipped"})
                continue
            try:
                found = _measured(name, heads, inputs, reference, repeats=repeats, steps=steps)
            except Exception as error:  # cuDNN does not support every shape, nor CPUs
                emit({**facts, "error": f"{type(error).__name__}: {error}"[:300]})
                continue
            base = found["ms"] if name == "projections only" else base
            own = {"attention_ms": found["ms"] - base} if base is not None and name != "projections only" else {}
            emit({**facts, **found, **own})


def _inputs(rows: int, length: int, heads: int, width: int) -> tuple[Any, ...]:
    """(float32 params, x [R, L, D], segments, cotangent), where the cotangent is 0 in the padding."""
    rng = np.random.default_rng(0)
    segments = jnp.asarray(packed_segments(rows, length, rng))
    x, cotangent = (
        jnp.asarray(rng.standard_normal((rows, length, heads * width)), jnp.bfloat16).astype(jnp.float32)
        for _ in range(2)
    )
    module = _module("ours", heads, jnp.float32)
    params = jax.jit(lambda: module.init(jax.random.key(0), x, segments, train=False)["params"])()
    params = jax.tree.map(lambda p: 3 * p, params)  # logits that differ
    return params, x, segments, cotangent * (segments > 0)[:, :, None]


def _reference(inputs: tuple[Any, ...], heads: int) -> Any:
    """Output and gradients in float32."""
    with jax.default_matmul_precision("highest"):
        return jax.jit(gradients("ours", heads, jnp.float32))(*inputs)


def _measured(name: str, heads: int, inputs: tuple[Any, ...], reference: Any, *, repeats: int, steps: int) -> Line:
    params, x, segments, cotangent = inputs
    arguments = (params, x.astype(jnp.bfloat16), segments, cotangent.astype(jnp.bfloat16))
    program = jax.jit(gradients(name, heads, jnp.bfloat16)).lower(*arguments).compile()
    found = jax.block_until_ready(program(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(steps):
            last = program(*arguments)
        jax.block_until_ready(last)
        times.append(1e3 * (time.perf_counter() - began) / steps)
    line: Line = {"ms": statistics.median(times), "lowest_ms": min(times), "highest_ms": max(times)}
    analysis = program.memory_analysis()
    line["temporary_mb"] = analysis.temp_size_in_bytes / 1e6 if analysis else None
    if name in ("ours", "xla", "cudnn"):
        line["largest_difference_from_float32"] = _distances(found, reference, segments)
    return line


def _distances(found: Any, reference: Any, segments: jax.Array) -> Line:
    """Largest absolute differences relative to the largest absolute value of the reference; padding is excluded."""
    real = (segments > 0)[:, :, None]

    def distance(a: jax.Array, b: jax.Array) -> float:
        return float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b)))

    kernels = {name: distance(found[1][name]["kernel"], reference[1][name]["kernel"]) for name in reference[1]}
    tokens = {"output": 0, "input_gradient": 2}
    return {key: distance(found[i] * real, reference[i] * real) for key, i in tokens.items()} | {
        "kernel_gradients": max(kernels.values())
    }
