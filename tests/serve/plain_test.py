"""The service's own JSON, over HTTP."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from research.inference.predictor import Predictor
from tests.serve.conftest import TEXTS


def _predict(url, model, inputs, **more):
    return httpx.post(f"{url}/models/{model}/predict", json={"inputs": inputs, **more})


def test_a_model_says_what_it_reads(served):
    assert httpx.get(f"{served}/models").json() == [httpx.get(f"{served}/models/features").json()]
    described = httpx.get(f"{served}/models/features").json()
    assert described["inputs"] == ["features"]
    assert described["version"] == "3"
    assert httpx.get(f"{served}/models/unknown").status_code == 404


def test_predictions_of_features(served, runs):
    rows = np.linspace(-0.1, 0.1, 30).reshape(3, 10)
    answer = _predict(served, "features", rows.tolist())
    assert answer.status_code == 200
    expected = Predictor.open(runs["features"].path).predict({"features": rows})
    found = [record["prediction"] for record in answer.json()["predictions"]]
    np.testing.assert_allclose(found, [record["prediction"] for record in expected], rtol=1e-5)


# An integer that no float is as large as.
ENORMOUS = b'{"inputs": [[' + b"9" * 400 + b", 1" * 9 + b"]]}"


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"inputs": [[1, 2]]}', b'{"inputs": ["a"]}', b'{"inputs": [[null]]}', ENORMOUS]
)
def test_bad_features_are_refused(served, body):
    answer = httpx.post(f"{served}/models/features/predict", content=body)
    assert answer.status_code == (422 if body else 400), answer.text
    assert answer.json().keys() == {"error", "error_type"}


@pytest.mark.extended
def test_predictions_are_those_of_the_run(served_all, runs):
    answer = _predict(served_all, "text", TEXTS)
    assert answer.status_code == 200
    found = answer.json()["predictions"]
    for record, expected in zip(found, Predictor.open(runs["text"].path).predict({"sentence": TEXTS}), strict=True):
        assert record["prediction"] == expected["prediction"]
        assert record["label"] == expected["label_name"]
        np.testing.assert_allclose(list(record["scores"].values()), expected["scores"], atol=1e-5)


@pytest.mark.extended
def test_every_family_answers(served_all, runs, images):
    for name, column, values in [
        ("image", "image", images.tolist()),
        ("features", "features", np.linspace(-0.1, 0.1, 30).reshape(3, 10).tolist()),
    ]:
        signature = Predictor.open(runs[name].path).signature
        (column,) = signature.inputs
        answer = _predict(served_all, name, values)
        assert answer.status_code == 200, answer.text
        expected = Predictor.open(runs[name].path).predict({column: np.asarray(values, np.float32)})
        found = [record["prediction"] for record in answer.json()["predictions"]]
        np.testing.assert_allclose(found, [record["prediction"] for record in expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("text", b"", 400),
        ("text", b"{", 422),
        ("text", b"\xff", 422),
        ("text", b'{"inputs": []}', 422),
        ("text", b'{"inputs": [1]}', 422),
        ("text", b'{"inputs": [{"other": "a"}]}', 422),
        ("text", b'{"inputs": ["a"], "more": 1}', 422),
        ("features", b'{"inputs": [[1, 2]]}', 422),
        ("features", b'{"inputs": ["a"]}', 422),
        ("image", b'{"inputs": [[[[0.0]]]]}', 422),
        ("image", b'{"inputs": [[' + b",".join([b"[" + b",".join([b"[0.0]"] * 9) + b"]"] * 9) + b"]]}", 422),
        ("image", b'{"inputs": ["%%"]}', 422),
        ("image", b'{"inputs": ["aGVsbG8="]}', 422),
        ("text", b'{"inputs": [' + b",".join([b'"a"'] * 65) + b"]}", 413),
        ("unknown", b'{"inputs": ["a"]}', 404),
    ],
)
@pytest.mark.extended
def test_bad_requests_are_refused(served_all, path, body, status):
    answer = httpx.post(f"{served_all}/models/{path}/predict", content=body)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error", "error_type"}


def _png(width, height):
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.extended
def test_image_files_in_json_and_in_forms(served_all):
    small, large = _png(8, 8), _png(5000, 5000)  # 25 MB when it is decoded
    assert _predict(served_all, "image", [large]).status_code == 413
    assert _predict(served_all, "image", [_png(4000, 4000)] * 5).status_code == 413  # each would be small enough
    in_json = _predict(served_all, "image", [small])
    assert in_json.status_code == 200, in_json.text
    url, file = f"{served_all}/models/image/predict", base64.b64decode(small)
    in_form = httpx.post(url, files={"features": file})
    assert in_form.status_code == 200, in_form.text
    assert in_form.json()["predictions"][0]["scores"] == in_json.json()["predictions"][0]["scores"]
    assert httpx.post(url, files={"other": file}).status_code == 422


@pytest.mark.extended
def test_a_text_that_would_be_truncated(served_all):
    long = "film " * 100
    record = _predict(served_all, "text", [long]).json()["predictions"][0]
    assert record["truncated"]
    assert not _predict(served_all, "text", ["film"]).json()["predictions"][0]["truncated"]
    assert _predict(served_all, "text", [long], truncate=False).status_code == 422


def test_a_repeated_input_is_cached(served):
    row = [[0.0123] * 10]
    assert [_predict(served, "features", row).json()["predictions"][0]["cached"] for _ in range(2)] == [False, True]
