import contextlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.devices import throughput
from research.devices.compiled import Compiled
from research.devices.sharding import make_mesh, put_batch, replicated
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


def _measured(step: Any) -> Throughput:
    """Of a stand-in for a compiled step."""
    return Throughput(step)


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
    measured = _measured(step)
    for i in range(steps):
        with measured.waiting():
            clock.now += 0.5
        if i == 0:
            step.compile(7.0)
        clock.now += 2.0
        measured.count(batch or _text(examples=3, tokens=12, places=16), {"loss": Score(ready)}, 1 / processes)
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
    measured = _measured(step)
    clock.now += 2.0
    with measured.aside():
        step.compile(3.0)
        clock.now += 1.0
    assert measured.seconds == pytest.approx(2.0)


def test_nothing_to_report_before_the_first_step(clock):
    step = Step(clock, flops=1.0)
    measured = _measured(step)
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


def test_no_name_of_a_device_hides_another(clock, monkeypatch):
    """Names are beginnings of JAX's: of two that fit, the longer is meant."""
    for name, peak in PEAK_FLOPS.items():
        _on(monkeypatch, name)
        assert _run(clock).report()["mfu"] == pytest.approx(4 * 6e12 / 10 / peak), name


def test_a_program_for_another_shape_is_compiled_and_counted_as_such(clock, monkeypatch):
    """Two steps of 2 s of one program and two of another, which is compiled for 30 s when it is first needed."""
    _on(monkeypatch, "NVIDIA A100-SXM4-80GB")
    step = Step(clock, flops=1e12)
    measured = _measured(step)
    for i, flops in enumerate((1e12, 1e12, 5e12, 5e12)):
        if i in (0, 2):
            step.compile(30.0)
        step.flops = flops
        clock.now += 2.0
        measured.count(_text(examples=3, tokens=12, places=16), {"loss": Score(True)}, 1)
    report = measured.report()
    assert report["compile_seconds"] == 60.0
    assert report["step_time_ms"] == pytest.approx(2000)
    assert report["mfu"] == pytest.approx(12e12 / 8 / 312e12)


def test_time_aside_ends_with_an_error_too(clock):
    measured = _measured(Step(clock, flops=0.0))
    clock.now += 2.0
    with contextlib.suppress(RuntimeError), measured.aside():
        clock.now += 5.0
        raise RuntimeError
    assert measured.seconds == pytest.approx(2.0)


def test_only_waits_of_an_idle_device_are_a_fraction_of_the_time(clock):
    """Five waits of 1 s before steps of 3 s: the first is the start, and in two of the others the device was busy."""
    measured = _measured(Step(clock, flops=0.0))
    for ready in (True, False, True, False, True):  # of the step that was started before the next wait
        with measured.waiting():
            clock.now += 1.0
        clock.now += 3.0
        measured.count(_text(examples=3, tokens=12, places=16), {"loss": Score(ready)}, 1 / 2)
    assert measured.data_wait_fraction == pytest.approx(2 / 20)
    assert measured.report()["data_wait_fraction"] == measured.data_wait_fraction


def test_batches_of_several_sizes_add_up_over_the_processes(clock):
    """A row of padding has neither examples nor tokens, but its places count against the efficiency."""
    measured = _measured(Step(clock, flops=0.0))
    for examples, tokens, places in ((3, 12, 16), (5, 30, 32), (0, 0, 8)):
        clock.now += 4.0
        measured.count(_text(examples=examples, tokens=tokens, places=places), {"loss": Score(True)}, 1 / 4)
    report = measured.report()
    assert report["examples_per_second"] == pytest.approx(4 * 8 / 12)
    assert report["tokens_per_second"] == pytest.approx(4 * 42 / 12)
    assert report["token_efficiency"] == pytest.approx(42 / 56)


def _utilization(clock, monkeypatch, function, arguments, seconds):
    """`mfu` of one step of so many seconds of the jitted function, on a device with a peak of 1e9 FLOP/s."""
    monkeypatch.setitem(PEAK_FLOPS, "a device", 1e9)
    _on(monkeypatch, "a device of the second generation")
    step = Compiled(function)
    step(*arguments)
    step.seconds = 0.0  # compiled in real time, not in the clock's
    measured = Throughput(step)
    clock.now += seconds
    measured.count({"weight": np.ones(4, np.float32)}, jnp.zeros(()), 1)
    return measured.report()["mfu"]


def test_utilization_of_a_dense_layer(clock, monkeypatch):
    """2 · N · I · O for the product and N · O for the bias; a backward pass has twice the product's once more."""
    rows, inputs, outputs = 64, 96, 128
    params = {"kernel": jnp.ones((inputs, outputs)), "bias": jnp.ones(outputs)}

    def layer(params, batch):
        return batch["x"] @ params["kernel"] + params["bias"][None, :]

    arguments = params, {"x": jnp.ones((rows, inputs))}
    forward = _utilization(clock, monkeypatch, jax.jit(layer), arguments, 0.5)
    assert forward == pytest.approx((2 * rows * inputs * outputs + rows * outputs) / 0.5 / 1e9)

    @jax.jit
    def both(params, batch):
        y, backward = jax.vjp(layer, params, batch)
        return backward(y)

    whole = _utilization(clock, monkeypatch, both, arguments, 0.5)
    assert whole == pytest.approx(3 * 2 * rows * inputs * outputs / 0.5 / 1e9, rel=0.01)


def test_utilization_of_attention(clock, monkeypatch):
    """Four projections of 2 · L · D² each, and scores and values of 2 · L² · D each, in each of B rows.

    The softmax, the scale and the biases are all that is beside them: a few operations for each score.
    """
    rows, length, width, heads = 2, 128, 256, 4
    keys = jax.random.split(jax.random.key(0), 4)
    params = {name: jax.random.normal(key, (width, width)) for name, key in zip("qkvo", keys, strict=True)}

    @jax.jit
    def attention(params, batch):
        q, k, v = ((batch["x"] @ params[name]).reshape(rows, length, heads, -1) for name in "qkv")
        scores = jnp.einsum("blhd,bmhd->bhlm", q, k) / np.sqrt(width / heads)
        mixed = jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores), v)
        return mixed.reshape(rows, length, width) @ params["o"]

    products = rows * (4 * 2 * length * width**2 + 2 * 2 * length**2 * width)
    mfu = _utilization(clock, monkeypatch, attention, (params, {"x": jnp.ones((rows, length, width))}), 2.0)
    beside = mfu * 2.0 * 1e9 - products
    assert 0 < beside <= 10 * rows * heads * length**2


def test_operations_are_those_of_one_device():
    """Of a product whose rows lie on eight devices, each computes an eighth."""
    mesh = make_mesh(data=8)
    step = Compiled(jax.jit(lambda state, batch: batch["x"] @ state))
    step(jax.device_put(jnp.ones((32, 16)), replicated(mesh)), put_batch({"x": np.ones((64, 32), np.float32)}, mesh))
    assert step.flops == 2 * 64 * 32 * 16 / 8
