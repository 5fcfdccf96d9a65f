# mypy: disable-error-code="arg-type, call-arg"
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core import metrics
from research.core.metrics import Confusion, Mean, Perplexity, f1, matthews, pearson, r_squared, spearman

ROWS = st.lists(st.tuples(st.floats(-100, 100, width=32), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, cut=st.integers(0, 40))
def test_mean_does_not_depend_on_the_batches(rows, cut):
    values, weight = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    parts = [Mean.of(jnp.asarray(values[s]), jnp.asarray(weight[s])) for s in (slice(0, cut), slice(cut, None))]
    mean = metrics.add(*parts).compute()
    if weight.sum() == 0:
        assert mean is None
    else:
        # float32 sums of at most 40 values below 100: rounding error up to 40 · 100 · 6e-8 / weight.
        assert mean == pytest.approx(np.average(values.astype(np.float64), weights=weight), abs=3e-4)


def test_nan_in_the_padding_is_ignored():
    assert Mean.of(jnp.array([2.0, jnp.nan]), jnp.array([1.0, 0.0])).compute() == 2.0


def test_nan_in_an_example_is_not_ignored():
    assert np.isnan(Mean.of(jnp.array([2.0, jnp.nan]), jnp.array([1.0, 1.0])).compute())


def test_perplexity_is_exp_of_the_mean_over_all_batches():
    losses, weight = np.array([1.0, 2.0, 9.0, 0.5], np.float32), np.array([1.0, 1.0, 0.0, 1.0], np.float32)
    parts = [Perplexity(Mean.of(jnp.asarray(losses[s]), jnp.asarray(weight[s]))) for s in (slice(0, 1), slice(1, None))]
    assert metrics.add(*parts).compute() == pytest.approx(np.exp(3.5 / 3), rel=1e-6)
    assert Perplexity(Mean.of(jnp.ones(2), jnp.zeros(2))).compute() is None
    assert Perplexity(Mean.of(jnp.array([1e6]), jnp.ones(1))).compute() == np.inf


@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (150, 0.01), (1e5, 1), (-3e9, 5e8)])
def test_r_squared_matches_scikit_learn_far_from_zero(offset, scale, rng):
    labels = offset + scale * rng.standard_normal(200)
    predictions = labels + 0.3 * scale * rng.standard_normal(200)
    assert r_squared(predictions, labels) == pytest.approx(sklearn.metrics.r2_score(labels, predictions), abs=1e-12)


@pytest.mark.parametrize("labels", [[], [3.0], [3.0, 3.0]])
def test_r_squared_needs_two_different_labels(labels):
    assert r_squared(np.arange(len(labels)), np.array(labels)) is None


PAIRS_OF_CLASSES = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40
)


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning", "ignore:A single label was found")
@settings(max_examples=100, deadline=None)
@given(rows=PAIRS_OF_CLASSES, cut=st.integers(0, 40))
def test_f1_and_matthews_match_scikit_learn_for_any_batches(rows, cut):
    """Including predictions or labels of one class, for which both are 0 in scikit-learn too."""
    predicted, labels, weight = (np.array(column) for column in zip(*rows, strict=True))
    for statistic, function in ((f1, sklearn.metrics.f1_score), (matthews, sklearn.metrics.matthews_corrcoef)):
        parts = [
            Confusion.of(*(jnp.asarray(x[s]) for x in (predicted, labels, weight)), statistic)
            for s in (slice(0, cut), slice(cut, None))
        ]
        found = metrics.add(*parts).compute()
        if weight.sum() == 0:
            assert found is None
        else:
            assert found == pytest.approx(function(labels[weight > 0], predicted[weight > 0]), abs=1e-6)


# Few distinct values with many ties, and many distinct ones.
COLUMN = st.one_of(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40),
    st.lists(st.tuples(st.floats(-5, 5, width=32), st.integers(0, 25).map(lambda x: x / 5)), min_size=2, max_size=40),
)


@settings(max_examples=200, deadline=None)
@given(rows=COLUMN)
def test_correlations_match_scipy(rows):
    predictions, labels = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    if len(set(labels)) == 1:
        assert pearson(predictions, labels) is spearman(predictions, labels) is None
    elif len(set(predictions)) == 1:  # undefined: NaN in SciPy, which JSON does not support
        assert pearson(predictions, labels) == spearman(predictions, labels) == 0.0
    else:
        assert spearman(predictions, labels) == pytest.approx(
            scipy.stats.spearmanr(predictions, labels).statistic, abs=1e-6
        )
        if np.ptp(predictions) > 1e-6 * np.abs(predictions).max():  # below that SciPy warns about precision
            assert pearson(predictions, labels) == pytest.approx(
                scipy.stats.pearsonr(predictions, labels).statistic, abs=1e-6
            )


@settings(max_examples=50, deadline=None)
@given(rows=COLUMN, seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-30, 0.5, 1e20]))
def test_correlations_ignore_order_and_scale(rows, seed, scale):
    predictions, labels = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    predictions = np.round(predictions, 3)  # no differences that are lost by scaling
    order = np.random.default_rng(seed).permutation(len(labels))
    for correlation in (pearson, spearman):
        value = correlation(predictions, labels)
        for other in (correlation(predictions[order], labels[order]), correlation(scale * predictions, labels)):
            assert other == (None if value is None else pytest.approx(value, abs=1e-9))


@pytest.mark.parametrize("size", [0, 1])
def test_correlation_needs_two_examples(size):
    assert pearson(np.ones(size), np.ones(size)) is spearman(np.ones(size), np.ones(size)) is None
