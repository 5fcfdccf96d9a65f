# mypy: disable-error-code="attr-defined"
"""Embeddings: the same parameters and queue as predictions, other programs."""

import numpy as np
import pytest

from research.inference.model import open_model
from research.models.transformer import Encoder
from research.serve.errors import ServiceError
from research.serve.model import ServedModel
from research.serve.operations import OPERATIONS
from tests.serve.conftest import LIMITS, TEXTS, answer_all
from tests.serve.saved_test import opened, write_masked

pytestmark = pytest.mark.extended


def hidden_states(run, texts):
    """The encoder's hidden states [T, D] of each text, from the whole model applied to one text per row."""
    model = open_model(run)
    examples = model.encode({"sentence": texts}, "the test")
    batch = examples.batch(np.arange(len(texts))[:, None])
    variables = {"params": model.predicting_state.params}
    _, found = model.module.apply(
        variables, batch, train=False, capture_intermediates=lambda module, _: isinstance(module, Encoder)
    )
    (hidden,) = found["intermediates"]["encoder"]["__call__"]
    return [np.asarray(x[:length]) for x, length in zip(hidden, examples.lengths, strict=True)]


def test_packed_embeddings_are_the_means_of_hidden_states(models, runs):
    model = models["text"].others["embed"]
    answers, rows = answer_all(model, model.encode({"sentence": TEXTS}))
    assert rows < len(TEXTS)
    for answer, hidden in zip(answers, hidden_states(runs["text"], TEXTS), strict=True):
        np.testing.assert_allclose(answer.values["embedding"], hidden.mean(axis=0), atol=1e-5)


def test_packed_embeddings_of_all_tokens_are_hidden_states(models, runs):
    model = models["text"].others["embed_all"]
    answers, rows = answer_all(model, model.encode({"sentence": TEXTS}))
    assert rows < len(TEXTS)
    for answer, hidden in zip(answers, hidden_states(runs["text"], TEXTS), strict=True):
        np.testing.assert_allclose(answer.values["embedding"], hidden, atol=1e-5)


def test_operations_are_cached_apart(models, in_loop):
    async def ask(service):
        for operation in ("predict", "embed", "embed", "embed_all", "embed_all"):
            model = service.model("text", operation)
            (result,) = await service.answer(model, {"sentence": ["a text"]})
            yield operation, sorted(result.answer.values), result.cached

    async def collect(service):
        return [found async for found in ask(service)]

    predictions, embedding = ["outputs", "prediction", "scores"], ["embedding"]
    assert in_loop(models, collect) == [
        ("predict", predictions, False),
        ("embed", embedding, False),
        ("embed", embedding, True),
        ("embed_all", embedding, False),
        ("embed_all", embedding, False),
    ]


def test_an_answer_keeps_no_batch(models):
    for model in (models["text"], models["text"].others["embed"]):
        answers, _ = model.answer(model.encode({"sentence": TEXTS}))
        for value in answers[0].values.values():
            assert value.base is None or value.base.nbytes <= value.nbytes


def test_only_what_is_asked_for_is_compiled(models, runs, in_loop):
    model = ServedModel.open("text", runs["text"])
    assert not model.others
    assert not models["image"].others, "a model without an encoder of texts has no embeddings"

    async def ask(service):
        return service.model("image", "embed")

    with pytest.raises(ServiceError, match="not served for embed"):
        in_loop(models, ask)


def test_operations_share_programs_that_compute_the_encoder_once(models, runs):
    model = models["text"]
    embed, embed_all = (model.others[name] for name in ("embed", "embed_all"))
    assert model.programs is embed.programs is embed_all.programs
    alone = ServedModel.open("text", runs["text"])
    alone.probe(LIMITS)
    ((key, program),) = alone.programs.compiled.items()
    operations, least = (each.cost_analysis()["flops"] for each in (model.programs.compiled[key], program))
    assert least <= operations < 1.1 * least


def test_masks_have_programs_of_their_own(tmp_path):
    """Embeddings need no tokens for masks, nor room for them."""
    write_masked(tmp_path / "f")
    model = opened(tmp_path / "f", tuple(OPERATIONS))
    assert (model.operation, list(model.others)) == ("fill", ["embed", "embed_all"])
    embed, embed_all = model.others.values()
    assert embed.programs is embed_all.programs is not model.programs
    (answer, _), _ = embed.answer(embed.encode({"text": ["a [MASK] film [MASK] [MASK]", "so"]}))
    (tokens, _), _ = embed_all.answer(embed_all.encode({"text": ["a [MASK] film [MASK] [MASK]", "so"]}))
    np.testing.assert_allclose(answer.values["embedding"], tokens.values["embedding"].mean(axis=0), atol=1e-5)
