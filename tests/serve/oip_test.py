"""The Open Inference Protocol, by the public client and over plain HTTP."""

import base64
import io
import json
import struct

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image

from research.inference.predictor import Predictor
from tests.serve.conftest import TEXTS, serving

pytestmark = pytest.mark.extended


@pytest.fixture
def client(served_all):
    with triton.InferenceServerClient(served_all.removeprefix("http://")) as found:
        yield found


@pytest.fixture
def features():
    return np.linspace(-0.1, 0.1, 30).reshape(3, 10).astype(np.float32)


def _post(url, model, body, **options):
    return httpx.post(f"{url}/v2/models/{model}/infer", json=body, **options)


def _texts(texts=TEXTS, **more):
    return {"name": "sentence", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts), **more}


def _named(outputs):
    return {output["name"]: output for output in outputs}


def _assert_are_those_of_the_run(scores, predictions, run):
    expected = Predictor.open(run.path).predict({"sentence": TEXTS})
    np.testing.assert_allclose(scores, [record["scores"] for record in expected], atol=1e-5)
    assert predictions == [record["prediction"] for record in expected]


def test_the_client_finds_the_server_and_its_models(client, models):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("text")
    assert client.is_model_ready("text", models["text"].version)
    assert not client.is_model_ready("unknown")
    assert not client.is_model_ready("text", "99")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("text", models["text"].version)
    assert metadata["versions"] == [models["text"].version]
    assert metadata["inputs"] == [{"name": "sentence", "datatype": "BYTES", "shape": [-1]}]
    assert [(output["name"], output["datatype"], output["shape"]) for output in metadata["outputs"]] == [
        ("prediction", "INT64", [-1]),
        ("scores", "FP32", [-1, 2]),
        ("outputs", "FP32", [-1, 2]),
        ("label", "BYTES", [-1]),
    ]


def test_tensors_of_other_families(client):
    (image,) = client.get_model_metadata("image")["inputs"]
    assert (image["datatype"], image["shape"]) == ("FP32", [-1, 8, 8, 1])
    found = client.get_model_metadata("features")
    assert (found["inputs"][0]["datatype"], found["inputs"][0]["shape"]) == ("FP32", [-1, 10])
    assert found["outputs"][0] == {"name": "prediction", "datatype": "FP32", "shape": [-1]}


@pytest.mark.parametrize("binary", [True, False])
def test_texts_by_the_client(client, runs, binary):
    tensor = triton.InferInput("sentence", [len(TEXTS)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in TEXTS], object), binary_data=binary)
    names = ("prediction", "scores", "label", "outputs")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer("text", [tensor], outputs=outputs, request_id="7")
    _assert_are_those_of_the_run(answer.as_numpy("scores"), answer.as_numpy("prediction").tolist(), runs["text"])
    labels = Predictor.open(runs["text"].path).signature.label_names
    found = [label.decode() if isinstance(label, bytes) else label for label in answer.as_numpy("label")]
    assert found == [labels[i] for i in answer.as_numpy("prediction")]
    logits = answer.as_numpy("outputs")
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), answer.as_numpy("scores"), 1e-4)
    assert answer.get_response()["id"] == "7"


