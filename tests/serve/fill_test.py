"""Masks in texts: which tokens fill them. Compared with transformers in tests/parity."""

import httpx
import jax
import numpy as np
import pytest

from research.data.parts import lay_out
from research.runs.rundir import RunDir
from research.serve import shapes
from research.serve.masks import Masks
from research.serve.model import ServedModel
from research.serve.repository import check
from research.serve.shapes import Shape
from research.training.loop import train_and_evaluate
from tests import tiny
from tests.serve.conftest import answer_all, serving, steady
from tests.serve.saved_test import FEW, opened, write_masked

MASKS = Masks("[MASK]", 4)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A folder of a masked language model, compiled."""
    folder = tmp_path_factory.mktemp("masked")
    write_masked(folder)
    return steady(opened(folder))


def _probabilities(model, text):
    """The probabilities of the tokens at each mask of one text, by the module alone: [M, V]."""
    (part,) = model.encode({"text": [text]})
    batch = dict(lay_out([part], np.zeros((1, 1), np.int64), part.length))
    batch["masked_positions"] = np.flatnonzero(part.arrays["tokens"] == model.masks.number)[None]
    module, variables = model._model.module, model._model.variables
    return np.asarray(jax.nn.softmax(module.apply(variables, batch, train=False)[0], axis=-1))


@pytest.mark.parametrize("length", [16, 28, 32, 63])
def test_no_row_has_more_masks_than_slots(length):
    slots = max(1, length // 8)
    seconds = {Shape(64, length, slots): 0.001}
    for most in range(1, slots + 1):
        counts = [1 + i % most for i in range(20)]
        _, members = shapes.choose([max(4, count + 2) for count in counts], seconds, counts)
        assert (members >= 0).sum() == 20
        assert max(sum(counts[i] for i in row if i >= 0) for row in members) <= slots
    with pytest.raises(ValueError, match="slots"):
        shapes.choose([4], seconds, [slots + 1])


def test_where_the_masks_are():
    tokens = np.array([[2, 4, 9, 4, 3, 0], [2, 9, 3, 4, 0, 0], [4, 4, 4, 3, 2, 4]])
    segments = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    found = MASKS.positions({"tokens": tokens, "segments": segments}, 3)
    np.testing.assert_array_equal(found, [[1, 3, 0], [0, 0, 0], [0, 1, 2]])
    assert MASKS.count(tokens[0]) == 2


@pytest.mark.extended
def test_tokens_of_packed_texts_are_the_most_probable(masked):
    texts = ["a [MASK] film", "[MASK] so [MASK]", "b[MASK]", "a b c d e f g [MASK] h i", "[MASK] [MASK] [MASK]"]
    parts = masked.encode({"text": texts})
    answers, rows = answer_all(masked, parts)
    assert rows < len(texts)
    singly = [masked.answer([part])[0][0] for part in parts]
    for text, answer, alone in zip(texts, answers, singly, strict=True):
        expected = _probabilities(masked, text)
        for found in (answer, alone):
            assert found.values["token"].shape == found.values["score"].shape == (text.count("[MASK]"), 20)
            np.testing.assert_array_equal(found.values["token"], np.argsort(-expected, axis=-1)[:, :20])
            np.testing.assert_allclose(found.values["score"], -np.sort(-expected, axis=-1)[:, :20], atol=1e-6)
    assert answers[0] is not None


@pytest.mark.extended
def test_fill_over_http(masked):
    with serving({"m": masked}) as (url, _), httpx.Client(base_url=url) as client:
        (about,) = client.get("/models").json()
        assert (about["kind"], about["operations"], about["mask_token"]) == ("text", ["fill"], "[MASK]")
        body = {"inputs": ["a [MASK] film", {"text": "[MASK] [MASK]"}], "top": 3}
        answer = client.post("/models/m/fill", json=body)
        assert answer.status_code == 200, answer.text
        one, two = answer.json()["fills"]
        assert (len(one["masks"]), len(two["masks"]), one["version"]) == (1, 2, masked.version)
        assert [len(mask) for mask in (*one["masks"], *two["masks"])] == [3, 3, 3]
        vocabulary = masked.tokenizer.get_vocab()
        for filled in one["masks"][0]:
            assert vocabulary[filled["token_str"] if filled["token"] > 4 else "[MASK]"] >= 0
            assert "[CLS]" not in filled["sequence"]
            assert "[MASK]" not in filled["sequence"]
        assert [filled["score"] for filled in one["masks"][0]] == sorted(
            (filled["score"] for filled in one["masks"][0]), reverse=True
        )
        assert all(filled["sequence"].count("[MASK]") == 1 for filled in two["masks"][1] if filled["token"] != 4)
        assert client.post("/models/m/fill", json=body).json()["fills"][0]["cached"]
        for inputs, status, message in [
            (["no mask"], 422, "input 0 has no [MASK]"),
            (["a [MASK]", "a MASK"], 422, "input 1 has no [MASK]"),
            (["a " * 100 + "[MASK]"], 422, "among the 32 tokens that the model reads"),
            (["[MASK] " * 5], 422, "has 5 of [MASK]; at most 4"),
            ([1], 422, "inputs"),
        ]:
            refused = client.post("/models/m/fill", json={"inputs": inputs})
            assert refused.status_code == status, refused.text
            assert message in refused.json()["error"]
        assert client.post("/models/m/fill", json={"inputs": ["[MASK]"], "top": 21}).status_code == 422
        for path, asked in [
            ("/models/m/predict", {"inputs": ["a"]}),
            ("/predict", {"inputs": "a"}),
            ("/embed", {"inputs": "a"}),
            ("/v2/models/m/infer", {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}),
        ]:
            refused = client.post(path, json=asked)
            assert refused.status_code == 424, refused.text
            assert "it is for fill" in refused.json()["error"]
        assert client.get("/v2/models/m").json()["outputs"] == []
        assert client.get("/info").json()["model_type"] == {"masked_lm": {}}
        assert client.post("/tokenize", json={"inputs": "a [MASK]"}).json()[0][2]["id"] == 4


@pytest.mark.extended
def test_a_run_fills_in_masks_with_the_replacements_of_its_documents(tmp_path, monkeypatch, caplog):
    tiny.few_documents(monkeypatch)
    config = tiny.mlm(steps=2)
    config.data.transform.replace = (("<hide>", "[MASK]"),)
    train_and_evaluate(config, tmp_path / "run", show=False)
    model = ServedModel.open("m", RunDir.open(tmp_path / "run"))
    for _ in model.warm_up(FEW):
        pass
    assert (model.operation, list(model.others), model.signature.kind) == ("fill", [], "text")
    assert model.signature.limits["max_length"] == 16
    (given, replaced), _ = answer_all(model, model.encode({"text": ["a [MASK] film", "a <hide> film"]}))
    np.testing.assert_array_equal(given.values["tokens"], replaced.values["tokens"])
    assert given.values["tokens"][0] == model.tokenizer.token_to_id("[CLS]")
    expected = _probabilities(model, "a [MASK] film")
    np.testing.assert_allclose(given.values["score"], -np.sort(-expected, axis=-1)[:, :20], atol=1e-6)
    check(model, RunDir.open(tmp_path / "run"))
    assert "no sample inputs" in caplog.text


@pytest.mark.extended
@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_other_families_fill_in_their_masks(tmp_path, family):
    write_masked(tmp_path, family)
    model = opened(tmp_path)
    text = "ab <mask> c" if family == "roberta" else "ab [MASK] c"
    assert model.masks.token in text
    (answer,), _ = model.answer(model.encode({"text": [text]}))
    expected = _probabilities(model, text)
    np.testing.assert_allclose(answer.values["score"], -np.sort(-expected, axis=-1)[:, :20], atol=1e-6)
