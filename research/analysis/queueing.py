"""Formulas of queues: how long requests wait for servers, in closed form. Pure functions of numbers.

All assume that requests come independently of each other at a constant rate, wait in one line in the order in which
they came, and are never refused. Times are in seconds, rates per second. A queue whose servers are too few has no
steady state: its waits are infinite.

Sources:
  Erlang (1917), "Solution of some problems in the theory of probabilities of significance in automatic telephone
    exchanges": the probability of waiting, `erlang_c`.
  Allen (1990), "Probability, Statistics, and Queueing Theory", 2nd edition, section 5.3: the Allen–Cunneen
    approximation of the mean wait, `mean_wait`. Exact for M/M/k, and for M/G/1, where it is Pollaczek–Khinchine's.
  Kingman (1962), "On queues in heavy traffic", and Köllerström (1974), "Heavy traffic theory for queues with several
    servers I": the wait of those who wait is nearly exponential, `wait_tail`. Exact for M/M/k.
  Hopp & Spearman (2011), "Factory Physics", 3rd edition, section 9.4: batches as the customers of a queue, whose
    arrivals vary less by the size of the batch; requests also wait for their batch to fill. `batch_latency`.
"""

import math

import numpy as np

_FILLS = 16  # places in a batch for which the time until it is full is evaluated
_SERVICE_TIMES = 201  # quantiles by which a sample of service times is represented


def erlang_c(servers: int, load: float) -> float:
    """The probability that a request has to wait in M/M/k; 1 if the servers are too few.

    By Erlang's B formula and its recursion, which does not overflow.

    Args:
      load: the rate of requests times the mean service time, in servers.

    Raises ValueError if there are no servers, or the load is negative.
    """
    if servers < 1 or load < 0:
        raise ValueError(f"{servers} servers with a load of {load}: there must be at least 1, and a load of at least 0")
    if load >= servers:
        return 1.0
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def mean_wait(
    rate: float, service: float, servers: int = 1, *, service_scv: float = 1.0, arrival_scv: float = 1.0
) -> float:
    """The mean wait in GI/G/k, without the service (Allen–Cunneen); infinite if the servers are too few.

    Args:
      service: the mean service time.
      service_scv, arrival_scv: the squared coefficients of variation (variance over squared mean) of service times,
        and of the times between requests: 1 if exponential, 0 if constant.

    Raises ValueError as `erlang_c`, or if the service time is not positive.
    """
    if not service > 0:
        raise ValueError(f"a service time of {service} s: it must be above 0")
    if rate * service >= servers:
        return math.inf
    waits = erlang_c(servers, rate * service)
    return waits / (servers / service - rate) * (service_scv + arrival_scv) / 2


def wait_tail(
    time: np.ndarray,
    rate: float,
    service: float,
    servers: int = 1,
    *,
    service_scv: float = 1.0,
    arrival_scv: float = 1.0,
) -> np.ndarray:
    """The probability that the wait exceeds a time, [N] -> [N].

    C exp(−C t / W), with the C of `erlang_c` and the W of `mean_wait`.

    Raises ValueError as `mean_wait`.
    """
    time = np.asarray(time, np.float64)
    mean = mean_wait(rate, service, servers, service_scv=service_scv, arrival_scv=arrival_scv)
    waits = erlang_c(servers, rate * service)
    if mean == math.inf:
        return np.ones_like(time)
    positive = waits * np.exp(-waits * np.maximum(time, 0) / mean) if mean else np.zeros_like(time)
    return np.where(time < 0, 1.0, positive)


def batch_latency(fraction: float, rate: float, services: np.ndarray, servers: int = 1, *, size: float = 1.0) -> float:
    """A quantile of the latency, wait and service, where batches of a fixed size are served.

    A batch is a customer of GI/G/k: batches come at `rate / size`, with a squared coefficient of variation of 1 / size.
    Each request waits for its batch to fill, then the batch waits for a server (`wait_tail`), then it is
    served; the three are taken as independent. With `size` 1 this is M/G/k.

    Args:
      fraction: such as 0.99.
      services: measured service times of batches of this size [N].

    Returns:
      Seconds; infinite if the servers are too few.

    Raises ValueError as `mean_wait`, or if the fraction is not between 0 and 1, or the size is below 1.
    """
    if not 0 < fraction < 1 or size < 1:
        raise ValueError(f"the {fraction} quantile for batches of {size}: it must be between 0 and 1, and at least 1")
    services = np.asarray(services, np.float64)
    mean = float(services.mean())
    if rate / size * mean >= servers:
        return math.inf
    service_scv = float(services.var()) / mean**2
    levels = (np.arange(_SERVICE_TIMES) + 0.5) / _SERVICE_TIMES
    served = np.quantile(services, levels) if len(services) > _SERVICE_TIMES else services
    filling = np.linspace(0, (size - 1) / rate, _FILLS) if size > 1 else np.zeros(1)
    known = (served[:, None] + filling).ravel()

    def exceeds(time: float) -> float:
        tail = wait_tail(time - known, rate / size, mean, servers, service_scv=service_scv, arrival_scv=1 / size)
        return float(tail.mean())

    low, high = 0.0, float(known.max())
    while exceeds(high) > 1 - fraction:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) > 1 - fraction else (low, middle)
    return high
