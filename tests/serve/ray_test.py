"""Replicas of Ray Serve: the same answers, whatever happens to a replica."""

import asyncio
import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from research.base.errors import UserError
from research.client import AsyncClient
from research.inference.predictor import Predictor
from research.serve import __main__ as command
from research.serve.app import DRAIN_SECONDS
from research.serve.limits import Limits
from research.serve.metrics import Metrics, Usage
from research.serve.ray_cluster import Scale
from research.serve.ray_engine import Door, _deployment, wait_until_ready
from research.serve.scrapes import merged
from research.serve.service import Service
from tests.serve.process import free_port

HAS_RAY = importlib.util.find_spec("ray") is not None
FLAGS = ("--engine=ray", "--cache_entries=0", "--log=none", "--batch_rows=4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_replicas": 0}, "--min_replicas is 0; it must be at least 1"),
        ({"min_replicas": 3, "max_replicas": 2}, "--max_replicas is 2; it must be at least 3, which --min_replicas is"),
        ({"target_requests": 0.0}, "--target_requests is 0.0; it must be above 0"),
        ({"replica_cpus": 0.0}, "--replica_cpus is 0.0; it must be above 0"),
        ({"replica_gpus": -1.0}, "--replica_gpus is -1.0; it must be at least 0"),
    ],
)
def test_invalid_scales(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Scale(**options)


def test_as_many_replicas_as_the_least_by_default():
    assert (Scale().most, Scale(min_replicas=3).most, Scale(max_replicas=4).most) == (1, 3, 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min_replicas=2"], "--min_replicas needs --engine=ray"),
        (["--engine=ray", "--rate=2", "--max_replicas=2"], "--rate is 2 and --max_replicas 2: each replica would"),
        (["--engine=ray", "--ray_address=127.0.0.1:1"], "--ray_address=127.0.0.1:1 is not the HOST:PORT of a running"),
        (["--engine=ray", "--ray_address=x"], "--ray_address=x is not the HOST:PORT of a running"),
        (["--engine=ray", "--port=0"], "--port is 0; it must be 1 to 65535"),
    ],
)
def test_flags_that_cannot_be_honoured(runs, flags, message):
    with pytest.raises(UserError, match=re.escape(message)):
        command.main([f"--workdir=features={runs['features'].path}", *flags])


def test_without_ray_the_extra_is_named(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="--engine=ray needs the extra `ray`"):
        command.main([f"--workdir=features={runs['features'].path}", "--engine=ray", f"--port={free_port()}"])


def test_the_queue_of_a_replica_is_what_bounds_its_requests():
    limits = Limits(requests=100)
    options = _deployment(limits, Scale(max_replicas=3))
    assert options["max_ongoing_requests"] > limits.requests
    assert options["backpressure_config"]["status_code"] == 429
    assert options["graceful_shutdown_timeout_s"] > DRAIN_SECONDS
    assert options["max_surge_percent"] > 0  # else the only replica ends before the next one is ready


def test_a_replica_is_ready_when_every_model_is():
    service = Service(Limits())

    async def wait(states):
        service.states = {"a": "ready", "b": "loading"}
        asyncio.get_running_loop().call_later(0.1, setattr, service, "states", states)
        await asyncio.wait_for(wait_until_ready(service), 5)

    with pytest.raises(RuntimeError, match="model a: ready; model b: UserError: no checkpoint"):
        asyncio.run(wait({"a": "ready", "b": "UserError: no checkpoint"}))
    service.models = {"a": None, "b": None}
    asyncio.run(wait({"a": "ready", "b": "ready"}))
    service.stopping = True
    with pytest.raises(RuntimeError, match="ready"):
        asyncio.run(wait({"a": "ready", "b": "ready"}))


def test_a_closed_door_refuses_requests_and_waits_for_the_others():
    answered = asyncio.Event()

    async def guard(scope, receive, send):
        await answered.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main():
        door = Door(guard)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(door)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            first = asyncio.create_task(client.get("/models"))
            await asyncio.sleep(0.05)
            drained = asyncio.create_task(door.drain())
            await asyncio.sleep(0.05)
            refused = await client.get("/models")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "stopping" in refused.json()["error"]
            assert not drained.done()
            answered.set()
            assert (await first).status_code == 200
            await asyncio.wait_for(drained, 5)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_the_metrics_of_replicas_are_one_text():
    """Prometheus's own reader gets every sample of each, and the metrics once."""
    texts = {}
    for replica in ("b", "a"):
        metrics = Metrics()
        metrics.requested('/a {"b"} c', 200, Usage(model="m"), 0.5)
        texts[replica] = metrics.text()
    names = re.findall("^# TYPE (\\S+)", merged(texts), re.MULTILINE)
    assert len(names) == len(set(names)) > 5
    assert names == re.findall("^# TYPE (\\S+)", texts["a"], re.MULTILINE)
    found = [sample for family in text_string_to_metric_families(merged(texts)) for sample in family.samples]
    for replica, text in texts.items():
        expected = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        own = [sample for sample in found if sample.labels["replica"] == replica]
        assert [(each.name, each.value) for each in own] == [(each.name, each.value) for each in expected]
        for one, other in zip(own, expected, strict=True):
            assert one.labels == {**other.labels, "replica": replica}


