"""Gradual magnitude pruning against the published schedule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.core import pruning
from research.core.pruning import gradually, zeros

STEPS = 200


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pruning, "_SMALLEST", 400)


def parameters():
    keys = jax.random.split(jax.random.key(0), 3)
    kernel = jax.random.normal(keys[0], (20, 20))
    return {"dense": {"kernel": kernel, "bias": jnp.zeros(20)}, "embed": {"embedding": kernel}}


def trained(steps, sparsity=0.9):
    tx, params = gradually(optax.sgd(0.01), sparsity, STEPS), parameters()
    state = tx.init(params)

    @jax.jit
    def step(params, state, key):
        gradient = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    found = [params]
    for key in jax.random.split(jax.random.key(1), steps):
        params, state = step(params, state, key)
        found.append(params)
    return found


def test_zeros_follow_the_schedule_and_stay():
    found = trained(STEPS)
    shares = [zeros(params) for params in found]
    for step in range(STEPS):
        expected = 0.9 * (1 - (1 - min(step / 150, 1)) ** 3)  # removed in each of the first three quarters of the steps
        assert shares[step + 1] == pytest.approx(expected, abs=0.6 / 400)  # a weight more or less, by rounding
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(0.9, abs=1 / 400)
    assert all(one <= other for one, other in itertools.pairwise(shares))
    gone = np.asarray(found[120]["dense"]["kernel"]) == 0
    assert gone.any()
    assert (np.asarray(found[-1]["dense"]["kernel"])[gone] == 0).all()
    assert (np.asarray(found[-1]["embed"]["embedding"]) != 0).all()
    assert (np.asarray(found[-1]["dense"]["bias"]) != 0).all()


def test_the_smallest_weights_go_first():
    before, after = (params["dense"]["kernel"] for params in trained(100)[-2:])
    kept = np.abs(np.asarray(after))[np.asarray(after) != 0]
    gone = np.abs(np.asarray(before))[(np.asarray(after) == 0) & (np.asarray(before) != 0)]
    # One step of 0.01 times a normal number moves a weight by at most 0.05.
    assert gone.size == 0 or gone.max() <= kept.min() + 0.05
