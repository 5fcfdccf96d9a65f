"""What may be drawn, and how often."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.core.sampling import Kind, Rows, Sampling, _allowed, choose

V = 12


def rows_of(samplings, seen=None):
    values = {
        field.name: jnp.asarray([getattr(each, field.name) for each in samplings], dtype)
        for field, dtype in zip(
            dataclasses.fields(Sampling),
            (jnp.float32, jnp.float32, jnp.int32, jnp.float32, jnp.float32, jnp.uint32),
            strict=True,
        )
    }
    count = len(samplings)
    seen = jnp.zeros((count, V), bool) if seen is None else jnp.asarray(seen)
    return Rows(**values, drawn=jnp.zeros(count, jnp.int32), seen=seen)


def _expected(scores, sampling):
    """The allowed tokens by sorting, as the papers define them."""
    order = np.argsort(-scores, kind="stable")
    left = set(order[: sampling.top_k or V].tolist())
    weights = np.where(np.isin(np.arange(V), list(left)), np.exp(scores - scores.max()), 0)
    total, kept = 0.0, set()
    for token in order:
        if token in left and (total < sampling.top_p * weights.sum() or sampling.top_p == 1):
            kept.add(int(token))
            total += weights[token]
    return {token for token in kept if weights[token] >= sampling.min_p * weights.max()}


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    top_k=st.integers(0, V + 3),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.77, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_allowed_tokens_are_those_of_the_papers(seed, top_k, top_p, min_p):
    scores = np.random.default_rng(seed).normal(size=(1, V), scale=3).astype(np.float32)
    sampling = Sampling(top_k=top_k, top_p=top_p, min_p=min_p)
    found = np.flatnonzero(np.asarray(_allowed(jnp.asarray(scores), rows_of([sampling])))[0])
    assert set(found.tolist()) == _expected(scores[0].astype(np.float64), sampling)


def test_equal_scores_are_left_or_removed_together():
    scores = jnp.asarray([[1.0, 3.0, 3.0, *[0.0] * (V - 3)]])
    assert np.flatnonzero(_allowed(scores, rows_of([Sampling(top_k=1)]))[0]).tolist() == [1, 2]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = np.log([0.5, 0.25, 0.125, *[0.125 / (V - 3)] * (V - 3)]).astype(np.float32)
    count = 4000
    rows = rows_of([Sampling(seed=seed) for seed in range(count)], np.zeros((count, V), bool))
    tokens, _ = choose(jnp.asarray(np.tile(logits, (count, 1))), rows, Kind(draws=True))
    shares = np.bincount(np.asarray(tokens), minlength=V) / count
    # Four standard deviations of a share.
    np.testing.assert_array_less(np.abs(shares - np.exp(logits)), 4 * np.sqrt(np.exp(logits) / count))


def test_a_temperature_flattens_the_distribution():
    logits = jnp.asarray(np.tile([2.0, 0.0, *[-50.0] * (V - 2)], (4000, 1)), jnp.float32)
    samplings = [Sampling(temperature=4.0, seed=seed) for seed in range(4000)]
    tokens, _ = choose(logits, rows_of(samplings), Kind(draws=True))
    assert float(jnp.mean(tokens == 0)) == pytest.approx(1 / (1 + np.exp(-0.5)), abs=0.03)


def test_successive_tokens_are_independent():
    rows = rows_of([Sampling(seed=3)])
    found = []
    for _ in range(40):
        tokens, rows = choose(jnp.zeros((1, V)), rows, Kind(draws=True))
        found.append(int(tokens[0]))
    assert len(set(found)) > V // 2
    assert int(rows.drawn[0]) == 40


def test_penalty_of_repetitions_is_that_of_transformers():
    """Positive scores are divided, negative ones multiplied."""
    logits = np.array([[4.0, 3.9, -1.0, *[-9.0] * (V - 3)]], np.float32)
    seen = np.zeros((1, V), bool)
    seen[0, 0] = True
    kind = Kind(penalizes=True)
    tokens, rows = choose(jnp.asarray(logits), rows_of([Sampling(temperature=0, repetition_penalty=1.5)], seen), kind)
    assert int(tokens[0]) == 1
    assert np.flatnonzero(rows.seen[0]).tolist() == [0, 1]
    negative = np.array([[-1.0, -1.4, *[-9.0] * (V - 2)]], np.float32)
    tokens, _ = choose(jnp.asarray(negative), rows_of([Sampling(temperature=0, repetition_penalty=1.5)], seen), kind)
    assert int(tokens[0]) == 1


MIXED = [
    Sampling(temperature=0),
    Sampling(seed=1),
    Sampling(seed=2, temperature=0.5, top_k=3),
    Sampling(seed=3, top_p=0.6, min_p=0.05),
    Sampling(temperature=0, repetition_penalty=1.3),
]


def test_a_row_draws_the_same_alone_and_among_others():
    logits = np.random.default_rng(0).normal(size=(len(MIXED), V), scale=2).astype(np.float32)
    seen = np.random.default_rng(1).random((len(MIXED), V)) < 0.3
    together, _ = choose(jnp.asarray(logits), rows_of(MIXED, seen), Kind.of(MIXED))
    for i, sampling in enumerate(MIXED):
        alone, _ = choose(jnp.asarray(logits[i : i + 1]), rows_of([sampling], seen[i : i + 1]), Kind.of([sampling]))
        assert int(alone[0]) == int(together[i])


def test_what_a_batch_needs():
    assert Kind.of([Sampling(temperature=0, top_k=5)]) == Kind()
    assert Kind.of([Sampling(temperature=0), Sampling()]) == Kind(draws=True)
    assert Kind.of(MIXED) == Kind(True, True, True)


@pytest.mark.parametrize(
    "wrong",
    [{"top_p": 0}, {"top_p": 1.1}, {"temperature": -1}, {"temperature": float("nan")}, {"seed": 2**32}, {"top_k": -1}],
)
def test_settings_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=name):
        Sampling(**wrong)
