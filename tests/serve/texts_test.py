# mypy: disable-error-code="arg-type"
"""Requests for texts that end otherwise than well: overload, time limits, clients that go or do not read, the end."""

import asyncio
import contextlib
import dataclasses
import json
import re
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest

from research.serve import connection, texts
from research.serve.errors import Kind, ServiceError
from tests.serve.conftest import TEXT_LIMITS, eventually, slowly, writing

STREAM = {"prompt": "A", "max_tokens": 25, "stream": True}


@pytest.fixture(scope="module")
def hurried(generator):
    """A service with little time for texts, and short prompts."""
    limits = dataclasses.replace(TEXT_LIMITS, timeout_ms=200.0, text_ms=400.0, text_chars=1000)
    with writing({"llama": generator}, limits) as found:
        yield found


def _idle(writer):
    return not writer.active and not writer.waiting


def _events(text):
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_a_stream_that_is_closed_frees_its_row(written, monkeypatch):
    url, service = written
    writer = service.writers["llama"]
    slowly(monkeypatch, writer, 0.2)  # the whole text would take 5 s
    with httpx.stream("POST", f"{url}/v1/completions", json=STREAM) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert writer.active == service.admission.requests == 1
    eventually(lambda: _idle(writer) and not service.admission.requests, 2)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_refused_stream_has_the_status(written, monkeypatch, path):
    url, service = written
    body = {**STREAM, "messages": [{"role": "user", "content": "A"}]}
    monkeypatch.setattr(service.writers["llama"], "_most", 0)
    reply = httpx.post(f"{url}/v1/{path}", json=body)
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "1")
    assert reply.json()["error"]["type"] == "Overloaded"
    monkeypatch.setattr(service.admission, "_most", 0)
    assert httpx.post(f"{url}/v1/{path}", json=body).status_code == 429


def test_a_model_that_fails_ends_the_texts_and_not_the_service(written, monkeypatch):
    url, service = written
    writer = service.writers["llama"]
    with monkeypatch.context() as patch:
        patch.setattr(writer._continuations, "_forward", None)
        for stream in (False, True):
            reply = httpx.post(f"{url}/v1/completions", json={"prompt": "A", "stream": stream})
            assert reply.status_code == 424
    forward, calls = writer._continuations._forward, []

    def later(*arguments):
        calls.append(1)
        return forward(*arguments) if len(calls) < 4 else None

    with monkeypatch.context() as patch:
        patch.setattr(writer._continuations, "_forward", later)
        reply = httpx.post(f"{url}/v1/completions", json=STREAM)
    *pieces, last = _events(reply.text)
    assert reply.status_code == 200
    assert len(pieces) == 3
    assert last["error"]["code"] == 424
    assert "[DONE]" not in reply.text
    assert _idle(writer)
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "A"}).status_code == 200


def test_time_limits(hurried, monkeypatch):
    url, service = hurried
    writer = service.writers["llama"]
    slowly(monkeypatch, writer, 0.03)
    body = {**STREAM, "n": 2}
    for stream in (False, True):
        reply = httpx.post(f"{url}/v1/completions", json={**body, "stream": stream})
        assert reply.status_code == (200 if stream else 429)
        assert "all tokens took longer than 0.4 s" in reply.text
    assert 10 < len(_events(reply.text)) < 50
    slowly(monkeypatch, writer, 0.3)
    for stream in (False, True):
        reply = httpx.post(f"{url}/v1/completions", json={**body, "stream": stream})
        assert reply.status_code == 429
        assert "the first token took longer than 0.2 s" in reply.text
        assert reply.headers["Retry-After"] == "1"
    eventually(lambda: _idle(writer))


def test_long_prompts_are_not_encoded(hurried, monkeypatch):
    url, service = hurried
    monkeypatch.setattr(type(service.writers["llama"].generator), "encode", None)
    monkeypatch.setattr(type(service.writers["llama"].generator), "chat", None)
    parts = [{"role": "user", "content": "x" * 600}, {"role": "user", "content": "x" * 600}]
    for path, body in [("completions", {"prompt": "x" * 1001}), ("chat/completions", {"messages": parts})]:
        reply = httpx.post(f"{url}/v1/{path}", json=body)
        assert reply.status_code == 422
        assert "at most 1000" in reply.json()["error"]["message"]


def test_inputs_that_wait_for_a_device_hold_up_no_text(written, monkeypatch):
    url, service = written
    full = ServiceError(Kind.OVERLOADED, "full")
    monkeypatch.setattr(service.answers.engine.queue, "refusal", lambda count: full)
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "A"}).status_code == 200


