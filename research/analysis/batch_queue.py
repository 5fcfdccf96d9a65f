"""A queue with batches, event by event: what the formulas of `queueing.py` are checked by.

It does what the service does: an idle worker takes those that wait, first come, first served, as many as fit into a
batch, without waiting for more.
"""

import collections
import dataclasses
import heapq
from collections.abc import Callable, Hashable, Sequence

import numpy as np

# The lengths of those that wait, at most as many as fit -> what kind of batch to make, and which of them are in it.
Choose = Callable[[Sequence[int]], tuple[Hashable, Sequence[int]]]

# The kind of a batch, and how many other workers are at work when it begins -> the seconds that it takes.
Seconds = Callable[[Hashable, int], float]


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What happened to each request, in the order in which they came.

    Attributes:
      waits: seconds until its batch began [N].
      latencies: seconds until it was answered [N].
      batches: the requests of each batch [M].
    """

    waits: np.ndarray
    latencies: np.ndarray
    batches: np.ndarray

    def after(self, share: float) -> "Simulated":
        """Without the first share of the requests, which came to an empty queue; all batches are kept."""
        first = int(share * len(self.waits))
        return dataclasses.replace(self, waits=self.waits[first:], latencies=self.latencies[first:])


def poisson(rate: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """The times of requests that come independently of each other [count]."""
    return np.cumsum(rng.exponential(1 / rate, count))


def simulate(
    arrivals: np.ndarray,
    lengths: np.ndarray,
    *,
    workers: int,
    choose: Choose,
    seconds: Seconds,
    capacity: int = 1,
    entry: float = 0.0,
    rest: float = 0.0,
) -> Simulated:
    """Serves requests until none is left.

    Args:
      arrivals: when each request comes, in order [N].
      lengths: the items of each [N]; 1 for requests of a fixed size.
      workers: the batches that are served at once.
      capacity: the items to take for a batch; a request is always taken.
      entry: seconds that each request takes before it waits, one after the other: of the thread that reads them.
      rest: seconds that are added to each latency: what takes time, but keeps nobody else waiting.
    """
    ready = _entered(np.asarray(arrivals, np.float64), entry)
    began, ended = np.zeros(len(ready)), np.zeros(len(ready))
    waiting: collections.deque[int] = collections.deque()
    at_work: list[float] = []  # a heap of when each busy worker ends
    sizes: list[int] = []
    following, count, now = 0, len(ready), 0.0
    while following < count or waiting:
        # Nothing can begin before the next event: no worker is idle, or nobody waits.
        ends = at_work[0] if at_work else np.inf
        comes = ready[following] if following < count else np.inf
        now = max(now, min(ends, comes))
        while at_work and at_work[0] <= now:
            heapq.heappop(at_work)
        while following < count and ready[following] <= now:
            waiting.append(following)
            following += 1
        while waiting and len(at_work) < workers:
            kind, members = _next_batch(waiting, lengths, capacity, choose)
            end = now + seconds(kind, len(at_work))
            began[members], ended[members] = now, end
            heapq.heappush(at_work, end)
            sizes.append(len(members))
    arrivals = np.asarray(arrivals, np.float64)
    return Simulated(began - arrivals, ended - arrivals + rest, np.asarray(sizes))


def _entered(arrivals: np.ndarray, entry: float) -> np.ndarray:
    """When requests have passed a single server with a constant time, by Lindley's recursion [N]."""
    if not entry:
        return arrivals
    order = np.arange(len(arrivals))
    return np.maximum.accumulate(arrivals - entry * order) + entry * (order + 1)


def _next_batch(
    waiting: collections.deque[int], lengths: np.ndarray, capacity: int, choose: Choose
) -> tuple[Hashable, list[int]]:
    """Takes the requests of a batch: the others are again the first of those that wait."""
    taken = [waiting.popleft()]
    items = int(lengths[taken[0]])
    while waiting and items + lengths[waiting[0]] <= capacity:
        taken.append(waiting.popleft())
        items += int(lengths[taken[-1]])
    kind, members = choose([int(lengths[i]) for i in taken])
    inside = set(members)
    waiting.extendleft(reversed([each for i, each in enumerate(taken) if i not in inside]))
    return kind, [each for i, each in enumerate(taken) if i in inside]
