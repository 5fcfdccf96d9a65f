"""Metrics of decoders for Prometheus: how fast they write texts, how many, and how those end."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from research.serve.histogram import SECONDS, SHARES, Histogram
from research.serve.observer import Step
from research.serve.writer import Writer

_LABEL = ["model"]
_HISTOGRAMS = {
    "first": ("research_text_first_token_seconds", "Seconds from the request of a text to its first token."),
    "between": ("research_text_token_seconds", "Seconds between two tokens of a text."),
    "fill": ("research_text_batch_fill", "The share of the rows of a decoder's batch that are of texts, by step."),
}
_COUNTS = {
    "prompt_tokens": ("research_text_prompt_tokens", "Tokens of prompts whose texts have a first token."),
    "tokens": ("research_text_tokens", "Tokens that were added to texts."),
    "refused": ("research_texts_refused", "Texts that were refused, as too many wait."),
}


class _Model:
    """The numbers of a decoder."""

    def __init__(self) -> None:
        self.first, self.between, self.fill = Histogram(SECONDS), Histogram(SECONDS), Histogram(SHARES)
        self.prompt_tokens = self.tokens = self.refused = 0
        self.ended: Counter[str] = Counter()


class TextMetrics:
    """What was measured of the decoders of a service. May be called in any thread."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._lock = threading.Lock()  # each writer has a thread, and of a name there may be several

    def stepped(self, model: str, step: Step) -> None:
        with self._lock:
            found = self._of(model)
            found.fill.add(step.fill)
            for seconds in step.first:
                found.first.add(seconds)
            for seconds in step.between:
                found.between.add(seconds)
            found.prompt_tokens += step.prompt_tokens
            found.tokens += len(step.first) + len(step.between)

    def ended(self, model: str, reason: str) -> None:
        with self._lock:
            self._of(model).ended[reason] += 1

    def refused(self, model: str, texts: int) -> None:
        with self._lock:
            self._of(model).refused += texts

    def _of(self, model: str) -> _Model:
        return self._models.setdefault(model, _Model())

    def collect(self, writers: Mapping[str, Writer]) -> Iterator[Any]:
        """What Prometheus reads; of the writers, how many texts they have now."""
        with self._lock:
            models = sorted(self._models.items())
            for attribute, (metric, what) in _HISTOGRAMS.items():
                family = HistogramMetricFamily(metric, what, labels=_LABEL)
                for name, model in models:
                    histogram: Histogram = getattr(model, attribute)
                    family.add_metric([name], histogram.buckets(), histogram.sum)
                yield family
            for attribute, (metric, what) in _COUNTS.items():
                counter = CounterMetricFamily(metric, what, labels=_LABEL)
                for name, model in models:
                    counter.add_metric([name], getattr(model, attribute))
                yield counter
            what = "Texts that ended: by a stop token or string, by their length, cancelled, or as the model failed."
            ended = CounterMetricFamily("research_texts_ended", what, labels=["model", "reason"])
            for name, model in models:
                for reason, count in sorted(model.ended.items()):
                    ended.add_metric([name, reason], count)
            yield ended
        active = GaugeMetricFamily("research_texts_active", "Texts that are being written.", labels=_LABEL)
        waiting = GaugeMetricFamily("research_texts_waiting", "Texts that wait for a row.", labels=_LABEL)
        for name, writer in sorted(writers.items()):
            active.add_metric([name], writer.active)
            waiting.add_metric([name], writer.waiting)
        yield active
        yield waiting