def test_every_text_counts_for_the_rate(generator):
    with writing({"llama": generator}, rate=1.0) as (url, _):
        body = {"prompt": "A", "max_tokens": 1, "n": 4}  # of two at once
        first, second = (httpx.post(f"{url}/v1/completions", json=body) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 429)
    assert 1 < int(second.headers["Retry-After"]) <= 3


def test_the_event_loop_is_free_while_a_prompt_is_encoded(written, monkeypatch):
    url, service = written
    generator = type(service.writers["llama"].generator)
    encode = generator.encode
    monkeypatch.setattr(generator, "encode", lambda self, text: [time.sleep(0.5), encode(self, text)][1])

    async def both():
        async with httpx.AsyncClient(base_url=url) as client:
            slow = asyncio.ensure_future(client.post("/v1/completions", json={"prompt": "A"}))
            await asyncio.sleep(0.1)
            began = time.perf_counter()
            await client.get("/v1/models")
            took = time.perf_counter() - began
            return took, (await slow).status_code

    took, status = asyncio.run(both())
    assert took < 0.3
    assert status == 200


def _connect(url, body, path="completions"):
    """Asks, and reads nothing."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.connect((urlsplit(url).hostname, urlsplit(url).port))
    data = json.dumps(body).encode()
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    found.sendall(head.encode() + data)
    return found


def _read(connection):
    """Reads until the service closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(100_000):
            found += part
    return found


def _full_at_once(monkeypatch):
    """Makes the buffers of the service's connections small."""
    made = connection.Connection.connection_made

    def small(self, transport):
        made(self, transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        transport.set_write_buffer_limits(1000)

    monkeypatch.setattr(connection.Connection, "connection_made", small)


@contextlib.contextmanager
def _unread(written, monkeypatch):
    """A stream that fills the buffers, whose texts are no longer written -> its connection."""
    url, service = written
    writer = service.writers["llama"]
    _full_at_once(monkeypatch)
    slowly(monkeypatch, writer, 0.01)
    with _connect(url, {**STREAM, "n": 2, "max_tokens": 31, "logprobs": 20}) as found:
        eventually(lambda: writer.active == 2)
        eventually(lambda: not writer.active)
        yield found


def test_a_client_that_does_not_read_is_dropped(written, monkeypatch):
    """Its connection is closed, and not only when what it was sent before is taken."""
    monkeypatch.setattr(connection, "UNTAKEN_SECONDS", 0.3)
    with _unread(written, monkeypatch) as found:
        eventually(lambda: not written[1].admission.requests)
        assert not _read(found).endswith(b"0\r\n\r\n")


def test_a_client_that_reads_late_is_told_what_it_missed(written, monkeypatch):
    monkeypatch.setattr(texts, "_MOST_UNREAD", 5)
    with _unread(written, monkeypatch) as found:
        said = b""
        found.settimeout(5)
        while not said.endswith(b"0\r\n\r\n"):
            said += found.recv(100_000)
    assert b"5 tokens of it were not read" in said


def test_a_slow_client_is_not_dropped(written, monkeypatch):
    """It takes enough in the time that it has."""
    url, _ = written
    _full_at_once(monkeypatch)
    monkeypatch.setattr(connection, "UNTAKEN_SECONDS", 0.2)
    monkeypatch.setattr(connection, "TAKEN_BYTES", 1)
    body = {"messages": [{"role": "user", "content": "A"}], "n": 2, "logprobs": True, "top_logprobs": 20}
    with _connect(url, body, "chat/completions") as found:
        found.settimeout(5)
        said = b""
        while not (head := re.search(rb"content-length: (\d+)\r\n.*?\r\n\r\n", said, re.DOTALL)):
            said += found.recv(1000)
        while len(said) < head.end() + int(head[1]):
            time.sleep(0.02)
            part = found.recv(2000)
            assert part
            said += part
    assert len(json.loads(said[head.end() :])["choices"]) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_at_the_end_a_text_that_takes_too_long_is_given_up(generator, monkeypatch, stream):
    """As uvicorn does, the tasks are cancelled when their time is over."""
    with writing({"llama": generator}) as (url, service):
        writer = service.writers["llama"]
        slowly(monkeypatch, writer, 0.1)
        found = []
        body = {**STREAM, "stream": stream}
        asking = threading.Thread(target=lambda: found.append(httpx.post(f"{url}/v1/completions", json=body)))
        asking.start()
        eventually(lambda: writer.active)
        time.sleep(0.3)

        def cancel():
            service.stopping = True
            for task in asyncio.all_tasks(service._loop):
                if "run_asgi" in repr(task):
                    task.cancel()

        service._loop.call_soon_threadsafe(cancel)
        asking.join(5)
        eventually(lambda: _idle(writer))
    (reply,) = found
    assert reply.status_code == (200 if stream else 503)
    assert "the service is stopping" in reply.text
