# mypy: disable-error-code="operator"
"""Tests compiled programs against known results: a jaxlib that computes wrong sums or products fails here.

Every program is compiled as users compile it, with each set of options that a config's `compiler` can name.

The operands of sums and products are integers so small that the accumulator, float32 or float64, holds every partial
sum exactly. The result is then exact in any order of summation, and a single missing term among thousands is detected.
A bfloat16 result is the exact one rounded once, to nearest, ties to even. Results with intermediate rounding are
compared with float64, within a bound that follows from the type and the number of terms.
"""

import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.special
from flax import linen as nn

from research.devices.platform import _CPU_OPTIONS, compiler_options
from research.models.layers import affine, gelu
from research.models.linear import SparseLogisticRegression

TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}
DIGITS = {"bfloat16": 8, "float32": 24, "float64": 53}  # bits of the significand
SMALL = 3  # the largest entry of the second operand of a product


@pytest.fixture(autouse=True)
def _as_users_compile():
    """Compiles as for users; the other quick tests disable most optimizations, see conftest.py."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def integers(rng, shape, dtype, *, terms=1):
    """Random integers that `dtype` holds exactly, as do sums of `terms` of them in float32 (float64 for its own)."""
    most = min(2 ** DIGITS[dtype], 2 ** max(DIGITS[dtype], 24) // terms) - 1
    return rng.integers(-most, most + 1, shape)


def small(rng, shape):
    return rng.integers(-SMALL, SMALL + 1, shape)


def compiled(function, kind):
    return jax.jit(function, compiler_options=compiler_options(kind))


# ---- exact cases: (rng, dtype) -> the function, its operands (integers become `dtype`) and the exact result


def total(rng, dtype):
    x = integers(rng, 32769, dtype, terms=32769)
    return jnp.sum, (x,), x.sum()


def sums(rng, dtype):
    x = integers(rng, (1009, 257), dtype, terms=1009)
    return lambda x: (x.sum(0), x.sum(1), x.max(0), x.min(1)), (x,), (x.sum(0), x.sum(1), x.max(0), x.min(1))


def batch_statistics(rng, dtype):
    x = np.clip(integers(rng, (5, 7, 9, 17), dtype), -200, 200)  # 315 squares of at most 40,000

    def moments(x):
        return jnp.sum(x, (0, 1, 2)), jnp.sum(x * x, (0, 1, 2))

    return moments, (x,), (x.sum((0, 1, 2)), (x * x).sum((0, 1, 2)))


def quadratic_form(rng, dtype):
    """jax#39103: jaxlib 0.10.2 read past blocks of 2^15 float32 rows, or 2^14 of float64."""
    rows, matrix = rng.integers(-63, 64, (32769, 3)), rng.integers(-7, 8, (3, 3))
    return (
        lambda rows, matrix: jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(rows),
        (rows, matrix),
        ((rows @ matrix.T) ** 2).sum(1),
    )


def product(rng, dtype):
    x, y = integers(rng, (257, 385), dtype, terms=385 * SMALL), small(rng, (385, 129))
    return jnp.matmul, (x, y), x @ y


def transposed_products(rng, dtype):
    x, y, z = integers(rng, (131, 67), dtype, terms=131 * SMALL), small(rng, (131, 33)), small(rng, (17, 67))
    return lambda x, y, z: (x.T @ y, x @ z.T, z @ x.T), (x, y, z), (x.T @ y, x @ z.T, z @ x.T)


def gram(rng, dtype):
    x, weight = rng.integers(-7, 8, (32769, 5)), rng.integers(0, 4, 32769)
    return lambda x, w: x.T @ (x * w[:, None]), (x, weight), x.T @ (x * weight[:, None])


def predictions(rng, dtype):
    x, kernel = integers(rng, (32769, 13), dtype, terms=13 * SMALL), small(rng, 13)
    return jnp.matmul, (x, kernel), x @ kernel


def attention(rng, dtype):
    query, key = integers(rng, (3, 33, 5, 7), dtype, terms=33 * SMALL), small(rng, (3, 33, 5, 7))
    forms = ("bqhk,bshk->bhqs", "bqhk,bqhl->bhkl")
    return (
        lambda q, k: tuple(jnp.einsum(form, q, k) for form in forms),
        (query, key),
        tuple(np.einsum(form, query, key) for form in forms),
    )