def test_what_the_client_sends_by_default_is_binary(client, runs, images):
    tensor = triton.InferInput("features", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    answer = client.infer("image", [tensor])
    assert answer.get_output("outputs") is None
    assert answer.get_output("scores")["parameters"]["binary_data_size"] == answer.as_numpy("scores").nbytes
    expected = Predictor.open(runs["image"].path).predict({"features": images})
    np.testing.assert_allclose(answer.as_numpy("scores"), [record["scores"] for record in expected], atol=1e-5)


def test_files_of_images(served_all, runs, client):
    files = []
    for shade in (0, 90):
        with io.BytesIO() as file:
            Image.new("L", (8, 8), shade).save(file, "PNG")
            files.append(file.getvalue())
    tensor = triton.InferInput("features", [2], "BYTES")
    tensor.set_data_from_numpy(np.array(files, object))
    found = client.infer("image", [tensor]).as_numpy("scores")
    expected = Predictor.open(runs["image"].path).predict({"features": files})
    np.testing.assert_allclose(found, [record["scores"] for record in expected], atol=1e-5)
    data = [base64.b64encode(file).decode() for file in files]
    answer = _post(
        served_all, "image", {"inputs": [{"name": "features", "shape": [2], "datatype": "BYTES", "data": data}]}
    )
    scores = _named(answer.json()["outputs"])["scores"]["data"]
    np.testing.assert_allclose(scores, found.ravel(), atol=1e-6)


@pytest.mark.parametrize("nested", [True, False])
def test_numbers_as_json(served_all, runs, features, nested):
    (name,) = Predictor.open(runs["features"].path).signature.inputs
    data = features.tolist() if nested else features.ravel().tolist()
    body = {"inputs": [{"name": name, "shape": [3, 10], "datatype": "FP32", "data": data}]}
    (output,) = _post(served_all, "features", body).json()["outputs"]
    expected = Predictor.open(runs["features"].path).predict({name: features})
    np.testing.assert_allclose(output.pop("data"), [record["prediction"] for record in expected], rtol=1e-5)
    assert output == {"name": "prediction", "datatype": "FP32", "shape": [3]}


def test_texts_as_json(served_all, runs, models):
    body = {
        "id": "a",
        "parameters": {"unknown": 1},
        "inputs": [_texts(parameters={"content_type": "str"})],
        "outputs": [{"name": "scores"}, {"name": "prediction", "parameters": {"other": 2}}],
    }
    answer = _post(served_all, f"text/versions/{models['text'].version}", body)
    found = answer.json()
    assert (found["id"], found["model_name"], found["model_version"]) == ("a", "text", models["text"].version)
    scores, prediction = found["outputs"]
    assert (scores["name"], scores["shape"]) == ("scores", [len(TEXTS), 2])
    _assert_are_those_of_the_run(np.reshape(scores["data"], scores["shape"]), prediction["data"], runs["text"])
    lengths = [part.length for part in models["text"].encode({"sentence": TEXTS})]
    assert found["parameters"]["tokens"] == lengths
    assert found["parameters"]["truncated"] == [False] * len(TEXTS)
    assert found["parameters"]["compute"] == "float32"
    assert "Inference-Header-Content-Length" not in answer.headers


def test_truncation_is_told_or_refused(served_all):
    body = {"inputs": [_texts(["film " * 100, "film"])]}
    assert _post(served_all, "text", body).json()["parameters"]["truncated"] == [True, False]
    assert _post(served_all, "text", {**body, "parameters": {"truncate": False}}).status_code == 422


def test_a_repeated_input_is_cached(served_all):
    body = {"inputs": [_texts(["a text of the protocol only"])]}
    assert [_post(served_all, "text", body).json()["parameters"]["cached"] for _ in range(2)] == [[False], [True]]


def test_one_output_of_several_may_be_binary(served_all):
    outputs = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "prediction"}]
    answer = _post(served_all, "text", {"inputs": [_texts(["a film"])], "outputs": outputs})
    length = int(answer.headers["Inference-Header-Content-Length"])
    label, prediction = json.loads(answer.content[:length])["outputs"]
    (size,) = struct.unpack_from("<I", answer.content, length)
    assert label["parameters"]["binary_data_size"] == 4 + size == len(answer.content) - length
    assert "data" not in label
    assert len(prediction["data"]) == 1


def test_a_service_that_is_loading(models):
    with serving({"text": models["text"]}) as (url, service):
        service.states = {"text": "ready", "later": "loading"}
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
        assert httpx.get(f"{url}/v2/health/ready").status_code == 503
        assert httpx.get(f"{url}/v2/models/later/ready").status_code == 503


def _numbers(**changed):
    return {"inputs": [{"name": "features", "shape": [1, 10], "datatype": "FP32", "data": [0.0] * 10, **changed}]}


