# mypy: disable-error-code="operator"
"""The formulas of queues against closed forms, and the simulation against the formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.analysis import queueing
from research.analysis.batch_queue import poisson, simulate

RNG_SEED = 0
REQUESTS = 40_000
# The largest relative errors over seeds 0 to 19 were 0.104 of a mean, of M/M/3, and 0.101 of the logarithm of a tail.
CLOSE = 0.12


def served(seconds, *, rate, workers=1, count=REQUESTS, seed=RNG_SEED, **options):
    """A simulated queue without batches: `seconds(rng)` draws a service time."""
    rng = np.random.default_rng(seed)
    arrivals = poisson(rate, count, rng)
    return simulate(
        arrivals,
        np.ones(count, np.int64),
        workers=workers,
        choose=lambda lengths: (None, [0]),
        seconds=lambda kind, others: seconds(rng),
        **options,
    ).after(0.05)


def blocked_states(servers, load):
    """Erlang C by the balance equations of M/M/k: the sum over states, not the recursion."""
    waiting = load**servers / math.factorial(servers) * servers / (servers - load)
    return waiting / (sum(load**i / math.factorial(i) for i in range(servers)) + waiting)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (2, 1.0), (3, 2.0), (10, 8.0), (30, 29.0)])
def test_erlang_c_is_that_of_the_balance_equations(servers, load):
    assert queueing.erlang_c(servers, load) == pytest.approx(blocked_states(servers, load), rel=1e-12)


def test_erlang_c_known_values():
    assert queueing.erlang_c(1, 0.7) == pytest.approx(0.7)
    assert queueing.erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert queueing.erlang_c(3, 2.0) == pytest.approx(4 / 9)
    assert queueing.erlang_c(2, 2.0) == 1.0
    assert queueing.erlang_c(1000, 950.0) < 1  # does not overflow


def test_the_wait_of_mm1_md1_and_mmk():
    rate, service = 0.8, 1.0
    assert queueing.mean_wait(rate, service) == pytest.approx(4.0)  # rho / (mu - lambda)
    assert queueing.mean_wait(rate, service, service_scv=0.0) == pytest.approx(2.0)  # Pollaczek–Khinchine: half of it
    assert queueing.mean_wait(2.0, 1.0, 3) == pytest.approx(4 / 9)
    assert queueing.mean_wait(1.0, 1.0) == math.inf


def test_the_tail_of_mmk():
    """P(W > t) = C exp(-(k mu - lambda) t)."""
    times = np.array([0.0, 0.5, 3.0])
    expected = 4 / 9 * np.exp(-times)
    np.testing.assert_allclose(queueing.wait_tail(times, 2.0, 1.0, 3), expected, rtol=1e-12)
    np.testing.assert_array_equal(queueing.wait_tail(np.array([-1.0]), 2.0, 1.0, 3), [1.0])


def test_the_latency_of_mm1_is_exponential():
    """The sojourn time of M/M/1 is exponential with the rate mu - lambda."""
    services = -np.log1p(-(np.arange(20_000) + 0.5) / 20_000)
    found = queueing.batch_latency(0.99, 0.6, services)
    assert found == pytest.approx(-math.log(0.01) / 0.4, rel=0.01)  # 201 quantiles of the service time


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        (queueing.erlang_c, (0, 1.0)),
        (queueing.erlang_c, (1, -1.0)),
        (queueing.mean_wait, (1.0, 0.0)),
        (queueing.batch_latency, (1.0, 1.0, np.ones(2))),
    ],
)
def test_impossible_arguments(what, arguments):
    with pytest.raises(ValueError, match="must be"):
        what(*arguments)


@given(st.integers(1, 20), st.floats(0.01, 0.99), st.floats(0.01, 10), st.floats(0, 3))
def test_more_servers_never_wait_longer(servers, share, service, scv):
    rate = share * servers / service
    waits = [queueing.mean_wait(rate, service, servers + i, service_scv=scv) for i in range(3)]
    assert waits[0] >= waits[1] >= waits[2] >= 0


@given(st.integers(1, 8), st.floats(0.05, 0.9), st.floats(1, 16), st.lists(st.floats(0.01, 1), min_size=2, max_size=9))
@settings(max_examples=50, deadline=None)
def test_the_latency_exceeds_the_service_and_grows_with_the_rate(servers, share, size, services):
    rate = share * servers * size / max(services)
    lower, higher = (
        queueing.batch_latency(0.99, r, np.array(services), servers, size=size) for r in (rate, rate * 1.05)
    )
    assert higher >= min(services) * (1 - 1e-9)
    # Batches of a fixed size fill sooner at a higher rate; requests alone only wait longer.
    assert size > 1 or higher >= lower * (1 - 1e-5)


@pytest.mark.parametrize(
    ("workers", "rate", "draw", "scv"),
    [
        (1, 0.6, lambda rng: rng.exponential(), 1.0),
        (3, 1.8, lambda rng: rng.exponential(), 1.0),
        (1, 0.6, lambda rng: 1.0, 0.0),
    ],
    ids=["M/M/1", "M/M/3", "M/D/1"],
)
def test_the_simulated_wait_is_that_of_the_formula(workers, rate, draw, scv):
    found = served(draw, rate=rate, workers=workers)
    assert found.waits.mean() == pytest.approx(queueing.mean_wait(rate, 1.0, workers, service_scv=scv), rel=CLOSE)
    if scv == 1.0:
        tail = queueing.wait_tail(np.quantile(found.waits, [0.99]), rate, 1.0, workers)
        assert -np.log(tail[0]) == pytest.approx(-math.log(0.01), rel=CLOSE)


def dynamic_batching_bound(rate, per_request, fixed):
    """Inoue (2021), "Queueing analysis of GPU-based inference servers with dynamic batching", theorem 2.

    An upper bound, and a good approximation, of the mean latency where one server takes all that wait, and n of them
    take `fixed + per_request * n` seconds.
    """
    load = rate * per_request
    first = (per_request + fixed) / (2 * (1 - load)) * (1 + 2 * rate * fixed + (1 - rate * fixed) / (1 + load))
    second = 1.5 * fixed / (1 - load) + per_request / 2 * (load + 2) / (1 - load**2)
    return min(first, second)


@pytest.mark.parametrize("rate", [0.2, 2.0, 5.0, 8.0])
def test_the_latency_with_batches_is_near_its_bound(rate):
    count = REQUESTS
    found = simulate(
        poisson(rate, count, np.random.default_rng(RNG_SEED)),
        np.ones(count, np.int64),
        workers=1,
        capacity=count,
        choose=lambda lengths: (len(lengths), range(len(lengths))),
        seconds=lambda size, others: 1.0 + 0.1 * size,
    )
    bound = dynamic_batching_bound(rate, 0.1, 1.0)
    assert 0.9 * bound <= found.after(0.05).latencies.mean() <= bound * 1.02


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 20),
    st.floats(0, 0.3),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_every_request_is_served_once_and_in_order(lengths, workers, capacity, entry, seed):
    rng = np.random.default_rng(seed)
    arrivals = poisson(5.0, len(lengths), rng)
    taken = []

    def choose(found):
        taken.append(found)
        assert len(found) == 1 or sum(found) <= capacity
        return len(found), range(0, len(found), 2)  # the others wait for the next batch

    found = simulate(
        arrivals,
        np.array(lengths),
        workers=workers,
        capacity=capacity,
        entry=entry,
        rest=0.5,
        choose=choose,
        seconds=lambda size, others: [0.3 + 0.1 * size, 0 <= others < workers][0],
    )
    assert found.batches.sum() == len(lengths)
    assert (found.waits >= entry - 1e-9).all()
    assert (found.latencies >= found.waits + 0.5 + 0.4 - 1e-9).all()
    began = np.sort(arrivals + found.waits)
    # At most as many batches at the same time as there are workers: those of the same moment share one.
    assert all(len(np.unique(began[(began > t - 0.3) & (began <= t)].round(9))) <= workers for t in began)


def test_who_was_left_out_of_a_batch_is_next():
    found = simulate(
        np.arange(20) * 0.1,
        np.ones(20, np.int64),
        workers=1,
        capacity=3,
        choose=lambda lengths: (None, [0]),
        seconds=lambda kind, others: 1.0,
    )
    np.testing.assert_allclose(np.arange(20) * 0.1 + found.waits, np.arange(20.0))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_more_workers_never_wait_longer_on_the_same_requests(workers):
    waits = [served(lambda rng: 1.0, rate=0.9 * workers, workers=n, count=4000).waits for n in (workers, workers + 1)]
    assert (waits[1] <= waits[0] + 1e-9).all()


def test_requests_enter_one_after_the_other():
    """The thread that reads them is a queue of its own, M/D/1, before idle workers."""
    found = served(lambda rng: 1e-9, rate=0.7, workers=64, entry=1.0, count=REQUESTS)
    assert found.waits.mean() == pytest.approx(1.0 + queueing.mean_wait(0.7, 1.0, service_scv=0.0), rel=CLOSE)
