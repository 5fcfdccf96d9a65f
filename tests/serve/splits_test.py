"""One name for several models: who answers, and how often."""

import asyncio
import contextlib
import dataclasses
import logging
import math
from collections import Counter

import httpx
import pytest

from research.base.errors import UserError
from research.serve.errors import Kind, ServiceError
from research.serve.guard import Guard
from research.serve.metrics import Metrics
from research.serve.model import ServedModel
from research.serve.service import Service
from research.serve.splits import Split, Splits
from tests.serve.conftest import LIMITS, serving

ROW = [[0.5] * 10]


@pytest.fixture(scope="module")
def variants(models):
    """Two models that differ in their names and versions."""
    old = models["features"]
    found = {}
    for name, version in (("a", "3"), ("b", "4")):
        found[name] = ServedModel(name, old._model, version=version, samples=old.samples)
        for _ in found[name].warm_up(LIMITS):
            pass
    return found


@contextlib.contextmanager
def _split(models, states=None, text="s=a:90,b:10"):
    """A service with a split -> (its URL, the service, the metrics)."""
    metrics = Metrics()
    splits = Splits.of([text], ["a", "b"])
    guard = lambda app, service: Guard(app, service, metrics)  # noqa: E731
    with serving(models, wrap=guard, metrics=metrics, splits=splits) as (url, service):
        service.states = states or dict.fromkeys(models, "ready")
        yield url, service, metrics


CLIENT = httpx.Client()  # one for all requests, as making one takes longer than they do


def _ask(url, name="s", **headers):
    return CLIENT.post(f"{url}/models/{name}/predict", json={"inputs": ROW}, headers=headers)


def test_weights_are_shares():
    assert Split.of("s=a:90,b:10", ["a", "b"]).weights == {"a": 0.9, "b": 0.1}
    assert Split.of("s=a:1,b:1,c:2", ["a", "b", "c"]).weights == {"a": 0.25, "b": 0.25, "c": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s", "must be NAME=MODEL:WEIGHT"),
        ("=a:1,b:1", "must be NAME=MODEL:WEIGHT"),
        ("s=a,b", "must be NAME=MODEL:WEIGHT"),
        ("s=a:1,a:2", "must be NAME=MODEL:WEIGHT"),
        ("s=a:1,b:0", "must be NAME=MODEL:WEIGHT"),
        ("s=a:1,b:-1", "must be NAME=MODEL:WEIGHT"),
        ("s=a:1,b:nan", "must be NAME=MODEL:WEIGHT"),
        ("s=a:1,b:inf", "must be NAME=MODEL:WEIGHT"),
        ("s/t=a:1,b:1", "must be NAME=MODEL:WEIGHT"),
        ("s=a:1,c:1", "names model 'c'; there are a, b"),
        ("a=a:1,b:1", "called like a model"),
    ],
)
def test_splits_that_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        Split.of(text, ["a", "b"])


def test_two_splits_have_two_names():
    with pytest.raises(UserError, match="two splits are called 's'"):
        Splits.of(["s=a:1,b:1", "s=a:1,b:2"], ["a", "b"])


@pytest.mark.parametrize("weights", [(0.9, 0.1), (0.5, 0.5), (0.2, 0.3, 0.5)])
def test_over_all_keys_each_variant_has_its_share(weights):
    names = "abc"[: len(weights)]
    split = Split("s", dict(zip(names, weights, strict=True)))
    keys = [f"request {i}" for i in range(10_000)]
    found = Counter(split.choose(names, key) for key in keys)
    for name, weight in split.weights.items():  # within 4 standard errors
        error = math.sqrt(weight * (1 - weight) / len(keys))
        assert abs(found[name] / len(keys) - weight) < 4 * error, name


def test_a_key_has_one_variant_and_the_others_keep_theirs():
    split = Split("s", {"a": 0.2, "b": 0.3, "c": 0.5})
    keys = [f"request {i}" for i in range(3000)]
    assert [split.choose("abc", key) for key in keys] == [split.choose("cba", key) for key in keys]
    found = Counter(split.choose("bc", key) for key in keys)
    assert abs(found["b"] / len(keys) - 3 / 8) < 4 * math.sqrt(15 / 64 / len(keys))
    assert set(found) == {"b", "c"}


def test_requests_are_shared_and_counted(variants):
    with _split(variants) as (url, service, metrics):
        asked = [f"id-{i}" for i in range(40)]
        answers = {key: _ask(url, **{"x-request-id": key}).json() for key in asked}
        expected = {key: service.splits["s"].choose("ab", key) for key in asked}
        assert {key: answer["variant"] for key, answer in answers.items()} == expected
        versions = {"a": "3", "b": "4"}
        for answer in answers.values():
            assert answer["model"] == "s"
            assert [record["version"] for record in answer["predictions"]] == [versions[answer["variant"]]]
        own = _ask(url, "b").json()
        assert (own["model"], own["predictions"][0]["version"], "variant" in own) == ("b", "4", False)
        CLIENT.get(f"{url}/models/s")
        CLIENT.get(f"{url}/v2/models/s")

        counts = Counter(expected.values())
        samples = {
            tuple(sample.labels.values()): sample.value
            for family in metrics.collect()
            for sample in family.samples
            if sample.name == "research_routed_total"
        }
        assert samples == {("s", name): count for name, count in counts.items()}
        assert metrics._models["b"].stages["total"].counts != metrics._models["a"].stages["total"].counts
        assert sum(metrics._models["b"].stages["total"].counts) == counts["b"] + 1


