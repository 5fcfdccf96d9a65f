"""Texts as server-sent events."""

import contextlib
from collections.abc import AsyncGenerator

from fastapi.responses import Response
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from research.serve.errors import ServiceError
from research.serve.http import ClientGone, Exchange, refusal
from research.serve.texts import Texts

_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


def event(value: object) -> bytes:
    return b"data: %b\n\n" % to_json(value)


class EventStream(Response):
    """The answer to a request for texts. It begins with the first event, so that an error before has its status.

    An error after that is an event, the last one.
    """

    def __init__(self, exchange: Exchange, texts: Texts, events: AsyncGenerator[bytes]):
        super().__init__()
        self._exchange = exchange
        self._texts = texts
        self._events = events
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._exchange.service.admission.request(queues=False):
                await self._exchange.connected(self._send(send))
        except ClientGone:
            return
        except ServiceError as error:
            if not self._begun:
                await refusal(error, scope["path"])(scope, receive, send)
                return
            told = event({"error": {"message": str(error), "type": error.kind.label, "code": error.kind.status}})
            await send({"type": "http.response.body", "body": told, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            async for data in events:
                self._texts.is_blocked = True
                if not self._begun:
                    self._begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
                await send({"type": "http.response.body", "body": data, "more_body": True})
                self._texts.is_blocked = False
