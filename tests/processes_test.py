import socket

import jax
import pytest

from research.base.errors import UserError
from research.devices import processes


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` is called with, instead of waiting for other processes."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *values, **options: calls.append((values, options)))
    return calls


def _resolve_to(monkeypatch, *addresses):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 1)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port: found)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("localhost:1", 0, 0), "--processes is 0"),
        (("localhost:1", 2, 2), r"--process_id is 2; it must be 0 to 1"),
        (("localhost:1", 2, -1), r"--process_id is -1"),
        (("localhost:1", None, -1), r"--process_id is -1"),
        (("localhost", 2, 0), "HOST:PORT"),
        (("localhost:http", 2, 0), "HOST:PORT"),
        ((":1", 2, 0), "HOST:PORT"),
        (("no-such-host.invalid:1", 2, 0), "host is unknown"),
    ],
)
def test_values_that_cannot_be_right_are_said_at_once(values, message, joined, monkeypatch):
    def unknown(host, port):
        raise socket.gaierror(-2, "Name or service not known")

    if "unknown" in message:
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=message):
        processes.join(*values)
    assert joined == []


def test_a_name_that_means_this_machine_only_is_refused(joined, monkeypatch):
    _resolve_to(monkeypatch, "127.0.1.1")
    with pytest.raises(UserError, match=r"head:1 resolves to 127\.0\.1\.1"):
        processes.join("head:1", 2, 1)
    assert joined == []


@pytest.mark.parametrize(
    ("coordinator", "addresses"),
    [
        ("localhost:1", ["127.0.0.1"]),
        ("127.0.0.1:1", ["127.0.0.1"]),
        ("[::1]:1", ["::1"]),
        ("head:1", ["10.0.0.2"]),
        ("head:1", ["127.0.1.1", "10.0.0.2"]),
    ],
)
def test_other_addresses_are_joined(coordinator, addresses, joined, monkeypatch):
    _resolve_to(monkeypatch, *addresses)
    processes.join(coordinator, 2, 1)
    ((values, options),) = joined
    assert values == (coordinator, 2, 1)
    assert options["heartbeat_timeout_seconds"] < 60


def test_a_cluster_is_detected(joined):
    processes.join(None, None, None)
    assert joined[0][0] == (None, None, None)


def test_failures_to_join_are_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Deadline exceeded\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=r"join the other processes: Deadline exceeded$"):
        processes.join("localhost:1", 2, 1)
