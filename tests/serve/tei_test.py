# mypy: disable-error-code="attr-defined"
"""text-embeddings-inference's interface and OpenAI's embeddings."""

import httpx
import numpy as np
import openai
import pytest

from research.inference.predictor import Predictor
from research.runs.rundir import RunDir
from research.serve.model import ServedModel
from research.training.loop import train_and_evaluate
from tests import tiny
from tests.serve.conftest import LIMITS, TEXTS, serving
from tests.serve.operations_test import hidden_states

pytestmark = pytest.mark.extended

QUERY = "a dull film"


@pytest.fixture(scope="module")
def pair_runs(tmp_path_factory):
    """Finished runs that read pairs: two classes, one number, three classes."""
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        tiny.tfds(patch)
        for task in ("mrpc", "stsb", "mnli"):
            train_and_evaluate(tiny.bert_glue_task(task, steps=3), folder / task, show=False)
    return {task: RunDir.open(folder / task) for task in ("mrpc", "stsb", "mnli")}


@pytest.fixture(scope="module")
def pairs(pair_runs):
    """The URL of a service of models of pairs."""
    models = {name: ServedModel.open(name, run) for name, run in pair_runs.items()}
    for model in models.values():
        for _ in model.warm_up(LIMITS):
            pass
    with serving(models) as (url, _):
        yield url


@pytest.fixture(scope="module")
def means(runs):
    """The means of TEXTS' hidden states [N, D]."""
    return np.stack([hidden.mean(axis=0) for hidden in hidden_states(runs["text"], TEXTS)])


def _post(url, path, **body):
    return httpx.post(f"{url}/{path}", json=body)


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_predictions_are_those_of_the_run(served_all, runs):
    predictor = Predictor.open(runs["text"].path)
    answer = _post(served_all, "predict", inputs=[[text] for text in TEXTS])
    names = predictor.signature.label_names
    for found, expected in zip(answer.json(), predictor.predict({"sentence": TEXTS}), strict=True):
        assert next(entry["label"] for entry in found) == expected["label_name"]
        assert found[0]["score"] >= found[1]["score"]
        scores = {entry["label"]: entry["score"] for entry in found}
        np.testing.assert_allclose([scores[name] for name in names], expected["scores"], atol=1e-5)
    assert (
        _post(served_all, "predict", inputs=TEXTS[0]).json() == _post(served_all, "predict", inputs=[TEXTS[0]]).json()
    )
    assert _post(served_all, "predict", inputs=TEXTS[0]).json() == answer.json()[0]


def test_raw_scores_are_logits(served_all):
    found, raw = (_post(served_all, "predict", inputs="dull", raw_scores=raw).json() for raw in (False, True))
    logits = np.array([entry["score"] for entry in raw])
    assert [entry["label"] for entry in raw] == [entry["label"] for entry in found]
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), [entry["score"] for entry in found], rtol=1e-5)


def test_two_strings_are_one_pair(pairs, pair_runs):
    names = tiny.GLUE_INPUTS["mrpc"]
    columns = {names[0]: [QUERY], names[1]: [TEXTS[0]]}
    (expected,) = Predictor.open(pair_runs["mrpc"].path).predict(columns)
    found = _post(pairs, "predict", inputs=[QUERY, TEXTS[0]]).json()
    np.testing.assert_allclose(found[0]["score"], max(expected["scores"]), atol=1e-5)
    assert _post(pairs, "predict", inputs=[[QUERY, TEXTS[0]]]).json() == [found]
    (expected,) = Predictor.open(pair_runs["stsb"].path).predict(columns)
    (entry,) = _post(pairs, "predict", inputs=[QUERY, TEXTS[0]], model="stsb").json()
    np.testing.assert_allclose(entry["score"], expected["prediction"], atol=1e-5)


@pytest.mark.parametrize("model", ["mrpc", "stsb"])
@pytest.mark.parametrize("raw", [True, False])
def test_rerank_sorts_texts_by_their_scores(pairs, pair_runs, model, raw):
    found = _post(pairs, "rerank", query=QUERY, texts=TEXTS, model=model, return_text=True, raw_scores=raw).json()
    assert [entry["text"] for entry in found] == [TEXTS[entry["index"]] for entry in found]
    scores = [entry["score"] for entry in found]
    assert scores == sorted(scores, reverse=True)
    columns = dict(zip(tiny.GLUE_INPUTS[model], ([QUERY] * len(TEXTS), TEXTS), strict=True))
    expected = Predictor.open(pair_runs[model].path).predict(columns)
    if model == "stsb":
        values = [record["prediction"] for record in expected]
    else:
        values = [
            np.log(record["scores"][1] / record["scores"][0]) if raw else record["scores"][1] for record in expected
        ]
    np.testing.assert_allclose(scores, [values[entry["index"]] for entry in found], atol=1e-5)
    assert "text" not in _post(pairs, "rerank", query=QUERY, texts=TEXTS, model=model).json()[0]


