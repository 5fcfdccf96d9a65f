"""A cluster of Ray with its proxy: one of this process's own, or another."""

import dataclasses
import logging
import math
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from research.base.errors import UserError, first_line
from research.base.ranges import COUNT, NOT_NEGATIVE, POSITIVE
from research.serve.app import DRAIN_SECONDS
from research.serve.server import KEEP_ALIVE_SECONDS

log = logging.getLogger("research.serve")

APPLICATION = "research"

_CONNECT_SECONDS = 5.0
_SENT_SECONDS = 0.5  # in which the proxy sends the answers that the replicas have given it
_END_SECONDS = 15.0  # in which Ray's processes end


@dataclasses.dataclass(frozen=True)
class Scale:
    """How many processes there are, and what each reserves: see the flags in `__main__`.

    Attributes:
      max_replicas: None for `min_replicas`.
      ray_address: of the cluster to join; None to start one for this process.
    """

    min_replicas: int = 1
    max_replicas: int | None = None
    target_requests: float = 32.0
    replica_cpus: float = 1.0
    replica_gpus: float = 0.0
    ray_address: str | None = None

    def __post_init__(self) -> None:
        ranges = {
            "min_replicas": COUNT,
            "target_requests": POSITIVE,
            "replica_cpus": POSITIVE,
            "replica_gpus": NOT_NEGATIVE,
        }
        for name, allowed in ranges.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be {allowed}")
        if self.most < self.min_replicas:
            raise UserError(
                f"--max_replicas is {self.most}; it must be at least {self.min_replicas}, which --min_replicas is"
            )

    @property
    def most(self) -> int:
        return self.min_replicas if self.max_replicas is None else self.max_replicas


def import_ray() -> tuple[Any, Any]:
    """The modules `ray` and `ray.serve`. Raises UserError if they are missing."""
    # Read when Ray is imported. Lines of the log that are alike are still several requests.
    for name in ("RAY_DEDUP_LOGS", "RAY_COLOR_PREFIX", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(name, "0")
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise UserError(f"--engine=ray needs the extra `ray`: pip install '.[serve,ray]' ({error})") from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return ray, serve


class Cluster:
    """A cluster of Ray with its proxy.

    Attributes:
      joined: whether others started it.
    """

    def __init__(self, scale: Scale, host: str, port: int):
        self.joined = scale.ray_address is not None
        if scale.ray_address is None:
            _check_free(host, port)
        else:
            _check_there(scale.ray_address)
        _choose_authentication(joined=self.joined)
        self._ray, self._serve = import_ray()
        self._stopped = threading.Event()
        options: dict[str, Any] = {"address": scale.ray_address}
        if not self.joined:
            # The replicas of one machine share its cores, whatever each has reserved; one more is there in an update.
            cores = math.ceil((scale.most + 1) * scale.replica_cpus)
            options = {"address": "local", "include_dashboard": False, "num_cpus": max(cores, os.cpu_count() or 1)}
        try:
            self._ray.init(**options, logging_level=logging.WARNING)
        except (ConnectionError, ValueError) as error:
            raise _no_cluster(scale.ray_address, error) from error
        try:
            self._check_gpus(scale)
            self._start(host, port)
        except BaseException:
            self._ray.shutdown()
            raise

    @property
    def address(self) -> str:
        return str(self._ray.get_runtime_context().gcs_address)

    def _check_gpus(self, scale: Scale) -> None:
        there, needed = self._ray.cluster_resources().get("GPU", 0), scale.most * scale.replica_gpus
        if not self.joined and needed > there:
            raise UserError(
                f"--max_replicas={scale.most} of --replica_gpus={scale.replica_gpus:g} need {needed:g} GPUs; there are "
                f"{there:g}"
            )

    def _start(self, host: str, port: int) -> None:
        from ray.serve.context import _get_global_client

        client = _get_global_client(raise_if_no_controller_running=False)
        if client is not None and (client.http_config.host, client.http_config.port) != (host, port):
            found = client.http_config
            raise UserError(
                f"--host={host} --port={port}: Ray Serve listens on {found.host}:{found.port} in this cluster; give "
                "these, or run `serve shutdown` first, which ends all its applications"
            )
        http = {"host": host, "port": port, "keep_alive_timeout_s": KEEP_ALIVE_SECONDS}
        self._serve.start(http_options=http, logging_config={"log_level": "WARNING", "enable_access_log": False})

    def deploy(self, application: Any) -> None:
        """Returns when the replicas answer. Raises UserError if they can't start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            self._handle = self._serve.run(application, name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if "Error: " in line]
            raise UserError(f"the replicas can't start: {lines[-1] if lines else error}") from error

    def _stop(self, *_: object) -> None:
        self._stopped.set()

    def wait_for_signal(self) -> None:
        self._stopped.wait()
        log.info("stopping: requests are being answered, for at most %d s", DRAIN_SECONDS)
        # In a thread, as it never ends where the signal went to Ray's processes too.
        thread = threading.Thread(target=self._end, daemon=True)
        thread.start()
        thread.join(DRAIN_SECONDS + _END_SECONDS)
        log.info("stopped" if not thread.is_alive() else "stopped; Ray's own processes had ended before")

    def _end(self) -> None:
        self._handle.broadcast("drain").results()
        time.sleep(_SENT_SECONDS)
        self._serve.shutdown()

    def close(self) -> None:
        self._ray.shutdown()


def _choose_authentication(*, joined: bool) -> None:
    """Clusters started here need a token, which Ray keeps in the user's home, as do those joined where there is one."""
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not joined or named or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _check_there(address: str) -> None:
    """Raises UserError if nothing listens there, for which Ray waits for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_SECONDS):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> UserError:
    what = "is not the HOST:PORT of a running cluster, or auto"
    return UserError(f"--ray_address={address} {what}: {first_line(error)}")


def _check_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise UserError(f"{host}:{port} can't be listened on; choose another --port or --host") from error
