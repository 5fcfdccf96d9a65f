"""Starts the service: models in a thread, HTTP at once."""

import asyncio
import dataclasses
import functools
import gc
import logging
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

import jax
import uvicorn
from fastapi import FastAPI

from research.base.errors import UserError
from research.base.ranges import Range
from research.devices.platform import keep_all_programs, prefer_python
from research.serve import logs
from research.serve.app import DRAIN_SECONDS, make_app
from research.serve.connection import Connection
from research.serve.guard import Guard
from research.serve.keys import Keys
from research.serve.limits import Limits
from research.serve.metrics import Metrics
from research.serve.repository import Repository, Source, sources
from research.serve.service import Service
from research.serve.splits import Splits
from research.serve.tracing import Tracer

log = logging.getLogger("research.serve")

# What clients sent before the signal may still be on its way, or in the buffers of this machine.
_GRACE_SECONDS = 0.5

# Longer than load balancers keep a connection that nothing comes over: who closes it first may lose a request.
KEEP_ALIVE_SECONDS = 75

REPLICAS = Range(1, 64)


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may ask, and how often: see the flags in `__main__`."""

    api_keys_file: str | None = None
    rate: float | None = None
    open_metrics: bool = False

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise UserError(f"--rate is {self.rate}; it must be above 0")


class Server(uvicorn.Server):
    """uvicorn's, which answers what was sent before it stops, and then ends without an error."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stopping = True
        await asyncio.sleep(_GRACE_SECONDS)
        count = self._service.admission.requests
        log.info("stopping: %d requests are being answered, for at most %d s", count, DRAIN_SECONDS)
        await super().shutdown(sockets)


def usual_replicas(platform: str) -> int:
    """How many batches a device should compute at once.

    On a CPU two: the cores wait for each other after each layer of a batch, and meanwhile can compute another.
    """
    return 2 if platform == "cpu" and (os.cpu_count() or 1) > 1 else 1


def serve(
    workdirs: Sequence[str],
    limits: Limits,
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
    """Serves the runs and folders `workdirs`, with the options of `sources`, until a signal -> 0.

    Args:
      workdirs: each "RUN" or "NAME=RUN".
      split: each "NAME=MODEL:WEIGHT,MODEL:WEIGHT", of names of `workdirs`.
      replicas: the batches that each device computes at once; by default `usual_replicas`.

    Raises UserError if one of them is invalid, the API keys are, or the port is taken.
    """
    check(port, replicas)
    logs.set_up(log_format)
    guard = make_guard(workdirs, limits, split=split, replicas=replicas, access=access, tracing=tracing, **options)
    # uvicorn raises the signal again when it has stopped.
    signal.signal(signal.SIGTERM, lambda *_: None)
    log.info("http://%s:%d/ is a page to try the models on; /v2/health/ready says when they answer", host, port)
    try:
        Server(uvicorn_config(guard, host, port), guard.service).run()
    except SystemExit as error:  # uvicorn's, when it can't listen, after an error in its log
        raise UserError(f"{host}:{port} can't be listened on; choose another --port or --host") from error
    if guard.tracer is not None:
        guard.tracer.close()
    log.info("stopped")
    return 0


def check(port: int, replicas: int | None) -> None:
    """Raises UserError if one is out of its range."""
    if not 0 < port < 2**16:
        raise UserError(f"--port is {port}; it must be 1 to 65535")
    if replicas is not None and replicas not in REPLICAS:
        raise UserError(f"--replicas is {replicas}; it must be {REPLICAS}")


def make_guard(
    workdirs: Sequence[str],
    limits: Limits,
    *,
    split: Sequence[str] = (),
    replicas: int | None = None,
    access: Access,
    tracing: bool = False,
    **options: Any,
) -> Guard:
    """The whole ASGI application, with the arguments of `serve`. It loads the models when it is started.

    Raises UserError if one of the arguments is invalid, or the API keys are.
    """
    prepare_service()
    keys = Keys(access.api_keys_file) if access.api_keys_file else None
    found = sources(workdirs, **options)
    service, app, metrics = _service(found, Splits.of(split, [source.name for source in found]), limits, replicas)
    tracer = Tracer() if tracing else None
    return Guard(app, service, metrics, keys=keys, rate=access.rate, open_metrics=access.open_metrics, tracer=tracer)


def prepare_service() -> None:
    """Settings of the process that make a service faster; starts JAX's devices."""
    # With the default, collections take most of the time of reading a large body; with more, each stops all for longer.
    gc.set_threshold(10_000, 20, 20)
    keep_all_programs()
    jax.local_devices()  # starts XLA's threads
    prefer_python()


def _service(
    found: Sequence[Source], splits: Splits, limits: Limits, replicas: int | None
) -> tuple[Service, FastAPI, Metrics]:
    """A service of the models on all devices, which it starts to load with the application, and its metrics."""
    devices = jax.local_devices()
    at_once = usual_replicas(devices[0].platform) if replicas is None else replicas
    metrics = Metrics()
    service = Service(limits, devices=len(devices), replicas=at_once, observer=metrics, splits=splits)
    metrics.service = service
    repository = Repository(found, limits, service.install, devices=devices)
    service.states = repository.states
    return service, make_app(service, repository, metrics), metrics


def uvicorn_config(guard: Guard, host: str, port: int) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        guard,
        host,
        port,
        http=functools.partial(Connection, shed=guard.shed),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
