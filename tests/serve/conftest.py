"""A service of tiny models of every family, over HTTP."""

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest
import uvicorn

from research.configs import linear_diabetes
from research.runs.rundir import RunDir
from research.serve import shapes
from research.serve.app import make_app
from research.serve.connection import Connection
from research.serve.guard import Guard
from research.serve.limits import Limits
from research.serve.metrics import Metrics
from research.serve.model import ServedModel
from research.serve.operations import OPERATIONS
from research.serve.service import Service
from research.serve.writer import Writer
from research.training.loop import train_and_evaluate
from tests import tiny

# Few batch shapes, as each is compiled.
LIMITS = Limits(batch_ms=1000.0, queue_ms=1e6, batch_items=150, batch_rows=4)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

TEXTS = ["a gripping, moving film", "dull", "not a bad film but a long one", "the script is great", "awful", "so good"]


def _linear():
    config = linear_diabetes.get_config()
    config.train.update(steps=3, epochs=None)
    return config


CONFIGS = {
    "text": lambda: tiny.bert(steps=3),
    "image": lambda: tiny.resnet(steps=3),
    "features": _linear,
}


class _Made(dict):
    """Values that are made when they are first asked for."""

    def __init__(self, make):
        super().__init__()
        self._make = make

    def __missing__(self, name):
        self[name] = self._make(name)
        return self[name]


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Finished runs by name: see CONFIGS."""
    folder = tmp_path_factory.mktemp("served")

    def train(name):
        with pytest.MonkeyPatch.context() as patch:
            tiny.few_sentences(patch)
            train_and_evaluate(CONFIGS[name](), folder / name, show=False)
        return RunDir.open(folder / name)

    return _Made(train)


@pytest.fixture(scope="session")
def models(runs):
    """The runs' models by name, compiled."""

    def compile(name):
        model = ServedModel.open(name, runs[name], operations=tuple(OPERATIONS))
        for _ in model.warm_up(LIMITS):
            pass
        return steady(model)

    return _Made(compile)


def steady(model):
    """The model with times of batches that grow with their items: what is chosen must not depend on the machine."""
    for each in (model, *model.others.values()):
        programs = each.programs
        programs.seconds = {shape: 0.001 * (10 + shape.items) for shape in programs.seconds}
        programs.capacity = shapes.capacity(programs.seconds, LIMITS.batch_ms)
    return model


def answer_all(model, parts):
    """The answers for all parts, in as many batches as it takes -> (them, the rows of the batches)."""
    answers, rows = [None] * len(parts), 0
    while waiting := [i for i, answer in enumerate(answers) if answer is None]:
        found, shape = model.answer([parts[i] for i in waiting])
        rows += shape.rows
        for i, answer in zip(waiting, found, strict=True):
            answers[i] = answer
    return answers, rows


@contextlib.contextmanager
def serving(models, limits=LIMITS, wrap=lambda app, _: app, **options):
    """A service of the models, listening on a free port -> (its URL, the service)."""
    service = Service(limits, observer=options.get("metrics"), splits=options.pop("splits", None))
    app = wrap(make_app(service, **options), service)
    service.models.update(models)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    http: Any = functools.partial(Connection, shed=app.shed) if isinstance(app, Guard) else Connection
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, http=http, log_level="warning", loop="asyncio"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", service
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def guarded(models, limits=LIMITS, **options):
    """A service behind a guard with the options, and with metrics -> (its URL, the service)."""
    metrics = Metrics()

    def wrap(app, service):
        metrics.service = service
        return Guard(app, service, metrics, **options)

    with serving(models, limits, wrap, metrics=metrics) as found:
        yield found


# Few sizes of batches, as each is compiled.
TEXT_LIMITS = Limits(texts=2, queue_texts=2, text_tokens=32)


@contextlib.contextmanager
def writing(generators, limits=TEXT_LIMITS, models=None, **options):
    """A guarded service of decoders, and of the models, both by name -> (its URL, the service)."""
    with guarded(models or {}, limits, **options) as (url, service):
        service.states = dict.fromkeys(generators, "ready")
        for name, generator in generators.items():
            writer = Writer(name, generator, limits)
            for _ in writer.warm_up():
                pass
            writer.start()
            service.install(writer)
        eventually(lambda: service.writers.keys() == generators.keys(), 10)
        yield url, service


@pytest.fixture(scope="module")
def written(generator):
    """A service of a decoder -> (its URL, the service)."""
    with writing({"llama": generator}) as found:
        yield found


def slowly(monkeypatch, writer, seconds=0.02):
    """Makes each step of a writer take longer."""
    step = writer._continuations.step
    monkeypatch.setattr(writer._continuations, "step", lambda: [time.sleep(seconds), step()][1])


def eventually(true, seconds=5.0):
    """Waits until `true()`."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(scope="session")
def served(models):
    """The URL of a service of the model that compiles fastest."""
    with serving({"features": models["features"]}) as (url, _):
        yield url


@pytest.fixture(scope="session")
def served_all(models):
    """The URL of a service of all models; the first one is the classifier of texts."""
    with serving({name: models[name] for name in CONFIGS}) as (url, _):
        yield url


@pytest.fixture
def in_loop():
    """Runs a function of a started service in an event loop: `in_loop(models, function, limits)`."""

    def run(models, function, limits=LIMITS):
        async def main():
            service = Service(limits)
            service.models.update(models)
            service.start()
            try:
                return await function(service)
            finally:
                await service.stop(30)

        return asyncio.run(main())

    return run


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 17, (3, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        # A container's root has no sandbox.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = started.chromium.launch(executable_path=path, args=arguments)
        yield found
        found.close()
