"""What stands before the application: keys, rates, limits of bodies, request ids, metrics and logs."""

import asyncio
import contextlib
import functools
import itertools
import logging
import re
import secrets
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from research.serve import logs
from research.serve.connection import SMALL_BODY
from research.serve.errors import Kind, ServiceError
from research.serve.http import GONE, refusal
from research.serve.keys import Keys
from research.serve.metrics import OTHER, USAGE, Metrics, Usage
from research.serve.page_files import PATHS
from research.serve.rates import Rates
from research.serve.service import Service
from research.serve.tracing import Tracer

log = logging.getLogger("research.serve")

# Paths without a key: those that a load balancer asks, and the page, which has no data.
OPEN_PATHS = frozenset(("/health", "/ping", "/v2/health/live", "/v2/health/ready", *PATHS))

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_KEY_HEADERS = (b"api-key", b"x-api-key")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_CLOSE = (b"connection", b"close")
_DISCONNECT = {"type": "http.disconnect"}


class Guard:
    """An ASGI application around another."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        metrics: Metrics,
        *,
        keys: Keys | None = None,
        rate: float | None = None,
        open_metrics: bool = False,
        tracer: Tracer | None = None,
    ):
        self.app = app
        self.service = service
        self.metrics = metrics
        self.keys = keys
        self.rates = None if rate is None else Rates(rate)
        self.tracer = tracer
        self.open_paths = OPEN_PATHS | {"/metrics"} if open_metrics else OPEN_PATHS
        self._process = secrets.token_hex(4)
        self._numbers = itertools.count()

    def new_id(self) -> bytes:
        """An id for a request that has none."""
        return f"{self._process}{next(self._numbers):08x}".encode()

    def shed(self) -> bytes | None:
        """The whole answer to a request that is refused unread, as there are more than can be read; else None."""
        error = self.service.admission.shed()
        if error is None:
            return None
        self.metrics.requested(OTHER, error.kind.status, Usage(), 0.0)
        response = refusal(error, "")
        headers = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        return b"HTTP/1.1 429 Too Many Requests\r\n%b\r\n%b" % (headers, bytes(response.body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Guarded(self, scope, receive, send).answer()
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:  # there are no others, and they would come in without a key
            await send({"type": "websocket.close"})


class _Guarded:
    """A request, and what the application gets as `receive` and `send`."""

    __slots__ = (
        "_body_bytes", "_client", "_deadline", "_expected", "_guard", "_id", "_key", "_receive", "_refused", "_scope",
        "_send", "_started", "_status", "_unread", "_usage",
    )  # fmt: skip

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send):
        self._guard = guard
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.perf_counter()
        self._usage = Usage()
        self._status = 0
        self._refused = False
        self._client = scope["client"][0] if scope.get("client") else ""
        self._key: bytes | None = None
        self._id = b""
        self._expected: int | None = 0  # bytes of the body; None if they are not declared
        self._body_bytes = 0
        for name, value in scope["headers"]:
            if name == b"content-length":
                self._expected = int(value) if value.isdigit() else None
            elif name == b"transfer-encoding":
                self._expected = None
            elif name == b"authorization":
                if value[:7].lower() == b"bearer ":
                    self._key = value[7:].strip()
            elif name in _KEY_HEADERS:
                self._key = self._key or value
            elif name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                self._id = value
        self._id = self._id or guard.new_id()
        self._unread = self._expected != 0
        self._deadline: float | None = None

    async def answer(self) -> None:
        try:
            error = self._refusal()
            if error is not None:
                await self._refuse(error)
                return
            state = self._scope.setdefault("state", {})
            state.update(client=self._client, request_id=self._id.decode())
            if self._guard.rates is not None:
                state["charge"] = functools.partial(self._guard.rates.charge, self._client)
            USAGE.set(self._usage)
            await self._guard.app(self._scope, self.receive, self.send)
        except Exception as error:
            await self._failed(error)
        finally:
            self._report()

    def _refusal(self) -> ServiceError | None:
        """Why the request is not answered."""
        guard = self._guard
        if self._scope["path"] not in guard.open_paths:
            if guard.keys is not None:
                client = None if self._key is None else guard.keys.client(self._key)
                if client is None:
                    return ServiceError(Kind.UNAUTHORIZED, "send a valid key: Authorization: Bearer KEY")
                self._client = client
            wait = 0.0 if guard.rates is None else guard.rates.wait(self._client)
            if wait:
                return ServiceError(Kind.OVERLOADED, "too many requests; send fewer", retry_after=wait)
        return self._too_large(self._expected or 0)

    def _too_large(self, size: int) -> ServiceError | None:
        limit = self._guard.service.limits.body_bytes
        return ServiceError(Kind.TOO_LARGE, f"the body has more than {limit} bytes") if size > limit else None

    async def receive(self) -> Message:
        """For the application: as the server's, but a body that is too large or too slow is refused."""
        if not self._unread:
            return await self._receive()
        if self._refused:
            return _DISCONNECT
        try:
            async with asyncio.timeout_at(self._until()):
                message = await self._receive()
        except TimeoutError:
            limit = self._guard.service.limits.body_ms / 1000
            await self._refuse(ServiceError(Kind.SLOW, f"the body did not come within {limit:g} s"))
            return _DISCONNECT
        self._note(message)
        error = self._too_large(self._body_bytes)
        if error is not None:
            await self._refuse(error)
            return _DISCONNECT
        return message

    def _until(self) -> float:
        """When the body must be there, by the event loop's clock."""
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._guard.service.limits.body_ms / 1000
        return self._deadline

    def _note(self, message: Message) -> None:
        self._body_bytes += len(message.get("body", b""))
        self._unread = message["type"] == "http.request" and message.get("more_body", False)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """For the application: as the server's, with an id. What it says after a refusal is dropped."""
        if self._refused:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self._id)]
            if self._guard.service.stopping or (self._unread and (self._is_large or self._status == Kind.SLOW.status)):
                headers.append(_CLOSE)
            message["headers"] = headers
        elif self._unread and self._is_large and self._status != Kind.SLOW.status and not message.get("more_body"):
            await self._end(message["body"])  # the application has answered before it read the body
            return
        await self._send(message)

    @property
    def _is_large(self) -> bool:
        return self._expected is None or self._expected > SMALL_BODY

    async def _refuse(self, error: ServiceError) -> None:
        """Answers at once. A large body is read, and dropped, so that the client sees the answer; then it is closed."""
        if self._status:  # the application has answered before it read the body
            self._refused = True
            return
        response = refusal(error, self._scope["path"])
        linger = self._unread and self._is_large and error.kind is not Kind.SLOW  # that one had its time
        await self.send({"type": "http.response.start", "status": error.kind.status, "headers": response.raw_headers})
        self._refused = True
        if linger:
            await self._end(bytes(response.body))
        else:
            await self._send({"type": "http.response.body", "body": response.body, "more_body": False})

    async def _end(self, answer: bytes) -> None:
        """Sends the body of the answer, and ends it when that of the request has come, or its time is over."""
        await self._send({"type": "http.response.body", "body": answer, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._until()):
                while self._unread:
                    self._note(await self._receive())
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _failed(self, error: Exception) -> None:
        """Logs where a bug is, without its message, in which an input may be."""
        if self._refused or self._status == GONE:
            return
        log.error("request %s failed: %s", self._id.decode(), logs.place(error))
        if not self._status:
            await self._refuse(ServiceError(Kind.FAILED, "the service failed; this is a bug"))

    def _report(self) -> None:
        seconds = time.perf_counter() - self._started
        usage, status = self._usage, self._status or GONE
        path = getattr(self._scope.get("route"), "path", OTHER)
        self._guard.metrics.requested(path, status, usage, seconds)
        tracer, logged = self._guard.tracer, logs.requests.isEnabledFor(logging.INFO)
        if tracer is None and not logged:
            return
        stages = {"encode": usage.encode, "queue": usage.queue, "compute": usage.compute, "total": seconds}
        method = self._scope["method"]
        fields = {
            "id": self._id.decode(),
            "client": self._client,
            "method": method if method in _METHODS else OTHER,
            "path": path,
            "status": status,
            "ms": {stage: round(1000 * took, 3) for stage, took in stages.items()},
            "inputs": usage.inputs,
            "tokens": usage.tokens,
            "cached": usage.cached,
            "written": usage.written,
        }
        if tracer is not None:
            tracer.request(self._scope["headers"], fields, seconds)
        if logged:
            logs.log_request(fields)
