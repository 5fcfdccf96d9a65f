import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from research.models.norms import BatchNorm, group_norm


def _trained(x, real, dtype=jnp.float32):
    module = BatchNorm(dtype)
    variables = module.init(jax.random.key(0), x, real, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)  # which its construction should not
    return module.apply(variables, x, real, train=True, mutable=["batch_stats"])


def test_batch_norm_matches_numpy(rng):
    """Against numpy in float64, without padding; the running variance is unbiased. Measured: differences of 2e-7."""
    x = rng.normal(2.0, 3.0, (5, 2, 3, 4))
    real = np.asarray([True, True, False, True, False])
    y, updated = _trained(jnp.asarray(x, jnp.float32), jnp.asarray(real))
    seen = x[real].reshape(-1, 4)
    expected = (x - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=2e-6)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * seen.mean(axis=0), rtol=2e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * seen.var(axis=0, ddof=1), rtol=2e-6)


@pytest.mark.extended
def test_batch_norm_matches_flax_except_the_running_variance(rng):
    """Outputs and gradients, in training and in evaluation."""
    x, cotangent = (jnp.asarray(rng.normal(size=(6, 3, 3, 4)), jnp.float32) for _ in range(2))
    real = jnp.asarray([True] * 5 + [False])
    params = {name: jnp.asarray(rng.normal(size=4), jnp.float32) for name in ("scale", "bias")}
    stats = {"mean": jnp.asarray(rng.normal(size=4), jnp.float32), "var": jnp.asarray(rng.random(4) + 0.5, jnp.float32)}
    for train in (True, False):

        def ours(params, x, train=train):
            variables = {"params": params, "batch_stats": stats}
            return BatchNorm(jnp.float32).apply(variables, x, real, train=train, mutable=["batch_stats"])[0]

        def theirs(params, x, train=train):
            module = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
            variables, mask = {"params": params, "batch_stats": stats}, real[:, None, None, None]
            return module.apply(variables, x, mask=mask, mutable=["batch_stats"])[0]

        (y, backward), (expected, expected_backward) = jax.vjp(ours, params, x), jax.vjp(theirs, params, x)
        np.testing.assert_allclose(y, expected, atol=1e-5)
        for a, b in zip(
            jax.tree.leaves(backward(cotangent)), jax.tree.leaves(expected_backward(cotangent)), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_statistics_are_summed_in_float32(rng):
    """65,536 values of mean 1: sums in bfloat16 would stop growing at 256."""
    x = jnp.asarray(rng.normal(1.0, 0.5, (16, 64, 64, 1)), jnp.bfloat16)
    y, updated = _trained(x, jnp.ones(16, bool), jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [0.1 * exact.mean()], rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], [0.9 + 0.1 * exact.var(ddof=1)], rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_or_a_single_pixel_give_finite_values(rows):
    x = jnp.full((2, 1, 1, 3), 7.0)
    y, updated = _trained(x, jnp.arange(2) < rows)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, updated)))


@pytest.mark.extended
@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (24, 12), (3, 1), (1, 1)])
def test_groups_have_at_least_two_channels(rng, channels, groups):
    """In numpy, each group of an image has mean 0 and variance 1."""

    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            options = {"train": True, "dtype": jnp.float32, "name": "norm", "scale_init": nn.initializers.ones}
            return group_norm(x, jnp.ones(len(x), bool), **options)

    x = jnp.asarray(rng.normal(3.0, 2.0, (2, 3, 3, channels)), jnp.float32)
    y, variables = Module().init_with_output(jax.random.key(0), x)
    assert variables["params"]["norm"]["scale"].shape == (channels,)
    grouped = np.asarray(x, np.float64).reshape(2, 9, groups, -1)
    mean, var = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    np.testing.assert_allclose(y, ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape), atol=1e-5)
