"""The threads that run the models: each takes from the queue when its device is free. There is no timer."""

import threading
import time
from collections.abc import Callable, Sequence

from research.serve.limits import Limits
from research.serve.model import Answer
from research.serve.observer import Observer
from research.serve.queue import FairQueue, Job

# Called in a thread with the jobs of a batch and what came of each: an answer, or the error of all.
Deliver = Callable[[Sequence[tuple[Job, Answer | Exception]]], None]


class Engine:
    """Runs the jobs of a queue on devices, `replicas` batches at once on each, and delivers the answers by batch."""

    def __init__(
        self,
        limits: Limits,
        deliver: Deliver,
        *,
        devices: int = 1,
        replicas: int = 1,
        observer: Observer | None = None,
    ):
        self.queue = FairQueue(limits)
        self._deliver = deliver
        self._observer = observer or Observer()
        self._threads = [
            threading.Thread(target=self._work, args=(device,), name=f"device-{device}-{replica}", daemon=True)
            for replica in range(replicas)
            for device in range(devices)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Computes what waits in the queue, then ends -> whether that took at most `timeout` seconds."""
        self.queue.close()
        for thread in self._threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, device: int) -> None:
        while jobs := self.queue.take():
            self._deliver(self._answers(jobs, device))

    def _answers(self, jobs: Sequence[Job], device: int) -> list[tuple[Job, Answer | Exception]]:
        """What came of the jobs of one model that are in a batch; the others are in the queue again."""
        started = time.perf_counter()
        model, parts = jobs[0].model, [job.part for job in jobs]
        tried = jobs
        try:
            chosen = model.choose(parts)
            inside = set(chosen[1].flat)
            tried = [job for i, job in enumerate(jobs) if i in inside]
            self.queue.put_back([job for i, job in enumerate(jobs) if i not in inside])  # for another thread, meanwhile
            answers, shape = model.answer(parts, device, chosen)
        except Exception as error:  # whatever a model raises must not end the thread
            if len(tried) == 1:
                return [(tried[0], error)]
            # One input must not fail the others: each is tried alone.
            return [(job, result) for job in tried for _, result in self._answers([job], device)]
        done: list[tuple[Job, Answer | Exception]] = [
            (job, answer) for job, answer in zip(jobs, answers, strict=True) if answer is not None
        ]
        ended = time.perf_counter()
        for job, _ in done:
            job.started, job.ended = started, ended
        self._observer.computed([job for job, _ in done], shape)
        return done
