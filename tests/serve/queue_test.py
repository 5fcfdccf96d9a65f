# mypy: disable-error-code="arg-type"
"""The queue: bounded, fair, in order."""

import threading
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.serve.errors import Kind, ServiceError
from research.serve.limits import Limits
from research.serve.queue import FairQueue, Job


class _Model:
    """A model that takes a millisecond for an item."""

    def __init__(self, capacity=10):
        self.capacity = capacity

    def time_of(self, part):
        return part.length / 1000


def _job(model, name, length=1, client=""):
    return Job(model, types.SimpleNamespace(length=length), client, name)


def _names(jobs):
    return [job.ticket for job in jobs]


def _all(queue):
    queue.close()
    found = []
    while jobs := queue.take():
        found += jobs
    return found


def test_one_client_is_served_in_order():
    queue, model = FairQueue(Limits()), _Model(capacity=3)
    for name in range(7):
        queue.put([_job(model, name)])
    assert [_names(queue.take()) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(queue) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=40))
def test_each_job_is_taken_once_and_in_its_clients_order(asked):
    queue, model = FairQueue(Limits(queue_ms=1e9)), _Model()
    for number, (client, length) in enumerate(asked):
        queue.put([_job(model, number, length, client)])
    taken = _all(queue)
    assert sorted(_names(taken)) == list(range(len(asked)))
    for client in "abc":
        own = [job.ticket for job in taken if job.client == client]
        assert own == sorted(own)


def test_a_batch_is_at_most_the_capacity_but_never_empty():
    queue, model = FairQueue(Limits()), _Model(capacity=10)
    queue.put([_job(model, name, length) for name, length in enumerate((4, 6, 12, 1))])
    assert [_names(queue.take()) for _ in range(3)] == [[0, 1], [2], [3]]


def test_a_client_with_many_inputs_does_not_delay_another():
    queue, model = FairQueue(Limits()), _Model(capacity=2)
    queue.put([_job(model, f"many {i}", client="many") for i in range(100)])
    assert _names(queue.take()) == ["many 0", "many 1"]
    queue.put([_job(model, "few 0", client="few"), _job(model, "few 1", client="few")])
    first = _names(queue.take()) + _names(queue.take())
    assert first.count("few 0") == first.count("few 1") == 1


def test_models_take_turns_by_their_oldest_job():
    queue, one, two = FairQueue(Limits()), _Model(), _Model()
    queue.put([_job(one, "a")])
    queue.put([_job(two, "b")])
    queue.put([_job(one, "c")])
    assert [_names(queue.take()) for _ in range(2)] == [["a", "c"], ["b"]]


def test_cancelled_jobs_are_dropped():
    queue, model = FairQueue(Limits()), _Model()
    jobs = [_job(model, name) for name in range(3)]
    queue.put(jobs)
    jobs[1].cancelled = True
    assert _names(queue.take()) == [0, 2]


def test_jobs_that_are_put_back_come_first_and_in_order():
    queue, model = FairQueue(Limits()), _Model(capacity=2)
    queue.put([_job(model, name) for name in range(5)])
    queue.put_back(queue.take())
    assert _names(queue.take()) == [0, 1]


def test_several_threads_put_jobs_back():
    queue, model = FairQueue(Limits()), _Model(capacity=2)
    queue.put([_job(model, name) for name in range(6)])
    one, two = queue.take(), queue.take()
    queue.put_back(one)
    queue.put_back(two)
    assert sorted(_names(_all(queue))) == list(range(6))


def test_more_than_the_limit_is_refused_whole():
    queue, model = FairQueue(Limits(queue_inputs=3)), _Model()
    queue.put([_job(model, 0), _job(model, 1)])
    with pytest.raises(ServiceError) as refused:
        queue.put([_job(model, 2), _job(model, 3)])
    assert refused.value.kind is Kind.OVERLOADED
    assert refused.value.retry_after is not None
    assert len(queue) == 2


def test_jobs_that_would_wait_too_long_are_refused():
    queue, model = FairQueue(Limits(queue_ms=20)), _Model()
    queue.put([_job(model, 0, 100)])  # an empty queue takes any
    with pytest.raises(ServiceError) as refused:
        queue.put([_job(model, 1)])
    assert 0.05 < refused.value.retry_after < 0.2  # 100 ms are waiting
    queue.put_back(queue.take())
    with pytest.raises(ServiceError):
        queue.put([_job(model, 1)])
    queue.take()
    queue.put([_job(model, 1)])
    queue.put([_job(model, 2)])  # the first 100 ms no longer count


def test_a_closed_queue_refuses_and_ends():
    queue, model = FairQueue(Limits()), _Model()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    queue.close()
    thread.join(10)
    assert taken == [[]]
    with pytest.raises(ServiceError) as refused:
        queue.put([_job(model, 0)])
    assert refused.value.kind is Kind.UNAVAILABLE


def test_waits_are_estimated_by_the_pace_of_the_queue(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("research.serve.queue.time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    queue, model = FairQueue(Limits(queue_ms=1000)), _Model(capacity=100)
    queue.put([_job(model, 0, 90)])
    for name in range(1, 100):  # 90 ms of jobs take 180 ms
        queue.put([_job(model, name, 90)])
        queue.take()
        now[0] += 0.18
    queue.take()
    queue.put([_job(model, "six", 600)])
    with pytest.raises(ServiceError) as refused:
        queue.put([_job(model, "late", 1)])
    assert refused.value.retry_after == pytest.approx(1.2 - 0.5, abs=0.01)
