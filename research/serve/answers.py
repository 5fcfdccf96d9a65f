"""Answers for encoded inputs: from the cache, or computed once for all requests that wait for the same one."""

import asyncio
import dataclasses
from collections.abc import Sequence

from research.data.parts import Part
from research.serve.cache import Cache
from research.serve.engine import Engine
from research.serve.errors import ServiceError
from research.serve.limits import Limits
from research.serve.model import Answer, ServedModel
from research.serve.observer import Observer
from research.serve.queue import Job

Key = tuple[str, str, str, bytes]  # of an answer: model, version, operation, hash of the encoded input


@dataclasses.dataclass(frozen=True)
class Result:
    """The answer for one input of a request.

    Attributes:
      length: the items of the input that the model read, such as tokens; 1 for inputs of a fixed size.
      truncated: whether these are only its beginning.
      cached: whether the answer was computed before.
    """

    answer: Answer
    length: int
    truncated: bool
    cached: bool


@dataclasses.dataclass(eq=False)
class _Pending:
    """An answer that is being computed, by which job, and for how many inputs of requests."""

    future: asyncio.Future[Answer]
    job: Job
    waiters: int = 0


class Answers:
    """For the thread of one event loop.

    Attributes:
      engine: the devices, with the queue of inputs.
      cache: the answers that are kept.
    """

    def __init__(self, limits: Limits, *, devices: int, replicas: int, observer: Observer):
        self.engine = Engine(limits, self._deliver, devices=devices, replicas=replicas, observer=observer)
        self.cache: Cache[Key, Answer] = Cache(limits.cache_entries)
        self._observer = observer
        self._pending: dict[Key, _Pending] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Starts the threads of the devices; call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        self.engine.start()

    def cached(self, model: ServedModel, part: Part) -> Result | None:
        """The answer for an input that was answered before."""
        answer = self.cache.get(_key(model, part))
        if answer is None:
            return None
        self._observer.answered(model.name, [part], [], 0.0)
        return Result(answer, part.length, part.truncated, cached=True)

    async def get(self, model: ServedModel, parts: Sequence[Part], client: str, encoding: float) -> list[Result]:
        """The answers for encoded inputs, in order. Raises ServiceError if the queue is full, or the model fails.

        Args:
          client: who asks.
          encoding: the seconds that the inputs took to encode.
        """
        loop = asyncio.get_running_loop()
        found: list[Answer | _Pending] = []
        new: list[tuple[Key, _Pending]] = []
        here: dict[Key, _Pending] = {}
        for part in parts:
            key = _key(model, part)
            answer = self.cache.get(key)
            if answer is not None:
                found.append(answer)
                continue
            pending = self._pending.get(key) or here.get(key)
            if pending is None:
                pending = _Pending(loop.create_future(), Job(model, part, client, key))
                new.append((key, pending))
                here[key] = pending
            found.append(pending)
        if new:
            self.engine.queue.put([pending.job for _, pending in new])
            self._pending.update(new)
        waited = [entry for entry in found if isinstance(entry, _Pending)]
        for entry in waited:
            entry.waiters += 1
        try:
            for entry in waited:
                # Shielded, as other requests may wait for the same answer.
                await asyncio.shield(entry.future)
        finally:
            for entry in waited:
                self._leave(entry)
        self._observer.answered(model.name, parts, [entry.job for entry in waited], encoding)
        return [
            Result(
                entry.future.result() if isinstance(entry, _Pending) else entry,
                part.length,
                part.truncated,
                isinstance(entry, Answer),
            )
            for part, entry in zip(parts, found, strict=True)
        ]

    def _leave(self, entry: _Pending) -> None:
        """One input less waits for an answer; without any the job is dropped."""
        entry.waiters -= 1
        if entry.waiters or entry.future.done():
            return
        entry.job.cancelled = True
        entry.future.cancel()
        self._pending.pop(entry.job.ticket, None)

    def _deliver(self, done: Sequence[tuple[Job, Answer | Exception]]) -> None:
        """Called by the engine's threads."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._finish, done)

    def _finish(self, done: Sequence[tuple[Job, Answer | Exception]]) -> None:
        for job, result in done:
            entry = self._pending.get(job.ticket)
            if entry is None or entry.job is not job:  # cancelled
                continue
            del self._pending[job.ticket]
            if isinstance(result, Answer):
                if job.model.is_cached:
                    self.cache.put(job.ticket, result)
                entry.future.set_result(result)
            else:
                entry.future.set_exception(ServiceError.of(result))
                entry.future.exception()  # so that asyncio does not report one that nobody waits for any more


def _key(model: ServedModel, part: Part) -> Key:
    return model.name, model.version, model.operation, part.digest
