"""The service without HTTP: batching, cache, cancelling, overload."""

import asyncio
import itertools
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from research.inference.predictor import Predictor
from research.inference.samples import read_samples
from research.runs.rundir import RunDir
from research.serve import shapes
from research.serve.errors import Kind, ServiceError
from research.serve.limits import Limits
from research.serve.model import Answer, ServedModel
from research.serve.observer import Observer
from research.serve.programs import Programs
from research.serve.repository import Source, check
from research.serve.service import Service
from tests.serve.conftest import LIMITS, TEXTS, answer_all


class _Held:
    """A model that waits for `release` before each batch, and counts them."""

    def __init__(self, model):
        self._model = model
        self.release = threading.Event()
        self.batches = []
        self.fails = set()

    def __getattr__(self, name):
        return getattr(self._model, name)

    def answer(self, parts, device=0, chosen=None):
        assert self.release.wait(30)
        self.batches.append(len(parts))
        if self.fails & {part.digest for part in parts}:
            raise RuntimeError("as asked")
        return self._model.answer(parts, device, chosen)


@pytest.fixture
def held(models):
    return _Held(models["features"])


def _inputs(model):
    (name,) = model.signature.inputs
    return lambda number: {name: [[number / 100] * 10]}


def test_waiting_inputs_are_batched_and_equal_ones_are_computed_once(held, in_loop):
    row = _inputs(held)

    async def run(service):
        first = asyncio.ensure_future(service.answer(held, row(0)))
        await asyncio.sleep(0.05)  # the device has the first one
        others = [asyncio.ensure_future(service.answer(held, row(i))) for i in (1, 2, 2, 3)]
        await asyncio.sleep(0.05)
        assert service.waiting == 3
        held.release.set()
        return [result[0].answer.values["prediction"] for result in await asyncio.gather(first, *others)]

    found = in_loop({"m": held}, run)
    assert held.batches == [1, 3]
    assert found[2] == found[3] != found[1]


def test_the_answers_come_back_to_their_inputs(models, in_loop, rng):
    model = models["features"]
    (name,) = model.signature.inputs
    rows = rng.normal(0, 0.05, (40, 10))
    alone = [model.answer(model.encode({name: [row]}))[0][0].values["prediction"] for row in rows]

    async def run(service):
        async def ask(start, stop):
            await asyncio.sleep(rng.random() / 100)
            return await service.answer(model, {name: rows[start:stop].tolist()})

        cuts = sorted({0, 40, *rng.integers(1, 40, 9).tolist()})
        found = await asyncio.gather(*(ask(*cut) for cut in itertools.pairwise(cuts)))
        return [result.answer.values["prediction"] for part in found for result in part]

    np.testing.assert_allclose(in_loop({"m": model}, run), alone, rtol=1e-5)


def test_a_cancelled_request_is_not_computed(held, in_loop):
    row = _inputs(held)

    async def run(service):
        first = asyncio.ensure_future(service.answer(held, row(0)))
        await asyncio.sleep(0.05)
        second, both = (asyncio.ensure_future(service.answer(held, row(1))) for _ in range(2))
        third = asyncio.ensure_future(service.answer(held, row(2)))
        await asyncio.sleep(0.05)
        second.cancel()  # another request waits for the same input
        third.cancel()
        await asyncio.sleep(0.05)
        held.release.set()
        await asyncio.gather(first, both)
        assert await service.answer(held, row(2))  # and later it can be asked for again

    in_loop({"m": held}, run)
    assert held.batches == [1, 1, 1]


def test_one_input_that_fails_does_not_fail_the_others(held, in_loop):
    row = _inputs(held)
    held.fails = {held.encode(row(2))[0].digest}

    async def run(service):
        tasks = [asyncio.ensure_future(service.answer(held, row(i))) for i in range(4)]
        held.release.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = in_loop({"m": held}, run)
    assert [isinstance(result, list) for result in found] == [True, True, False, True]
    assert found[2].kind is Kind.FAILED


