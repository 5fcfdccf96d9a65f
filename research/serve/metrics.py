"""Metrics for Prometheus.

Plain numbers, which become Prometheus's when they are asked for: updating prometheus-client's own, which are locked,
takes longer than answering from the cache.
"""

import contextvars
import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from research.data.parts import Part
from research.serve.errors import Kind
from research.serve.histogram import SECONDS, SHARES, Histogram
from research.serve.http import GONE
from research.serve.observer import Observer, Step
from research.serve.queue import Job
from research.serve.service import Service
from research.serve.shapes import Shape
from research.serve.text_metrics import TextMetrics
from research.serve.ticket import Ticket

STAGES = ("encode", "queue", "compute", "total")
OTHER = "other"

# The error of a status, whichever protocol it was answered in.
_ERRORS = {kind.status: kind.name.lower() for kind in reversed(Kind)} | {
    422: "invalid",
    GONE: "client_gone",
    500: "internal",
}


@dataclasses.dataclass(slots=True)
class Usage:
    """What a request took: seconds by stage, its inputs (of texts, their prompts), and the tokens that were written."""

    model: str = ""
    encode: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    inputs: int = 0
    tokens: int = 0
    cached: int = 0
    written: int = 0


# That of the request that is being answered.
USAGE: contextvars.ContextVar[Usage | None] = contextvars.ContextVar("usage", default=None)


class _Model:
    """The numbers of a model."""

    def __init__(self) -> None:
        self.stages = {stage: Histogram(SECONDS) for stage in STAGES}
        self.fill = Histogram(SHARES)
        self.hits = self.misses = self.tokens = self.truncated = 0


class Metrics(Observer, Collector):
    """What was measured, in a registry of its own.

    Outside the event loop's thread, only `computed`, `stepped`, `ended` and `refused` may be called.

    Attributes:
      registry: that of Prometheus.
      service: the one whose queue is measured.
      read: what /metrics answers: this text, or one with those of other processes too.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.service: Service | None = None
        self.read: Callable[[], Awaitable[str]] = self._read
        self._models: dict[str, _Model] = {}
        self._requests: Counter[tuple[str, int]] = Counter()
        self._routed: Counter[tuple[str, ...]] = Counter()
        self._texts = TextMetrics()
        self._lock = threading.Lock()
        self.registry.register(self)

    def computed(self, jobs: Sequence[Job], shape: Shape) -> None:
        if jobs:
            with self._lock:  # several devices
                self._of(jobs[0].model.name).fill.add(sum(job.part.length for job in jobs) / shape.items)

    def routed(self, split: str, variant: str) -> None:
        self._routed[split, variant] += 1

    def answered(self, model: str, parts: Sequence[Part], jobs: Sequence[Job], encoding: float) -> None:
        found = self._of(model)
        misses, tokens = len(jobs), 0
        for part in parts:
            tokens += part.length
            found.truncated += part.truncated
        found.hits += len(parts) - misses
        found.misses += misses
        found.tokens += tokens
        found.stages["encode"].add(encoding)
        queue = compute = 0.0
        if jobs:
            queue = max(job.started - job.queued for job in jobs)
            compute = max(job.ended - job.started for job in jobs)
            found.stages["queue"].add(queue)
            found.stages["compute"].add(compute)
        usage = USAGE.get()
        if usage is not None:
            usage.model = model
            usage.encode += encoding
            usage.queue += queue
            usage.compute += compute
            usage.inputs += len(parts)
            usage.tokens += tokens
            usage.cached += len(parts) - misses

    def stepped(self, model: str, step: Step) -> None:
        self._texts.stepped(model, step)

    def ended(self, model: str, reason: str) -> None:
        self._texts.ended(model, reason)

    def refused(self, model: str, texts: int) -> None:
        self._texts.refused(model, texts)

    def wrote(self, model: str, tickets: Sequence[Ticket], tokens: int, encoding: float) -> None:
        usage, now = USAGE.get(), time.perf_counter()
        if usage is None or not tickets:
            return
        began = min(ticket.started or now for ticket in tickets)
        queue, compute = began - tickets[0].asked, max(ticket.ended or now for ticket in tickets) - began
        for stage, seconds in (("encode", encoding), ("queue", queue), ("compute", compute)):
            self._of(model).stages[stage].add(seconds)
        usage.model = model
        usage.encode += encoding
        usage.queue += queue
        usage.compute += compute
        usage.inputs += len(tickets)
        usage.tokens += len(tickets[0].request.prompt)
        usage.written += tokens

    def _of(self, model: str) -> _Model:
        found = self._models.get(model)
        return self._models.setdefault(model, _Model()) if found is None else found

    def requested(self, path: str, status: int, usage: Usage, seconds: float) -> None:
        """A request ended. `path`: the template of its route, or "other"."""
        self._requests[path, status] += 1
        if usage.model:
            self._of(usage.model).stages["total"].add(seconds)

    def collect(self) -> Iterator[Any]:
        models = sorted(self._models.items())
        stages = HistogramMetricFamily(
            "research_stage_seconds", "Seconds that requests with answers took, by stage.", labels=["model", "stage"]
        )
        fill = HistogramMetricFamily(
            "research_batch_fill", "The share of a batch that inputs fill, by batch.", labels=["model"]
        )
        for name, model in models:
            for stage, histogram in model.stages.items():
                stages.add_metric([name, stage], histogram.buckets(), histogram.sum)
            fill.add_metric([name], model.fill.buckets(), model.fill.sum)
        yield stages
        yield fill
        for attribute, metric, what in [
            ("hits", "research_cache_hits", "Inputs that were answered from the cache."),
            ("misses", "research_cache_misses", "Inputs that had to be computed."),
            ("tokens", "research_tokens", "Items of inputs that were read, such as tokens."),
            ("truncated", "research_truncated", "Inputs that were truncated."),
        ]:
            yield _counter(metric, what, ["model"], {(name,): getattr(model, attribute) for name, model in models})
        counts: dict[tuple[str, ...], int] = {
            (path, str(status)): count for (path, status), count in self._requests.items()
        }
        yield _counter("research_requests", "Requests.", ["path", "status"], counts)
        errors: Counter[tuple[str, ...]] = Counter()
        for (_, status), count in self._requests.items():
            if status >= 400:
                errors[(_ERRORS.get(status, OTHER),)] += count
        yield _counter("research_errors", "Requests with an error.", ["type"], errors)
        yield _counter(
            "research_routed", "Requests to a split, by the variant they went to.", ["split", "model"], self._routed
        )
        waiting = self.service.waiting if self.service else 0
        yield GaugeMetricFamily("research_queue_inputs", "Inputs that wait for a device.", waiting)
        yield from self._texts.collect(self.service.writers if self.service else {})

    def text(self) -> str:
        """What was measured, in the text format of Prometheus."""
        return generate_latest(self.registry).decode()

    async def _read(self) -> str:
        return self.text()

    def router(self) -> APIRouter:
        """The path /metrics."""
        found = APIRouter(tags=["operations"])

        @found.get("/metrics", summary="Metrics, in the text format of Prometheus", response_class=PlainTextResponse)
        async def metrics() -> Response:
            return Response(await self.read(), media_type=CONTENT_TYPE_LATEST)

        return found


def _counter(name: str, what: str, labels: list[str], values: Mapping[tuple[str, ...], int]) -> CounterMetricFamily:
    found = CounterMetricFamily(name, what, labels=labels)
    for key, value in sorted(values.items()):
        found.add_metric(key, value)
    return found
