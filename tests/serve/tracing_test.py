# mypy: disable-error-code="attr-defined, operator, index, union-attr"
"""Spans of requests, as OpenTelemetry's own memory exporter gets them."""

import builtins

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from research.base.errors import UserError
from research.serve.tracing import Tracer
from tests.serve.conftest import guarded

PATH = "/models/features/predict"


def test_a_request_is_a_span_in_the_trace_of_its_client(models):
    exporter = InMemorySpanExporter()
    tracer = Tracer(exporter)
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    with guarded({"features": models["features"]}, tracer=tracer) as (url, service):
        httpx.post(url + PATH, json={"inputs": [[0.01] * 10]}, headers={"traceparent": parent, "x-request-id": "me"})
        service.models.clear()
        service.model = None  # a bug
        httpx.post(url + PATH, json={"inputs": [[0.02] * 10]})
    tracer.close()
    good, bad = exporter.get_finished_spans()
    assert good.name == "POST /models/{name}/predict"
    assert (good.kind, good.status.status_code) == (SpanKind.SERVER, StatusCode.UNSET)
    assert (good.context.trace_id, good.parent.span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert {
        name: good.attributes[name] for name in ("http.response.status_code", "research.id", "research.inputs")
    } == {
        "http.response.status_code": 200,
        "research.id": "me",
        "research.inputs": 1,
    }
    assert 0 < good.attributes["research.compute_ms"] < good.attributes["research.total_ms"]
    assert (good.end_time - good.start_time) / 1e6 == pytest.approx(good.attributes["research.total_ms"], abs=0.01)
    assert (bad.attributes["http.response.status_code"], bad.status.status_code) == (500, StatusCode.ERROR)
    assert bad.parent is None
    assert "0.01" not in str(good.to_json())


def test_without_the_extra_one_line_says_so(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="tracing"):
        Tracer()
