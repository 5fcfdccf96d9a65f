"""How many replicas of a service a load needs: from measured times of batches, by formulas and by simulation.

A replica is a process of the service with some cores, which computes several batches at once. Requests come at random
times, and each goes to a replica at random, so that every replica has its own queue with an equal share of the load.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from research.analysis.batch_queue import Choose, Simulated, poisson, simulate
from research.analysis.queueing import batch_latency, mean_wait
from research.base.errors import UserError

FRACTION = 0.99
_REQUESTS = 20_000  # of a simulation: 200 of them exceed the 99th percentile
_FIRST = 0.05  # of these, which came to an empty queue
_ENOUGH = 8  # batches from which a time is drawn
_FULL = 0.999  # of the best rate: more has no steady state
_MOST_REPLICAS = 100_000
_ROWS = 4  # about as many from the fewest replicas to those that are needed


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one replica takes, in seconds.

    Attributes:
      workers: the batches that it computes at once.
      capacity: the items that it takes for a batch.
      choose: as for `simulate`.
      lengths: the items of the inputs that were measured [N].
      expected: the time of a full batch of each kind alone.
      kinds, inputs, seconds, others, loads: of each batch that was measured: its kind, its inputs, its time, how many
        others were computed when it began, and the load as a share of the best rate [M].
      entry, rest: the time of a request in the thread that reads requests, and the rest outside of queue and batch.
      best_rate: the most requests a second.
      offered: loads of requests at random times, the rate rising: each a rate, and latencies by the clients [N].
      cores, gigabytes: what it has.
    """

    workers: int
    capacity: int
    choose: Choose
    lengths: np.ndarray
    expected: Mapping[Any, float]
    kinds: Sequence[Hashable]
    inputs: np.ndarray
    seconds: np.ndarray
    others: np.ndarray
    loads: np.ndarray
    entry: float
    rest: float
    best_rate: float
    offered: Sequence[tuple[float, np.ndarray]]
    cores: int
    gigabytes: float


