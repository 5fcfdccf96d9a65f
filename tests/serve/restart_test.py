"""Under load: a killed service that comes back, and a model that is replaced."""

import asyncio
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from research import train
from research.client import AsyncClient, Client
from research.inference.predictor import Predictor
from tests.serve.process import free_port, process, start, wait_until_ready

pytestmark = pytest.mark.slow

FLAGS = ("--cache_entries=0", "--log=none", "--batch_rows=4")


def _rows(count):
    return [row.tolist() for row in np.random.default_rng(0).normal(0, 0.05, (count, 10))]


def test_a_client_loses_nothing_when_the_service_is_killed_and_started_again(runs, tmp_path):
    workdirs, log, port = {"features": str(runs["features"].path)}, tmp_path / "log", free_port()
    url, rows, answered = f"http://127.0.0.1:{port}", _rows(2000), []
    first = start(workdirs, log, *FLAGS, port=port)
    second = None
    try:
        wait_until_ready(first, url, log)

        async def ask():
            async with AsyncClient(url, timeout=120, retries=10**6, concurrency=8) as client:

                async def one(row):
                    (found,) = await client.predict("features", [row])
                    answered.append(found)
                    return found.prediction

                return await asyncio.gather(*map(one, rows))

        found = []
        thread = threading.Thread(target=lambda: found.extend(asyncio.run(ask())))
        thread.start()
        while len(answered) < 200:
            assert thread.is_alive(), log.read_text()
            time.sleep(0.001)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert len(answered) < len(rows)
        second = start(workdirs, log, *FLAGS, port=port)
        thread.join(120)
        assert not thread.is_alive()
    finally:
        for each in (first, second):
            if each is not None:
                each.kill()
                each.wait()
    predictor = Predictor.open(runs["features"].path, "best")
    (column,) = predictor.signature.inputs
    expected = [record["prediction"] for record in predictor.predict({column: np.array(rows, np.float32)})]
    # A row alone and in a batch differ by rounding.
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_model_is_replaced_without_a_failed_request(runs, tmp_path):
    workdir, rows = str(tmp_path / "run"), _rows(16)
    shutil.copytree(runs["features"].path, workdir)
    seen, stopped = [], threading.Event()
    with process({"features": workdir}, tmp_path / "log", *FLAGS, "--checkpoint=last") as (_, url):

        def ask():
            with Client(url, retries=0) as client:
                while not stopped.is_set():
                    seen.append({(each.version, each.prediction) for each in client.predict("features", rows)})

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert train.main([f"--workdir={workdir}", "--extend=3"]) == 0
        deadline = time.monotonic() + 60
        while {version for version, _ in seen[-1]} != {"6"} and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        alive = [thread.is_alive() for thread in threads]  # a failed request ends one
        stopped.set()
        for thread in threads:
            thread.join()
    assert all(alive)
    versions = [{version for version, _ in answers} for answers in seen]
    assert all(len(each) == 1 for each in versions)
    assert {version for each in versions for version in each} == {"3", "6"}
    predictions = {frozenset(answers) for answers in seen}
    assert len(predictions) >= 2
