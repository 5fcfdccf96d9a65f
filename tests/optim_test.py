# mypy: disable-error-code="attr-defined, operator"
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from research.analysis import refits
from research.base.errors import UserError
from research.base.leaves import path_name
from research.configs import mlp_mnist
from research.configs.defaults import defaults
from research.core.optim import decay_mask, layer_factors, learning_rate_schedule, optimizer, weight_decay
from research.core.optimizers import OPTIMIZERS, hidden_kernels, schedule_free
from research.devices import sharding
from research.runs.checkpoint import Checkpoints, Progress
from research.training.experiment import prepare
from tests import tiny

PARAMS = {
    "dense": {"kernel": jnp.full((3, 2), 2.0), "bias": jnp.full(2, 2.0)},
    "norm": {"scale": jnp.full(2, 2.0)},
}


def _quick(*names):
    """All optimizers; the quick tests only run those named, as the programs of the others are slow to compile."""
    return [pytest.param(name, marks=[] if name in names else pytest.mark.extended) for name in OPTIMIZERS]


def _build(total_steps=10, **changes):
    section = {**defaults().optimizer.to_dict(), **changes}
    return optimizer(section, weight_decay=section["weight_decay"], total_steps=total_steps)


def _steps(tx, params, grads, steps):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_shrinks_weights_at_zero_gradient(name):
    tx, _ = _build(name=name, learning_rate=0.1, weight_decay=0.1, b2=0.9)
    grads = jax.tree.map(jnp.zeros_like, PARAMS)
    after = _steps(tx, PARAMS, grads, 3)
    kernel = np.asarray(after["dense"]["kernel"])
    assert np.all(kernel < 2.0)
    assert np.all(kernel > 0.0)
    np.testing.assert_array_equal(after["dense"]["bias"], 2.0)
    np.testing.assert_array_equal(after["norm"]["scale"], 2.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_decreases_the_loss(name):
    tx, _ = _build(name=name, learning_rate=0.1)
    after = _steps(tx, PARAMS, jax.tree.map(jnp.ones_like, PARAMS), 1)
    assert all(np.all(np.asarray(leaf) < 2.0) for leaf in jax.tree.leaves(after))


def test_adamw_matches_the_formula_of_the_paper():
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
def test_step_schedule_divides_by_ten_at_fractions_of_the_run(warmup):
    rate = learning_rate_schedule(
        "step", learning_rate=1.0, warmup_fraction=warmup, end_fraction=0.0, drops=(0.5, 0.7), total_steps=10
    )
    after = [float(rate(step)) for step in range(round(10 * warmup), 10)]
    np.testing.assert_allclose(after, [*[1.0] * (5 - round(10 * warmup)), 0.1, 0.1, 0.01, 0.01, 0.01], rtol=1e-6)


@pytest.mark.parametrize("drops", [(0.1,), (0.5, 1.0), (0.7, 0.5), (0.5, 0.5), ("a",)])
def test_drops_must_be_between_the_warm_up_and_the_end(drops):
    with pytest.raises(UserError, match=r"optimizer.drops is .*between optimizer.warmup_fraction, 0.2, and 1"):
        _build(schedule="step", warmup_fraction=0.2, drops=drops)
    _build(schedule="linear", warmup_fraction=0.2, drops=drops)  # which ignores them


def test_end_fraction_is_where_decay_ends():
    for name in ("linear", "cosine"):
        rate = learning_rate_schedule(
            name, learning_rate=2.0, warmup_fraction=0.0, end_fraction=0.1, drops=(), total_steps=7
        )
        assert float(rate(7)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "adamq"}, "did you mean 'adam"),
        ({"name": "lionn"}, "did you mean 'lion'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0; it must be above 0 and at most 1"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1"),
        ({"freeze": "("}, r"optimizer.freeze='\(' is not a valid regular expression"),
    ],
)
def test_invalid_settings_are_one_line_errors(change, message):
    with pytest.raises(UserError, match=message):
        _build(**change)


