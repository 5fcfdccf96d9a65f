# mypy: disable-error-code="arg-type"
"""Threads that share a queue: every job is answered once, whatever the batches have no room for."""

import threading
import time
import types

import numpy as np
import pytest

from research.serve.engine import Engine
from research.serve.limits import Limits
from research.serve.queue import Job

_ROOM = 3  # jobs of a batch


class _Model:
    """A model that takes more jobs than a batch has room for, and fails for those that are negative."""

    capacity = 8

    def time_of(self, part):
        return 0.0

    def choose(self, parts):
        time.sleep(0.001)  # meanwhile other threads take jobs
        return None, np.arange(min(_ROOM, len(parts)))[None]

    def answer(self, parts, device, chosen):
        time.sleep(0.001)
        inside = [part.number for part in parts[:_ROOM]]
        if min(inside) < 0:
            raise RuntimeError("as asked")
        return [*inside, *[None] * (len(parts) - len(inside))], None


@pytest.mark.parametrize("replicas", [1, 4])
def test_every_job_is_delivered_once(replicas):
    numbers = [-n if n % 10 == 9 else n for n in range(1, 200)]
    found, all_there = [], threading.Event()

    def deliver(done):
        found.extend((job.ticket, result) for job, result in done)  # one operation, so that no lock is needed
        if len(found) >= len(numbers):
            all_there.set()

    engine = Engine(Limits(), deliver, replicas=replicas)
    model = _Model()
    engine.queue.put([Job(model, types.SimpleNamespace(length=1, number=n), "", n) for n in numbers])
    engine.start()
    assert all_there.wait(30)
    assert engine.stop(30)
    assert sorted(ticket for ticket, _ in found) == sorted(numbers)
    for ticket, result in found:
        assert isinstance(result, RuntimeError) if ticket < 0 else result == ticket
