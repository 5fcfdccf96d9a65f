"""What a model takes in this service on this machine: measured under load, over HTTP.

The service runs in threads of this process, without its cache of answers, and every request counts as a new one. It is
what `research.serve` starts; its clients are another process.
"""

import base64
import contextlib
import dataclasses
import gc
import itertools
import json
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import uvicorn

from research.base.errors import UserError
from research.data.examples import Columns
from research.data.parts import Part
from research.serve.app import make_app
from research.serve.clients import Answer, Clients, Load, post
from research.serve.encoders import Encoders
from research.serve.guard import Guard
from research.serve.limits import Limits
from research.serve.metrics import Metrics
from research.serve.model import ServedModel
from research.serve.queue import Job
from research.serve.server import uvicorn_config
from research.serve.service import Service
from research.serve.shapes import Shape

_MOST_AT_ONCE = 256
_RISE = 1.05  # of the requests a second, below which more requests at once are not tried
_SHARES = (0.1, 0.5, 0.8)  # of the best rate, at which requests then come at random
_LEAST = 100  # requests of each of these


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch that was computed.

    Attributes:
      seconds: the time that it took.
      others: how many other batches were computed when it began.
      load: the number of the load under which it was, from 0.
    """

    shape: Shape
    inputs: int
    seconds: float
    others: int
    load: int


@dataclasses.dataclass(frozen=True)
class Offered:
    """What came of a load: answers a second, and the latency of each answer in seconds [N]."""

    load: Load
    rate: float
    latencies: np.ndarray
    refused: int


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What was measured.

    Attributes:
      offered: by load: first some requests at once, more and more, then requests at random times.
      batches: those of all loads.
      entry: the seconds of each request in the thread that reads requests and writes answers, at the best rate.
      rest: the other seconds of a request outside of the queue and the model.
      gigabytes: the most memory that the process had.
    """

    offered: Sequence[Offered]
    batches: Sequence[Batch]
    entry: float
    rest: float
    gigabytes: float

    @property
    def best_rate(self) -> float:
        """The most requests that were answered in a second."""
        return max(each.rate for each in self.offered if each.load.at_once)

    @property
    def columns(self) -> dict[str, Any]:
        """The batches by field; `load` is the rate, as a share of the best, and 1 for requests at once."""
        shares = [each.load.rate / self.best_rate if each.load.rate else 1.0 for each in self.offered]
        return {
            "kinds": [batch.shape for batch in self.batches],
            "inputs": np.array([batch.inputs for batch in self.batches]),
            "seconds": np.array([batch.seconds for batch in self.batches]),
            "others": np.array([batch.others for batch in self.batches]),
            "loads": np.array([shares[batch.load] for batch in self.batches]),
        }

    @property
    def at_random(self) -> list[Offered]:
        """Of requests at random times, the rate rising."""
        return [each for each in self.offered if each.load.rate]


class _Recorder(Metrics):
    """The metrics of the service, which also keeps when batches were computed, as numbers: a service keeps no jobs.

    Attributes:
      found: of each batch the shape, the inputs, and when it began and ended.
      inside: the seconds of each input in the queue and in its batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Shape, int, float, float]] = []
        self.inside: list[float] = []

    def computed(self, jobs: Sequence[Job], shape: Shape) -> None:
        super().computed(jobs, shape)
        self.found.append((shape, len(jobs), jobs[0].started, jobs[0].ended))
        self.inside += [job.ended - job.queued for job in jobs]

    def busy(self, workers: int, seconds: float) -> float:
        """The share of the workers' time in which they computed batches."""
        return sum(end - start for _, _, start, end in self.found) / (workers * seconds)

    def clear(self) -> None:
        self.found.clear()
        self.inside.clear()

    def batches(self, load: int) -> list[Batch]:
        spans = [(start, end) for _, _, start, end in self.found]
        return [
            Batch(shape, inputs, end - start, sum(s < start < e for s, e in spans[max(0, i - 64) : i + 64]), load)
            for i, (shape, inputs, start, end) in enumerate(self.found)
        ]


class _AllNew(Encoders):
    """Encoders for which no two inputs are equal, so that each is computed."""

    _numbers = itertools.count()

    async def encode(self, model: ServedModel, columns: Columns) -> list[Part]:
        parts = await super().encode(model, columns)
        found = [dataclasses.replace(part) for part in parts]
        for part in found:
            part.__dict__["digest"] = next(self._numbers).to_bytes(16)  # a cached property
        return found


