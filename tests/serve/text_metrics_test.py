"""Metrics, logs and spans of texts."""

import logging

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from research.serve import logs
from research.serve.tracing import Tracer
from tests.serve.conftest import eventually, slowly, writing
from tests.serve.metrics_test import _read, _value


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def measured(generator, exporter):
    tracer = Tracer(exporter)
    with writing({"llama": generator}, tracer=tracer) as found:
        yield found
    tracer.close()


def _counts(url, name):
    return {dict(labels).get("reason"): value for (found, labels), value in _read(url).items() if found == name}


def test_texts_are_measured(measured, generator):
    url, _ = measured
    prompt = "The sea"
    size = len(generator.encode(prompt))
    body = {"prompt": prompt, "max_tokens": 5, "temperature": 0, "n": 2}
    assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
    assert httpx.post(f"{url}/v1/completions", json={**body, "stream": True, "n": 1}).status_code == 200
    found = _read(url)
    labels = {"model": "llama"}
    assert _value(found, "research_text_first_token_seconds_count", **labels) == 3
    assert _value(found, "research_text_token_seconds_count", **labels) == 3 * 4
    assert _value(found, "research_text_token_seconds_sum", **labels) > 0
    assert _value(found, "research_text_prompt_tokens_total", **labels) == 3 * size
    assert _value(found, "research_text_tokens_total", **labels) == 3 * 5
    assert _value(found, "research_text_batch_fill_count", **labels) >= 10
    assert _value(found, "research_text_batch_fill_bucket", le="1.0", **labels) == _value(
        found, "research_text_batch_fill_count", **labels
    )
    assert _value(found, "research_texts_active", **labels) == 0
    assert _value(found, "research_texts_waiting", **labels) == 0
    assert _counts(url, "research_texts_ended_total") == {"length": 3}
    assert _value(found, "research_stage_seconds_count", model="llama", stage="total") == 2
    assert _value(found, "research_stage_seconds_count", model="llama", stage="compute") == 2
    assert _value(found, "research_requests_total", path="/v1/completions", status="200") == 2


def test_ends_and_refusals_are_counted(measured, generator, monkeypatch):
    url, service = measured
    writer = service.writers["llama"]
    body = {"prompt": "The sea", "max_tokens": 20, "temperature": 0}
    whole = httpx.post(f"{url}/v1/completions", json=body).json()["choices"][0]["text"]
    httpx.post(f"{url}/v1/completions", json={**body, "stop": whole[3:5]})
    assert httpx.post(f"{url}/v1/completions", json={**body, "n": 8}).status_code == 429
    with monkeypatch.context() as patch:
        patch.setattr(writer._continuations, "_forward", None)
        httpx.post(f"{url}/v1/completions", json=body)
    slowly(monkeypatch, writer, 0.1)
    with httpx.stream("POST", f"{url}/v1/completions", json={**body, "stream": True, "n": 3}) as reply:
        lines = reply.iter_lines()
        next(lines)
        found = _read(url)
        assert _value(found, "research_texts_active", model="llama") == 2
        assert _value(found, "research_texts_waiting", model="llama") == 1
    eventually(lambda: not writer.active and not writer.waiting)
    ended = _counts(url, "research_texts_ended_total")
    assert ended == {"length": 1, "stop": 1, "failed": 1, "cancelled": 3}
    assert _value(_read(url), "research_texts_refused_total", model="llama") == 8


def test_a_request_is_logged_and_traced_without_its_texts(measured, exporter, caplog):
    url, _ = measured
    body = {"prompt": "secret", "max_tokens": 5, "n": 2, "stream": True}
    with caplog.at_level(logging.INFO, logs.requests.name):
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
        eventually(lambda: [record for record in caplog.records if hasattr(record, "fields")])
    (fields,) = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert (fields["status"], fields["inputs"], fields["tokens"], fields["written"]) == (200, 2, 6, 10)
    assert fields["path"] == "/v1/completions"
    assert 0 < fields["ms"]["compute"] < fields["ms"]["total"]
    assert "secret" not in str(fields)
    eventually(lambda: exporter.get_finished_spans(), 10)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["research.written"] == 10
    assert span.name == "POST /v1/completions"
    assert "secret" not in str(span.to_json())
