"""The same application in several processes, the replicas of Ray Serve: `--engine=ray`. Needs the extra `ray`.

Ray's proxy listens, and gives each request to the replica with fewer requests of two. Whether a request can wait is for
a replica's own queue to say, which forms the batches too: Ray's bounds are only above it.
"""

import asyncio
import dataclasses
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from research.base.errors import UserError, first_line
from research.base.ranges import COUNT, NOT_NEGATIVE, POSITIVE
from research.devices.platform import prepare_process
from research.serve import logs
from research.serve.app import DRAIN_SECONDS
from research.serve.errors import Kind, ServiceError
from research.serve.guard import Guard
from research.serve.http import refusal
from research.serve.keys import Keys
from research.serve.limits import Limits
from research.serve.repository import Source, sources
from research.serve.scrapes import merged
from research.serve.server import KEEP_ALIVE_SECONDS, Access, check, make_guard
from research.serve.service import Service
from research.serve.splits import Splits

log = logging.getLogger("research.serve")

APPLICATION = "research"
_DEPLOYMENT = "Service"

_STARTS = 2  # that may fail until a deployment has
_HEALTH_SECONDS = 5.0  # between two checks
_RETRY_SECONDS = 1.0  # after a refusal by the proxy
_SENT_SECONDS = 0.5  # in which the proxy sends the answers that the replicas have given it
_END_SECONDS = 15.0  # in which Ray's processes end
_METRICS_SECONDS = 5.0  # for the metrics of all replicas

# Requests that a replica gets beyond those that its own bound admits: it refuses them at once, with a reason, and still
# answers those for its health and its metrics.
_SPARE = 64


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


def serve_on_ray(
    workdirs: Sequence[str],
    limits: Limits,
    scale: Scale,
    *,
    split: Sequence[str] = (),
    replicas: int | None = None,
    host: str,
    port: int,
    access: Access,
    log_format: str,
    tracing: bool = False,
    **options: Any,
) -> int:
    """As `server.serve`, in replicas of Ray Serve -> 0.

    In a cluster of its own, until a signal. In one that it joins, until the replicas answer: they stay, and replace
    those of an earlier call one after the other.

    Raises UserError if an argument is invalid or Ray does not do it, Ray is missing, or no replica could start.
    """
    check(port, replicas)
    if access.rate is not None and scale.most > 1:
        raise UserError(
            f"--rate is {access.rate:g} and --max_replicas {scale.most}: each replica would count for itself; limit "
            "the rate in a proxy before the service, or leave --max_replicas at 1"
        )
    workdirs = [_absolute(text) for text in workdirs]
    if access.api_keys_file:
        access = dataclasses.replace(access, api_keys_file=os.path.abspath(access.api_keys_file))
        Keys(str(access.api_keys_file))
    Splits.of(split, [source.name for source in sources(workdirs, **options)])  # rather than in each replica
    settings = {"split": split, "replicas": replicas, "access": access, "tracing": tracing, **options}
    logs.set_up(log_format)
    cluster = _Cluster(scale, host, port)
    try:
        cluster.deploy(_application(workdirs, limits, scale, log_format, settings))
        if cluster.joined:
            log.info("deployed; `serve shutdown` ends it")
        else:
            log.info("ready: http://%s:%d/; --ray_address=%s replaces it", host, port, cluster.address)
            cluster.wait_for_signal()
    finally:
        cluster.close()
    return 0


def _absolute(text: str) -> str:
    """ "NAME=RUN" or "RUN" with an absolute path, as a replica's working directory is another."""
    name, sign, _ = text.rpartition("=")
    source = Source.of(text)
    return f"{name}{sign}{os.path.abspath(source.run if isinstance(source.run, os.PathLike) else source.run.path)}"


def _import_ray() -> tuple[Any, Any]:
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


class Door:
    """The application of a replica, which can be closed: to end Ray's proxy would cut off what is being answered."""

    def __init__(self, guard: Guard):
        self.guard = guard
        self._requests = 0
        self._closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.guard(scope, receive, send)
            return
        if self._closed:
            error = ServiceError(Kind.UNAVAILABLE, "the service is stopping", retry_after=1.0)
            await refusal(error, scope["path"])(scope, receive, send)
            return
        self._requests += 1
        try:
            await self.guard(scope, receive, send)
        finally:
            self._requests -= 1

    async def drain(self) -> None:
        """Refuses requests from now on, and returns when the others are answered, or DRAIN_SECONDS have passed."""
        self._closed = True
        until = time.monotonic() + DRAIN_SECONDS
        while self._requests and time.monotonic() < until:
            await asyncio.sleep(0.02)


class _Cluster:
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
        self._ray, self._serve = _import_ray()
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
        with socket.create_connection((host, int(port)), _HEALTH_SECONDS):
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


def _application(
    workdirs: Sequence[str], limits: Limits, scale: Scale, log_format: str, settings: dict[str, Any]
) -> Any:
    """What Ray runs: replicas of the ASGI application that `make_guard` makes of the arguments."""
    _, serve = _import_ray()

    def build() -> Door:
        prepare_process()
        logs.set_up(log_format)
        guard = make_guard(workdirs, limits, **settings)
        guard.metrics.read = read
        return Door(guard)

    async def read() -> str:
        replicas = serve.get_deployment_handle(_DEPLOYMENT, APPLICATION).broadcast("metrics")
        found = await replicas.results_async(timeout_s=_METRICS_SECONDS, return_exceptions=True)
        return merged(dict(each for each in found if not isinstance(each, BaseException)))  # not of one that just ended

    class Replica:
        app: Door

        async def check_health(self) -> None:
            await wait_until_ready(self.app.guard.service)

        async def drain(self) -> None:
            await self.app.drain()

        async def metrics(self) -> tuple[str, str]:
            return serve.get_replica_context().replica_id.unique_id, self.app.guard.metrics.text()

    return serve.deployment(serve.ingress(build)(Replica), **_deployment(limits, scale)).bind()


def _deployment(limits: Limits, scale: Scale) -> dict[str, Any]:
    """The options of Ray's deployment."""
    return {
        "name": _DEPLOYMENT,
        "autoscaling_config": {
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.most,
            "target_ongoing_requests": scale.target_requests,
        },
        "ray_actor_options": {"num_cpus": scale.replica_cpus, "num_gpus": scale.replica_gpus},
        "max_ongoing_requests": limits.requests + _SPARE,
        "max_queued_requests": limits.requests,
        "backpressure_config": {"status_code": 429, "retry_after_s": _RETRY_SECONDS},
        "health_check_period_s": _HEALTH_SECONDS,
        "graceful_shutdown_timeout_s": DRAIN_SECONDS + _HEALTH_SECONDS,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_constructor_retry_count": _STARTS,
        # In an update a new replica is ready before an old one ends; but there may be no GPU for it.
        "max_surge_percent": 0 if scale.replica_gpus else 1,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }


async def wait_until_ready(service: Service) -> None:
    """Returns when every model answers: a replica gets no requests before. Raises RuntimeError if one never will."""
    while "loading" in service.states.values():
        await asyncio.sleep(0.05)
    await asyncio.sleep(0)  # the last model is installed in this event loop
    if not service.is_ready:
        raise RuntimeError("; ".join(f"model {name}: {state}" for name, state in service.states.items()))
