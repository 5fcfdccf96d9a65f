"""The clients: against a service over a socket, and against a server that answers what it should not."""

import asyncio
import contextlib
import datetime
import email.utils
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from research.client import AsyncClient, Client, ServiceError, requests
from research.client.errors import error_of
from research.client.retries import Retries
from research.serve.keys import Keys, new_key
from research.serve.limits import Limits
from tests.serve.conftest import TEXTS, guarded, serving

ROWS = np.linspace(-0.1, 0.1, 110).reshape(11, 10)


class _InLoop:
    """An `AsyncClient` with the methods of a `Client`."""

    def __init__(self, *args, **options):
        self._args, self._options = args, options

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __getattr__(self, name):
        def call(*args, **options):
            async def ask():
                async with AsyncClient(*self._args, **self._options) as client:
                    return await getattr(client, name)(*args, **options)

            return asyncio.run(ask())

        return call


both = pytest.mark.parametrize("make", [Client, _InLoop], ids=["sync", "async"])


@given(
    failures=st.integers(1, 10**6),
    passed=st.floats(0, 1e6),
    retry_after=st.none() | st.floats(0, 1e6),
    timeout=st.floats(0.1, 1e6),
    retries=st.integers(0, 10**6),
)
def test_waits(failures, passed, retry_after, timeout, retries):
    """Never past the end, never before the service allows it, and no more jitter than the backoff's bound."""
    policy = Retries(timeout, retries)
    wait = policy.wait(failures, passed, retry_after)
    asked = retry_after or 0.0
    bound = min(policy.longest, policy.shortest * 2.0 ** min(failures - 1, 20))
    if wait is None:
        assert failures > retries or passed + asked + bound >= timeout
    else:
        assert failures <= retries
        assert asked <= wait <= asked + bound
        assert passed + wait < timeout


def test_waits_are_spread():
    """Full jitter: uniform from nothing to the bound, which doubles."""
    for failures, bound in [(1, 0.1), (2, 0.2), (3, 0.4), (30, 10.0)]:
        waits = np.array([Retries(1e9, 100).wait(failures, 0.0) for _ in range(500)])
        assert waits.max() <= bound
        np.testing.assert_allclose(np.quantile(waits, [0.1, 0.5, 0.9]) / bound, [0.1, 0.5, 0.9], atol=0.12)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3), ("0", 0), ("", None), ("soon", None), ("-1", None), ("9" * 5000, float("inf")), ("١", None)],
)
def test_retry_after_in_seconds(value, seconds):
    response = httpx.Response(503, headers={"Retry-After": value.encode()})
    assert error_of(response).retry_after == seconds


@pytest.mark.parametrize("seconds", [-5, 0, 7])
def test_retry_after_as_a_date_is_by_the_clock_of_the_service(seconds):
    now = datetime.datetime(2020, 1, 31, 23, 59, 58, tzinfo=datetime.UTC)
    then = now + datetime.timedelta(seconds=seconds)
    headers = {"Date": email.utils.format_datetime(now, True), "Retry-After": email.utils.format_datetime(then, True)}
    assert error_of(httpx.Response(429, headers=headers)).retry_after == max(0, seconds)
    del headers["Date"]
    assert error_of(httpx.Response(429, headers=headers)).retry_after == 0  # long ago


def _response(status, value, *headers):
    body = json.dumps(value).encode()
    head = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


ABOUT = _response(200, {"limits": {"batch_inputs": 2, "body_bytes": 1000}})
RECORD = {"prediction": 1, "cached": False, "version": "3"}
GOOD = _response(200, {"predictions": [RECORD]})
BUSY = _response(429, {"error": "wait", "error_type": "Overloaded"}, "Retry-After: 0")
LOADING = _response(503, {"error": "loading", "error_type": "Unhealthy"})


@contextlib.contextmanager
def _scripted(*answers):
    """A server that gives these answers one by one, and then the last again -> (its URL, the requests)."""
    requests, left = [], list(answers)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    requests.append(_request(connection))
                    connection.sendall(left.pop(0) if len(left) > 1 else left[0])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", requests
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        assert not thread.is_alive()


