"""Inputs that wait for a device: bounded, in the order in which they came, and fair between clients."""

import dataclasses
import heapq
import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any

from research.data.parts import Part
from research.serve.errors import Kind, ServiceError
from research.serve.limits import Limits
from research.serve.model import ServedModel


@dataclasses.dataclass(eq=False)
class Job:
    """One input that waits for a device.

    Attributes:
      model, part: what to compute.
      client: who asks; clients share the devices evenly.
      ticket: what its answer is delivered with.
      cancelled: set by any thread: nobody waits for the answer.
      queued, started, ended: when it came into the queue, and when its batch began and ended, by `perf_counter`.
    """

    model: ServedModel
    part: Part
    client: str = ""
    ticket: Any = None
    cancelled: bool = False
    queued: float = 0.0
    started: float = 0.0
    ended: float = 0.0


class _Pace:
    """How many seconds of jobs, by the measured speed of their models, a second takes while there are others.

    More than 1 where several batches are computed at once; less where the machine has other work.
    """

    _KEPT = 0.9  # of what came before each batch
    _LEAST = 0.05

    def __init__(self) -> None:
        self._jobs = self._elapsed = 1.0  # as measured, until there are enough batches
        self._since: float | None = None

    @property
    def value(self) -> float:
        return max(self._jobs / self._elapsed, self._LEAST)

    def took(self, seconds: float, *, others_wait: bool) -> None:
        """A batch of jobs left the queue."""
        now = time.perf_counter()
        if self._since is not None:
            self._jobs = self._KEPT * self._jobs + seconds
            self._elapsed = self._KEPT * self._elapsed + now - self._since
        self._since = now if others_wait else None

    def returned(self, seconds: float) -> None:
        """Jobs that had left came back."""
        if self._since is not None:
            self._jobs -= seconds


class FairQueue:
    """Jobs by model and client.

    Start-time fair queueing (Goyal et al. 1996): a job's tag is the later of the clock and the end of its client's
    previous job, and its end is its tag plus its time on a device; jobs are taken in the order of their tags, and the
    clock is the tag of the last one. The jobs of a single client are taken first come, first served.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._changed = threading.Condition()
        self._waiting: dict[ServedModel, list[tuple[float, int, Job]]] = {}  # heaps by (tag, number)
        self._ends: dict[str, float] = {}  # by client
        self._numbers = itertools.count()
        self._pace = _Pace()
        self._front = 0  # the smallest number: of what was put back last
        self._clock = 0.0
        self._count = 0
        self._seconds = 0.0  # that the jobs will take, by the measured speed of their models
        self._closed = False

    def put(self, jobs: Sequence[Job]) -> None:
        """Adds all jobs or none.

        Raises ServiceError if they would have to wait too long, or are too many. An empty queue takes any jobs.
        """
        with self._changed:
            if self._closed:
                raise ServiceError(Kind.UNAVAILABLE, "the service is stopping", retry_after=1.0)
            error = self.refusal(len(jobs))
            if error is not None:
                raise error
            now = time.perf_counter()
            for job in jobs:
                job.queued = now
                tag = max(self._clock, self._ends.get(job.client, 0.0))
                self._ends[job.client] = tag + job.model.time_of(job.part)
                heapq.heappush(self._waiting.setdefault(job.model, []), (tag, next(self._numbers), job))
            self._added(jobs)

    def refusal(self, count: int) -> ServiceError | None:
        """Why the queue is too full for more jobs. May be called in any thread."""
        wait = self._seconds / self._pace.value
        if self._count + count <= self._limits.queue_inputs and wait <= self._limits.queue_ms / 1000:
            return None
        return ServiceError(
            Kind.OVERLOADED,
            f"{self._count} inputs are waiting, for about {wait:.1f} s; try again later",
            retry_after=max(wait - self._limits.queue_ms / 2000, 0.0),
        )

    def take(self) -> list[Job]:
        """Waits for jobs -> the next ones of one model, as many as fit into its batches; none after `close`."""
        with self._changed:
            while True:
                while not self._count:
                    if self._closed:
                        return []
                    self._changed.wait()
                model = min(self._waiting, key=lambda model: self._waiting[model][0][:2])
                jobs = self._take(model)
                if jobs:
                    return jobs

    def _take(self, model: ServedModel) -> list[Job]:
        heap, items, seconds = self._waiting[model], 0, 0.0
        jobs: list[Job] = []
        while heap and (not jobs or items + heap[0][2].part.length <= model.capacity):
            tag, _, job = heapq.heappop(heap)
            self._count -= 1
            self._seconds -= model.time_of(job.part)
            self._clock = max(self._clock, tag)
            if not job.cancelled:
                jobs.append(job)
                items += job.part.length
                seconds += model.time_of(job.part)
        if not heap:
            del self._waiting[model]
        self._pace.took(seconds, others_wait=self._count > 0)
        if not self._count:
            self._seconds = 0.0  # without the rounding errors
            self._ends.clear()  # no client is owed anything
        return jobs

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Returns jobs that were taken and did not fit into the batch: they are next."""
        with self._changed:
            self._pace.returned(sum(job.model.time_of(job.part) for job in jobs))
            self._front -= len(jobs)
            for number, job in enumerate(jobs, self._front):
                heapq.heappush(self._waiting.setdefault(job.model, []), (self._clock, number, job))
            self._added(jobs)

    def _added(self, jobs: Sequence[Job]) -> None:
        self._count += len(jobs)
        self._seconds += sum(job.model.time_of(job.part) for job in jobs)
        self._changed.notify(len(jobs))

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Refuses new jobs; `take` returns those that wait, and then none."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