def test_an_overloaded_service_refuses_and_recovers(held, in_loop):
    row = _inputs(held)

    async def run(service):
        tasks = [asyncio.ensure_future(service.answer(held, row(0)))]
        await asyncio.sleep(0.05)  # the device has the first one
        tasks += [asyncio.ensure_future(service.answer(held, row(i))) for i in range(1, 8)]
        while service.waiting < 4 or sum(task.done() for task in tasks) < 3:
            await asyncio.sleep(0.01)
        with pytest.raises(ServiceError) as refused:
            await service.answer(held, row(9))
        assert refused.value.kind is Kind.OVERLOADED
        held.release.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert await service.answer(held, row(9))
        return [getattr(result, "kind", None) for result in done]

    kinds = in_loop({"m": held}, run, Limits(queue_inputs=4, queue_ms=1e6))
    # Which ones are refused depends on the threads that encode them.
    assert (kinds[0], kinds.count(None), kinds.count(Kind.OVERLOADED)) == (None, 5, 3)


def test_a_request_that_takes_too_long_is_given_up(held, in_loop):
    async def run(service):
        with pytest.raises(ServiceError) as refused:
            await service.answer(held, _inputs(held)(0))
        held.release.set()
        return refused.value.kind

    assert in_loop({"m": held}, run, Limits(timeout_ms=50)) is Kind.OVERLOADED


def test_the_cache_is_bounded_and_can_be_off(models, in_loop):
    model = models["features"]
    row = _inputs(model)

    async def run(service):
        cached = [(await service.answer(model, row(i)))[0].cached for i in (0, 1, 0, 2, 3, 1)]
        return cached, len(service.answers.cache)

    assert in_loop({"m": model}, run, Limits(cache_entries=2)) == ([False, False, True, False, False, False], 2)
    assert in_loop({"m": model}, run, Limits(cache_entries=0)) == ([False] * 6, 0)


@pytest.mark.extended
def test_packed_texts_get_the_predictions_of_the_run(models, runs, in_loop, rng):
    """Whatever shares a batch: 200 texts of random lengths, in random requests."""
    words = " ".join(TEXTS).split()
    texts = [" ".join(rng.choice(words, rng.integers(1, 40))) for _ in range(200)]
    model = models["text"]

    async def run(service):
        async def ask(text):
            await asyncio.sleep(rng.random() / 10)
            return (await service.answer(model, {"sentence": [text]}))[0]

        return await asyncio.gather(*map(ask, texts))

    found = in_loop({"m": model}, run)
    expected = Predictor.open(runs["text"].path).predict({"sentence": texts})
    assert [result.answer.values["prediction"] for result in found] == [record["prediction"] for record in expected]
    scores = [result.answer.values["scores"] for result in found]
    np.testing.assert_allclose(scores, [record["scores"] for record in expected], atol=1e-5)


def test_a_model_is_checked_by_the_samples_of_its_run(models, runs, monkeypatch):
    model, run = models["features"], runs["features"]
    check(model, run)
    (answer, *_), _ = model.answer(model.encode(model.samples.columns))
    wrong = {name: value + 1e3 for name, value in answer.values.items()}
    monkeypatch.setattr(ServedModel, "answer", lambda self, parts, device=0: ([Answer(wrong, "3")] * len(parts), None))
    with pytest.raises(ValueError, match="sample input 0"):
        check(model, run)


def test_predictions_at_another_step_are_added_to_the_samples(models, runs, tmp_path):
    """As for a best checkpoint, which a run has no predictions for."""
    shutil.copytree(runs["features"].path, tmp_path / "run")
    run = RunDir.open(tmp_path / "run")
    saved = run.samples()
    (records,) = saved["predictions"].values()
    RunDir(run.path).write_samples({**saved, "predictions": {}})
    model = ServedModel("features", models["features"]._model, version="3", samples=read_samples(run))
    for _ in model.warm_up(LIMITS):
        pass
    check(model, run)
    (added,) = read_samples(run).predictions.values()
    np.testing.assert_allclose(
        [record["prediction"] for record in added], [record["prediction"] for record in records], rtol=1e-5
    )