@dataclasses.dataclass(frozen=True)
class Point:
    """The service-time curve: batches of about `size` inputs, on average `mean` of them, and their times [N]."""

    size: int
    mean: float
    seconds: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
    """What so many replicas do with the load: times in milliseconds.

    Attributes:
      utilisation: the load of each over its best rate.
      wait_ms: the mean time in the queue, by simulation.
      formula_ms, simulated_ms: the 99th percentile of the latency.
      kept: whether the simulated one is within the bound, and no lower rate was measured to exceed it.
    """

    replicas: int
    utilisation: float
    wait_ms: float
    formula_ms: float
    simulated_ms: float
    kept: bool
    cores: int
    gigabytes: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many replicas a load needs.

    Attributes:
      rows: in the order of their replicas, from the fewest that have a steady state.
      needed: the row of the replicas that are needed.
      sustained, sustained_by_formula: the requests a second of one replica within the bound.
    """

    rate: float
    bound_ms: float
    rows: Sequence[Row]
    needed: Row
    sustained: float
    sustained_by_formula: float


def curve(measured: Measured, load: float | None = None) -> list[Point]:
    """The measured times by the inputs of a batch: 1, 2, 3 to 4, 5 to 8, …; those with few batches are left out.

    Args:
      load: only batches of this load; None for all.
    """
    inside = measured.loads == load if load is not None else np.ones(len(measured.loads), bool)
    inputs, seconds = measured.inputs[inside], measured.seconds[inside]
    powers = np.ceil(np.log2(inputs)).astype(int)
    groups = [(int(power), powers == power) for power in np.unique(powers)]
    found = [Point(2**power, float(inputs[g].mean()), seconds[g]) for power, g in groups if g.sum() >= _ENOUGH]
    return found or [Point(1, float(inputs.mean()), seconds)]


def neighbours(measured: Measured, load: float) -> tuple[float, float, float]:
    """The measured loads below and above a load, and the weight of the one above, from 0 to 1."""
    known = np.unique(measured.loads)
    place = float(np.interp(load, known, np.arange(len(known))))
    below = min(int(place), len(known) - 1)
    return float(known[below]), float(known[min(below + 1, len(known) - 1)]), place - below


class _Times:
    """The measured times of batches under one load."""

    def __init__(self, measured: Measured, load: float):
        self._expected = measured.expected
        self._by_kind: dict[tuple[Hashable, int], list[float]] = {}
        self._slower: dict[int, list[float]] = {}
        for i in np.flatnonzero(measured.loads == load).tolist():
            kind, others = measured.kinds[i], min(int(measured.others[i]), measured.workers - 1)
            seconds = float(measured.seconds[i])
            self._by_kind.setdefault((kind, others), []).append(seconds)
            self._slower.setdefault(others, []).append(seconds / measured.expected[kind])
        self._any = [each for found in self._slower.values() for each in found]

    def draw(self, kind: Hashable, others: int, share: float) -> float:
        """A time; `share`, from 0 to 1, says which of those that there are.

        Where a kind has too few, its expected time is multiplied by how much longer than expected any batch took.
        """
        found = self._by_kind.get((kind, others), [])
        if len(found) >= _ENOUGH:
            return found[int(share * len(found))]
        slower = self._slower.get(others, [])
        slower = slower if len(slower) >= _ENOUGH else self._any
        return self._expected[kind] * slower[int(share * len(slower))]


def draws(measured: Measured, load: float, rng: np.random.Generator) -> Callable[[Hashable, int], float]:
    """Draws a measured time for a kind of batch, and the others that are computed when it begins.

    Batches take longer, and others are computed beside them more often, the higher the load is: times are drawn from
    those of the two measured loads around it, the more often the nearer.
    """
    below, above, weight = neighbours(measured, load)
    lower, upper = _Times(measured, below), _Times(measured, above)

    def seconds(kind: Hashable, others: int) -> float:
        which, share = rng.random(2)
        return (upper if which < weight else lower).draw(kind, others, share)

    return seconds


def rehearsed(measured: Measured, rate: float, *, count: int = _REQUESTS, seed: int = 0) -> Simulated:
    """Simulates a replica with requests at a rate."""
    rng = np.random.default_rng(seed)
    return simulate(
        poisson(rate, count, rng),
        rng.choice(measured.lengths, count),
        workers=measured.workers,
        capacity=measured.capacity,
        choose=measured.choose,
        seconds=draws(measured, rate / measured.best_rate, rng),
        entry=measured.entry,
        rest=measured.rest,
    ).after(_FIRST)


def formula(measured: Measured, rate: float) -> float:
    """The 99th percentile of the latency of a replica, as `batch_latency`, with the best size of a batch, in seconds.

    Batches of a fixed size stand for those of the service, which takes what waits: the fixed size that is best at a
    rate does not wait long for a batch to fill, nor lets batches wait. Times of batches are those of the two measured
    loads around the rate. The thread that reads requests is M/D/1, of which the mean is added. A load with more
    requests than any size allows has an infinite latency.
    """
    below, above, _ = neighbours(measured, rate / measured.best_rate)
    points = [*curve(measured, below), *curve(measured, above)]
    batches = min(batch_latency(FRACTION, rate, point.seconds, measured.workers, size=point.mean) for point in points)
    reading = mean_wait(rate, measured.entry, service_scv=0.0) if measured.entry else 0.0
    return batches + reading + measured.entry + measured.rest


def simulated(measured: Measured, rate: float, *, count: int = _REQUESTS) -> tuple[float, float]:
    """The mean wait and the 99th percentile of the latency of a replica, in seconds; infinite above its best rate."""
    if rate >= _FULL * measured.best_rate:
        return math.inf, math.inf
    found = rehearsed(measured, rate, count=count)
    return float(found.waits.mean()), float(np.quantile(found.latencies, FRACTION))


def limit(measured: Measured, bound_ms: float) -> float:
    """The lowest rate of a replica that was measured not to keep the bound, if there is one; else the best rate."""
    broken = [rate for rate, latencies in measured.offered if 1000 * np.quantile(latencies, FRACTION) > bound_ms]
    return min([measured.best_rate, *broken])


def sustained(measured: Measured, bound_ms: float, latency: Callable[[float], float]) -> float:
    """The highest rate of a replica, within 1 %, whose latency in seconds is within the bound; 0 if there is none.

    It is below `limit`.
    """
    low, high = 0.0, limit(measured, bound_ms)
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if 1000 * latency(middle) <= bound_ms else (low, middle)
        if high < 1e-3 * measured.best_rate:
            return 0.0
    return low


def row(measured: Measured, rate: float, bound_ms: float, replicas: int) -> Row:
    """What so many replicas do with a load, requests a second."""
    each = rate / replicas
    wait, latency = simulated(measured, each)
    return Row(
        replicas,
        each / measured.best_rate,
        1000 * wait,
        1000 * formula(measured, each),
        1000 * latency,
        1000 * latency <= bound_ms and each < limit(measured, bound_ms),
        replicas * measured.cores,
        replicas * measured.gigabytes,
    )


def check(rate: float, bound_ms: float) -> None:
    """Raises UserError if a load or a bound is not a positive number."""
    for name, value, what in (("rps", rate, "requests a second"), ("p99_ms", bound_ms, "milliseconds")):
        if not 0 < value < math.inf:
            raise UserError(f"--{name} is {value:g}; it must be a finite number of {what} above 0")


def lowest_ms(measured: Measured) -> float:
    """The 99th percentile of the latency where hardly any request waits, in ms: measured or simulated, the higher."""
    computed = rehearsed(measured, 0.01 * measured.best_rate, count=4000).latencies
    return 1000 * max(float(np.quantile(each, FRACTION)) for each in (measured.offered[0][1], computed))


def plan(measured: Measured, rate: float, bound_ms: float, say: Callable[[str], None] = lambda text: None) -> Plan:
    """The fewest replicas that keep the bound, see `Row.kept`, and those around them.

    Args:
      rate: requests a second.
      say: is told what is being computed.

    Raises UserError as `check`, if even a request that does not wait takes longer, or if it takes too many replicas.
    """
    check(rate, bound_ms)
    lowest = lowest_ms(measured)
    if lowest > bound_ms:
        raise UserError(
            f"--p99_ms is {bound_ms:g}, but even with hardly any load the 99th percentile is {lowest:.3g} ms here, "
            f"which no number of replicas lowers: allow at least --p99_ms={math.ceil(lowest)}, or serve a smaller "
            "model, shorter inputs, or another --compute"
        )
    say("simulating one replica")
    most = sustained(measured, bound_ms, lambda each: simulated(measured, each)[1])
    by_formula = sustained(measured, bound_ms, lambda each: formula(measured, each))
    needed = math.ceil(rate / most) if most else _MOST_REPLICAS + 1
    rows: dict[int, Row] = {}

    def keeps(replicas: int) -> bool:
        if replicas > _MOST_REPLICAS:
            raise UserError(
                f"--rps is {rate:g}, which takes more than {_MOST_REPLICAS:,} replicas: one answers {most:.3g} "
                f"requests a second within {bound_ms:g} ms; allow a larger --p99_ms"
            )
        if replicas not in rows:
            say(f"simulating {replicas} replicas")
            rows[replicas] = row(measured, rate, bound_ms, replicas)
        return rows[replicas].kept

    while not keeps(needed):  # as the rate of one is known within 1 %
        needed += max(1, needed // 100)
    fewest = max(1, math.ceil(rate / (_FULL * measured.best_rate)))
    while needed > fewest and keeps(needed - 1):
        needed -= 1
    for replicas in {*np.linspace(fewest, needed, _ROWS).astype(int).tolist(), needed + 1}:
        keeps(replicas)
    return Plan(rate, bound_ms, [rows[count] for count in sorted(rows)], rows[needed], most, by_formula)