def dense(rng, dtype, by_row=False):
    """`affine` and its gradients: kernel and bias are float32, the input is bfloat16."""
    x, kernel, bias = integers(rng, (3, 33, 65), dtype, terms=99 * SMALL), small(rng, (65, 37)), small(rng, 37)
    grad = small(rng, (3, 33, 37))

    def both(x, kernel, bias, grad):
        y, backward = jax.vjp(partial(affine, by_row=by_row), x, wide(kernel.T if by_row else kernel), wide(bias))
        x_grad, kernel_grad, bias_grad = backward(grad)
        return y, x_grad, kernel_grad, bias_grad

    def wide(x):
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    kernel_grad = np.einsum("bli,blo->io", x, grad)
    expected = (x @ kernel + bias, grad @ kernel.T, kernel_grad.T if by_row else kernel_grad, grad.sum((0, 1)))
    return both, (x, kernel, bias, grad), expected


def embedding(rng, dtype):
    """Rows of a table and their gradient, in which repeated ids add up."""
    table, ids = integers(rng, (211, 33), dtype, terms=257 * SMALL), rng.integers(0, 20, 257).astype(np.int32)
    grad = integers(rng, (257, 33), dtype, terms=257)

    def both(table, ids, grad):
        rows, backward = jax.vjp(lambda table: table[ids], table)
        return rows, *backward(grad)

    table_grad = np.zeros_like(table)
    np.add.at(table_grad, ids, grad)
    return both, (table, ids, grad), (table[ids], table_grad)


def bags(rng, dtype):
    """Segment sums, row by row."""
    values, ids = small(rng, (3, 257)), rng.integers(0, 1009, (3, 257)).astype(np.int32)
    segments = np.sort(rng.integers(0, 6, (3, 257)), axis=1).astype(np.int32)
    kernel, bias = integers(rng, (1009, 3), dtype, terms=257 * SMALL + 1), small(rng, 3)
    model = SparseLogisticRegression(num_classes=3, num_features=1009, dtype=TYPES[dtype])

    def logits(values, kernel, bias, ids, segments):
        batch = {"ids": ids, "values": values, "segments": segments, "weight": jnp.ones((3, 5))}
        return model.apply({"params": {"kernel": kernel, "bias": bias}}, batch, train=False)

    terms, expected = values[..., None] * kernel[ids], np.zeros((3, 6, 3), np.int64)
    for row in range(3):
        np.add.at(expected[row], segments[row], terms[row])
    return logits, (values, kernel, bias, ids, segments), expected[:, 1:] + bias


