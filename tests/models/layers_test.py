# mypy: disable-error-code="arg-type"
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from research.models.layers import Dense, Dropout, affine, gelu, random_bits


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6)])
def test_affine_and_its_gradients_match_numpy(shape, rng):
    """Against numpy in float64; measured error below 3e-7 of the largest entry."""
    x, kernel, bias = rng.normal(size=shape), rng.normal(size=(6, 4)), rng.normal(size=4)
    cotangent = rng.normal(size=(*shape[:-1], 4))
    y, backward = jax.vjp(affine, *(jnp.asarray(a, jnp.float32) for a in (x, kernel, bias)))
    grads = backward(jnp.asarray(cotangent, jnp.float32))
    flat, flat_cotangent = x.reshape(-1, 6), cotangent.reshape(-1, 4)
    expected = (cotangent @ kernel.T, flat.T @ flat_cotangent, flat_cotangent.sum(axis=0))
    np.testing.assert_allclose(y, x @ kernel + bias, atol=1e-5)
    for ours, theirs in zip(grads, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_affine_in_bfloat16_accumulates_in_float32(rng):
    """256 terms of about 1: rounding each sum to bfloat16 would be off by whole units."""
    x = jnp.asarray(rng.integers(1, 3, (4, 3, 256)), jnp.bfloat16)
    kernel, bias = jnp.ones((256, 2)), jnp.zeros(2)
    y, backward = jax.vjp(affine, x, kernel, bias)
    exact = np.asarray(x, np.float64).sum(axis=-1)
    np.testing.assert_array_equal(y[..., 0], jnp.asarray(exact, jnp.bfloat16))
    x_grad, kernel_grad, bias_grad = backward(jnp.ones_like(y))
    assert (x_grad.dtype, kernel_grad.dtype, bias_grad.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_array_equal(kernel_grad[:, 0], np.asarray(x, np.float64).sum(axis=(0, 1)))
    np.testing.assert_array_equal(bias_grad, [12, 12])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_affine_by_row_matches_affine_of_the_transpose(rng, dtype):
    """Jitted, because XLA chooses a product for the layout of each gradient; small integers make results exact."""
    x, kernel = (jnp.asarray(rng.integers(-3, 4, shape), dtype) for shape in ((4, 3, 8), (8, 5)))
    kernel, bias = kernel.astype(jnp.float32), jnp.arange(5.0)

    @partial(jax.jit, static_argnums=1)
    def outputs_and_gradients(kernel, by_row):
        y, backward = jax.vjp(lambda *inputs: affine(*inputs, by_row), x, kernel, bias)
        return y, backward(y)

    y, (x_grad, kernel_grad, bias_grad) = outputs_and_gradients(kernel, False)
    by_row, (x_grad_by_row, kernel_grad_by_row, bias_grad_by_row) = outputs_and_gradients(kernel.T, True)
    np.testing.assert_array_equal(by_row, y)
    np.testing.assert_array_equal(x_grad_by_row, x_grad)
    np.testing.assert_array_equal(kernel_grad_by_row, kernel_grad.T)
    np.testing.assert_array_equal(bias_grad_by_row, bias_grad)


def test_dense_has_the_parameters_of_flax(rng):
    init = nn.initializers.normal(0.1)
    x = jnp.asarray(rng.normal(size=(2, 5, 6)), jnp.float32)
    ours, theirs = Dense(4, dtype=jnp.float32, kernel_init=init), nn.Dense(4, kernel_init=init)
    params = ours.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x))
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-6)


def test_gelu_and_its_derivative_are_exact():
    """Against SciPy in float64; measured error 2e-7."""
    x = np.linspace(-8, 8, 4001)
    y, backward = jax.vjp(gelu, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, x * scipy.stats.norm.cdf(x), atol=1e-6)
    slope = scipy.stats.norm.cdf(x) + x * scipy.stats.norm.pdf(x)
    np.testing.assert_allclose(backward(jnp.ones_like(y))[0], slope, atol=1e-6)


def test_gelu_keeps_the_type():
    y, backward = jax.vjp(gelu, jnp.ones(3, jnp.bfloat16))
    assert y.dtype == backward(y)[0].dtype == jnp.bfloat16


def test_every_byte_of_the_random_bits_is_uniform():
    """Chi-square over 256 values; a correct generator fails with probability 1e-6 per byte (seeds are fixed)."""
    for seed in range(4):
        for byte in np.asarray(random_bits(jax.random.key(seed), (256, 1024))).view(np.uint8).reshape(-1, 4).T:
            assert scipy.stats.chisquare(np.bincount(byte, minlength=256)).pvalue > 1e-6


def test_random_bits_are_uncorrelated():
    """Correlations of 2^18 standardized pairs; one in 10^6 exceeds 4.9 standard errors."""

    def unit(key):
        x = np.asarray(random_bits(key, (512, 512)), np.float64)
        return (x / 2**32 - 0.5) * 12**0.5

    x = unit(jax.random.key(0))
    others = [np.roll(x, shift, axis) for axis in (0, 1) for shift in (1, 2, 4, 64)]
    others += [unit(jax.random.key(1)), unit(jax.random.fold_in(jax.random.key(0), 1))]
    for other in others:
        assert abs((x * other).mean()) < 4.9 / 512


def test_random_bits_do_not_depend_on_the_layout():
    mesh = jax.make_mesh((8,), ("data",))
    key = jax.random.key(3)
    whole = random_bits(key, (16, 8, 4))
    for spec in (PartitionSpec("data"), PartitionSpec(None, "data")):
        split = jax.jit(lambda: random_bits(key, (16, 8, 4)), out_shardings=NamedSharding(mesh, spec))()
        np.testing.assert_array_equal(split, whole)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_scales_the_rest(rate):
    """4.9 standard errors of the share."""
    x = jnp.ones((300, 300))
    y = np.asarray(Dropout(rate).apply({}, x, train=True, rngs={"dropout": jax.random.key(1)}))
    assert abs((y == 0).mean() - rate) < 4.9 * (rate * (1 - rate)) ** 0.5 / 300
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


def test_dropout_is_inactive_in_evaluation_and_at_rate_zero():
    x = jnp.arange(6.0)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, train=False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, train=True), x)
    np.testing.assert_array_equal(Dropout(1.0).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}), 0 * x)
