import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.defaults import defaults
from research.base.errors import UserError
from research.core.optim import OPTIMIZERS, decay_mask, layer_factors, learning_rate_schedule, optimizer, weight_decay

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
    rate = learning_rate_schedule(
        name, learning_rate=1.0, warmup_fraction=1 / 3, end_fraction=0.0, drops=(), total_steps=6
    )
    np.testing.assert_allclose([float(rate(step)) for step in range(6)], expected, atol=1e-6)


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_a_stepwise_rate_drops_to_a_tenth_at_fractions_of_the_run(warmup):
    rate = learning_rate_schedule(
        "step", learning_rate=1.0, warmup_fraction=warmup, end_fraction=0.0, drops=(0.5, 0.7), total_steps=10
    )
    after = [float(rate(step)) for step in range(round(10 * warmup), 10)]
    np.testing.assert_allclose(after, [*[1.0] * (5 - round(10 * warmup)), 0.1, 0.1, 0.01, 0.01, 0.01], rtol=1e-6)


@pytest.mark.parametrize("drops", [(0.1,), (0.5, 1.0), (0.7, 0.5), (0.5, 0.5), ("a",)])
def test_drops_lie_behind_the_warm_up_and_before_the_end(drops):
    with pytest.raises(UserError, match=r"optimizer.drops is .*between optimizer.warmup_fraction, 0.2, and 1"):
        _build(schedule="step", warmup_fraction=0.2, drops=drops)
    _build(schedule="linear", warmup_fraction=0.2, drops=drops)  # which does not look at them


def test_end_fraction_is_where_decay_ends():
    for name in ("linear", "cosine"):
        rate = learning_rate_schedule(
            name, learning_rate=2.0, warmup_fraction=0.0, end_fraction=0.1, drops=(), total_steps=7
        )
        assert float(rate(7)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "adam"}, "did you mean 'adamw'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0; it must be above 0 and at most 1"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1"),
        ({"freeze": "("}, r"optimizer.freeze='\(' is not a valid regular expression"),
    ],
)
def test_bad_settings_are_one_line(change, message):
    with pytest.raises(UserError, match=message):
        _build(**change)


# An encoder of three layers with a head, as BertClassifier names them.
ENCODER = {
    "encoder": {
        "token_embedding": {"embedding": jnp.full((4, 2), 2.0)},
        "embedding_norm": {"scale": jnp.full(2, 2.0)},
        **{f"layer_{i}": {"mlp_in": {"kernel": jnp.full((2, 2), 2.0)}} for i in range(3)},
    },
    "pooler": {"kernel": jnp.full((2, 2), 2.0)},
}
FACTORS = {"token_embedding": 4, "embedding_norm": 4, "layer_0": 3, "layer_1": 2, "layer_2": 1}  # powers of layer_decay


def _gradients(params, steps):
    keys = iter(jax.random.split(jax.random.key(0), steps * len(jax.tree.leaves(params))))
    return [jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), params) for _ in range(steps)]


def _trajectory(tx, params, gradients):
    state, found = tx.init(params), []
    for grads in gradients:
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found, state


def test_layer_factors_are_the_powers_of_the_distance_to_the_head():
    factors = layer_factors(ENCODER, 0.5)
    assert {path.split("/")[1]: factor for path, factor in factors.items()} == {k: 0.5**n for k, n in FACTORS.items()}
    assert not any(path.startswith("pooler") for path in factors)
    many = {"encoder": {f"layer_{i}": {"kernel": 0} for i in range(12)}}
    assert layer_factors(many, 0.5)["encoder/layer_2/kernel"] == 0.5**10  # by number, not by spelling
    assert layer_factors({"dense": {"kernel": 0}}, 0.5) == {}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layer_decay_is_a_learning_rate_for_each_layer(name):
    """Each layer goes as one that is alone with learning_rate · layer_decay^n: weight decay and momentum included."""
    settings = {"name": name, "schedule": "linear", "warmup_fraction": 0.2, "weight_decay": 0.1}
    gradients = _gradients(ENCODER, 5)
    tx, _ = _build(**settings, learning_rate=0.1, layer_decay=0.5)
    found, _ = _trajectory(tx, ENCODER, gradients)
    for part, power in {**{f"encoder/{k}": n for k, n in FACTORS.items()}, "pooler": 0}.items():

        def take(tree, part=part):
            *above, name = part.split("/")
            return {name: tree[above[0]][name] if above else tree[name]}

        tx, _ = _build(**settings, learning_rate=0.1 * 0.5**power)
        alone, _ = _trajectory(tx, take(ENCODER), [take(g) for g in gradients])
        for ours, theirs in zip(found, alone, strict=True):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), take(ours), theirs)


