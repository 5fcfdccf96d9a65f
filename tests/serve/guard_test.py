"""Keys, rates, slow and large bodies, request ids, logs, and the end of the process."""

import asyncio
import contextlib
import io
import json
import logging
import re
import select
import socket
import threading
import time
import types
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import ValidationError

from research.base.errors import UserError
from research.serve import connection, logs, oip, rates, tei_schema
from research.serve.errors import Kind, ServiceError
from research.serve.guard import OPEN_PATHS
from research.serve.keys import Keys, new_key
from research.serve.limits import Limits
from research.serve.rates import Rates
from research.serve.server import Access
from tests.serve.conftest import guarded

PATH = "/models/features/predict"
ROW = {"inputs": [[0.01] * 10]}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Keys by the client's name, and their file."""
    found = {name: new_key(name) for name in ("ana", "bob")}
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("\n".join(line for _, line in found.values()))
    return {name: key for name, (key, _) in found.items()}, path


@pytest.fixture(scope="module")
def locked(models, keys):
    with guarded({"features": models["features"]}, keys=Keys(keys[1])) as (url, _):
        yield url


@pytest.fixture(scope="module")
def opened(models):
    """A service without keys that gives bodies little time, and allows few bytes -> (its URL, the service)."""
    limits = Limits(batch_ms=1000.0, queue_ms=1e6, batch_rows=4, body_ms=400.0, body_bytes=200_000)
    with guarded({"features": models["features"]}, limits) as found:
        yield found


@pytest.mark.parametrize("header", ["authorization", "api-key", "x-api-key"])
def test_a_key_opens_every_path(locked, keys, header):
    value = f"Bearer {keys[0]['ana']}" if header == "authorization" else keys[0]["ana"]
    assert httpx.post(locked + PATH, json=ROW, headers={header: value}).status_code == 200
    assert httpx.get(f"{locked}/metrics", headers={header: value}).status_code == 200


def test_without_a_valid_key_nothing_is_said(locked, keys):
    answers = []
    for headers in ({}, {"authorization": "Bearer x"}, {"api-key": "wrong"}, {"authorization": keys[0]["ana"]}):
        for path in (PATH, "/models/unknown/predict", "/unknown", "/models", "/metrics", "/docs", "/health/x"):
            for method in ("GET", "POST"):
                answers.append(httpx.request(method, locked + path, headers=headers))
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert {frozenset(answer.headers) for answer in answers} == {frozenset(answers[0].headers)}
    assert answers[0].headers["www-authenticate"] == "Bearer"


