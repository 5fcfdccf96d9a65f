"""The same application in several processes, the replicas of Ray Serve: `--engine=ray`. Needs the extra `ray`.

Ray's proxy listens, and gives each request to the replica with fewer requests of two. Whether a request can wait is for
a replica's own queue to say, which forms the batches too: Ray's bounds are only above it.
"""

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from research.base.errors import UserError
from research.devices.platform import prepare_process
from research.serve import logs
from research.serve.app import DRAIN_SECONDS
from research.serve.errors import Kind, ServiceError
from research.serve.guard import Guard
from research.serve.http import refusal
from research.serve.keys import Keys
from research.serve.limits import Limits
from research.serve.ray_cluster import APPLICATION, Cluster, Scale, import_ray
from research.serve.repository import Source, sources
from research.serve.scrapes import merged
from research.serve.server import Access, check, make_guard
from research.serve.service import Service
from research.serve.splits import Splits

log = logging.getLogger("research.serve")

_DEPLOYMENT = "Service"

_STARTS = 2  # that may fail until a deployment has
_HEALTH_SECONDS = 5.0  # between two checks
_RETRY_SECONDS = 1.0  # after a refusal by the proxy
_METRICS_SECONDS = 5.0  # for the metrics of all replicas

# Requests that a replica gets beyond those that its own bound admits: it refuses them at once, with a reason, and still
# answers those for its health and its metrics.
_SPARE = 64


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
    options["variants"] = [_absolute(text) for text in options.get("variants", ())]
    if access.api_keys_file:
        access = dataclasses.replace(access, api_keys_file=os.path.abspath(access.api_keys_file))
        Keys(str(access.api_keys_file))
    Splits.of(split, [source.name for source in sources(workdirs, **options)])  # rather than in each replica
    settings = {"split": split, "replicas": replicas, "access": access, "tracing": tracing, **options}
    logs.set_up(log_format)
    cluster = Cluster(scale, host, port)
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


def _application(
    workdirs: Sequence[str], limits: Limits, scale: Scale, log_format: str, settings: dict[str, Any]
) -> Any:
    """What Ray runs: replicas of the ASGI application that `make_guard` makes of the arguments."""
    _, serve = import_ray()

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
