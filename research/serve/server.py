"""Starts the service: models in a thread, HTTP at once."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import uvicorn

from research.base.errors import UserError
from research.serve.app import make_app
from research.serve.limits import Limits
from research.serve.repository import Repository, sources
from research.serve.service import Service


def serve(workdirs: Sequence[str], limits: Limits, *, host: str, port: int, **options: Any) -> int:
    """Serves the runs `workdirs`, each "RUN" or "NAME=RUN", with the options of `Source`, until a signal -> 0.

    Raises UserError if one is not a run directory, or the port is taken.
    """
    if not 0 < port < 2**16:
        raise UserError(f"--port is {port}; it must be 1 to 65535")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("research.serve").setLevel(logging.INFO)
    devices = jax.local_devices()
    found = sources(workdirs, **options)
    service = Service(limits, devices=len(devices))
    repository = Repository(found, limits, service.install, devices=devices)
    service.states = repository.states
    app = make_app(service, repository)
    config = uvicorn.Config(app, host, port, log_level="warning", access_log=False, timeout_graceful_shutdown=30)
    server = uvicorn.Server(config)
    try:
        server.run()
    except SystemExit as error:  # uvicorn's, when it can't listen, after an error in its log
        raise UserError(f"{host}:{port} can't be listened on; choose another --port or --host") from error
    return 0