def test_embeddings_are_means_of_hidden_states(served_all, means):
    found = _post(served_all, "embed", inputs=TEXTS, normalize=False).json()
    np.testing.assert_allclose(found, means, atol=1e-5)
    np.testing.assert_allclose(_post(served_all, "embed", inputs=TEXTS).json(), _unit(means), atol=1e-5)
    np.testing.assert_allclose(_post(served_all, "embed", inputs=TEXTS[0]).json(), _unit(means[:1]), atol=1e-5)
    few = _post(served_all, "embed", inputs=TEXTS, dimensions=3).json()
    np.testing.assert_allclose(few, _unit(means[:, :3]), atol=1e-5)


def test_embeddings_of_all_tokens(served_all, runs):
    found = _post(served_all, "embed_all", inputs=TEXTS).json()
    for embedding, hidden in zip(found, hidden_states(runs["text"], TEXTS), strict=True):
        np.testing.assert_allclose(embedding, hidden, atol=1e-5)


def test_similarity_is_the_cosine(served_all, means):
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    found = _post(served_all, "similarity", inputs=inputs, parameters={"truncate": True}).json()
    np.testing.assert_allclose(found, _unit(means) @ _unit(means)[0], atol=1e-5)


def test_tokens_and_their_places(served_all, models):
    text = "The film, moving — é!"
    (found,) = _post(served_all, "tokenize", inputs=text).json()
    (part,) = models["text"].encode({"sentence": [text]})
    assert [token["id"] for token in found] == part.arrays["tokens"].tolist()
    first, *inner, last = found
    assert first == {"id": part.arrays["tokens"][0], "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert last["text"] == "[SEP]"
    assert all(token["text"] == text[token["start"] : token["stop"]] for token in inner)
    assert "".join(token["text"] for token in inner) == text.replace(" ", "")
    assert _post(served_all, "tokenize", inputs=[text], add_special_tokens=False).json() == [inner]
    long = "film " * 1000
    assert len(_post(served_all, "tokenize", inputs=long).json()[0]) > 1000, "not truncated"


def test_tokens_are_decoded(served_all):
    (tokens,) = _post(served_all, "tokenize", inputs="the film is great").json()
    ids = [token["id"] for token in tokens]
    assert _post(served_all, "decode", ids=ids).json() == ["the film is great"]
    assert _post(served_all, "decode", ids=[ids, ids[:2]], skip_special_tokens=False).json() == [
        "[CLS] the film is great [SEP]",
        "[CLS] the",
    ]
    np.testing.assert_allclose(
        _post(served_all, "embed", inputs=[ids]).json(),
        _post(served_all, "embed", inputs="the film is great").json(),
        atol=1e-6,
    )


def test_truncation_is_the_same_for_one_text_and_for_a_list(served_all):
    long = "film " * 1000
    for path, forms in {"predict": [long, [[long], ["film"]]], "embed": [long, [long, "film"]]}.items():
        for inputs in forms:
            refused = _post(served_all, path, inputs=inputs)
            assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
            assert _post(served_all, path, inputs=inputs, truncate=None).status_code == 422
        one, both = (_post(served_all, path, inputs=inputs, truncate=True) for inputs in forms)
        assert (one.headers["x-truncated"], both.headers["x-truncated"]) == ("true", "true,false")
        np.testing.assert_equal(one.json() if path == "predict" else one.json()[0], both.json()[0])
        assert int(one.headers["x-compute-tokens"]) < int(both.headers["x-compute-tokens"]) < 1000
        assert both.headers["x-compute-characters"] == str(len(long) + 4)
        assert both.headers["x-compute-type"] == "cpu"
    left = _post(served_all, "predict", inputs="film", truncate=True, truncation_direction="Left")
    assert left.status_code == 422


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("predict", {"inputs": []}, 400, "Empty"),
        ("predict", {}, 422, "Validation"),
        ("predict", {"inputs": 1}, 422, "Validation"),
        ("predict", {"inputs": ["a", "b"]}, 422, "Validation"),
        ("predict", {"inputs": ["a", "b", "c"]}, 422, "Validation"),
        ("predict", {"inputs": [["a"], []]}, 422, "Validation"),
        ("predict", {"inputs": [["a"], "b"]}, 422, "Validation"),
        ("predict", {"inputs": [["a"]] * 65}, 413, "Validation"),
        ("predict", {"inputs": "a", "model": "image"}, 424, "Backend"),
        ("predict", {"inputs": "a", "model": "unknown"}, 404, "NotFound"),
        ("embed", {"inputs": []}, 400, "Empty"),
        ("embed", {"inputs": "a", "dimensions": 10_000}, 422, "Validation"),
        ("embed", {"inputs": "a", "prompt_name": "query"}, 422, "Validation"),
        ("embed", {"inputs": [[1, 10**6]]}, 422, "Tokenizer"),
        ("embed", {"inputs": "a", "model": "image"}, 424, "Backend"),
        ("embed_all", {"inputs": "a", "model": "features"}, 424, "Backend"),
        ("similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty"),
        ("rerank", {"query": "a", "texts": []}, 400, "Empty"),
        ("rerank", {"query": "a", "texts": ["b"]}, 424, "Backend"),
        ("tokenize", {"inputs": []}, 400, "Empty"),
        ("tokenize", {"inputs": "a" * 100_001}, 413, "Validation"),
        ("tokenize", {"inputs": "a", "model": "image"}, 424, "Backend"),
        ("decode", {"ids": []}, 400, "Empty"),
        ("decode", {"ids": [-1]}, 422, "Tokenizer"),
        ("decode", {"ids": [2**40]}, 422, "Tokenizer"),
    ],
)
def test_bad_requests_are_refused(served_all, path, body, status, kind):
    answer = _post(served_all, path, **body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind), answer.text
    assert answer.json().keys() == {"error", "error_type"}


