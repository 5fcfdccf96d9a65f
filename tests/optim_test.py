import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.defaults import defaults
from research.errors import UserError
from research.optim import OPTIMIZERS, learning_rate_schedule, optimizer

PARAMS = {
    "dense": {"kernel": jnp.full((3, 2), 2.0), "bias": jnp.full(2, 2.0)},
    "norm": {"scale": jnp.full(2, 2.0)},
}


def _build(total_steps=10, **changes):
    return optimizer(**{**defaults().optimizer.to_dict(), **changes}, total_steps=total_steps)


def _steps(tx, params, grads, steps):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_shrinks_weights_at_zero_gradient(name):
    tx, _ = _build(name=name, learning_rate=0.1, weight_decay=0.1)
    grads = jax.tree.map(jnp.zeros_like, PARAMS)
    after = _steps(tx, PARAMS, grads, 3)
    kernel = np.asarray(after["dense"]["kernel"])
    assert np.all(kernel < 2.0)
    assert np.all(kernel > 0.0)
    np.testing.assert_array_equal(after["dense"]["bias"], 2.0)
    np.testing.assert_array_equal(after["norm"]["scale"], 2.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_goes_down_the_gradient(name):
    tx, _ = _build(name=name, learning_rate=0.1)
    after = _steps(tx, PARAMS, jax.tree.map(jnp.ones_like, PARAMS), 1)
    assert all(np.all(np.asarray(leaf) < 2.0) for leaf in jax.tree.leaves(after))


def test_adamw_is_the_papers_formula():
    """Loshchilov & Hutter 2019, Algorithm 2, in float64."""
    lr, b1, b2, eps, decay = 0.01, 0.9, 0.99, 1e-6, 0.1
    tx, _ = _build(learning_rate=lr, b1=b1, b2=b2, eps=eps, weight_decay=decay, decay_exclude="")
    gradients = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    params = jnp.arange(1.0, 5.0)
    state = tx.init(params)
    expected, m, v = np.arange(1.0, 5.0), np.zeros(4), np.zeros(4)
    for t, g in enumerate(gradients, start=1):
        updates, state = tx.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g.astype(np.float64) ** 2
        expected = expected - lr * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * expected)
    np.testing.assert_allclose(params, expected, rtol=1e-6)


def test_sgd_is_heavy_ball_momentum():
    tx, _ = _build(name="sgd", learning_rate=0.1, momentum=0.5)
    after = _steps(tx, jnp.zeros(()), jnp.ones(()), 3)
    assert float(after) == pytest.approx(-0.1 * (1 + 1.5 + 1.75))


def test_clipping_scales_the_whole_gradient():
    tx, _ = _build(name="sgd", learning_rate=1.0, momentum=0.0, clip_norm=1.0)
    after = _steps(tx, {"a": jnp.zeros(()), "b": jnp.zeros(())}, {"a": jnp.array(3.0), "b": jnp.array(4.0)}, 1)
    assert (float(after["a"]), float(after["b"])) == (pytest.approx(-0.6), pytest.approx(-0.8))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.0, 0.5, 1.0, (1 + np.sqrt(0.5)) / 2, 0.5, (1 - np.sqrt(0.5)) / 2]),
    ],
)
def test_schedules(name, expected):
    rate = learning_rate_schedule(name, learning_rate=1.0, warmup_fraction=1 / 3, end_fraction=0.0, total_steps=6)
    np.testing.assert_allclose([float(rate(step)) for step in range(6)], expected, atol=1e-6)


def test_end_fraction_is_where_decay_ends():
    for name in ("linear", "cosine"):
        rate = learning_rate_schedule(name, learning_rate=2.0, warmup_fraction=0.0, end_fraction=0.1, total_steps=7)
        assert float(rate(7)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "adam"}, "did you mean 'adamw'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
    ],
)
def test_bad_settings_are_one_line(change, message):
    with pytest.raises(UserError, match=message):
        _build(**change)
