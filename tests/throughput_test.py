import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.devices import throughput
from research.devices.compiled import Compiled
from research.devices.throughput import PEAK_FLOPS, Throughput
from research.training.summary import seconds_of_a_seed


@pytest.mark.parametrize(
    ("summary", "seconds"),
    [
        ({"step": 50, "throughput": {"step_time_ms": 20.0}}, 1.0),
        ({"step": 50, "throughput": {"step_time_ms": 20.0}, "seeds": 4}, 0.25),
        ({"step": 50, "throughput": {"step_time_ms": None}, "seeds": 4}, None),
        ({"status": "failed"}, None),
    ],
)
def test_training_seconds_per_seed(summary, seconds):
    assert seconds_of_a_seed(summary) == seconds


class Clock:
    """A clock that only advances on request."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


class Step:
    """Like `Compiled`: compilation takes time, and a step has a number of operations."""

    def __init__(self, clock, flops):
        self._clock = clock
        self.flops = flops
        self.seconds = 0.0

    def compile(self, seconds):
        self._clock.now += seconds
        self.seconds += seconds


class Score:
    """The result of a step, and whether the device has finished it."""

    def __init__(self, ready):
        self.ready = ready

    def is_ready(self):
        return self.ready


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def _on(monkeypatch, kind):
    monkeypatch.setattr(throughput.jax, "devices", lambda: [types.SimpleNamespace(device_kind=kind)])


def _text(examples, tokens, places):
    """A batch of 8-token rows with these numbers of examples and tokens."""
    segments = np.zeros(places, np.int32)
    segments[:tokens] = 1
    weight = np.zeros((places // 8, 2), np.float32)
    weight.ravel()[:examples] = 1
    return {"weight": weight, "segments": segments.reshape(-1, 8)}


def _run(clock, *, steps=4, batch=None, processes=1, ready=True, step=None):
    """`steps` of 2 s, each after a wait of 0.5 s; the first compiles for 7 s; an evaluation takes 5 s."""
    step = step or Step(clock, flops=6e12)
    measured = Throughput(step)
    for i in range(steps):
        with measured.waiting():
            clock.now += 0.5
        if i == 0:
            step.compile(7.0)
        clock.now += 2.0
        measured.count(batch or _text(examples=3, tokens=12, places=16), {"loss": Score(ready)}, processes)
        if i == 1:
            with measured.aside():
                clock.now += 5.0
    return measured


def test_figures_of_known_counts_and_times(clock, monkeypatch):
    """4 steps in 10 s, without 7 s of compilation and 5 s of evaluation."""
    _on(monkeypatch, "NVIDIA H100 80GB HBM3")
    assert _run(clock).report() == {
        "examples_per_second": pytest.approx(4 * 3 / 10),
        "tokens_per_second": pytest.approx(4 * 12 / 10),
        "token_efficiency": pytest.approx(12 / 16),
        "step_time_ms": pytest.approx(2500),
        "data_wait_fraction": pytest.approx(3 * 0.5 / 10),  # excluding the first, during which the pipeline starts
        "compile_seconds": pytest.approx(7.0),
        "mfu": pytest.approx(4 * 6e12 / 10 / PEAK_FLOPS["NVIDIA H100"]),
    }


def test_examples_of_all_processes_count_and_operations_are_per_device(clock, monkeypatch):
    _on(monkeypatch, "TPU v4")
    report = _run(clock, processes=8).report()
    assert report["examples_per_second"] == pytest.approx(8 * 4 * 3 / 10)
    assert report["tokens_per_second"] == pytest.approx(8 * 4 * 12 / 10)
    assert report["token_efficiency"] == pytest.approx(12 / 16)
    assert report["mfu"] == pytest.approx(4 * 6e12 / 10 / 275e12)


def test_padding_is_not_counted_and_images_have_no_tokens(clock):
    report = _run(clock, batch={"weight": np.array([1, 1, 1, 0], np.float32)}).report()
    assert report["examples_per_second"] == pytest.approx(4 * 3 / 10)
    assert (report["tokens_per_second"], report["token_efficiency"]) == (None, None)


def test_waiting_while_the_device_is_busy_is_not_counted(clock):
    measured = _run(clock, ready=False)
    assert measured.data_wait_fraction == 0
    assert measured.seconds == pytest.approx(10)  # but it is part of the training time


def test_compiling_within_an_evaluation_is_subtracted_once(clock):
    step = Step(clock, flops=0.0)
    measured = Throughput(step)
    clock.now += 2.0
    with measured.aside():
        step.compile(3.0)
        clock.now += 1.0
    assert measured.seconds == pytest.approx(2.0)


def test_nothing_to_report_before_the_first_step(clock):
    step = Step(clock, flops=1.0)
    measured = Throughput(step)
    step.compile(7.0)
    report = measured.report()
    assert report.pop("compile_seconds") == 7.0
    assert set(report) == set(_run(clock).report()) - {"compile_seconds"}
    assert set(report.values()) == {None}


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 PCIe", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_peak_is_that_of_the_device(clock, monkeypatch, kind, peak):
    """The utilization on an unknown device is None; no peak is guessed."""
    _on(monkeypatch, kind)
    assert _run(clock).report()["mfu"] == (None if peak is None else pytest.approx(4 * 6e12 / 10 / peak))


def test_step_is_compiled_once_per_shape_and_its_operations_are_counted(monkeypatch):
    """A product of [R, 32] and [32, 16] has 2 · R · 32 · 16 operations; one in a loop runs `repeats` times."""
    traced = []

    @jax.jit
    def product(state, batch):
        traced.append(batch["x"].shape)
        return batch["x"] @ state

    state = jnp.ones((32, 16))
    step, repeated = Compiled(product), Compiled(product, repeats=3)
    flops = []
    for rows in (8, 4, 8):
        step(state, {"x": jnp.ones((rows, 32))})
        flops.append(step.flops)
    assert traced == [(8, 32), (4, 32)]
    assert flops == [2 * rows * 32 * 16 for rows in (8, 4, 8)]
    assert step.seconds > 0
    repeated(state, {"x": jnp.ones((8, 32))})
    assert repeated.flops == 3 * 2 * 8 * 32 * 16
