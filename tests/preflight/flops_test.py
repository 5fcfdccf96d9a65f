"""FLOPs of products, against closed forms and XLA's own count."""

import jax
import jax.numpy as jnp
import pytest

from research.inference.model import build_module
from research.preflight import flops
from research.preflight.flops import Flops
from tests import tiny


def count(function, *arguments):
    return flops.count(jax.make_jaxpr(function)(*arguments))


def ones(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_dense_layer_has_three_products_in_training():
    def loss(w, x):
        return jnp.sum(jax.nn.relu(x @ w) @ w.T)

    forward = 2 * (2 * 5 * 7 * 11)
    assert count(loss, ones(7, 11), ones(5, 7)).total == forward
    assert count(jax.grad(loss, (0, 1)), ones(7, 11), ones(5, 7)).total == 3 * forward


def test_a_scan_counts_each_iteration_and_a_while_loop_once():
    def body(x, w):
        return x @ w, None

    assert count(lambda x, w: jax.lax.scan(body, x, w), ones(3, 4), ones(6, 4, 4)) == Flops(6 * 2 * 3 * 4 * 4)

    def loop(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x)

    assert count(loop, ones(4, 4)) == Flops(2 * 4**3, 0.0, 1)


def test_a_cond_counts_its_largest_branch():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x @ x, x)

    assert count(either, ones(4, 4)).total == 3 * 2 * 4**3


def test_functions_with_their_own_derivative_are_counted():
    @jax.custom_vjp
    def square(x):
        return x @ x

    square.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
    assert count(lambda x: jax.jit(square)(x), ones(4, 4)).total == 2 * 4**3
    assert count(jax.grad(lambda x: square(x).sum()), ones(4, 4)).total == 3 * 2 * 4**3


@pytest.mark.parametrize("scan", [False, True])
def test_what_a_checkpoint_computes_again_is_told_apart(scan):
    def layer(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w), None

    def loss(w, x, layer):
        if scan:
            return jax.lax.scan(layer, x, jnp.stack([w, w]))[0].sum()
        return layer(layer(x, w)[0], w)[0].sum()

    plain = count(jax.grad(lambda w, x: loss(w, x, layer)), ones(4, 4), ones(3, 4))
    again = count(jax.grad(lambda w, x: loss(w, x, jax.checkpoint(layer))), ones(4, 4), ones(3, 4))
    assert plain.again == 0
    assert again.again > 0
    assert again.model == plain.model


def test_shard_map_counts_every_device():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    spec = jax.sharding.PartitionSpec("x")
    split = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert count(split, ones(8, 5)).total == 4 * 2 * 2 * 2 * 5


@pytest.mark.parametrize(
    ("stride", "padding", "groups"), [(1, "SAME", 1), (2, "SAME", 1), (2, "VALID", 1), (1, "SAME", 2), (2, "SAME", 4)]
)
def test_convolutions_match_xla(stride, padding, groups):
    def loss(w, x):
        y = jax.lax.conv_general_dilated(
            x, w, (stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )
        return jnp.sum(y)

    x, w = ones(2, 8, 9, 4), ones(3, 3, 4 // groups, 8)
    assert count(loss, w, x).total == pytest.approx(_xla(loss, w, x), rel=0.1)  # XLA's has the sum


def _xla(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_attention_matches_its_closed_form_and_xla():
    b, t, h, d = 2, 16, 4, 32

    def attention(q, k, v):
        return jax.nn.dot_product_attention(q, k, v)

    arguments = [ones(b, t, h, d)] * 3
    products = 2 * 2 * b * h * t * t * d
    assert count(attention, *arguments).total == products
    assert products == pytest.approx(_xla(attention, *arguments), rel=0.15)  # XLA's has the softmax


def test_bert_matches_its_closed_form():
    rows, length, width, mlp, layers, classes = 4, 24, 16, 32, 2, 2
    config = tiny.bert(batch_size=rows)
    config.model.update(num_layers=layers)
    module = build_module(config)
    batch = {name: jnp.zeros((rows, length), jnp.int32) for name in ("tokens", "segments", "positions", "type_ids")}
    batch["starts"] = jnp.zeros((rows, 1), jnp.int32)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), batch, train=False))

    def loss(variables):
        return module.apply(variables, batch, train=False).sum()

    layer = length * (8 * width**2 + 4 * length * width + 4 * width * mlp)
    forward = rows * (layers * layer + 2 * width**2 + 2 * width * classes)
    biases = 2 * rows * (layers * length * (5 * width + mlp) + width + classes)  # gradients: products with ones
    assert count(loss, variables).total == forward
    assert count(jax.grad(loss), variables).total == 3 * forward + biases
