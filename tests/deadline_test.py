"""The time limit, with a clock that the tests set."""

import functools
import json

import pytest

from research.training import loop
from research.training.deadline import EVALUATION_SHARE, MARGIN, Deadline
from research.training.experiment import Experiment
from research.training.loop import train_and_evaluate
from tests import tiny


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def _deadline(clock, minutes=10.0, **rows):
    return Deadline(minutes, rows or {"validation": 100}, batch_rows=10, clock=clock)


def _steps(deadline, clock, count, seconds=1.0):
    for _ in range(count):
        clock.now += seconds
        deadline.step(0.0)


def _until_reached(deadline, clock, **options):
    """The time at which training stops."""
    while not deadline.reached(**options):
        _steps(deadline, clock, 1)
    return clock.now


def test_the_end_is_estimated_from_steps_and_then_from_evaluations():
    clock = Clock()
    deadline = _deadline(clock, validation=100, test=300)
    clock.now += 30  # compiling
    _steps(deadline, clock, 5)
    assert deadline.end_seconds == pytest.approx(MARGIN * EVALUATION_SHARE * 400 / 10)
    with deadline.evaluating("validation"):
        clock.now += 50  # also compiling: no more than training steps is believed
    assert deadline.end_seconds == pytest.approx(MARGIN * 400 / 10)
    with deadline.evaluating("validation"):
        clock.now += 20
    assert deadline.end_seconds == pytest.approx(MARGIN * 400 * 0.2)
    with deadline.saving():
        clock.now += 3
    assert deadline.end_seconds == pytest.approx(MARGIN * (400 * 0.2 + 3))


def test_training_stops_where_the_end_still_fits():
    clock = Clock()
    deadline = _deadline(clock, minutes=2, validation=200)
    _steps(deadline, clock, 3)
    with deadline.evaluating("validation"):
        clock.now += 15
    with deadline.evaluating("validation"):
        clock.now += 15
    assert _until_reached(deadline, clock) + MARGIN * 15 == pytest.approx(120, abs=1.01)
    assert deadline.late_seconds < 0
    assert deadline.notice() is None


def test_an_evaluation_that_is_due_leaves_time_for_the_one_at_the_end():
    clock = Clock()
    deadline = _deadline(clock, minutes=2, validation=200)
    _steps(deadline, clock, 3)
    for _ in range(2):
        with deadline.evaluating("validation"):
            clock.now += 15
    assert _until_reached(deadline, clock, evaluates="validation") + (1 + MARGIN) * 15 == pytest.approx(120, abs=1.01)


def test_half_of_the_limit_is_for_training_and_a_line_says_what_comes_on_top():
    clock = Clock()
    deadline = _deadline(clock, minutes=2, validation=4000)
    _steps(deadline, clock, 5)
    end = MARGIN * EVALUATION_SHARE * 400
    notice = deadline.notice()
    assert "validation (4,000 rows)" in notice
    assert f"{end / 60:.1f} min" in notice
    assert f"{(end - 60) / 60:.1f} min late" in notice
    assert deadline.notice() is None  # once
    assert _until_reached(deadline, clock) == pytest.approx(60, abs=1.01)
    assert deadline.late_seconds == pytest.approx(end - 60, abs=1.01)


def test_without_a_limit_nothing_stops_or_waits():
    clock = Clock()
    deadline = _deadline(clock, minutes=None)
    _steps(deadline, clock, 100, seconds=1e6)
    assert not deadline.reached()
    assert deadline.notice() is None
    assert not deadline._steps


@pytest.fixture
def slow(monkeypatch):
    """A clock on which a step takes 10 seconds, and an evaluation half as long per row; nothing else takes time."""
    clock, step, prepare = Clock(), Deadline.step, loop.prepare

    def slow_step(self, scores):
        clock.now += 10
        step(self, scores)

    class SlowExperiment(Experiment):
        def evaluate(self, state, split, **options):
            clock.now += 5 * len(self.streams(split).rows) / self.length.batch_rows
            return super().evaluate(state, split, **options)

    monkeypatch.setattr(loop, "Deadline", functools.partial(Deadline, clock=clock))
    monkeypatch.setattr(Deadline, "step", slow_step)
    monkeypatch.setattr(loop, "prepare", lambda *args: SlowExperiment(**vars(prepare(*args))))
    return clock


def _evaluations(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] != "train"]


@pytest.mark.parametrize("every", [pytest.param(0, marks=pytest.mark.extended), 3])
def test_run_keeps_its_limit_and_resumes_exactly(every, slow, tmp_path):
    def run(name, **settings):
        config = tiny.logistic(steps=40, **settings)
        config.eval.every_steps = every
        return train_and_evaluate(config, tmp_path / name, show=False)

    first = run("limited", max_minutes=8.0)
    assert (first["status"], first["reason_code"]) == ("stopped_early", "out_of_time")
    assert first["step"] > 1
    assert 390 < slow.now <= 480
    assert first["metrics"]["validation"]["accuracy"] is not None
    last, whole = run("limited"), run("whole")
    assert [last[key] for key in ("params_sha256", "best", "metrics")] == [
        whole[key] for key in ("params_sha256", "best", "metrics")
    ]
    assert _evaluations(tmp_path / "limited") == _evaluations(tmp_path / "whole")
