# mypy: disable-error-code="arg-type"
"""8-bit integer products against exact integers and the closed-form bound of rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core import quantization
from research.core.quantization import dequantized, int8_products, is_quantized, large_layers, quantized, simulated
from research.models.layers import Dense

INPUTS, OUTPUTS = 24, 10


class Network(nn.Module):
    """A Dense layer of this project and one of Flax, and a table that is not a kernel of either."""

    @nn.compact
    def __call__(self, x):
        x = Dense(OUTPUTS, jnp.float32, nn.initializers.normal(1.0), name="first")(x)
        x = x + self.param("kernel", nn.initializers.ones_init(), (INPUTS, OUTPUTS))[:1]
        return nn.Dense(3, name="second")(x)  # not large


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(quantization, "_SMALLEST", INPUTS * OUTPUTS)


def one_layer(kernel, bias):
    layer = Dense(kernel.shape[1], jnp.float32, nn.initializers.zeros_init())
    variables = {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}

    def apply(variables, x):
        return layer.apply(variables, x)

    made = quantized(variables, lambda variables: apply(variables, jnp.ones((1, kernel.shape[0]))))

    def run(x):
        with int8_products():
            return np.asarray(jax.jit(apply)(made, x))

    return run


def test_only_large_dense_layers_are_quantized():
    network = Network()
    x = jnp.ones((2, INPUTS))
    variables = network.init(jax.random.key(0), x)
    made = quantized(variables, lambda variables: network.apply(variables, x))
    assert made["params"]["first"]["kernel"].dtype == jnp.int8
    assert made["params"]["second"]["kernel"].dtype == made["params"]["kernel"].dtype == jnp.float32
    assert jax.tree.map(jnp.shape, made["scales"]) == {"first": {"kernel": (OUTPUTS,)}}
    assert variables["params"]["first"]["kernel"].dtype == jnp.float32
    with int8_products():
        assert network.apply(made, x).shape == (2, 3)


def test_a_model_without_large_dense_layers_is_refused(monkeypatch):
    monkeypatch.setattr(quantization, "_SMALLEST", INPUTS * OUTPUTS + 1)
    with pytest.raises(ValueError, match=str(INPUTS * OUTPUTS + 1)):
        one_layer(np.ones((INPUTS, OUTPUTS), np.float32), np.zeros(OUTPUTS, np.float32))


@pytest.mark.extended
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 1e4]), outlier=st.sampled_from([1.0, 100.0]))
def test_the_error_is_within_that_of_rounding(seed, scale, outlier):
    """|Σ (x + a)(w + b) − Σ x w| ≤ Σ |x| t/2 + |w| s/2 + s t/4 for roundings |a| ≤ s/2 and |b| ≤ t/2."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
    x = (scale * rng.normal(size=(5, INPUTS))).astype(np.float32)
    x[:, 0] *= outlier
    bias = rng.normal(size=OUTPUTS).astype(np.float32)
    exact = x.astype(np.float64) @ kernel + bias
    s, t = np.abs(x).max(axis=1)[:, None, None] / 127, np.abs(kernel).max(axis=0)[None, None] / 127
    bound = (np.abs(x)[:, :, None] * t / 2 + np.abs(kernel) * s / 2 + s * t / 4).sum(axis=1)
    error = np.abs(one_layer(kernel, bias)(x) - exact)
    assert (error <= bound + 1e-5 * np.abs(exact).max()).all()
    assert error.max() > 0


def test_integers_are_exact():
    rng = np.random.default_rng(0)
    kernel = rng.integers(-126, 127, (INPUTS, OUTPUTS)).astype(np.float32)
    x = rng.integers(-126, 127, (4, INPUTS)).astype(np.float32)
    kernel[0], x[:, 0] = 127, -127
    found = one_layer(kernel, np.zeros(OUTPUTS, np.float32))(x)
    np.testing.assert_array_equal(found, x @ kernel)


def test_a_row_does_not_depend_on_the_others_and_zeros_give_the_bias():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(INPUTS, OUTPUTS)).astype(np.float32), rng.normal(size=OUTPUTS).astype(np.float32)
    run = one_layer(kernel, bias)
    x = rng.normal(size=(3, INPUTS)).astype(np.float32)
    x[2] = 0
    alone, together = run(x[:1])[0], run(np.concatenate([x, 1000 * x]))
    np.testing.assert_array_equal(together[0], alone)
    np.testing.assert_array_equal(together[2], bias)


def test_dense_layers_are_found_again():
    network, x = Network(), jnp.ones((2, INPUTS))
    variables = network.init(jax.random.key(0), x)

    def apply(variables):
        return network.apply(variables, x)

    assert large_layers(variables, apply) == large_layers(variables, apply) == [("first",)]


def network_and_call():
    network, x = Network(), jnp.asarray(np.random.default_rng(0).normal(size=(4, INPUTS)), jnp.float32)
    return network.init(jax.random.key(0), x), lambda variables: network.apply(variables, x)


def test_weights_alone_and_skipped_layers():
    variables, apply = network_and_call()
    made = quantized(variables, apply, products=False)
    assert is_quantized(made)
    assert not is_quantized(variables)
    restored = dequantized(made)
    assert jax.tree.map(jnp.shape, restored) == jax.tree.map(jnp.shape, variables)
    with int8_products():
        found = apply(made)
    # Products in float32 of the same weights: only the order of sums may differ.
    np.testing.assert_allclose(found, apply(restored), rtol=1e-6)
    assert np.abs(found - apply(variables)).max() > 1e-4
    with pytest.raises(ValueError, match="no dense layer"):
        quantized(variables, apply, skip=[("first",)])


def test_simulated_products_are_those_of_integers():
    variables, apply = network_and_call()
    plain = apply(variables)
    for products in (True, False):
        made = quantized(variables, apply, products=products)
        with int8_products():
            expected = apply(made)
        with simulated({("first",): jnp.array(True)}, products=products):
            found = apply(variables)
        # Sums of 24 products in float32, of size 10.
        np.testing.assert_allclose(found, expected, atol=1e-5)
        with simulated({("first",): jnp.array(False)}, products=products):
            np.testing.assert_allclose(apply(variables), plain, atol=1e-5)


def test_embeddings_are_rounded_by_row():
    class Embeds(nn.Module):
        @nn.compact
        def __call__(self, ids):
            x = nn.Embed(INPUTS, OUTPUTS, name="embedding")(ids)
            return Dense(INPUTS, jnp.float32, nn.initializers.normal(1.0), name="first")(x)

    module, ids = Embeds(), jnp.arange(INPUTS)[None]
    variables = module.init(jax.random.key(0), ids)
    table = variables["params"]["embedding"]["embedding"]
    variables["params"]["embedding"]["embedding"] = table * 10.0 ** -jnp.arange(INPUTS)[:, None]
    made = quantized(variables, lambda variables: module.apply(variables, ids), embeddings=True)
    rounded = dequantized(made)["params"]["embedding"]["embedding"]
    given = variables["params"]["embedding"]["embedding"]
    # Half a step of each row's own scale.
    assert (np.abs(rounded - given) <= np.abs(given).max(axis=1, keepdims=True) / 254 * (1 + 1e-5)).all()
    assert made["params"]["embedding"]["embedding"].dtype == jnp.int8
    with int8_products():
        found = module.apply(made, ids)
    plain = {**made, "params": {**made["params"], "embedding": {"embedding": rounded}}}
    plain["weight_scales"] = {}
    with int8_products():
        np.testing.assert_array_equal(found, module.apply(plain, ids))