# An encoder of three layers with a head, as BertClassifier names them.
ENCODER: dict[str, Any] = {
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


@pytest.mark.parametrize("name", _quick("sgd", "adafactor", "muon"))
def test_layer_decay_scales_the_learning_rate_of_each_layer(name):
    """Each layer is updated as with learning_rate · layer_decay^n, including weight decay and momentum."""
    settings = {"name": name, "schedule": "linear", "warmup_fraction": 0.2, "weight_decay": 0.1}
    gradients = jax.tree.map(lambda *x: jnp.stack(x), *_gradients(ENCODER, 5))

    def last(tx):
        def step(carry, grads):
            updates, state = tx.update(grads, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (ENCODER, tx.init(ENCODER)), gradients)[0][0]

    tx, _ = _build(**settings, learning_rate=0.1, layer_decay=0.5)
    found = jax.jit(lambda: last(tx))()
    rates = 0.1 * 0.5 ** jnp.arange(5.0)
    alone = jax.jit(jax.vmap(lambda rate: last(_build(**settings, learning_rate=rate)[0])))(rates)
    for path, ours in jax.tree_util.tree_leaves_with_path(found):
        power = FACTORS.get(path_name(path).split("/")[1], 0)
        theirs = functools.reduce(lambda tree, key: tree[key.key], path, alone)[power]
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, err_msg=path_name(path))


def test_layer_decay_needs_layers():
    tx, _ = _build(layer_decay=0.9)
    with pytest.raises(UserError, match=r"layer_decay=0\.9 needs parameters named layer_0"):
        tx.init(PARAMS)


@pytest.mark.parametrize("name", _quick("sgd", "adafactor", "muon"))
def test_frozen_parameters_are_unchanged_and_do_not_affect_the_others(name):
    """They have no update, weight decay, share in the clipped norm, or state."""
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
    if OPTIMIZERS[name].around is schedule_free:  # which keeps z − x, zeros, of frozen parameters too
        state, alone_state = state._replace(z=None), alone_state._replace(z=None)
    assert [x.shape for x in jax.tree.leaves(state)] == [x.shape for x in jax.tree.leaves(alone_state)]


@pytest.mark.parametrize(("freeze", "found"), [("layers_0", "no parameter"), (".", "every parameter")])
def test_freeze_must_leave_some_parameters(freeze, found):
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


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("adamw", lambda decay: [optax.scale_by_adam(b1=0.8, b2=0.95, eps=1e-6), decay]),
        ("lamb", lambda decay: [optax.scale_by_adam(b1=0.8, b2=0.95, eps=1e-6), decay, optax.scale_by_trust_ratio()]),
        ("sgd", lambda decay: [decay, optax.trace(0.7, nesterov=True)]),
    ],
)
def test_without_freeze_and_layer_decay_the_chain_is_unchanged(name, parts):
    """Parameters and optimizer state are bitwise equal and of the same structure, so older checkpoints can be read."""
    settings = {"b1": 0.8, "b2": 0.95, "eps": 1e-6, "momentum": 0.7, "nesterov": True}
    tx, rate = _build(name=name, weight_decay=0.1, clip_norm=1.0, **settings)
    decay = optax.add_decayed_weights(0.1, mask=lambda params: decay_mask(params, "bias|norm"))
    plain = optax.chain(optax.clip_by_global_norm(1.0), *parts(decay), optax.scale_by_learning_rate(rate))
    results = [_trajectory(t, ENCODER, _gradients(ENCODER, 3)) for t in (tx, plain)]
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    jax.tree.map(np.testing.assert_array_equal, *results)


# Large enough that Adafactor factors the second moments of its first kernel.
NETWORK = {
    "dense": {"kernel": jnp.full((128, 130), 0.1), "bias": jnp.zeros(130)},
    "classifier": {"kernel": jnp.full((6, 3), 0.1)},
}


def _muon_dimensions(params):
    dimensions = optax.contrib.MuonDimensionNumbers()
    return {"dense": {"kernel": dimensions, "bias": None}, "classifier": {"kernel": None}}


