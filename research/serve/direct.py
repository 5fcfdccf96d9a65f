"""A short way from a request to its endpoint: FastAPI's own takes longer than an answer from the cache."""

import inspect
from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from research.serve.errors import ServiceError
from research.serve.http import GONE, ClientGone, refusal


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a request whose endpoint raised a ServiceError."""
    assert isinstance(error, ServiceError)
    return refusal(error, request.url.path)


class Direct:
    """Middleware that calls the endpoints of POST requests that read them themselves; others go on to FastAPI."""

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter]):
        self._app = app
        routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
        routes = [route for route in routes if "POST" in (route.methods or ()) and _reads_request(route)]
        self._fixed = {route.path: route for route in routes if not route.param_convertors}
        self._others = [route for route in routes if route.param_convertors]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._find(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        route, parameters = found
        scope["route"] = route  # as FastAPI sets it
        request = Request(scope, receive)
        try:
            response = await route.endpoint(request=request, **parameters)
        except ServiceError as error:
            response = await refused(request, error)
        except ClientGone:
            response = Response(status_code=GONE)
        await response(scope, receive, send)

    def _find(self, path: str) -> tuple[APIRoute, dict[str, str]] | None:
        """The route of a path, and the parameters in it."""
        if path in self._fixed:
            return self._fixed[path], {}
        for route in self._others:
            if match := route.path_regex.match(path):
                return route, match.groupdict()
        return None


def _reads_request(route: APIRoute) -> bool:
    """Whether the endpoint takes the request and the parameters in its path as they are, and nothing else."""
    parameters = inspect.signature(route.endpoint).parameters.values()
    given = {parameter.name for parameter in parameters if parameter.default is parameter.empty} - {"request"}
    return given <= set(route.param_convertors) and any(parameter.annotation is Request for parameter in parameters)
