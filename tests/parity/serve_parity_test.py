"""Folders that transformers saved, as the service answers for them, against transformers itself."""

from pathlib import Path

import numpy as np
import pytest

from research.serve.answers import Result
from research.serve.fill import _masks
from tests.interop.tiny_encoder import VOCABULARY
from tests.serve.saved_test import opened

pytestmark = pytest.mark.parity

MINILM = Path("~/models/all-MiniLM-L6-v2").expanduser()
WORDS = ["a", "gripping", "moving", "film", "dull", "the", "script", "is", "great", ",", ".", "awful", "##ly", "so"]
TEXTS = ["a gripping, moving film.", "dull", "the script is great", "so awfully dull, so", "xyz the film"]


def _saved(folder, architecture, **settings):
    """A random BERT with a real vocabulary, saved by transformers -> the model and its tokenizer."""
    import torch
    import transformers

    folder.mkdir(exist_ok=True)
    vocabulary = list(dict.fromkeys([*VOCABULARY, *WORDS]))
    (folder / "words.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = transformers.BertTokenizerFast(str(folder / "words.txt"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=32, initializer_range=0.3, attn_implementation="eager", **settings,
    )  # fmt: skip
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def _answers(model, columns):
    return [model.answer([part])[0][0] for part in model.encode(columns)]


@pytest.mark.parametrize(
    "settings",
    [{"num_labels": 2}, {"id2label": {0: "bad", 1: "so-so", 2: "good"}}, {"num_labels": 1}],
    ids=["two", "named", "regression"],
)
def test_logits_of_texts_and_pairs(tmp_path, settings):
    import torch

    theirs, tokenizer = _saved(tmp_path, "BertForSequenceClassification", **settings)
    model = opened(tmp_path)
    names = tuple(theirs.config.id2label.values())
    assert model.signature.label_names == (names if len(names) > 1 else None)
    for pairs in (None, TEXTS[::-1]):
        inputs = tokenizer(TEXTS, pairs, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = theirs(**inputs).logits.numpy()
        columns = {"text": TEXTS} if pairs is None else {"text": TEXTS, "text_pair": pairs}
        answers = _answers(model, columns)
        np.testing.assert_allclose([answer.values["outputs"] for answer in answers], expected, atol=1e-5)


def test_fill_mask_gives_the_tokens_of_the_pipeline(tmp_path):
    import transformers

    theirs, tokenizer = _saved(tmp_path, "BertForMaskedLM")
    pipeline = transformers.pipeline("fill-mask", model=theirs, tokenizer=tokenizer, top_k=5)
    model = opened(tmp_path)
    texts = ["a gripping, [MASK] film.", "[MASK] [MASK] is great", "so [MASK]"]
    for text, answer in zip(texts, _answers(model, {"text": texts}), strict=True):
        found = _masks(Result(answer, 0, False, False), model, 5)
        expected = pipeline(text)
        expected = expected if isinstance(expected[0], list) else [expected]
        assert len(found) == len(expected)
        for mine, other in zip(found, expected, strict=True):
            for key in ("token", "token_str", "sequence"):
                assert [filled[key] for filled in mine] == [filled[key] for filled in other], key
            scores = [[filled["score"] for filled in each] for each in (mine, other)]
            np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)


@pytest.mark.parametrize("which", ["random", "minilm"])
def test_embeddings_are_means_of_hidden_states(tmp_path, which):
    import torch
    import transformers

    if which == "random":
        theirs, tokenizer = _saved(tmp_path, "BertModel")
    else:
        assert (MINILM / "model.safetensors").is_file(), f"this test needs the model in {MINILM}"
        theirs = transformers.AutoModel.from_pretrained(MINILM).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    model = opened(tmp_path if which == "random" else MINILM)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**inputs).last_hidden_state.numpy()
    real = inputs["attention_mask"].numpy()[:, :, None]
    expected = (hidden * real).sum(axis=1) / real.sum(axis=1)
    found = [answer.values["embedding"] for answer in _answers(model, {"text": TEXTS})]
    np.testing.assert_allclose(found, expected, atol=1e-5)