@pytest.mark.parametrize(
    ("settings", "alias"),
    [
        ({"name": "adam"}, lambda rate: optax.adam(rate, b1=0.8, b2=0.95, eps=1e-6)),
        ({"name": "rmsprop"}, lambda rate: optax.rmsprop(rate, decay=0.95, eps=1e-6, eps_in_sqrt=False)),
        (
            {"name": "rmsprop", "momentum": 0.7, "nesterov": True},
            lambda rate: optax.rmsprop(rate, decay=0.95, eps=1e-6, eps_in_sqrt=False, momentum=0.7, nesterov=True),
        ),
        ({"name": "lion"}, lambda rate: optax.lion(rate, b1=0.8, b2=0.95, weight_decay=0.0)),
        ({"name": "adafactor"}, lambda rate: optax.adafactor(rate)),
        (
            {"name": "muon", "momentum": 0.7},
            lambda rate: optax.contrib.muon(
                rate,
                beta=0.7,
                eps=1e-6,
                nesterov=False,
                adam_b1=0.8,
                adam_b2=0.95,
                muon_weight_dimension_numbers=_muon_dimensions,
                consistent_rms=0.2,
            ),
        ),
    ],
)
def test_without_decay_matches_optax(settings, alias):
    tx, rate = _build(**{"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-6, "momentum": 0.0, **settings})
    gradients = jax.tree.map(lambda *x: jnp.stack(x), *_gradients(NETWORK, 4))

    @jax.jit
    def last():
        def step(carry, grads):
            both = [(t.update(grads, state, params), params) for t, (params, state) in zip(txs, carry, strict=True)]
            return [(optax.apply_updates(params, updates), state) for (updates, state), params in both], None

        txs = (tx, alias(float(rate(0))))
        return jax.lax.scan(step, [(NETWORK, t.init(NETWORK)) for t in txs], gradients)[0]

    (found, _), (expected, _) = last()
    assert np.max(np.abs(found["dense"]["kernel"] - NETWORK["dense"]["kernel"])) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "lamb"])  # its trust ratio scales the decay
def test_weight_decay_is_a_penalty_or_decoupled(name):
    settings = {"name": name, "learning_rate": 0.1}
    (tx, _), (plain, _) = _build(**settings, weight_decay=0.5), _build(**settings)
    params = {"dense": {"kernel": jnp.arange(1.0, 7.0).reshape(3, 2), "bias": jnp.ones(2)}}
    gradients = _gradients(params, 1)[0]
    penalty = jax.tree.map(lambda p: 0.5 * p, params)
    penalty["dense"]["bias"] = jnp.zeros(2)  # which is excluded

    @jax.jit
    def updates():
        found = tx.update(gradients, tx.init(params), params)[0]
        if OPTIMIZERS[name].decoupled_decay:
            alone = plain.update(gradients, plain.init(params), params)[0]
            return found, jax.tree.map(lambda u, p: u - 0.1 * p, alone, penalty)
        penalized = jax.tree.map(jnp.add, gradients, penalty)
        return found, plain.update(penalized, plain.init(params), params)[0]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *updates())


def test_schedule_free_parameters_are_optaxs_evaluation_parameters():
    """Over 20 steps on a quadratic, after a warm-up and with weight decay: at most 2e-6 apart (measured: 1e-6)."""
    settings = {"b1": 0.8, "b2": 0.9, "eps": 1e-6, "weight_decay": 0.1}
    ours, _ = _build(
        20, name="schedule_free_adamw", learning_rate=0.1, schedule="constant", decay_exclude="", **settings
    )
    theirs = optax.contrib.schedule_free_adamw(0.1, **settings)
    start, target = jnp.asarray([3.0, -2.0, 0.5]), jnp.asarray([1.0, 1.0, -1.0])
    params, state = {"kernel": start}, ours.init({"kernel": start})
    point, their_state = {"kernel": start}, theirs.init({"kernel": start})
    for _ in range(20):
        at = OPTIMIZERS["schedule_free_adamw"].gradient_point(params, state)["kernel"]
        updates, state = ours.update({"kernel": at - target}, state, params)
        params = optax.apply_updates(params, updates)
        updates, their_state = theirs.update({"kernel": point["kernel"] - target}, their_state, point)
        point = optax.apply_updates(point, updates)
    expected = optax.contrib.schedule_free_eval_params(their_state, point)["kernel"]
    assert np.abs(expected - start).max() > 0.5
    np.testing.assert_allclose(params["kernel"], expected, atol=2e-6)


