# mypy: disable-error-code="arg-type"
"""The train step: padding has no effect, accumulation and the number of devices do not change the update."""

import dataclasses
from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core.metrics import Mean
from research.core.replicas import vmap_or_unroll
from research.core.state import TrainState, averaged, unbiased
from research.core.step import train_step
from research.core.tasks import Classification
from research.devices import sharding
from research.training.experiment import prepare
from tests import tiny


@pytest.fixture
def few(monkeypatch):
    tiny.few_sentences(monkeypatch)


def _step(experiment, **changes):
    options = {
        "module": experiment.module,
        "task": experiment.task,
        "tx": experiment.method.tx,
        "seed": 0,
        **changes,
    }
    return jax.jit(lambda state, batch: train_step(state, batch, **options))


def _difference(a, b):
    """The largest difference between the leaves of two trees, relative to the largest entry of each leaf.

    Largest entries below 1e-7 count as 1e-7: the gradient of a key bias, which is 0, rounds to 1e-12.
    """
    return max(
        float(jnp.max(jnp.abs(x - y)) / jnp.maximum(jnp.max(jnp.abs(x)), 1e-7))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _sgd(config):
    """With SGD the update is the gradient; AdamW's first update amplifies rounding where the gradient is near zero."""
    config.optimizer.update(name="sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.0, warmup_fraction=0.0)
    if "dropout" in config.model:
        config.model.update(dropout=0.0, attention_dropout=0.0)  # dropout masks depend on the shape
    return prepare(config)


@pytest.mark.parametrize(
    "make", [*(pytest.param(make, marks=pytest.mark.extended) for make in (tiny.bert, tiny.resnet)), tiny.logistic]
)
def test_padding_rows_change_nothing(few, make):
    """Neither the loss, the gradient nor the batch statistics change."""
    experiment = _sgd(make(batch_size=16))
    state = experiment.init()
    (batch,) = tiny.batches(experiment, 1)
    junk = {name: np.concatenate([array, array[:8]]) for name, array in batch.items()}
    junk["weight"][16:] = 0.0
    after, scores = _step(experiment)(state, batch)
    padded, padded_scores = _step(experiment)(state, junk)
    assert float(padded_scores["loss"].weight) == 16
    np.testing.assert_allclose(padded_scores["loss"].total, scores["loss"].total, rtol=1e-6)
    # Measured: rounding up to 2e-6 of each array's largest entry.
    assert _difference((after.params, after.model_state), (padded.params, padded.model_state)) < 2e-5


@pytest.mark.extended
def test_part_with_only_padding_keeps_batch_statistics(few):
    """11 examples in 4 parts of at most 4: with rows padded for 8 devices, some parts are only padding."""
    experiment = _sgd(tiny.resnet(batch_size=3, accumulate=4))
    (batch,) = tiny.batches(experiment, 1)
    assert len(batch["weight"]) == 32
    after, scores = _step(experiment, accumulate=4)(experiment.init(), batch)
    assert float(scores["loss"].weight) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize(
    ("make", "accumulate"),
    [(tiny.logistic, 1), (tiny.logistic, 2), pytest.param(tiny.mlm, 2, marks=pytest.mark.slow)],
)
def test_batch_of_weight_zero_has_zero_gradient(few, make, accumulate, monkeypatch):
    """If its classes have weight 0, or nothing is masked, the loss is 0 and the parameters are unchanged."""
    tiny.few_documents(monkeypatch)
    experiment = _sgd(make(batch_size=16, accumulate=accumulate))
    (batch,) = tiny.batches(experiment, 1)
    batch["labels"] = np.full_like(batch["labels"], -1)
    state = experiment.init()
    after, scores = _step(experiment, accumulate=accumulate)(state, batch)
    assert scores["loss"].compute() is None
    assert _difference(after.params, state.params) == 0


@pytest.mark.extended
def test_batch_statistics_ignore_loss_weights(few):
    """With and without accumulation."""
    experiment = _sgd(tiny.resnet(batch_size=16, accumulate=2))
    task = Classification(class_weight=(0.0,) * 10)
    (batch,) = tiny.batches(experiment, 1)
    state = experiment.init()
    after, _ = _step(experiment, task=task, accumulate=2)(state, batch)
    assert _difference(after.params, state.params) == 0
    assert _difference(after.model_state, state.model_state) > 0.1


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_gives_the_same_update(few, accumulate):
    config = tiny.logistic(batch_size=16)
    config.optimizer.name = "sgd"
    experiment = prepare(config)
    state = experiment.init()
    (batch,) = tiny.batches(experiment, 1)
    batch["weight"][3] = 0.0  # parts of unequal weight
    whole, scores = _step(experiment)(state, batch)
    parts, part_scores = _step(experiment, accumulate=accumulate)(state, batch)
    assert _difference(whole.params, parts.params) < 1e-5
    np.testing.assert_allclose(part_scores["loss"].total, scores["loss"].total, rtol=1e-6)


def test_gradient_matches_finite_differences(few):
    """Against central finite differences of the mean loss, in float64-summed float32: error about 1e-3."""
    config = tiny.logistic(batch_size=32)
    config.optimizer.update(name="sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    experiment = prepare(config)
    state = experiment.init()
    (batch,) = tiny.batches(experiment, 1)
    batch["weight"][:5] = 0.0
    after, _ = _step(experiment)(state, batch)
    gradient = state.params["linear"]["kernel"] - after.params["linear"]["kernel"]

    def loss(kernel):
        params = {"linear": {**state.params["linear"], "kernel": kernel}}
        return experiment.task.scores(experiment.module.apply({"params": params}, batch, train=False), batch)[
            "loss"
        ].compute()

    direction = jax.random.normal(jax.random.key(1), gradient.shape)
    kernel, h = state.params["linear"]["kernel"], 1e-2
    slope = (loss(kernel + h * direction) - loss(kernel - h * direction)) / (2 * h)
    assert float(jnp.sum(gradient * direction)) == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize(
    "make", [tiny.logistic, *(pytest.param(x, marks=pytest.mark.slow) for x in (tiny.bert, tiny.resnet))]
)
def test_one_and_eight_devices_have_the_same_losses(few, make, monkeypatch):
    """Including dropout and batch statistics, over 20 steps."""
    losses = {}
    for count in (1, 8):
        devices = jax.devices()[:count]
        monkeypatch.setattr("research.devices.sharding.make_mesh", lambda *_, d=devices: make_mesh(devices=d))
        experiment = prepare(make(steps=20))
        state, losses[count] = experiment.init(), []
        for batch in tiny.batches(experiment, 20):
            state, scores = experiment.train_step(state, sharding.put_batch(batch, experiment.mesh))
            losses[count].append(float(scores["loss"].total))
    np.testing.assert_allclose(losses[1], losses[8], rtol=1e-5)


make_mesh = sharding.make_mesh


@pytest.mark.extended
def test_dropout_differs_from_step_to_step_and_repeats_from_the_same_step(few):
    experiment = prepare(tiny.bert())
    step = _step(experiment)
    state = experiment.init()
    (batch,) = tiny.batches(experiment, 1)
    _, first = step(state, batch)
    _, again = step(state, batch)
    _, other = step(dataclasses.replace(state, step=state.step + 1), batch)
    assert float(first["loss"].total) == float(again["loss"].total)
    assert float(first["loss"].total) != float(other["loss"].total)


@pytest.mark.extended
def test_bfloat16_compute_keeps_float32_parameters(few):
    config = tiny.bert()
    config.dtype = "bfloat16"
    experiment = prepare(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(experiment.state.params)} == {jnp.dtype("float32")}
    (batch,) = tiny.batches(experiment, 1)
    _, scores = experiment.train_step(experiment.init(), sharding.put_batch(batch, experiment.mesh))
    # The loss of a fresh two-class classifier; bfloat16 keeps about three digits.
    assert float(scores["loss"].compute()) == pytest.approx(np.log(2), abs=0.05)


@pytest.mark.extended
def test_average_covers_parameters_and_batch_statistics():
    """Weights decay^i that sum to one, computed in float64. Measured: 2e-7 of the largest entry of each array."""
    config = tiny.resnet()
    config.train.ema_decay = 0.75
    experiment = prepare(config)
    state, seen = experiment.init(), []
    for batch in tiny.batches(experiment, 3):
        state, _ = experiment.train_step(state, sharding.put_batch(batch, experiment.mesh))
        seen.append(jax.device_get((state.params, state.model_state)))
    weights = np.array([0.75**2, 0.75, 1.0])
    expected = jax.tree.map(lambda *x: np.tensordot(weights / weights.sum(), np.stack(x).astype(np.float64), 1), *seen)
    mean = averaged(state, 0.75)
    assert _difference(expected, (mean.params, mean.model_state)) < 1e-6
    assert _difference(expected, seen[-1]) > 1e-3
    tiny.assert_trees_equal(mean.opt_state, state.opt_state)


def test_without_an_average_the_update_is_the_same():
    config = tiny.logistic()
    states = []
    for decay in (0.0, 0.9):
        config.train.ema_decay = decay
        experiment = prepare(config)
        state = experiment.init()
        for batch in tiny.batches(experiment, 2):
            state, _ = experiment.train_step(state, sharding.put_batch(batch, experiment.mesh))
        states.append(state)
    tiny.assert_trees_equal(states[0].params, states[1].params)
    assert states[0].average == {}


@pytest.mark.parametrize("decay", [0.9, 0.9999, 1 - 2**-20])
@pytest.mark.parametrize("steps", [1, 1000])
def test_weights_of_the_average_sum_to_one(decay, steps):
    """The average of a constant is therefore that constant. Measured: 6e-7."""
    latest = {"w": jnp.array([1.0, -3.0])}
    tx = optax.set_to_zero()
    state = TrainState(jnp.int32(0), latest, {}, tx.init(latest), {"params": {"w": jnp.zeros(2)}, "model_state": {}})

    def step(state, _):
        task = SimpleNamespace(scores=lambda outputs, batch: {"loss": Mean(jnp.sum(outputs["w"]), jnp.float32(1))})
        model = SimpleNamespace(apply=lambda variables, *_, **__: (variables["params"], {}))
        return train_step(state, {}, module=model, task=task, tx=tx, seed=0, ema_decay=decay)[0], None

    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, length=steps))(state)
    np.testing.assert_allclose(averaged(state, decay).params["w"], latest["w"], rtol=2e-6)


def test_bias_correction_is_exact_in_float64():
    """1 − decay^step against exact fractions. Measured: 2.2e-16 (with a float32 decay: 3e-8)."""
    rest = Fraction(1 - 0.9999)
    with jax.enable_x64(True):
        found = unbiased({"w": jnp.float64(float(1 - (1 - rest) ** 5))}, 0.9999, 5)["w"]
        np.testing.assert_allclose(found, 1.0, rtol=1e-15)


def test_unrolled_matches_vmap():
    def function(a, b, c):
        return {"product": a["x"] @ b, "sum": jnp.sum(a["x"]) + c}

    arguments = {"x": np.arange(12.0, dtype=np.float32).reshape(3, 2, 2)}, np.eye(2, dtype=np.float32), np.arange(3)
    one, other = (
        vmap_or_unroll(function, 3, (0, None, 0), unrolled=unrolled)(*arguments) for unrolled in (True, False)
    )
    tiny.assert_trees_equal(one, other)
    assert one["product"].shape == (3, 2, 2)
