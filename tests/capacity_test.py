"""`python -m research.capacity`: the plan of measured times, and the command."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research import capacity as command
from research.analysis import capacity, capacity_report
from research.base.errors import UserError
from research.configs import logistic_digits
from research.serve import rehearsal
from research.serve.clients import Load
from research.serve.subject import Subject
from research.training.loop import train_and_evaluate
from tests.interop import tiny_decoder

LOADS = (0.1, 0.5, 0.8, 1.0)


def measured(*, fixed=0.010, each=0.002, workers=2, most=8, spread=0.2, seed=0, **options):
    """A model whose batches of n inputs take `fixed + each * n` seconds, more or less."""
    rng = np.random.default_rng(seed)
    sizes = np.tile(np.arange(1, most + 1), 400)
    seconds = (fixed + each * sizes) * rng.uniform(1 - spread, 1 + spread, len(sizes))
    best = workers * most / (fixed + each * most)
    found = capacity.Measured(
        workers=workers,
        capacity=most,
        choose=lambda lengths: (len(lengths), list(range(len(lengths)))),
        lengths=np.ones(10, np.int64),
        expected={n: fixed + each * n for n in range(1, most + 1)},
        kinds=sizes.tolist(),
        inputs=sizes,
        seconds=seconds,
        others=rng.integers(0, workers, len(sizes)),
        loads=np.repeat(LOADS, len(sizes) // len(LOADS)),
        entry=0.0,
        rest=0.001,
        best_rate=best,
        offered=[(0.1 * best, np.full(100, fixed + each + 0.001))],
        cores=2,
        gigabytes=0.5,
    )
    return dataclasses.replace(found, **options)


def test_one_server_without_batches_is_mg1():
    """The simulated wait of batches of one input with a constant time is Pollaczek–Khinchine's."""
    model = measured(fixed=0.008, workers=1, most=1, spread=0.0)
    wait, _ = capacity.simulated(model, 60.0)
    assert wait == pytest.approx(60 * 0.01**2 / 2 / (1 - 0.6), rel=0.12)  # as queueing_test.CLOSE


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_formula_is_near_the_simulation(share):
    """With seeds 0 to 9 of the measured times, the formula was 1.09 to 1.26 times the simulated percentile."""
    model = measured()
    _, latency = capacity.simulated(model, share * model.best_rate)
    assert 1.0 <= capacity.formula(model, share * model.best_rate) / latency <= 1.35


def test_times_are_those_of_the_load():
    slow = measured()
    seconds = np.where(slow.loads == 1.0, 10 * slow.seconds, slow.seconds)
    slow = dataclasses.replace(slow, seconds=seconds)
    draw = capacity.draws(slow, 0.1, np.random.default_rng(0))
    assert max(draw(1, 0) for _ in range(200)) < 0.015
    draw = capacity.draws(slow, 0.9, np.random.default_rng(0))
    assert np.mean([draw(1, 0) > 0.09 for _ in range(400)]) == pytest.approx(0.5, abs=0.1)
    assert capacity.neighbours(slow, 0.3) == pytest.approx((0.1, 0.5, 0.5))
    assert capacity.neighbours(slow, 0.01)[2] == 0.0
    assert capacity.neighbours(slow, 2.0)[:2] == (1.0, 1.0)


def test_a_kind_without_times_is_as_much_slower_as_the_others():
    model = measured(spread=0.0)
    model = dataclasses.replace(model, seconds=3 * model.seconds, expected={**model.expected, "new": 0.5})
    assert capacity.draws(model, 0.5, np.random.default_rng(0))("new", 0) == pytest.approx(1.5)


def test_the_curve_has_the_measured_batches():
    points = capacity.curve(measured())
    assert [point.size for point in points] == [1, 2, 4, 8]
    assert sum(len(point.seconds) for point in points) == 3200
    assert points[-1].mean == pytest.approx(6.5)
    assert points[0].seconds.mean() == pytest.approx(0.012, rel=0.02)


@pytest.fixture(scope="module")
def plan():
    return capacity.plan(measured(), 2000.0, 40.0)


def test_a_plan_has_the_fewest_replicas_that_keep_the_bound(plan):
    needed = plan.needed
    before = [row for row in plan.rows if row.replicas < needed.replicas]
    assert needed.kept
    assert needed.simulated_ms <= 40
    assert before
    assert not any(row.kept for row in before)
    assert [row.replicas for row in plan.rows] == sorted({row.replicas for row in plan.rows})
    assert before[-1].replicas == needed.replicas - 1
    for row in plan.rows:
        assert row.cores == 2 * row.replicas
        assert row.gigabytes == pytest.approx(0.5 * row.replicas)
        assert row.utilisation == pytest.approx(2000 / row.replicas / measured().best_rate)
    waits = [row.wait_ms for row in plan.rows]
    assert waits == sorted(waits, reverse=True)
    assert needed.replicas == pytest.approx(2000 / plan.sustained, rel=0.2)