@pytest.mark.parametrize(
    ("model", "body", "status"),
    [
        ("text/versions/99", {"inputs": [_texts()]}, 404),
        ("unknown", {"inputs": [_texts()]}, 404),
        ("text", {}, 422),
        ("text", {"inputs": []}, 422),
        ("text", {"inputs": [_texts(name="other")]}, 422),
        ("text", {"inputs": [_texts(), _texts()]}, 422),
        ("text", {"inputs": [_texts()], "outputs": [{"name": "other"}]}, 422),
        ("text", {"inputs": [_texts(data=None)]}, 422),
        ("text", {"inputs": [_texts(shape=[2])]}, 422),
        ("text", {"inputs": [_texts(shape=[len(TEXTS), 1])]}, 422),
        ("text", {"inputs": [_texts(data=[1] * len(TEXTS))]}, 422),
        ("text", {"inputs": [_texts(shape=[])]}, 422),
        ("text", {"inputs": [_texts(shape=[0], data=[])]}, 400),
        ("text", {"inputs": [_texts(["a"] * 65)]}, 413),
        ("text", {"inputs": [_texts(datatype="INT64", data=[1] * len(TEXTS))]}, 422),
        ("text", {"inputs": [_texts(parameters={"binary_data_size": 3})]}, 422),
        ("features", _numbers(datatype="BF16"), 422),
        ("features", _numbers(datatype="BYTES"), 422),
        ("features", _numbers(shape=[-1, 10]), 422),
        ("features", _numbers(shape=[-1, -10]), 422),
        ("features", _numbers(shape=[2**62, 2**62, 16]), 413),
        ("features", _numbers(shape=[10**30, 10]), 413),
        ("features", _numbers(shape=[1.5, 10]), 422),
        ("features", _numbers(shape=[2, 5]), 422),
        ("features", _numbers(data=[0.0] * 9), 422),
        ("features", _numbers(data=[[0.0] * 9, [0.0]]), 422),
        ("features", _numbers(data=[[0.0] * 5] * 2), 422),
        ("features", _numbers(data=[None] * 10), 422),
        ("features", _numbers(data=["a"] * 10), 422),
        ("features", _numbers(data=[True] * 10), 422),
        ("features", _numbers(data=[1e300] * 10), 422),
        ("features", _numbers(datatype="UINT8", data=[256] * 10), 422),
        ("features", _numbers(datatype="INT8", data=[0.5] * 10), 422),
        ("image", {"inputs": [{"name": "features", "shape": [1], "datatype": "BYTES", "data": ["%"]}]}, 422),
        ("image", {"inputs": [{"name": "features", "shape": [1, 1], "datatype": "FP32", "data": [0]}]}, 422),
    ],
)
def test_bad_requests_are_refused(served_all, runs, model, body, status):
    if model == "features":
        body["inputs"][0]["name"] = Predictor.open(runs["features"].path).signature.inputs[0]
    answer = _post(served_all, model, body)
    assert answer.status_code == status, answer.text
    assert isinstance(answer.json()["error"], str)
    assert "\n" not in answer.json()["error"]


def _element(data):
    return struct.pack("<I", len(data)) + data


@pytest.mark.parametrize(
    ("tail", "size", "header"),
    [
        (_element(b"a") + _element(b"b"), 10, "-1"),
        (_element(b"a") + _element(b"b"), 10, "1e3"),
        (_element(b"a") + _element(b"b"), 10, "9" * 30),
        (_element(b"a") + _element(b"b"), 10, "0"),
        (_element(b"a") + _element(b"b"), 9, None),
        (_element(b"a") + _element(b"b"), 11, None),
        (_element(b"a") + _element(b"b"), -1, None),
        (_element(b"a") + _element(b"b"), True, None),
        (_element(b"a") + _element(b"b"), "10", None),
        (_element(b"a") + _element(b"b") + b"c", 10, None),
        (_element(b"a"), 5, None),
        (_element(b"a") + b"\1\0\0", 8, None),
        (b"\xff\xff\xff\xffab", 6, None),
        (_element(b"a") + _element(b"\xff"), 10, None),
    ],
)
def test_bad_binary_data_is_refused(served_all, tail, size, header):
    tensor = {"name": "sentence", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    body = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": header or str(len(body))}
    answer = httpx.post(f"{served_all}/v2/models/text/infer", content=body + tail, headers=headers)
    assert answer.status_code == 422, answer.text