@pytest.mark.extended
def test_fewer_shapes_are_compiled_on_an_accelerator_all_at_once(monkeypatch, runs, models):
    exact = models["text"]  # on the CPU
    monkeypatch.setattr(Programs, "on_cpu", False)
    threads = set()
    compile = Programs._compile
    monkeypatch.setattr(Programs, "_compile", lambda *args: [threads.add(threading.get_ident()), compile(*args)])
    model = ServedModel.open("text", runs["text"], compute="bfloat16", devices=jax.local_devices()[:2])
    found = [shape for shape, _ in model.warm_up(LIMITS)]
    assert set(found) == set(shapes.packed(model.row_length, LIMITS.batch_items, fine=False))
    assert len(found) < len(exact.programs.seconds)
    assert len(threads) > 1
    assert threading.get_ident() not in threads
    parts = model.encode({"sentence": TEXTS})
    expected = [answer.values["scores"] for answer in answer_all(exact, parts)[0]]
    for device in (0, 1):
        answer = model.answer(parts[:1], device)[0][0]
        np.testing.assert_allclose(answer.values["scores"], expected[0], atol=0.01)  # of bfloat16: 0.001 off


def test_a_replaced_model_answers_later_requests(models, in_loop):
    old = models["features"]
    new = ServedModel("features", old._model, version="3", samples=old.samples)
    for _ in new.warm_up(LIMITS):
        pass
    new.version = "4"

    async def run(service):
        before = await service.answer(service.model(), _inputs(old)(0))
        service.install(new)
        await asyncio.sleep(0.01)
        after = await service.answer(service.model("features"), _inputs(old)(0))
        return before[0], after[0]

    before, after = in_loop({"features": old}, run)
    assert (before.answer.version, after.answer.version, after.cached) == ("3", "4", False)


def test_sources_are_named_after_their_folders(runs):
    path = runs["features"].path
    assert Source.of(str(path), checkpoint="best", compute="float32").name == path.name
    assert Source.of(f"mine={path}", checkpoint="best", compute="float32").name == "mine"
    with pytest.raises(ValueError, match="not a run directory"):
        Source.of("mine=/nowhere", checkpoint="best", compute="float32")


def test_an_observer_is_told_of_batches_and_requests(models):
    model, told = models["features"], []

    class Told(Observer):
        def computed(self, jobs, shape):
            told.append(("computed", len(jobs), shape.items))

        def answered(self, name, parts, jobs, encoding):
            assert all(job.queued <= job.started <= job.ended for job in jobs)
            assert encoding > 0
            told.append((name, len(parts), len(jobs)))

    async def run():
        service = Service(LIMITS, observer=Told())
        service.start()
        (column,) = model.signature.inputs
        for _ in range(2):
            await service.answer(model, {column: [[0.5] * 10, [0.6] * 10, [0.7] * 10]})
        await service.stop(30)

    asyncio.run(run())
    assert told == [("computed", 3, 4), ("features", 3, 3), ("features", 3, 0)]


def test_requests_are_shed_only_when_the_loop_is_late_and_the_queue_is_full(held, in_loop):
    row = _inputs(held)

    async def run(service):
        time.sleep(0.1)  # late, but there is room
        assert service.admission.shed() is None
        asked = [asyncio.ensure_future(service.answer(held, row(0)))]
        await asyncio.sleep(0.05)  # the device has it
        asked += [asyncio.ensure_future(service.answer(held, row(i))) for i in range(1, 5)]
        await asyncio.sleep(0.05)
        assert service.admission.shed() is None  # there is no room, but it is not late
        time.sleep(0.1)
        assert service.admission.shed().kind is Kind.OVERLOADED
        held.release.set()
        await asyncio.gather(*asked)

    in_loop({"m": held}, run, Limits(queue_inputs=4))