@given(st.floats(0.2, 0.9), st.integers(1, 6), st.floats(0, 0.01))
@settings(max_examples=10, deadline=None)
def test_more_replicas_never_wait_longer(share, replicas, entry):
    model = measured(entry=entry if entry * 500 < 0.9 else 0.0)
    rate = share * model.best_rate * replicas
    less, more = (capacity.simulated(model, rate / n, count=3000)[0] for n in (replicas, replicas + 2))
    assert more <= less * 1.05 + 1e-4  # the requests come at other times
    assert capacity.formula(model, rate / (replicas + 2)) > 0


def test_no_load_is_planned_that_was_measured_above_the_bound():
    model = measured()
    model = dataclasses.replace(model, offered=[*model.offered, (300.0, np.full(100, 0.050))])
    assert capacity.limit(model, 40.0) == 300.0
    assert capacity.limit(model, 60.0) == model.best_rate
    plan = capacity.plan(model, 2000.0, 40.0)
    assert plan.needed.replicas == 7
    assert plan.sustained < 300
    assert not capacity.row(model, 2000.0, 40.0, 6).kept


def test_above_the_best_rate_nothing_ends():
    model = measured()
    assert capacity.simulated(model, model.best_rate) == (math.inf, math.inf)
    row = capacity.row(model, 2 * model.best_rate, 60.0, 1)
    assert (row.simulated_ms, row.kept) == (math.inf, False)


@pytest.mark.parametrize(
    ("rate", "bound", "keys"),
    [
        (0.0, 60.0, ("--rps is 0",)),
        (-3.0, 60.0, ("--rps is -3", "above 0")),
        (math.nan, 60.0, ("--rps is nan",)),
        (math.inf, 60.0, ("--rps is inf",)),
        (10.0, 0.0, ("--p99_ms is 0",)),
        (10.0, 5.0, ("--p99_ms is 5", "15.3 ms", "--p99_ms=16")),  # 1.2 * 12 ms, and 1 ms outside of the model
        (1e12, 60.0, ("--rps is 1e+12", "100,000 replicas")),
    ],
)
def test_a_load_that_is_impossible(rate, bound, keys):
    with pytest.raises(UserError) as caught:
        capacity.plan(measured(), rate, bound)
    assert all(key in str(caught.value) for key in keys), caught.value


def test_the_report_has_the_plan(plan):
    model = measured()
    report = capacity_report.Report.of("a model", model, plan)
    found = json.loads(report.json())
    assert found["needed"]["replicas"] == plan.needed.replicas
    assert [row["replicas"] for row in found["rows"]] == [row.replicas for row in plan.rows]
    assert found["checks"][0]["measured_ms"] == pytest.approx(13.0)
    assert found["sustained_rps"] == plan.sustained
    text = report.text().splitlines()
    assert text[0] == "a model"
    assert text[-1].startswith("needed for 2000 requests/s")
    assert f"{plan.needed.cores} cores" in text[-1]
    figure = capacity_report.figure(report)
    axis = figure.axes[0]
    np.testing.assert_allclose(np.array(axis.lines[2].get_xydata()), [[0.1 * model.best_rate, 13.0]])


def test_a_disturbed_measurement_is_said(plan):
    def text(latency):
        model = measured(offered=[(100.0, np.full(50, latency))])
        return capacity_report.Report.of("a model", model, plan).text()

    assert "disturbed" not in text(0.015)
    assert "disturbed" in text(0.200)


def test_infinite_times_are_null():
    model = measured()
    row = dataclasses.replace(capacity.row(model, 100.0, 60.0, 1), simulated_ms=math.inf)
    plan = capacity.Plan(100.0, 60.0, [row], row, 1.0, 1.0)
    assert json.loads(capacity_report.Report("", model, plan, [], []).json())["needed"]["simulated_ms"] is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("capacity") / "digits"
    config = logistic_digits.get_config("embedded")
    config.train.update(steps=3, epochs=None)
    train_and_evaluate(config, workdir, show=False)
    return workdir