def _request(connection):
    found = b""
    while b"\r\n\r\n" not in found:
        found += connection.recv(65536)
    head, body = found.split(b"\r\n\r\n", 1)
    length = next((int(line.split(b":")[1]) for line in head.lower().splitlines() if b"content-length" in line), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@both
@pytest.mark.parametrize(
    "failures",
    [
        [BUSY] * 3,
        [LOADING],
        [_response(502, "x"), _response(504, ""), _response(500, "")],
        [b""],  # closes the connection
        [b"garbage\r\n\r\n"],
        [GOOD[:-3]],  # closes the connection within the body
        [_response(200, "x" * 100, "Content-Encoding: gzip")],
    ],
    ids=["429", "503", "502 504 500", "closed", "garbage", "cut", "gzip"],
)
def test_requests_are_sent_again(make, failures):
    with _scripted(ABOUT, *failures, GOOD) as (url, sent), make(url) as client:
        assert client.predict("m", ["text"])[0].prediction == 1
        assert len(sent) == 2 + len(failures)
        assert len({request.split(b"\r\n\r\n")[1] for request in sent[1:]}) == 1


@both
@pytest.mark.parametrize("status", [307, 400, 401, 404, 408, 413, 422, 424, 501])
def test_other_errors_are_raised_at_once(make, status):
    answer = _response(status, {"error": "no", "error_type": "Validation"})
    with _scripted(answer) as (url, sent), make(url) as client, pytest.raises(ServiceError) as raised:
        client.models()
    error = raised.value
    assert (error.status, error.error_type, error.message, error.retry_after) == (status, "Validation", "no", None)
    assert len(sent) == 1


@both
@pytest.mark.parametrize(
    ("answer", "status", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<htm>", 200, "Protocol"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n<htm>", 403, "Protocol"),
        (_response(200, {"predictions": []}), 200, "Protocol"),
        (_response(200, {"predictions": [1]}), 200, "Protocol"),
        (_response(200, {"predictions": [{}]}), 200, "Protocol"),
        (_response(200, []), 200, "Protocol"),
        (_response(200, None), 200, "Protocol"),
        (_response(400, ["a"]), 400, "Protocol"),
    ],
)
def test_answers_of_something_else_are_errors(make, answer, status, kind):
    with _scripted(ABOUT, answer) as (url, _), make(url) as client, pytest.raises(ServiceError) as raised:
        client.predict("m", ["text"])
    assert (raised.value.status, raised.value.error_type) == (status, kind)


@both
def test_it_gives_up(make):
    with _scripted(BUSY) as (url, sent):
        with make(url, retries=2) as client, pytest.raises(ServiceError) as raised:
            client.models()
        assert (raised.value.status, raised.value.retry_after, len(sent)) == (429, 0.0, 3)
    began = time.monotonic()
    with make(url, timeout=0.3, retries=1000) as client, pytest.raises(ServiceError) as raised:
        client.models()  # nobody listens any more
    assert (raised.value.status, raised.value.error_type) == (None, "Connection")
    assert time.monotonic() - began < 3
    with _scripted(_response(503, {}, "Retry-After: 100")) as (url, sent), make(url) as client:
        with pytest.raises(ServiceError) as raised:
            client.models()  # the end would come before
        assert (raised.value.retry_after, len(sent)) == (100.0, 1)


@both
@pytest.mark.parametrize("scheme", ["ftp://127.0.0.1", "127.0.0.1"])
def test_a_wrong_url_is_an_error_at_once(make, scheme):
    began = time.monotonic()
    with pytest.raises(ServiceError), make(scheme) as client:
        client.models()
    assert time.monotonic() - began < 3


@both
def test_an_answer_that_drips_is_given_up(make):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                    while True:
                        connection.sendall(b" ")
                        time.sleep(0.02)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with make(url, timeout=0.3) as client, pytest.raises(ServiceError) as raised:
            client.models()
        assert raised.value.error_type == "Connection"
        thread.join(5)
        assert not thread.is_alive()


@both
def test_readiness(make):
    with make("http://127.0.0.1:1") as client:
        assert not client.ready()
        with pytest.raises(TimeoutError):
            client.wait_until_ready(timeout=0.2)
    with _scripted(_response(503, {"ready": False}), _response(200, {"ready": True})) as (url, _), make(url) as client:
        assert not client.ready()
        assert client.ready()
    with _scripted(LOADING, b"", LOADING, _response(200, {})) as (url, sent), make(url) as client:
        client.wait_until_ready(timeout=30)
        assert len(sent) == 4
    with _scripted(_response(404, {})) as (url, sent), make(url) as client, pytest.raises(ServiceError):
        client.wait_until_ready()  # another service


@both
def test_lists_are_cut_by_the_limits_of_the_service(make, models):
    limits = Limits(batch_ms=1000.0, queue_ms=1e6, batch_rows=4, batch_inputs=4, body_bytes=600)
    with serving({"features": models["features"]}, limits) as (url, _), make(url) as client:
        found = client.predict("features", ROWS)
        assert [record.version for record in found] == ["3"] * 11
        alone = [client.predict("features", [row])[0].prediction for row in ROWS]
        np.testing.assert_allclose([record.prediction for record in found], alone, rtol=1e-6)
        assert client.predict("features", []) == []


