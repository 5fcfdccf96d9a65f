"""A service in a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from research.client import Client


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def start(workdirs: dict[str, str], log: Path, *flags: str, port: int) -> subprocess.Popen[bytes]:
    """Starts a service of runs by name, which appends to `log`."""
    models = [f"--workdir={name}={path}" for name, path in workdirs.items()]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "research.serve", f"--port={port}", *models, *flags], stderr=file
        )


@contextlib.contextmanager
def process(workdirs: dict[str, str], log: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service that is ready -> (its process, its URL); it is killed at the end."""
    port = free_port()
    found = start(workdirs, log, *flags, port=port)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(found, url, log)
        yield found, url
    finally:
        found.kill()
        found.wait()


def wait_until_ready(found: subprocess.Popen[bytes], url: str, log: Path) -> None:
    with Client(url) as client:
        for _ in range(100):
            with contextlib.suppress(TimeoutError):
                return client.wait_until_ready(timeout=3.0)
            assert found.poll() is None, log.read_text()
    raise AssertionError(f"not ready: {log.read_text()}")


def resident(pid: int) -> float:
    """The resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