def test_a_model_that_is_not_served_for_embeddings(pairs):
    assert _post(pairs, "embed", inputs="a").status_code == 424
    assert _post(pairs, "rerank", query="a", texts=["b"], model="mnli").status_code == 424


def test_health_and_info(served_all, pairs, models):
    assert httpx.get(f"{served_all}/health").status_code == httpx.get(f"{served_all}/ping").status_code == 200
    found = httpx.get(f"{served_all}/info").json()
    assert (found["model_id"], found["model_dtype"], found["max_client_batch_size"]) == ("text", "float32", 64)
    assert found["max_input_length"] == models["text"].signature.limits["max_length"]
    assert found["model_type"]["classifier"]["id2label"].keys() == {"0", "1"}
    assert found["embedding"] == {"pooling": "mean"}
    assert "reranker" in httpx.get(f"{pairs}/info").json()["model_type"]
    with serving({"text": models["text"]}) as (url, service):
        service.states = {"text": "loading"}
        assert httpx.get(f"{url}/health").json()["error_type"] == "Unhealthy"


@pytest.fixture
def client(served_all):
    with openai.OpenAI(base_url=f"{served_all}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_embeddings_by_openais_client(served_all, client, means):
    answer = client.embeddings.create(model="text", input=TEXTS)  # it asks for base64
    np.testing.assert_allclose([entry.embedding for entry in answer.data], _unit(means), atol=1e-5)
    assert [entry.index for entry in answer.data] == list(range(len(TEXTS)))
    tokens = sum(len(tokens) for tokens in _post(served_all, "tokenize", inputs=TEXTS).json())
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("text", tokens, tokens)
    few = client.embeddings.create(model="text", input=TEXTS[0], dimensions=3, encoding_format="float")
    np.testing.assert_allclose(few.data[0].embedding, _unit(means[0, :3]), atol=1e-5)
    raw = _post(served_all, "v1/embeddings", input="a", encoding_format="base64").json()["data"][0]["embedding"]
    assert len(raw) == -(-4 * means.shape[1] // 3) * 4


def test_openais_errors(client):
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'") as error:
        client.embeddings.create(model="other", input="a")
    assert error.value.body == {"message": "there is no model 'other'; there are text, image, features"} | {
        "type": "NotFound",
        "code": 404,
    }
    with pytest.raises(openai.UnprocessableEntityError):
        client.embeddings.create(model="text", input="film " * 1000)
    answer = client.embeddings.create(model="text", input="film " * 1000, extra_body={"truncate": True})
    assert answer.usage.total_tokens < 1000
