"""The application: the paths of all protocols over one service."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from research.serve import fill, oip, openai, page_files, plain, tei
from research.serve.direct import Direct, refused
from research.serve.errors import Kind, ServiceError
from research.serve.http import RESPONSES, refusal
from research.serve.metrics import Metrics
from research.serve.repository import Repository
from research.serve.service import Service

DRAIN_SECONDS = 30  # for what was asked before the end


def make_app(service: Service, repository: Repository | None = None, metrics: Metrics | None = None) -> FastAPI:
    """The ASGI application of a service, which it starts and stops, with the models of a repository."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        if repository:
            repository.start()
        yield
        if repository:
            repository.stop()
        await service.stop(DRAIN_SECONDS)

    app = FastAPI(title="research", description="Models trained by this project, as a service.", lifespan=lifespan)

    app.add_exception_handler(ServiceError, refused)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        kind = Kind.METHOD if error.status_code == Kind.METHOD.status else Kind.UNKNOWN
        message = f"{request.method} {request.url.path:.80} is not a path of the service; GET /docs lists them"
        response = refusal(ServiceError(kind, message), request.url.path)
        response.headers.update(error.headers or {})
        return response

    routers = [module.router(service) for module in (plain, fill, oip, tei, openai)]
    routers.append(page_files.router())
    if metrics:
        routers.append(metrics.router())
    for router in routers:
        app.include_router(router, responses=RESPONSES)
    app.add_middleware(Direct, routers=routers)
    return app