def test_muon_updates_hidden_kernels():
    network = {
        **ENCODER,
        "conv_stem": {"kernel": jnp.zeros((3, 3, 2, 2))},
        **{name: {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)} for name in ("dense_0", "classifier", "linear")},
        "kernel": jnp.zeros((2, 2)),
    }
    found = {path_name(path) for path, hidden in jax.tree_util.tree_leaves_with_path(hidden_kernels(network)) if hidden}
    assert found == {*(f"encoder/layer_{i}/mlp_in/kernel" for i in range(3)), "pooler/kernel", "dense_0/kernel"}


def test_muon_updates_are_as_large_as_those_of_adamw():
    """Newton-Schulz maps singular values of any gradient to 0.7 to 1.2."""
    tx, _ = _build(name="muon", learning_rate=0.1)
    params = {"dense": {"kernel": jnp.zeros((8, 32))}}
    updates, _ = jax.jit(tx.update)(*_gradients(params, 1), tx.init(params), params)
    size = float(jnp.sqrt(jnp.mean(updates["dense"]["kernel"] ** 2)))
    assert 0.6 < size / (0.1 * 0.2) < 1.3  # AdamW's are about 0.2 to 0.4 times the learning rate


@pytest.mark.parametrize("changes", [{}, {"freeze": "dense"}])
def test_muon_needs_a_hidden_kernel(changes):
    params = {"classifier": {"kernel": jnp.zeros((2, 2))}, **({"dense": NETWORK["dense"]} if changes else {})}
    with pytest.raises(UserError, match="'muon' needs a two-dimensional kernel below the output layer"):
        _build(name="muon", **changes)[0].init(params)


def test_sharding_rules_for_adafactor_name_its_statistics():
    tx, _ = _build(name="adafactor")
    state = {"params": NETWORK, "opt_state": tx.init(NETWORK)}
    mesh = sharding.make_mesh(data=4, tensor=2)
    rule = ("kernel", (None, "tensor"))
    with pytest.raises(UserError, match=r"mesh\.rules gives 2 axes"):
        sharding.state_shardings(state, [rule], mesh)
    found = sharding.state_shardings(state, [("/v(_row|_col)?/", ()), ("classifier", ()), rule], mesh)
    assert tuple(found["params"]["dense"]["kernel"].spec) == (None, "tensor")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_initial_state_does_not_depend_on_parameter_values(name):
    """Pretrained parameters may therefore replace them."""
    tx, _ = _build(name=name, weight_decay=0.1)
    states = [tx.init(jax.tree.map(lambda x, k=k: k * x, NETWORK)) for k in (1, 2)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def _mlp(name, **changes):
    config = tiny._train(mlp_mnist.get_config("embedded"), steps=30, batch_size=128, accumulate=2)
    config.model.update(hidden_sizes=(16,), dropout=0.0)
    config.optimizer.update(name=name, **{"schedule": "linear", "warmup_fraction": 0.1, "clip_norm": 1.0, **changes})
    return config


# A learning rate for each, and the constants of the papers.
SUITABLE: dict[str, Any] = {
    "adamw": {"learning_rate": 0.04},
    "lamb": {"learning_rate": 0.1},
    "adam": {"learning_rate": 0.04},
    "sgd": {"learning_rate": 0.2},
    "rmsprop": {"learning_rate": 0.02, "b2": 0.9, "momentum": 0.0},
    "lion": {"learning_rate": 0.02, "b2": 0.99},
    "adafactor": {"learning_rate": 0.1},
    "muon": {"learning_rate": 0.04, "momentum": 0.95, "nesterov": True},
    "schedule_free_adamw": {"learning_rate": 0.04, "schedule": "constant"},
}


def test_every_optimizer_has_a_learning_rate():
    assert SUITABLE.keys() == OPTIMIZERS.keys()


@functools.cache
def _parameters_of_two_seeds():
    config = _mlp("sgd")
    config.train.seeds = 2
    return jax.jit(prepare(config).init.__wrapped__)().params


@pytest.mark.parametrize("name", _quick("rmsprop", "lion", "adafactor", "muon", "schedule_free_adamw"))
def test_network_learns_digits(name):
    """Two seeds with accumulated batches and a frozen output bias: the loss falls to a quarter in 30 steps."""
    config = _mlp(name, weight_decay=1e-3, freeze="classifier/bias", **SUITABLE[name])
    config.train.seeds = 2
    experiment = prepare(config)
    first, losses = _parameters_of_two_seeds(), []
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), experiment.state)
    state = dataclasses.replace(state, params=first, opt_state=jax.vmap(experiment.method.tx.init)(first))
    train_step = jax.jit(experiment.train_step.__wrapped__)  # for one device, which halves the compilation time
    for batch in tiny.batches(experiment, 30):
        state, scores = train_step(state, batch)
        losses.append(np.asarray(scores["loss"].total / scores["loss"].weight))
    assert np.all(np.mean(losses[-3:], axis=0) < losses[0] / 4)
    np.testing.assert_array_equal(state.params["classifier"]["bias"], first["classifier"]["bias"])
    for layer in ("dense_0", "classifier"):
        moved = np.any(state.params[layer]["kernel"] != first[layer]["kernel"], axis=(1, 2))
        np.testing.assert_array_equal(moved, [True, True])


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_state_is_restored_from_a_checkpoint(name, tmp_path):
    """Including partitioned, frozen and factored state."""
    config = _mlp(name, freeze="classifier/bias", **SUITABLE[name])
    config.model.hidden_sizes = (128,)
    experiment = prepare(config)
    values = itertools.count(1)
    state = jax.tree.map(
        lambda x: jax.device_put(np.full(x.shape, next(values), x.dtype), x.sharding), experiment.state
    )
    for restoring in (False, True):
        with Checkpoints(tmp_path, metric="accuracy", mode="max") as checkpoints:
            if restoring:
                restored, _ = checkpoints.restore(experiment.state, 1)
            else:
                checkpoints.save(state, Progress(step=1))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    tiny.assert_trees_equal(restored, state)


