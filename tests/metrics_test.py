import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from research import metrics
from research.metrics import Mean, Perplexity, RSquared

ROWS = st.lists(st.tuples(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, cut=st.integers(0, 40))
def test_mean_does_not_depend_on_the_cut_into_batches(rows, cut):
    values, weight = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    parts = [Mean.of(jnp.asarray(values[s]), jnp.asarray(weight[s])) for s in (slice(0, cut), slice(cut, None))]
    mean = metrics.add(*parts).compute()
    if weight.sum() == 0:
        assert mean is None
    else:
        # float32 sums of at most 40 values below 100: rounding error up to 40 · 100 · 6e-8 / weight.
        assert mean == pytest.approx(np.average(values.astype(np.float64), weights=weight), abs=3e-4)


def test_a_nan_in_the_padding_does_not_count():
    assert Mean.of(jnp.array([2.0, jnp.nan]), jnp.array([1.0, 0.0])).compute() == 2.0


def test_a_nan_in_an_example_does_count():
    assert np.isnan(Mean.of(jnp.array([2.0, jnp.nan]), jnp.array([1.0, 1.0])).compute())


def test_perplexity_is_exp_of_the_mean_over_all_parts():
    losses, weight = np.array([1.0, 2.0, 9.0, 0.5], np.float32), np.array([1.0, 1.0, 0.0, 1.0], np.float32)
    parts = [Perplexity(Mean.of(jnp.asarray(losses[s]), jnp.asarray(weight[s]))) for s in (slice(0, 1), slice(1, None))]
    assert metrics.add(*parts).compute() == pytest.approx(np.exp(3.5 / 3), rel=1e-6)
    assert Perplexity(Mean.of(jnp.ones(2), jnp.zeros(2))).compute() is None
    assert Perplexity(Mean.of(jnp.array([1e6]), jnp.ones(1))).compute() == np.inf


def test_r_squared_is_scikit_learns(rng):
    labels = (150 + 77 * rng.standard_normal(100)).astype(np.float32)
    predictions = (labels + 30 * rng.standard_normal(100)).astype(np.float32)
    weight = (rng.random(100) < 0.7).astype(np.float32)
    parts = [
        RSquared.of(*(jnp.asarray(x[s]) for x in (predictions, labels, weight)), shift=150.0)
        for s in (slice(0, 33), slice(33, None))
    ]
    expected = sklearn.metrics.r2_score(labels, predictions, sample_weight=weight)
    assert metrics.add(*parts).compute() == pytest.approx(expected, abs=1e-5)


def test_r_squared_of_equal_labels_is_none():
    assert RSquared.of(jnp.array([1.0, 2.0]), jnp.array([3.0, 3.0]), jnp.ones(2)).compute() is None
