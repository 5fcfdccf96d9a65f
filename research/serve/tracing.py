"""Traces of requests for OpenTelemetry, whose own environment variables say where to, such as
OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_SERVICE_NAME. Needs the extra `tracing`.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from research.base.errors import UserError

_COUNTS = ("inputs", "tokens", "cached", "written")


class Tracer:
    """Makes a span of each request, within the trace that its `traceparent` header names.

    A span has what the log says of the request, so neither inputs nor keys.
    """

    def __init__(self, exporter: Any = None):
        """`exporter`: an OpenTelemetry SpanExporter; None for OTLP over HTTP. Raises UserError without the extra."""
        try:
            from opentelemetry.sdk import trace
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter()
        except ImportError as error:
            raise UserError(f"--tracing needs the extra `tracing`: pip install '.[serve,tracing]' ({error})") from error
        named = OTELResourceDetector().detect()
        self._provider = trace.TracerProvider(resource=Resource.create({"service.name": "research.serve"}).merge(named))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("research.serve")
        self._propagator = TraceContextTextMapPropagator()
        self._server = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    def request(self, headers: Iterable[tuple[bytes, bytes]], fields: Mapping[str, Any], seconds: float) -> None:
        """A span that ends now, of a request with the fields that are logged of it."""
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name[:5] == b"trace"}
        end = time.time_ns()
        span = self._tracer.start_span(
            f"{fields['method']} {fields['path']}",
            self._propagator.extract(carrier),
            self._server,
            start_time=end - int(seconds * 1e9),
            attributes={
                "http.request.method": fields["method"],
                "http.route": fields["path"],
                "http.response.status_code": fields["status"],
                **{f"research.{name}": fields[name] for name in ("id", "client", *_COUNTS)},
                **{f"research.{stage}_ms": took for stage, took in fields["ms"].items()},
            },
        )
        if fields["status"] >= 500:
            span.set_status(self._failed)
        span.end(end)

    def close(self) -> None:
        """Sends what has not been sent."""
        self._provider.shutdown()
