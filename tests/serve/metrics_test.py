"""Metrics over HTTP, as Prometheus reads them."""

import json
import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from research.serve.metrics import Metrics
from tests.serve.conftest import guarded, serving, writing

ROOT = Path(__file__).parents[2]


def _read(url):
    """The samples by name and labels."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def _value(samples, name, **labels):
    return samples.get((name, frozenset(labels.items())))


@pytest.fixture
def measured(models):
    with guarded({"features": models["features"]}) as (url, _):
        yield url


def test_requests_are_measured_by_stage(measured):
    path, rows = f"{measured}/models/features/predict", [[number / 100] * 10 for number in range(3)]
    for inputs in (rows, rows, rows[:1]):
        assert httpx.post(path, json={"inputs": inputs}).status_code == 200
    found = _read(measured)
    counts = {
        stage: _value(found, "research_stage_seconds_count", model="features", stage=stage)
        for stage in ("encode", "queue", "compute", "total")
    }
    assert counts == {"encode": 3, "queue": 1, "compute": 1, "total": 3}  # the others came from the cache
    total, compute = (
        _value(found, "research_stage_seconds_sum", model="features", stage=stage) for stage in ("total", "compute")
    )
    assert total > compute > 0
    assert _value(found, "research_stage_seconds_bucket", model="features", stage="total", le="+Inf") == 3
    assert _value(found, "research_cache_hits_total", model="features") == 4
    assert _value(found, "research_cache_misses_total", model="features") == 3
    assert _value(found, "research_tokens_total", model="features") == 7
    assert _value(found, "research_truncated_total", model="features") == 0
    assert _value(found, "research_batch_fill_sum", model="features") == 0.75  # three rows of four
    assert _value(found, "research_batch_fill_bucket", model="features", le="0.7") == 0
    assert _value(found, "research_batch_fill_bucket", model="features", le="0.8") == 1
    assert _value(found, "research_queue_inputs") == 0
    assert _value(found, "research_requests_total", path="/models/{name}/predict", status="200") == 3


@pytest.mark.extended
def test_truncated_texts_are_counted(models):
    metrics = Metrics()
    with serving({"text": models["text"]}, metrics=metrics) as (url, _):
        for _ in range(2):
            httpx.post(f"{url}/models/text/predict", json={"inputs": ["film " * 100, "film"]})
        found = _read(url)
    assert _value(found, "research_truncated_total", model="text") == 2
    assert _value(found, "research_tokens_total", model="text") > 8


def test_errors_are_counted_by_type(measured):
    path = f"{measured}/models/features/predict"
    httpx.post(path, json={"inputs": ["a"]})
    httpx.post(path, content=b"")
    httpx.post(f"{measured}/models/unknown/predict", json=1)
    httpx.get(f"{measured}/unknown")
    httpx.get(path)  # it takes POST
    found = _read(measured)
    errors = {dict(labels)["type"]: value for (name, labels), value in found.items() if name == "research_errors_total"}
    assert errors == {"invalid": 1, "empty": 1, "unknown": 2, "method": 1}


def test_labels_are_bounded(measured):
    before = len(_read(measured))
    for number in range(30):
        httpx.post(f"{measured}/models/unknown-{number}/predict", json={"inputs": [1]})
        httpx.get(f"{measured}/unknown-{number}")
        httpx.request(f"METHOD{number % 3}", f"{measured}/{number}")
    found = _read(measured)
    assert len(found) <= before + 6
    labels = {value for _, pairs in found for _, value in pairs}
    assert not any("unknown-" in label for label in labels)


def test_two_services_have_metrics_of_their_own():
    first, second = Metrics(), Metrics()
    first._requests["/models", 200] += 1
    assert first.registry.get_sample_value("research_requests_total", {"path": "/models", "status": "200"}) == 1
    assert second.registry.get_sample_value("research_requests_total", {"path": "/models", "status": "200"}) is None


@pytest.mark.extended
def test_the_dashboard_asks_for_metrics_that_exist(models, generator):
    with writing({"llama": generator}, models={"features": models["features"]}) as (url, _):
        httpx.post(f"{url}/models/features/predict", json={"inputs": [[0.5] * 10]})
        httpx.get(f"{url}/unknown")
        httpx.post(f"{url}/v1/completions", json={"prompt": "A"})
        samples = _read(url)
    known = {name for name, _ in samples}
    labels = {name: {key for key, _ in pairs} for name, pairs in samples}
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = {name for query in asked for name in re.findall(r"\bresearch_\w+", query)}
    assert used <= known
    families = {
        re.sub("_(total|bucket|sum|count|created)$", "", name) for name in known if name.startswith("research_")
    }
    assert {re.sub("_(total|bucket|sum|count)$", "", name) for name in used} >= families
    for query in asked:
        for name, selected in re.findall(r"\b(research_\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)=", selected)) <= labels[name], query
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