def test_the_command_measures_and_plans(run, tmp_path):
    """In a process of its own, as it changes settings of the process."""
    flags = ["--rps=3000", "--p99_ms=2000", "--seconds=0.3", "--cores_per_replica=1", "--json"]
    flags.append(f"--plot={tmp_path}/plot.png")
    made = subprocess.run(
        [sys.executable, "-m", "research.capacity", f"--workdir={run}", *flags],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["needed"]["kept"]
    assert found["needed"]["cores"] == found["needed"]["replicas"]
    assert 0.05 < found["needed"]["gigabytes"] / found["needed"]["replicas"] < 8
    assert "32 sample inputs" in found["about"]
    assert "may be longer" in found["about"]
    assert found["best_rps"] > 10
    assert len(found["checks"]) == 3
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "requests/s at random times" in made.stderr


def test_loads_rise_until_nothing_is_gained():
    rates = iter([10.0, 20.0, 30.0, 31.0, 30.0, *[0.0] * 9])
    offered, loads = [], []
    for load in rehearsal._loads(offered, 2.0, least=2):
        loads.append(load)
        offered.append(rehearsal.Offered(load, next(rates), np.ones(1), 0))
    assert [load.at_once for load in loads if load.at_once] == [2, 4, 8, 16, 32]
    assert [load.rate for load in loads if load.rate] == pytest.approx([3.1, 15.5, 24.8])
    assert [load.seconds for load in loads if load.rate] == pytest.approx([10.0, 6.45, 4.03], abs=0.01)


def test_more_requests_at_once_than_are_answered_are_not_tried():
    offered = []
    loads = rehearsal._loads(offered, 2.0, least=2)
    offered.append(rehearsal.Offered(next(loads), 10.0, np.ones(1), refused=1))
    assert next(loads).rate == pytest.approx(1.0)


def test_a_load_that_fails_is_an_error():
    answer = rehearsal.Answer(0.0, 1.0, 500)
    with pytest.raises(UserError, match=r"0 of 2 .*status \[500\]"):
        rehearsal._offered(Load(1.0, at_once=1), [answer, answer])


def test_bodies_have_the_inputs_by_column():
    columns = {"image": [b"\xff"], "x": np.array([[1.0, 2.0]]), "name": [None]}
    (body,) = rehearsal.bodies(columns)
    assert json.loads(body) == {"inputs": [{"image": "/w==", "x": [1.0, 2.0], "name": None}]}


def open_subject(workdir, texts=None, cores=None, replicas=None):
    return Subject.open(
        str(workdir), texts=texts, cores=cores, replicas=replicas, checkpoint="best", compute="float32", say=print
    )


def refused(*arguments, **options):
    with pytest.raises(UserError) as caught:
        open_subject(*arguments, **options)
    return str(caught.value)


def test_what_can_not_be_measured(run, tmp_path):
    texts = tmp_path / "texts"
    assert "not a run directory" in refused(tmp_path / "none")
    assert "--replicas is 0" in refused(run, replicas=0)
    for cores in (0, 10_000):
        assert f"--cores_per_replica is {cores}" in refused(run, cores=cores)
    assert f"--texts={texts} can't be read" in refused(run, texts=str(texts))
    texts.write_text("\n \n")
    assert f"--texts={texts} has no texts" in refused(run, texts=str(texts))


def test_a_decoder_is_not_measured(tmp_path):
    tiny_decoder.write(tmp_path / "gpt", "llama")
    message = refused(tmp_path / "gpt")
    assert "decoder" in message
    assert str(tmp_path / "gpt") in message


def test_texts_are_for_models_of_texts(run, tmp_path, monkeypatch):
    monkeypatch.setattr("research.serve.subject.prepare_service", lambda: None)
    texts = tmp_path / "texts"
    texts.write_text("a film\n")
    assert f"--texts={texts}" in refused(run, texts=str(texts))
    samples = run / "assets" / "samples.json"
    saved = samples.read_bytes()
    samples.unlink()
    try:
        assert "sample" in refused(run)
    finally:
        samples.write_bytes(saved)


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--p99_ms=10"], "--rps is missing"),
        (["--rps=0", "--p99_ms=10"], "--rps is 0"),
        (["--rps=1", "--p99_ms=-1"], "--p99_ms is -1"),
        (["--rps=1", "--p99_ms=10", "--seconds=0"], "--seconds is 0"),
        (["--rps=1", "--p99_ms=10", "--plot=x.pdf"], "--plot=x.pdf"),
        (["--rps=1", "--p99_ms=10", "--plot=no/such/x.png"], "no/such"),
        (["--rps=1", "--p99_ms=10"], "none is not a run directory"),
    ],
)
def test_flags_are_checked_first(flags, key):
    with pytest.raises(UserError) as caught:
        command.main(["--workdir=none", *flags])
    assert key in str(caught.value)