def test_layer_decay_needs_layers():
    tx, _ = _build(layer_decay=0.9)
    with pytest.raises(UserError, match=r"layer_decay=0\.9 needs parameters named encoder/layer_0"):
        tx.init(PARAMS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_stay_and_the_others_go_as_if_alone(name):
    """No update, no weight decay, no share in the clipped norm, and no state."""
    settings = {"name": name, "learning_rate": 0.1, "weight_decay": 0.1, "decay_exclude": "", "clip_norm": 0.5}
    gradients = _gradients(ENCODER, 4)
    tx, _ = _build(**settings, freeze="embedding|layer_[01]/")
    found, state = _trajectory(tx, ENCODER, gradients)

    def trained(tree):
        return {"encoder": {"layer_2": tree["encoder"]["layer_2"]}, "pooler": tree["pooler"]}

    for part in ("token_embedding", "embedding_norm", "layer_0", "layer_1"):
        jax.tree.map(np.testing.assert_array_equal, found[-1]["encoder"][part], ENCODER["encoder"][part])
    plain, _ = _build(**settings)
    alone, alone_state = _trajectory(plain, trained(ENCODER), [trained(g) for g in gradients])
    for ours, theirs in zip(found, alone, strict=True):
        jax.tree.map(np.testing.assert_array_equal, trained(ours), theirs)
    assert [x.shape for x in jax.tree.leaves(state)] == [x.shape for x in jax.tree.leaves(alone_state)]


@pytest.mark.parametrize(("freeze", "found"), [("layers_0", "no parameter"), (".", "every parameter")])
def test_what_freeze_must_leave(freeze, found):
    tx, _ = _build(freeze=freeze)
    with pytest.raises(UserError, match=f"finds {found}; some of the 6 are encoder/embedding_norm/scale, encoder/lay"):
        tx.init(ENCODER)


def test_freezing_and_layer_decay_together():
    """The factors count the frozen layers too."""
    gradients = _gradients(ENCODER, 1)
    settings = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0}
    tx, _ = _build(**settings, freeze="layer_2|pooler", layer_decay=0.5)
    (found,), _ = _trajectory(tx, ENCODER, gradients)
    np.testing.assert_array_equal(found["pooler"]["kernel"], 2.0)
    moved = found["encoder"]["layer_1"]["mlp_in"]["kernel"] - 2.0
    np.testing.assert_allclose(moved, -0.25 * gradients[0]["encoder"]["layer_1"]["mlp_in"]["kernel"], atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_off_is_exactly_the_plain_chain(name):
    """Parameters and optimizer state, bit for bit and of the same structure: older checkpoints can be read."""
    section = {**defaults().optimizer.to_dict(), "name": name, "weight_decay": 0.1, "clip_norm": 1.0}
    assert (section["layer_decay"], section["freeze"]) == (1.0, "")
    tx, rate = optimizer(**section, total_steps=10)
    decay = optax.add_decayed_weights(0.1, mask=lambda params: decay_mask(params, section["decay_exclude"]))
    keys = ("b1", "b2", "eps", "momentum", "nesterov")
    parts = OPTIMIZERS[name](decay, **{key: section[key] for key in keys})
    plain = optax.chain(optax.clip_by_global_norm(1.0), *parts, optax.scale_by_learning_rate(rate))
    results = [_trajectory(t, ENCODER, _gradients(ENCODER, 3)) for t in (tx, plain)]
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_c_and_alpha_are_a_weight_decay_beside_the_mean_loss():
    section = {**defaults().optimizer.to_dict(), "name": "sgd"}
    assert weight_decay({**section, "weight_decay": 0.1}, "regression", 50) == 0.1
    assert weight_decay({**section, "C": 0.5}, "classification", 50) == 1 / 25
    assert weight_decay({**section, "alpha": 3.0}, "regression", 50) == 6 / 50
    for extreme in ({"C": 5e-324}, {"alpha": 1e308}):
        task = "classification" if "C" in extreme else "regression"
        with pytest.raises(UserError, match=f"optimizer.{next(iter(extreme))}=.* must be finite"):
            weight_decay({**section, **extreme}, task, 0.1)
    with pytest.raises(UserError, match=r"weight_decay=0.1 and optimizer.alpha=0.0 are given"):
        weight_decay({**section, "weight_decay": 0.1, "alpha": 0.0}, "regression", 50)
