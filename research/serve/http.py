"""What the protocols share: reading a request, answering it, and giving up when the client has gone."""

import asyncio
import dataclasses
import math
import secrets
from collections.abc import Coroutine, Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from pydantic import FailFast, TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from research.serve.answers import Result
from research.serve.errors import Kind, ServiceError
from research.serve.model import ServedModel
from research.serve.service import Service

T = TypeVar("T")


class _FirstError(FailFast):
    __hash__ = object.__hash__  # for unions of annotated types


# A list in a request. Of a list with millions of errors only the first is made, as all of them take minutes.
ListOf = Annotated[list[T], _FirstError()]

# The status that nginx logs for a client that has gone; nobody sees the answer.
GONE = 499


class ClientGone(Exception):
    """The client has closed the connection: there is nobody to answer."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A request of a client."""

    service: Service
    request: Request

    @property
    def client(self) -> str:
        """Who asks: the name of the API key, else the address."""
        state = self.request.scope.get("state", {})
        host = self.request.client.host if self.request.client else ""
        return str(state.get("client", host))

    def model(self, name: str | None, operation: str | None, *, version: str | None = None) -> ServedModel:
        """As `Service.model`; of a split always the same variant for a request id."""
        state = self.request.scope.get("state", {})
        key = state.get("request_id") or secrets.token_hex(8)
        return self.service.model(name, operation, key=key, version=version)

    async def body(self) -> bytes:
        """The body, whose size the guard has limited. Raises ClientGone if it does not come to its end."""
        try:
            return await self.request.body()
        except ClientDisconnect:
            raise ClientGone from None

    def charge(self, requests: int) -> None:
        """Counts the request as so many more, where clients have a rate."""
        charge = self.request.scope.get("state", {}).get("charge")
        if charge is not None:
            charge(requests)

    async def answer(self, model: ServedModel, columns: Mapping[str, Any], *, truncate: bool = True) -> list[Result]:
        """As `Service.answer`. Raises ClientGone if the client goes before the answer is there."""
        result = self.service.cached(model, columns, truncate=truncate)
        if result is not None:
            return [result]

        return await self.connected(self.service.answer(model, columns, client=self.client, truncate=truncate))

    async def connected(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled if the client goes, or the service ends. Call it after `body`."""
        task = asyncio.current_task()
        assert task is not None
        gone = asyncio.ensure_future(self._gone())
        working = True

        def stop(watch: asyncio.Future[None]) -> None:
            if working and not watch.cancelled():
                task.cancel()

        gone.add_done_callback(stop)
        try:
            return await work
        except asyncio.CancelledError:
            if gone.done() and not gone.cancelled() and not task.uncancel():
                raise ClientGone from None
            if self.service.stopping:  # and the time for what was asked before is over
                task.uncancel()
                raise ServiceError(Kind.UNAVAILABLE, "the service is stopping", retry_after=1.0) from None
            raise
        finally:
            working = False
            gone.cancel()

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def parse(adapter: TypeAdapter[T], body: bytes) -> T:
    """A JSON body as what `adapter` describes. Raises ServiceError, naming the first thing that is wrong."""
    if not body:
        raise ServiceError(Kind.EMPTY, "the request has no body; send JSON")
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ServiceError(Kind.INVALID, f"{where}: {first['msg']}" if where else first["msg"]) from None


def reply(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as JSON."""
    return Response(to_json(value), status, headers, media_type="application/json")


def refusal(error: ServiceError, path: str) -> Response:
    """The answer to a request of a path that is refused: {"error", "error_type"}; OpenAI's {"error": {…}} for /v1."""
    headers = {} if error.retry_after is None else {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if error.kind is Kind.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    found: dict[str, Any] = {"error": str(error), "error_type": error.kind.label}
    if path.startswith("/v1/"):
        found = {"error": {"message": str(error), "type": error.kind.label, "code": error.kind.status}}
    return reply(found, status=error.kind.status, headers=headers)


_ERROR = {
    "description": "The request is refused, or can't be answered: see error_type, and the header Retry-After.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {}, "error_type": {"type": "string"}},
            }
        }
    },
}
# Of every path, for OpenAPI.
RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": _ERROR, "5XX": _ERROR}


def described(schema: TypeAdapter[Any], *examples: Any) -> dict[str, Any]:
    """The `openapi_extra` of a path that reads a JSON body as `schema` describes, with examples."""
    content = {
        "schema": _inlined(schema.json_schema()),
        "examples": {str(i): {"value": example} for i, example in enumerate(examples)},
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema with its definitions where they are referred to, as it is a part of a larger document."""
    definitions = schema.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            part = definitions[part["$ref"].rpartition("/")[2]] | {k: v for k, v in part.items() if k != "$ref"}
        return {name: inlined(each) for name, each in part.items()}

    found: dict[str, Any] = inlined(schema)
    return found