@given(sizes=st.lists(st.integers(1, 60), max_size=30), most=st.integers(1, 7), body_bytes=st.integers(40, 200))
def test_requests_hold_all_inputs_in_order(sizes, most, body_bytes):
    inputs = ["é" * size for size in sizes]
    limits = {"batch_inputs": most, "body_bytes": body_bytes}
    bodies = list(requests._bodies(inputs, limits, {"truncate": True}))
    read = [json.loads(body) for body in bodies]
    assert [value for each in read for value in each["inputs"]] == inputs
    for body, each in zip(bodies, read, strict=True):
        assert each.keys() == {"inputs", "truncate"}
        assert 1 <= len(each["inputs"]) <= most
        assert len(body) <= body_bytes or len(each["inputs"]) == 1


@both
@pytest.mark.parametrize("inputs", ["a text", b"bytes", {"a": 1}])
def test_one_input_without_a_list_is_an_error(make, inputs):
    with make("http://127.0.0.1:1") as client, pytest.raises(TypeError):
        client.predict("m", inputs)


def test_inputs_that_cannot_be_sent_are_an_error():
    with _scripted(ABOUT) as (url, _), Client(url) as client, pytest.raises(TypeError):
        client.predict("m", [object()])


@both
def test_keys(make, models, tmp_path):
    key, line = new_key("ana")
    (tmp_path / "keys").write_text(line)
    with guarded({"features": models["features"]}, keys=Keys(tmp_path / "keys")) as (url, _):
        with make(url, api_key=key) as client:
            assert [each["name"] for each in client.models()] == ["features"]
        with make(url) as client:
            assert client.ready()
            with pytest.raises(ServiceError) as raised:
                client.models()
            assert (raised.value.status, raised.value.error_type) == (401, "Unauthorized")


@both
def test_errors_of_the_service(make, served):
    with make(served) as client:
        for name, inputs, status in [("features", [[1.0]], 422), ("unknown", [[1.0]], 404), ("a/b ü", ["a"], 404)]:
            with pytest.raises(ServiceError) as raised:
                client.predict(name, inputs)
            assert raised.value.status == status
            assert raised.value.message


@both
@pytest.mark.extended
def test_every_kind_of_input(make, served_all, images, tmp_path):
    file = io.BytesIO()
    image = Image.fromarray((images[0, :, :, 0] * 15).astype(np.uint8))
    image.save(file, "PNG")
    (tmp_path / "image.png").write_bytes(file.getvalue())
    with make(served_all) as client:
        of_file, of_path, of_pillow = client.predict("image", [file.getvalue(), tmp_path / "image.png", image])
        assert of_file.scores == of_path.scores == of_pillow.scores
        assert client.predict("image", images)[1].prediction == client.predict("image", [images[1]])[0].prediction
        texts = client.predict("text", TEXTS)
        assert [text.label for text in texts] == [max(text.scores, key=text.scores.get) for text in texts]
        assert texts[0].tokens > texts[1].tokens
        assert not texts[0].truncated
        assert client.predict("text", ["film " * 100])[0].truncated
        with pytest.raises(ServiceError):
            client.predict("text", ["film " * 100], truncate=False)
        (number,) = client.predict("features", [{"features": ROWS[0]}])
        assert number.label is None
        assert number.tokens is None
        found = np.array(client.embed(TEXTS * 20))
        assert found.shape == (120, 16)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(found[:6], client.embed(TEXTS, model="text"), atol=1e-5)
        with pytest.raises(ServiceError):
            client.embed(TEXTS, model="features")


def test_requests_of_a_long_list_are_sent_at_the_same_time(models):
    limits = Limits(batch_ms=1000.0, queue_ms=1e6, batch_rows=4, batch_inputs=1)
    most = 0

    def wrap(app, service):
        async def counting(scope, receive, send):
            nonlocal most
            most = max(most, service.admission.requests)
            await app(scope, receive, send)

        return counting

    async def ask(url):
        async with AsyncClient(url, concurrency=3) as client:
            return await asyncio.gather(*(client.predict("features", ROWS + i) for i in range(4)))

    with serving({"features": models["features"]}, limits, wrap) as (url, _):
        found = asyncio.run(ask(url))
    assert [len(each) for each in found] == [11] * 4
    assert 1 <= most <= 3


def test_it_imports_neither_jax_nor_numpy():
    code = "import sys, research.client; sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'flax')))"
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