def convolution(rng, dtype, size=(9, 11), kernel=3, stride=1):
    """NHWC, "SAME", and both gradients."""
    x, w = integers(rng, (2, *size, 5), dtype, terms=2 * 99 * SMALL), small(rng, (kernel, kernel, 5, 7))
    outputs = tuple(-(-length // stride) for length in size)
    grad = small(rng, (2, *outputs, 7))
    padding = [max((out - 1) * stride + kernel - length, 0) for out, length in zip(outputs, size, strict=True)]
    padding = [(missing // 2, missing - missing // 2) for missing in padding]

    def both(x, w, grad):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y, backward = jax.vjp(
            lambda x, w: jax.lax.conv_general_dilated(x, w, (stride,) * 2, "SAME", dimension_numbers=dimensions), x, w
        )
        return y, *backward(grad)

    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    y, padded_grad, w_grad = np.zeros_like(grad), np.zeros_like(padded), np.zeros_like(w)
    for i, j in np.ndindex(kernel, kernel):
        at = (slice(None), slice(i, i + outputs[0] * stride, stride), slice(j, j + outputs[1] * stride, stride))
        y += padded[at] @ w[i, j]
        padded_grad[at] += grad @ w[i, j].T
        w_grad[i, j] = np.einsum("bhwi,bhwo->io", padded[at], grad)
    inside = tuple(slice(before, before + length) for (before, _), length in zip(padding, size, strict=True))
    return both, (x, w, grad), (y, padded_grad[:, *inside], w_grad)


def pooling(rng, dtype):
    x = rng.permutation(7 * 9 * 4 - 2 * 63).reshape(1, 7, 9, 2)

    def both(x):
        return nn.max_pool(x, (2, 2), strides=(2, 2)), jax.grad(lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)).sum())(
            x
        )

    windows = x[:, :6, :8].reshape(1, 3, 2, 4, 2, 2)
    largest, grad = windows.max((2, 4)), np.zeros_like(x)
    grad[:, :6, :8] = (windows == largest[:, :, None, :, None]).reshape(1, 6, 8, 2)
    return both, (x,), (largest, grad)


def blocks(rng, dtype):
    """Sums over blocks, as in the solvers and in gradient accumulation."""
    x, kernel = integers(rng, (7, 131, 5), dtype, terms=7 * 131 * SMALL), small(rng, 131)

    def summed(x, kernel):
        zeros = jnp.zeros(5, jnp.promote_types(x.dtype, jnp.float32))
        return jax.lax.scan(lambda total, block: (total + kernel @ block, None), zeros, x)[0]

    return summed, (x, kernel), np.einsum("kbi,b->i", x, kernel)


def order(rng, dtype):
    x = rng.integers(0, 50, (3, 257))
    most = integers(rng, 1009, dtype, terms=1009)

    def ordered(x, most):
        return jnp.cumsum(most), jnp.sort(x, 1), jnp.argsort(x, 1), jnp.argmax(x, 1), jnp.argmin(x, 0)

    stable = np.argsort(x, 1, kind="stable")
    return ordered, (x, most), (np.cumsum(most), np.sort(x, 1), stable, x.argmax(1), x.argmin(0))


CONVOLUTIONS = {
    "convolution": convolution,
    "convolution, 1x1, stride 2": partial(convolution, kernel=1, stride=2),
    "convolution, 7x7, stride 2": partial(convolution, size=(23, 21), kernel=7, stride=2),
}
FLOATS = {
    "sums": sums,
    "quadratic form": quadratic_form,
    "product": product,
    "transposed products": transposed_products,
    "attention": attention,
    "embedding": embedding,
    "dense": dense,
    "dense by row": partial(dense, by_row=True),
    **CONVOLUTIONS,
}
EXACT: dict[Any, Any] = {
    **{(name, "float32"): case for name, case in FLOATS.items()},
    **{
        (case.__name__.replace("_", " "), "float32"): case
        for case in (total, batch_statistics, gram, predictions, bags, pooling, blocks, order)
    },
    **{(name, "bfloat16"): FLOATS[name] for name in ("dense", "dense by row", "attention", "convolution")},
    **{(name, "float64"): FLOATS[name] for name in ("quadratic form", "product", "dense")},
}
VMAPPED = ("product", "dense", "convolution", "bags", "batch statistics", "quadratic form")
# jax#40412 and jax#39257: jaxlib 0.10.2 crashes with a segmentation fault, as does 0.11.0 for the second.
RANK_7_AND_8 = """
import jax, sys
import jax.numpy as jnp
from research.devices.platform import compiler_options

def weighted(x, y):
    return jnp.log(jnp.sum(x[..., None, None, None, None, None] * y, axis=2))

x, y, z = jnp.ones((3, 1, 2, 2, 8, 8, 8)), jnp.ones((10, 4, 6)), jnp.ones((10, 4, 6, 3, 3, 3, 3, 3))
for kind in sys.argv[1:]:
    options = compiler_options(kind)
    assert (jax.jit(lambda x: jnp.sum(x * x, axis=3), compiler_options=options)(x) == 2).all()
    assert (abs(jax.jit(weighted, compiler_options=options)(y, z) - jnp.log(6.0)) < 1e-6).all()
"""


def kinds():
    """The values of the config key `compiler`, without those that are equivalent for this jaxlib."""
    own = {str(compiler_options(kind)): kind for kind in reversed(_CPU_OPTIONS)}
    return sorted(own.values())


def operands(values, dtype):
    return tuple(value.astype(TYPES[dtype] if value.dtype == np.int64 else value.dtype) for value in values)


def assert_exact(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        rounded = np.asarray(other).astype(one.dtype)
        np.testing.assert_array_equal(np.asarray(one).astype(np.float64), rounded.astype(np.float64))


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize(("name", "dtype"), EXACT)
def test_sums_and_products_are_exact(rng, kind, name, dtype):
    function, inputs, expected = EXACT[name, dtype](rng, dtype)
    with jax.enable_x64(dtype == "float64"):
        assert_exact(compiled(function, kind)(*operands(inputs, dtype)), expected)


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("name", VMAPPED)
def test_sums_and_products_of_several_seeds_are_exact(rng, kind, name):
    case, dtype = EXACT[name, "float32"], "float32"
    functions, inputs, expected = zip(*(case(rng, dtype) for _ in range(3)), strict=True)
    inputs, expected = (jax.tree.map(lambda *seeds: np.stack(seeds), *of) for of in (inputs, expected))
    assert_exact(compiled(jax.vmap(functions[0]), kind)(*operands(inputs, dtype)), expected)


@pytest.mark.parametrize("kind", kinds())
def test_integer_products_are_exact(rng, kind):
    x, y = rng.integers(-127, 128, (33, 385), np.int8), rng.integers(-127, 128, (385, 17), np.int8)
    product = compiled(partial(jnp.matmul, preferred_element_type=jnp.int32), kind)(x, y)
    np.testing.assert_array_equal(product, x.astype(np.int64) @ y)


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_elementary_functions(kind, dtype):
    """Within 8 eps of the value, or of 1 if that is larger; measured: 4.4 eps (gelu at −2, where 1 + erf cancels)."""
    x = np.linspace(-8, 8, 4099).astype(dtype)
    functions = {
        "exp": (jnp.exp, np.exp),
        "log": (lambda x: jnp.log(jnp.abs(x) + 0.1), lambda x: np.log(np.abs(x) + 0.1)),
        "tanh": (jnp.tanh, np.tanh),
        "sigmoid": (jax.nn.sigmoid, scipy.special.expit),
        "softplus": (jax.nn.softplus, lambda x: np.logaddexp(x, 0)),
        "gelu": (gelu, lambda x: x * scipy.special.ndtr(x)),
        "rsqrt": (lambda x: jax.lax.rsqrt(jnp.abs(x) + 0.1), lambda x: 1 / np.sqrt(np.abs(x) + 0.1)),
    }
    with jax.enable_x64(dtype == "float64"):
        found = compiled(lambda x: {name: ours(x) for name, (ours, _) in functions.items()}, kind)(x)
    for name, (_, exact) in functions.items():
        expected = exact(x.astype(np.longdouble if name in ("exp", "tanh") else np.float64))
        error = np.abs(np.asarray(found[name]) - expected) / np.maximum(np.abs(expected), 1)
        assert error.max() < 8 * np.finfo(dtype).eps, name


@pytest.mark.parametrize("kind", kinds())
def test_softmax_and_layer_norm(rng, kind):
    """Softmax of n logits that span s: (n / 2 + s + 4) eps of each probability, for the sum, the difference from the
    largest and the exponential. A layer norm of n: n + 8 eps of the largest, with another n for each gradient's sums.
    """
    n, eps = 385, np.finfo(np.float32).eps
    x, grad, scale, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((67, n), (67, n), n, n))
    hidden = rng.random((67, n)) < 0.3

    def both(x, grad, scale, bias):
        def norm(x, scale, bias):
            return nn.LayerNorm(epsilon=1e-6).apply({"params": {"scale": scale, "bias": bias}}, x)

        y, backward = jax.vjp(norm, x, scale, bias)
        return nn.softmax(jnp.where(hidden, jnp.finfo(x.dtype).min, 5 * x)), y, *backward(grad)

    probabilities, *found = compiled(both, kind)(x, grad, scale, bias)
    x, grad, scale, bias = (value.astype(np.float64) for value in (x, grad, scale, bias))
    exact = scipy.special.softmax(np.where(hidden, -np.inf, 5 * x), axis=1)
    np.testing.assert_allclose(probabilities, exact, rtol=(n / 2 + 5 * np.ptp(x) + 4) * eps, atol=1e-30)
    factor = 1 / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    unit, scaled = (x - x.mean(1, keepdims=True)) * factor, grad * scale
    x_grad = (scaled - scaled.mean(1, keepdims=True) - unit * (scaled * unit).mean(1, keepdims=True)) * factor
    expected = (unit * scale + bias, x_grad, (grad * unit).sum(0), grad.sum(0))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=(2 * n + 8) * eps * np.abs(other).max())


@pytest.mark.parametrize("kind", kinds())
def test_factorizations(rng, kind):
    """The residual of a Cholesky solution of n equations is below n eps |A| |x|, and that of a QR below n eps |A|."""
    n, eps = 67, np.finfo(np.float32).eps
    x = rng.normal(size=(131, n)).astype(np.float32)
    matrix, right = x.T @ x + np.eye(n, dtype=np.float32), rng.normal(size=n).astype(np.float32)

    def solve(matrix, right, x):
        return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), right), jnp.linalg.qr(x, mode="r")

    solution, triangle = (np.float64(value) for value in compiled(solve, kind)(matrix, right, x))
    norm = np.linalg.norm(matrix, 2)
    assert np.linalg.norm(matrix @ solution - right) < n * eps * norm * np.linalg.norm(solution)
    assert np.linalg.norm(triangle.T @ triangle - np.float64(x).T @ x, 2) < n * eps * norm


@pytest.mark.parametrize("kind", kinds())
def test_values_that_are_not_finite_are_detected(kind):
    """They stop a diverging run; a compiler that assumes finite values would hide them."""
    x = np.ones((3, 1009), np.float32)
    x[1, 1000], x[2, 1008] = np.nan, np.inf

    def seen(x):
        return jnp.isfinite(x).all(1), jnp.isnan(x).any(1), jnp.sum(x, 1), jnp.max(x, 1), jnp.where(x == x, x, 0).sum(1)

    finite, nan, total, largest, without = compiled(seen, kind)(x)
    assert finite.tolist() == [True, False, False]
    assert nan.tolist() == [False, True, False]
    for found in (total, largest):
        assert np.isfinite(found).tolist() == [True, False, False]
        assert np.isnan(found).tolist() == [False, True, False]
    assert without.tolist() == [1009, 1008, np.inf]


def test_reductions_of_many_axes_do_not_crash():
    """In a separate process, because a crash terminates it."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", RANK_7_AND_8, *kinds()], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
