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
            done, waiting = _answers(jobs, device, self._observer)
            self.queue.put_back(waiting)
            self._deliver(done)


def _answers(
    jobs: Sequence[Job], device: int, observer: Observer
) -> tuple[list[tuple[Job, Answer | Exception]], list[Job]]:
    """What came of the jobs of one model, and the jobs that have to wait."""
    started = time.perf_counter()
    try:
        answers, shape = jobs[0].model.answer([job.part for job in jobs], device)
    except Exception as error:  # whatever a model raises must not end the thread
        if len(jobs) == 1:
            return [(jobs[0], error)], []
        # One input must not fail the others: each is tried alone.
        return [(job, result) for job in jobs for _, result in _answers([job], device, observer)[0]], []
    done: list[tuple[Job, Answer | Exception]] = [
        (job, answer) for job, answer in zip(jobs, answers, strict=True) if answer is not None
    ]
    ended = time.perf_counter()
    for job, _ in done:
        job.started, job.ended = started, ended
    observer.computed([job for job, _ in done], shape)
    return done, [job for job, answer in zip(jobs, answers, strict=True) if answer is None]