@contextlib.contextmanager
def _listening(model: ServedModel, limits: Limits, replicas: int) -> Iterator[tuple[int, _Recorder, threading.Thread]]:
    """A service of the model -> (its port, what it records, the thread that reads requests)."""
    recorder = _Recorder()
    service = Service(limits, devices=model.device_count, replicas=replicas, observer=recorder)
    recorder.service = service
    service.encoders = _AllNew(limits)
    service.models[model.name] = model
    guard = Guard(make_app(service, metrics=recorder), service, recorder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn_config(guard, "127.0.0.1", port))
        thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the service did not start; its log says why")
            time.sleep(0.01)
        try:
            yield port, recorder, thread
        finally:
            server.should_exit = True
            thread.join()


def rehearse(
    model: ServedModel,
    columns: Columns,
    limits: Limits,
    *,
    replicas: int,
    seconds: float,
    client_cores: set[int] | None = None,
) -> Iterator[Offered | Rehearsal]:
    """Offers loads to a model -> what came of each, and at the end all that was measured.

    Args:
      model: after `warm_up`.
      columns: raw inputs, one for each request; they are sent again and again.
      replicas: the batches that each device computes at once.
      seconds: of each load.
      client_cores: those of the process of the clients.

    Raises UserError if requests are refused or fail.
    """
    limits = dataclasses.replace(limits, cache_entries=0, requests=max(limits.requests, 2 * _MOST_AT_ONCE))
    requests = [post(f"/models/{model.name}/predict", body) for body in bodies(columns)]
    offered: list[Offered] = []
    rest: list[float] = []
    entry, workers = 0.0, max(1, replicas * model.device_count)
    with (
        _listening(model, limits, replicas) as (port, recorder, thread),
        Clients(port, requests, cores=client_cores) as clients,
    ):
        clients.offer(Load(min(1.0, seconds), at_once=4))
        gc.collect()
        gc.freeze()  # as a service does when its models are loaded
        recorder.clear()
        kept: list[Batch] = []
        for load in _loads(offered, seconds, least=workers):
            before = _processor_seconds(thread)
            offered.append(_offered(load, clients.offer(load)))
            if load.at_once:
                used = (_processor_seconds(thread) - before) / len(offered[-1].latencies)
                if offered[-1].rate >= max(each.rate for each in offered):
                    # Workers that are idle although there are many requests wait for the thread.
                    entry = max(used, (1 - recorder.busy(workers, load.seconds)) / offered[-1].rate)
            else:
                rest.append(float(np.median(offered[-1].latencies) - np.median(recorder.inside)))
            kept += recorder.batches(len(offered) - 1)
            recorder.clear()
            yield offered[-1]
    yield Rehearsal(offered, kept, entry, max(0.0, min(rest) - entry), _peak_gigabytes())


def _loads(offered: Sequence[Offered], seconds: float, *, least: int) -> Iterator[Load]:
    """Twice as many requests at once until that twice answers hardly more, or some are refused; then random times."""
    at_once, best, others = least, 0.0, 0
    while at_once <= _MOST_AT_ONCE and others < 2:
        yield Load(seconds, at_once=at_once)
        others = 0 if offered[-1].rate >= _RISE * best else others + 1
        best, at_once = max(best, offered[-1].rate), 2 * at_once
        if offered[-1].refused:
            break
    best = max(each.rate for each in offered)
    for share in _SHARES:
        yield Load(max(seconds, min(5 * seconds, _LEAST / (share * best))), rate=share * best)


def _offered(load: Load, answers: Sequence[Answer]) -> Offered:
    good = [answer for answer in answers if answer.status == 200]
    wrong = sorted({answer.status for answer in answers} - {200, 429})
    if wrong or not good:
        raise UserError(
            f"the service answered {len(good)} of {len(answers)} requests, others with status {wrong}: ask "
            "`python -m research.serve` with such an input to see why"
        )
    span = max(answer.ended for answer in good) - min(answer.due for answer in good)
    latencies = np.array([answer.ended - answer.due for answer in good])
    return Offered(load, len(good) / span, latencies, len(answers) - len(good))


def bodies(columns: Columns) -> list[bytes]:
    """The body of a request for each input."""
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    return [
        json.dumps({"inputs": [dict(zip(names, row, strict=True))]}, default=_as_json, separators=(",", ":")).encode()
        for row in rows
    ]


def _as_json(value: Any) -> Any:
    """For `json`: arrays as lists, files of images as base64."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value.tolist()


def _processor_seconds(thread: threading.Thread) -> float:
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def _peak_gigabytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
