"""Texts that are continued together are those that each would be alone, and without a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.sampling import Kind, Sampling, choose
from research.inference import continuations
from research.inference.continuations import Continuations
from research.models.decoder import Decoder
from tests.generation.sampling_test import MIXED
from tests.models.random_params import random_params
from tests.models.small_decoders import STYLES

LENGTH = 64


@pytest.fixture(scope="module", params=["gpt2", pytest.param("llama", marks=pytest.mark.extended)])
def model(request):
    module = Decoder(**{**STYLES[request.param], "max_positions": LENGTH})
    batch = {name: jnp.ones((1, 4), jnp.int32) for name in ("tokens", "segments", "positions")}
    return module, {"params": random_params(module, batch)}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Sizes at which the arrays of short texts grow and shrink."""
    monkeypatch.setattr(continuations, "_SHORTEST", 8)
    monkeypatch.setattr(continuations, "PARTS", (2, 8))


@functools.cache
def _applied(module):
    return jax.jit(lambda variables, batch: module.apply(variables, batch, train=False)["logits"])


def _uncached(model, prompt, sampling, count):
    """The tokens of a text by the whole network for each, one at a time."""
    module, variables = model
    tokens = list(prompt)
    usual = {name: jnp.asarray([getattr(sampling, name)]) for name in Sampling.RANGES}
    usual["seed"] = usual["seed"].astype(jnp.uint32)
    seen = np.zeros((1, module.vocab_size), bool)
    seen[0, tokens] = True
    rows = continuations.Rows(**usual, drawn=jnp.zeros(1, jnp.int32), seen=jnp.asarray(seen))
    for _ in range(count):
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(tokens)] = tokens
        segments = (np.arange(LENGTH) < len(tokens))[None].astype(np.int32)
        batch = {"tokens": padded, "segments": segments, "positions": np.arange(LENGTH)[None]}
        logits = _applied(module)(variables, batch)[:, len(tokens) - 1]
        token, rows = choose(logits, rows, Kind.of([sampling]))
        tokens.append(int(token[0]))
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def of_rows(model):
    """Rows -> what continues so many texts; each is compiled once."""
    module, variables = model
    return functools.cache(lambda rows: Continuations(module, variables, rows=rows, length=LENGTH))


def _together(found, requests, *, joins=()):
    """The tokens of each text; request i joins after `joins[i]` steps."""
    texts, step = {}, 0
    left = [(joins[i] if joins else 0, i) for i in range(len(requests))]
    while left or len(found):
        for when, i in list(left):
            if when <= step:
                left.remove((when, i))
                prompt, sampling, _ = requests[i]
                texts[i] = found.add(prompt, sampling)
        for continuation, token in found.step():
            assert continuation.tokens[-1] == token.id
            count = next(count for i, (_, _, count) in enumerate(requests) if texts.get(i) is continuation)
            if len(continuation.tokens) == count:
                found.remove(continuation)
        step += 1
        assert step < 1000
    return [texts[i].tokens for i in range(len(requests))]


def _requests(seed, samplings, counts):
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(0, 50, rng.integers(1, 30)).tolist(), sampling, count)
        for sampling, count in zip(samplings, counts, strict=True)
    ]


@pytest.mark.extended
@pytest.mark.parametrize("sampling", MIXED, ids=["greedy", "drawn", "top_k", "top_p", "penalty"])
def test_with_a_cache_as_without(model, of_rows, sampling):
    ((prompt, _, _),) = _requests(5, [sampling], [20])
    (found,) = _together(of_rows(1), [(prompt, sampling, 20)])
    assert found == _uncached(model, prompt, sampling, 20)


@pytest.mark.extended
@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 4),
    counts=st.lists(st.integers(1, 12), min_size=5, max_size=5),
    joins=st.lists(st.integers(0, 15), min_size=5, max_size=5),
)
def test_texts_do_not_depend_on_each_other(of_rows, seed, rows, counts, joins):
    """In any number of rows, joined at any time, and left at any time."""
    requests = _requests(seed, MIXED, counts)
    found = _together(of_rows(rows), requests, joins=joins)
    alone = [_together(of_rows(1), [request])[0] for request in requests]
    assert found == alone


def test_a_long_prompt_holds_up_no_other_text(model):
    module, variables = model
    found = Continuations(module, variables, rows=2, length=LENGTH)
    short = found.add([1, 2], Sampling(temperature=0))
    found.step()
    found.add(list(range(40)), Sampling(temperature=0))
    for written in range(2, 6):  # while the parts of the prompt are read
        assert [text for text, _ in found.step()] == [short]
        assert len(short.tokens) == written


def test_a_removed_text_frees_its_row_at_every_stage(model):
    module, variables = model
    found = Continuations(module, variables, rows=1, length=LENGTH)
    first, second, third = (found.add([1] * 20, Sampling(temperature=0)) for _ in range(3))
    found.step()  # the first is being read, the others wait
    found.remove(second)
    found.remove(first)
    assert len(found) == 1
    while not third.tokens:
        found.step()
    found.remove(third)
    found.remove(third)
    assert not len(found)
    assert found.step() == []


def test_logprobs_are_those_of_the_model(model):
    module, variables = model
    found = Continuations(module, variables, rows=2, length=LENGTH)
    found.add([7], Sampling(temperature=0.3, seed=4), top=3)
    ((_, token),) = found.step()
    batch = {name: jnp.asarray([[value]]) for name, value in (("tokens", 7), ("segments", 1), ("positions", 0))}
    expected = np.asarray(jax.nn.log_softmax(module.apply(variables, batch, train=False)["logits"][0, 0]))
    assert token.logprob == pytest.approx(expected[token.id], abs=1e-5)
    best = np.argsort(-expected)[:3]
    assert [number for number, _ in token.top] == best.tolist()
    np.testing.assert_allclose([logprob for _, logprob in token.top], expected[best], atol=1e-5)


@pytest.mark.parametrize("length", [0, LENGTH])
def test_a_prompt_has_room_for_a_token(model, length):
    module, variables = model
    with pytest.raises(ValueError, match="63 tokens"):
        Continuations(module, variables, rows=1, length=1000).add([1] * length, Sampling())