def test_a_split_says_what_its_variants_are(variants):
    with _split(variants) as (url, _, _):
        found = CLIENT.get(f"{url}/models/s").json()
        assert (found["name"], found["inputs"]) == ("s", ["features"])
        assert found["variants"] == [
            {"name": "a", "weight": 0.9, "state": "ready", "version": "3"},
            {"name": "b", "weight": 0.1, "state": "ready", "version": "4"},
        ]
        assert [each["name"] for each in CLIENT.get(f"{url}/models").json()] == ["s", "a", "b"]
        assert CLIENT.get(f"{url}/v2/models/s").json()["versions"] == ["3", "4"]


def test_the_open_inference_protocol_names_split_variant_and_version(variants):
    tensor = {"name": "features", "shape": [1, 10], "datatype": "FP32", "data": ROW}
    with _split(variants, text="s=a:1,b:1") as (url, _, _):
        found = [CLIENT.post(f"{url}/v2/models/s/infer", json={"inputs": [tensor]}).json() for _ in range(20)]
        assert {answer["model_name"] for answer in found} == {"s"}
        pairs = {(answer["parameters"]["variant"], answer["model_version"]) for answer in found}
        assert pairs == {("a", "3"), ("b", "4")}
        one = [CLIENT.post(f"{url}/v2/models/s/versions/4/infer", json={"inputs": [tensor]}).json() for _ in range(10)]
        assert {answer["model_version"] for answer in one} == {"4"}
        assert CLIENT.post(f"{url}/v2/models/s/versions/5/infer", json={"inputs": [tensor]}).status_code == 404
        assert CLIENT.get(f"{url}/v2/models/s/ready").status_code == 200


def test_the_share_of_a_variant_that_failed_goes_to_the_others(variants, caplog):
    caplog.set_level(logging.WARNING, "research.serve")
    states = {"a": "ready", "b": "UserError: no checkpoint"}
    with _split({"a": variants["a"]}, states, "s=a:1,b:99") as (url, service, _):
        assert {_ask(url).json()["variant"] for _ in range(10)} == {"a"}
        said = [record.getMessage() for record in caplog.records if record.name == "research.serve"]
        assert said == ["split s: the share of b goes to a"], "once, not for each request"
        assert CLIENT.get(f"{url}/models/s").json()["variants"][1]["state"] == states["b"]
        assert _ask(url, "b").status_code == 503
        assert service.is_ready, "another variant answers for it"
        states["b"] = "loading"
        assert not service.is_ready
        service.models["b"] = variants["b"]
        assert {_ask(url).json()["variant"] for _ in range(20)} >= {"b"}
        service.models.clear()
        assert _ask(url).status_code == 503


def test_variants_must_read_and_answer_the_same(variants):
    old = variants["a"]._model

    async def run():
        service = Service(LIMITS, splits=Splits.of(["s=a:1,b:1"], ["a", "b"]))
        service.start()
        service.install(variants["a"])
        await asyncio.sleep(0.01)
        service.install(variants["b"])
        signature = dataclasses.replace(old.signature, inputs=("other",))
        other = ServedModel("b", dataclasses.replace(old, signature=signature), version="5")
        with pytest.raises(UserError, match="different things"):
            service.install(other)
        await service.stop(30)

    asyncio.run(run())


def test_a_split_is_the_default(variants):
    service = Service(LIMITS, splits=Splits.of(["s=a:1,b:1"], ["a", "b"]))
    service.models.update(variants)
    assert service.default == "s"
    assert {service.model(key=str(i)).name for i in range(20)} == {"a", "b"}
    with pytest.raises(ServiceError) as refused:
        service.model("other")
    assert refused.value.kind is Kind.UNKNOWN
    assert "s, a, b" in str(refused.value)


@pytest.mark.extended
def test_text_embeddings_inference_names_split_variant_and_version(models):
    old = models["text"]
    both = {}
    for name, version in (("a", "3"), ("b", "4")):
        both[name] = ServedModel(name, old._model, version=version, samples=old.samples, operations=("predict",))
        for _ in both[name].warm_up(LIMITS):
            pass
    with _split(both, text="s=a:1,b:1") as (url, _, _):
        found = [CLIENT.post(f"{url}/predict", json={"inputs": "a film"}).headers for _ in range(20)]
        assert {headers["x-model"] for headers in found} == {"s"}
        pairs = {(headers["x-model-variant"], headers["x-model-version"]) for headers in found}
        assert pairs == {("a", "3"), ("b", "4")}
        own = CLIENT.post(f"{url}/predict", json={"inputs": "a film", "model": "b"}).headers
        assert (own["x-model"], own["x-model-version"], "x-model-variant" in own) == ("b", "4", False)