def test_c_and_alpha_are_weight_decays_of_the_mean_loss():
    section = {**defaults().optimizer.to_dict(), "name": "sgd"}
    assert weight_decay({**section, "weight_decay": 0.1}, "regression", "alpha", 50) == 0.1
    assert weight_decay({**section, "C": 0.5}, "classification", "C", 50) == 1 / 25
    assert weight_decay({**section, "alpha": 3.0}, "regression", "alpha", 50) == 6 / 50
    for extreme in ({"C": 5e-324}, {"alpha": 1e308}):
        task, penalty = ("classification", "C") if "C" in extreme else ("regression", "alpha")
        with pytest.raises(UserError, match=f"optimizer.{next(iter(extreme))}=.* must be finite"):
            weight_decay({**section, **extreme}, task, penalty, 0.1)
    with pytest.raises(UserError, match=r"weight_decay=0.1 and optimizer.alpha=0.0 are given"):
        weight_decay({**section, "weight_decay": 0.1, "alpha": 0.0}, "regression", "alpha", 50)


def test_c_and_alpha_need_an_l2_penalty():
    section = {**defaults().optimizer.to_dict(), "C": 1.0}
    for name, entry in OPTIMIZERS.items():
        if entry.decoupled_decay:
            with pytest.raises(UserError, match=f"'{name}' uses decoupled weight decay; .*: lbfgs, adam, sgd, rmsprop"):
                weight_decay({**section, "name": name}, "classification", "C", 50)
        else:
            assert weight_decay({**section, "name": name}, "classification", "C", 50) == 1 / 50
    assert refits.PENALIZED == ("closed_form", "lbfgs", "adam", "sgd", "rmsprop")


def test_optimizer_reads_only_its_own_keys():
    section = {**defaults().optimizer.to_dict(), "name": "sgd"}
    for key in ("b1", "b2", "eps", "C", "tolerance"):
        del section[key]
    optimizer(section, weight_decay=0.0, total_steps=10)
    for key in ("momentum", "freeze", "schedule"):
        with pytest.raises(UserError, match=f"optimizer.{key} is missing; 'sgd' needs it"):
            optimizer({k: x for k, x in section.items() if k != key}, weight_decay=0.0, total_steps=10)
