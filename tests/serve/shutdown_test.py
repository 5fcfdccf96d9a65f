"""The end of the process: what was asked is answered."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from tests.interop import tiny_decoder
from tests.serve import process


@pytest.fixture
def server_of_features(runs, tmp_path):
    """A service of the features as a process -> (it, its URL, its log)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "research.serve", f"--workdir=features={runs['features'].path}", f"--port={port}"]
    with open(tmp_path / "log", "w+") as file:
        found = subprocess.Popen([*command, "--batch_rows=2"], stderr=file)
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 120
            while not _is_ready(url):
                assert found.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield found, url, tmp_path / "log"
        finally:
            found.kill()
            found.wait()


def _is_ready(url):
    try:
        return bool(httpx.get(f"{url}/models").json())
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_every_request_from_before_the_signal_is_answered(server_of_features):
    server, url, log = server_of_features
    stopped, lock, done = threading.Event(), threading.Lock(), []

    def ask(client):
        number = 0
        with httpx.Client(base_url=url, timeout=60) as connection:
            while not stopped.is_set():
                number += 1
                rows = [[client + number / 1000 + i / 1e6] * 10 for i in range(32)]
                began = time.monotonic()
                try:
                    status = connection.post("/models/features/predict", json={"inputs": rows}).status_code
                except httpx.TransportError as error:
                    status = repr(error)  # type: ignore[assignment]
                with lock:
                    done.append((began, time.monotonic(), status))
                if not isinstance(status, int):
                    return

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(16)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    signalled = time.monotonic()
    server.send_signal(signal.SIGTERM)
    assert server.wait(40) == 0, log.read_text()
    stopped.set()
    for thread in threads:
        thread.join()
    before = [(ended, status) for began, ended, status in done if began < signalled]
    assert sum(ended > signalled for ended, _ in before) > 1  # some were waiting
    assert {status for _, status in before} <= {200, 429}
    lines = [json.loads(line) for line in log.read_text().splitlines()]  # every line is JSON
    assert lines[-1]["message"] == "stopped"
    assert all(line["status"] in (200, 429) for line in lines if line.get("path") == "/models/{name}/predict")


@pytest.mark.slow
def test_a_stream_from_before_the_signal_comes_to_its_end(tmp_path):
    tiny_decoder.write_chat(tmp_path / "chat", max_position_embeddings=256)
    log = tmp_path / "log"
    with process.process({"chat": str(tmp_path / "chat")}, log, "--texts=1") as (server, url):
        body = {"prompt": "A", "max_tokens": 200, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert server.wait(40) == 0, log.read_text()
    said = [json.loads(line).get("message", "") for line in log.read_text().splitlines()]
    assert any(re.fullmatch("stopping: [01] requests are being answered, for at most 30 s", each) for each in said)
    assert said[-1] == "stopped"