def _rows(count):
    return [row.tolist() for row in np.random.default_rng(0).normal(0, 0.05, (count, 10))]


def _command(workdirs, port, *flags):
    models = [f"--workdir={name}={path}" for name, path in workdirs.items()]
    return [sys.executable, "-m", "research.serve", f"--port={port}", *models, *FLAGS, *flags]


@contextlib.contextmanager
def _service(workdirs, log, port, *flags):
    """A service that is ready -> (its process, the address of its cluster)."""
    with log.open("wb") as file:
        found = subprocess.Popen(_command(workdirs, port, *flags), stderr=file, stdout=file)
    try:
        until = time.monotonic() + 120
        while not (ready := re.search(r"ready: http.*--ray_address=(\S+)", log.read_text())):
            assert found.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield found, ready[1]
    finally:
        if found.poll() is None:
            found.terminate()
            found.wait(DRAIN_SECONDS + 30)


def _replicas(parent):
    """The processes of replicas that descend from a process."""
    found, below = [], {parent}
    processes = sorted(int(path.name) for path in Path("/proc").glob("[0-9]*"))
    for pid in processes:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) in below:
                below.add(pid)
                if b"ServeReplica" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
    return found


class _Load:
    """Clients that ask for one row after the other, and retry."""

    def __init__(self, url, rows, clients=8):
        self.answers: dict[int, list] = {}
        self.failed: list[Exception] = []
        self._stopped = False
        self._url, self._rows, self._clients = url, rows, clients
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self):
        async with AsyncClient(self._url, timeout=60, retries=10**6, concurrency=self._clients) as client:
            await asyncio.gather(*(self._ask(client, number) for number in range(self._clients)))

    async def _ask(self, client, number):
        while not self._stopped:
            number = (number + self._clients) % len(self._rows)
            try:
                (found,) = await client.predict("features", [self._rows[number]])
            except Exception as error:
                self.failed.append(error)
            else:
                self.answers.setdefault(number, []).append(found.prediction)

    @property
    def count(self):
        return sum(map(len, self.answers.values()))

    def wait_for(self, more):
        until, count = time.monotonic() + 60, self.count + more
        while self.count < count and time.monotonic() < until:
            time.sleep(0.01)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped = True
        self._thread.join()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs the extra `ray`")
def test_no_request_is_lost_by_a_killed_replica_a_rolling_update_or_the_end(runs, tmp_path):
    path, port, rows = str(runs["features"].path), free_port(), _rows(200)
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    with _service({"features": path}, log, port, "--min_replicas=2") as (process, address), httpx.Client() as plain:
        old = _replicas(process.pid)
        assert len(old) == 2
        assert plain.get(f"{url}/v2/health/ready").status_code == 200
        text = plain.get(f"{url}/metrics").text
        assert len(set(re.findall(r'^research_queue_inputs{replica="(\w+)"}', text, re.MULTILINE))) == 2
        with _Load(url, rows) as load:
            load.wait_for(200)
            os.kill(old[0], signal.SIGKILL)
            load.wait_for(500)
            until = time.monotonic() + 60
            while len(_replicas(process.pid)) < 2 and time.monotonic() < until:
                time.sleep(0.2)
            load.wait_for(100)
            update = [
                *_command({"features": path, "again": path}, port),
                f"--ray_address={address}",
                "--min_replicas=2",
            ]
            assert subprocess.run(update, stderr=log.open("ab"), timeout=120).returncode == 0
            load.wait_for(200)
        assert load.failed == []
        assert {model["name"] for model in plain.get(f"{url}/models").json()} == {"features", "again"}
        assert not {*old} & {*_replicas(process.pid)}
        other = subprocess.run(
            [*_command({"features": path}, free_port()), f"--ray_address={address}"], capture_output=True, text=True
        )
        assert other.returncode == 2
        assert f"Ray Serve listens on 127.0.0.1:{port} in this cluster" in other.stderr
        statuses = _statuses_across_the_end(url, process)
    assert process.returncode == 0
    assert statuses.keys() == {200}
    predictor = Predictor.open(path, "best")
    (column,) = predictor.signature.inputs
    expected = [record["prediction"] for record in predictor.predict({column: np.array(rows, np.float32)})]
    for number, found in load.answers.items():
        # A row alone and in a batch differ by rounding.
        np.testing.assert_allclose(found, expected[number], rtol=1e-5)


def _statuses_across_the_end(url, process):
    """Of requests that were sent before a signal, and answered after it."""
    done, stopped = [], threading.Event()

    def ask(client):
        with httpx.Client(base_url=url, timeout=60) as connection:
            number = 0
            while not stopped.is_set():
                number += 1
                rows = [[client + number / 1000 + i / 1e6] * 10 for i in range(32)]
                began = time.monotonic()
                try:
                    status: object = connection.post("/models/features/predict", json={"inputs": rows}).status_code
                except httpx.TransportError as error:
                    status = repr(error)
                done.append((began, time.monotonic(), status))
                if not isinstance(status, int):
                    return

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    signalled = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(DRAIN_SECONDS + 30)
    stopped.set()
    for thread in threads:
        thread.join()
    return Counter(status for began, ended, status in done if began < signalled < ended)