def test_health_needs_no_key(locked):
    for path in ("/", "/health", "/ping", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(locked + path).status_code != 401


def test_open_metrics(models, keys):
    with guarded({"features": models["features"]}, keys=Keys(keys[1]), open_metrics=True) as (url, _):
        assert httpx.get(f"{url}/metrics").status_code == 200
        assert httpx.get(f"{url}/models").status_code == 401


def test_each_client_has_its_rate(models, keys):
    with (
        guarded({"features": models["features"]}, keys=Keys(keys[1]), rate=1.0) as (url, _),
        httpx.Client(base_url=url) as client,
    ):

        def ask(name):
            return client.get("/models", headers={"api-key": keys[0][name]})

        assert [ask("ana").status_code for _ in range(3)] == [200, 200, 429]
        assert ask("ana").headers["retry-after"] == "1"
        assert ask("bob").status_code == 200
        assert client.get("/health").status_code != 429


def test_without_keys_each_address_has_its_rate(models):
    with guarded({"features": models["features"]}, rate=0.01) as (url, _):
        assert [httpx.get(f"{url}/models").status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_an_invalid_rate_is_refused(rate):
    with pytest.raises(UserError, match="--rate is"):
        Access(rate=rate)


def test_a_bucket_fills_again(monkeypatch):
    now = 100.0
    monkeypatch.setattr(rates, "time", types.SimpleNamespace(monotonic=lambda: now))  # not that of event loops
    found = Rates(2.0)
    assert [found.wait("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    now += 0.5
    assert [found.wait("a"), found.wait("a")] == [0, 0.5]
    now += 1000
    assert [found.wait("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]  # no more than the burst
    found.charge("a", 3)
    assert found.wait("a") == 2
    now += 2
    assert [found.wait("a"), found.wait("a")] == [0, 0.5]


def test_the_buckets_are_bounded():
    found = Rates(1.0, clients=3)
    for number in range(100):
        found.wait("steady")
        found.wait(str(number))
        found.charge(f"unknown {number}", 1)
    assert len(found._buckets) == 3
    assert found.wait("steady") > 0  # the one that asks most is not forgotten


@contextlib.contextmanager
def _connected(url):
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), 5) as found:
        found.settimeout(5)
        yield found


def _read(connection):
    """All bytes until the server closes."""
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


def _head(length):
    return f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode()


def test_a_declared_body_that_is_too_large_is_refused_at_once(opened):
    with _connected(opened[0]) as connection:
        connection.sendall(_head("Content-Length: 200001"))
        began = time.monotonic()
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - began < 0.35  # before the time of the body
    with _connected(opened[0]) as connection:  # a client that sends all before it reads
        connection.sendall(_head("Content-Length: 50000000") + b" " * 50_000_000)
        assert _read(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("path", ["/models/unknown/predict", "/unknown"])
def test_an_answer_before_the_body_is_not_lost(opened, path):
    """The kernel drops it if the connection is closed while something of the body is unread."""
    head = _head("Content-Length: 199000").replace(PATH.encode(), path.encode())
    for _ in range(10):
        with _connected(opened[0]) as connection:
            connection.sendall(head + b" " * 199_000)
            assert _read(connection).startswith(b"HTTP/1.1 404 ")


def test_an_undeclared_body_that_is_too_large_is_refused(opened):
    answer = httpx.post(opened[0] + PATH, content=(b" " * 1000 for _ in range(3000)))
    assert answer.status_code == 413


def _slow(url, length):
    """The answer to a body of which each byte comes soon, but not the end; None if the connection was reset.

    That is, if a byte was on its way when the server closed, which loses the answer.
    """
    with _connected(url) as connection:
        began = time.monotonic()
        connection.sendall(_head(length))
        try:
            while not select.select([connection], [], [], 0.1)[0]:
                assert time.monotonic() - began < 3
                connection.sendall(b"1\r\n \r\n" if "chunked" in length else b" ")
            assert time.monotonic() - began > 0.35
            return _read(connection)
        except (ConnectionResetError, BrokenPipeError):
            return None


@pytest.mark.parametrize("length", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_slow_body_is_refused(opened, length):
    answer = next(filter(None, (_slow(opened[0], length) for _ in range(5))))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    assert b"within 0.4 s" in answer


class _Held:
    """A model that waits for `release` before each batch."""

    def __init__(self, model):
        self._model = model
        self.release = threading.Event()

    def __getattr__(self, name):
        return getattr(self._model, name)

    def answer(self, parts, device=0, chosen=None):
        assert self.release.wait(30)
        return self._model.answer(parts, device, chosen)


def _wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("leave", ["in the body", "before the answer", "half"])
def test_clients_that_vanish_leave_nothing_behind(models, leave):
    held = _Held(models["features"])
    with guarded({"features": held}) as (url, service), contextlib.ExitStack() as connections:
        before = len(asyncio.all_tasks(service._loop))
        for number in range(10):
            body = json.dumps({"inputs": [[number] * 10]}).encode()
            connection = connections.enter_context(_connected(url))
            connection.sendall(_head(f"Content-Length: {len(body)}") + (b"[" if leave == "in the body" else body))
        _wait_for(lambda: len(asyncio.all_tasks(service._loop)) >= before + 10)
        if leave != "in the body":
            _wait_for(lambda: service.admission.requests == 10)
        if leave == "half":
            connection.shutdown(socket.SHUT_WR)
            assert _read(connection) == b""  # it counts as gone
        connections.close()
        _wait_for(lambda: len(asyncio.all_tasks(service._loop)) <= before)  # although the model does not answer
        assert service.admission.requests == 0
        held.release.set()
        assert httpx.post(url + PATH, json=ROW).status_code == 200


def test_requests_have_an_id(opened):
    url = opened[0]
    assert httpx.get(f"{url}/models", headers={"x-request-id": "my-id.1"}).headers["x-request-id"] == "my-id.1"
    made = {httpx.get(f"{url}/unknown", headers={"x-request-id": "not valid"}).headers["x-request-id"] for _ in "ab"}
    assert len(made) == 2
    assert "not valid" not in made


def test_before_the_end_it_is_not_ready_and_connections_close(models):
    with guarded({"features": models["features"]}) as (url, service):
        assert service.is_ready
        assert "connection" not in httpx.post(url + PATH, json=ROW).headers
        service.stopping = True
        assert not service.is_ready
        answer = httpx.post(url + PATH, json=ROW)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


@pytest.fixture
def logged():
    """Everything that is logged, by any logger, as `--log=json` writes it."""
    stream = io.StringIO()
    root, level = logging.getLogger(), logging.getLogger().level
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs._Json())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def _requests(stream):
    return [line for line in map(json.loads, stream.getvalue().splitlines()) if "path" in line]


def test_each_request_is_logged(locked, keys, logged):
    headers = {"api-key": keys[0]["bob"], "x-request-id": "it"}
    for _ in range(2):
        httpx.post(locked + PATH, json={"inputs": [[0.011] * 10, [0.012] * 10]}, headers=headers)
    httpx.get(f"{locked}/nothing?key=value", headers=headers)
    httpx.request("WEIRD", f"{locked}/models")
    first, second, third, *_ = _requests(logged)
    assert first.keys() >= {"time", "level", "id", "client", "method", "path", "status", "ms", "inputs", "tokens"}
    assert [first[key] for key in ("id", "client", "method", "path")] == [
        "it", "bob", "POST", "/models/{name}/predict",
    ]  # fmt: skip
    assert (first["status"], first["inputs"], first["cached"], second["cached"]) == (200, 2, 0, 2)
    assert 0 < first["ms"]["compute"] < first["ms"]["total"]
    assert (second["ms"]["queue"], second["ms"]["compute"]) == (0, 0)
    assert (third["path"], third["status"]) == ("other", 404)


def test_neither_inputs_nor_keys_are_logged(models, keys, logged):
    secret = "correct horse battery staple"

    class Broken:
        """A model whose errors have the input in them, while it is encoded."""

        name, version, operation, signature = "broken", "1", "predict", models["features"].signature

        def encode(self, columns):
            raise KeyError(str(columns))

    with guarded({"features": models["features"]}, keys=Keys(keys[1])) as (url, service):
        service.models["broken"] = Broken()
        for key in (keys[0]["ana"], "a-wrong-key-of-a-client"):
            headers = {"authorization": f"Bearer {key}"}
            for model in ("features", "broken", "unknown"):
                for inputs in ([secret], [[secret]], [{secret: 1}], [[0.5] * 10], secret):
                    path = f"/models/{model}/predict"
                    httpx.post(url + path, json={"inputs": inputs}, headers=headers)
        failed = httpx.post(
            f"{url}/models/broken/predict", json={"inputs": [secret]}, headers={"api-key": keys[0]["ana"]}
        )
        assert failed.status_code == 500
        assert secret not in failed.text
    said = logged.getvalue()
    assert "KeyError at " in said
    for hidden in (secret, keys[0]["ana"], "a-wrong-key", "Traceback"):
        assert hidden not in said
    assert all("error" not in line for line in _requests(logged))


def test_text_logs_and_none(capsys):
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    try:
        for form in ("text", "none", "json"):
            logs.set_up(form)
            if logs.requests.isEnabledFor(logging.INFO):
                logs.log_request({"id": form, "status": 200})
            logging.getLogger("research.serve").info("ready: %s", form)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    text, ready, none, *json_lines = capsys.readouterr().err.splitlines()
    assert text.endswith(" id=text status=200")
    assert ready.endswith("ready: text")
    assert none.endswith("ready: none")
    assert [json.loads(line).get("id") for line in json_lines] == ["json", None]


def test_heads_that_are_slow_or_large_are_refused(opened, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(connection, "UNUSED_SECONDS", 0.2)
    for data in (b"", b"POST / HT", _head("X: y")[:-2]):
        with _connected(opened[0]) as slow:
            slow.sendall(data)
            assert _read(slow).startswith(b"HTTP/1.1 408 ")
    with _connected(opened[0]) as large:
        large.sendall(_head("X: y")[:-2] + b"z: " + b"z" * 2**17)
        assert large.recv(65536).startswith(b"HTTP/1.1 431 ")


def _ask(connected, body=None, head=""):
    """Sends a POST request with a body, or a GET request without one -> the status and the whole answer."""
    if body is None:
        connected.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
    else:
        connected.sendall(_head(f"{head}Content-Length: {len(body)}"))
        connected.sendall(body)
    found = b""
    while b"\r\n\r\n" not in found:
        part = connected.recv(65536)
        assert part, "closed"
        found += part
    answer, _, rest = found.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", answer)[1])
    while len(rest) < length:
        rest += connected.recv(65536)
    return int(answer[9:12]), answer, rest


def test_what_is_shed_is_refused_unread(opened, monkeypatch):
    url, service = opened
    with _connected(url) as connected:
        assert _ask(connected, json.dumps(ROW).encode())[0] == 200
        with monkeypatch.context() as patch:
            patch.setattr(service.admission, "shed", lambda: ServiceError(Kind.OVERLOADED, "late", retry_after=2.5))
            status, head, body = _ask(connected, b"not JSON")
            assert status == 429
            assert b"retry-after: 3" in head.lower()
            assert json.loads(body)["error"] == "late"
            assert _ask(connected)[0] == 200  # others are answered
            assert _ask(connected, json.dumps(ROW | {"x": "y" * 70_000}).encode())[0] != 429  # as is what is large
            with _connected(url) as closing:
                assert _ask(closing, b"{}", "Connection: close\r\n")[0] == 429
                assert closing.recv(10) == b""
        assert _ask(connected, json.dumps(ROW).encode())[0] == 200
    assert 'research_requests_total{path="other",status="429"} 2.0' in httpx.get(f"{url}/metrics").text


def test_a_connection_lives_after_a_request(opened, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.1)
    with _connected(opened[0]) as connected:
        for _ in range(3):
            assert _ask(connected, json.dumps(ROW).encode())[0] == 200
            time.sleep(0.3)


@pytest.mark.parametrize("adapter", [oip._INFER, tei_schema.PREDICT, tei_schema.EMBED, tei_schema.OPENAI])
@pytest.mark.parametrize("item", ["{}", '["a", {}]', '"",{}'])
def test_of_many_errors_only_the_first_is_made(adapter, item):
    """Those of a body of 8 MiB took minutes."""
    for name in ("inputs", "input"):
        body = f'{{"{name}": [' + ",".join([item] * 1000) + "]}"
        with pytest.raises(ValidationError) as raised:
            adapter.validate_json(body)
        assert raised.value.error_count() < 10


def test_every_path_needs_a_key(locked, keys):
    paths = httpx.get(f"{locked}/openapi.json", headers={"api-key": keys[0]["ana"]}).json()["paths"]
    assert len(paths) > 20
    for path, methods in paths.items():
        for method in methods:
            for headers in ({}, {"authorization": "Bearer wrong"}):
                status = httpx.request(
                    method, locked + path.replace("{", "").replace("}", ""), headers=headers
                ).status_code
                assert (status == 401) == (path not in OPEN_PATHS), path
