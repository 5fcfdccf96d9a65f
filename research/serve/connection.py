"""A connection: uvicorn's, with limits on what comes before a request's body, which uvicorn does not limit."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0  # from the first byte of a request, or the opening of the connection, to the end of its headers
HEAD_BYTES = 2**16  # of the request line and headers, of the trailers, or between two parts of a body

_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connection(HttpToolsProtocol):
    """Closes if the head of a request is too slow or too large. The guard limits what comes after it."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._in_head = True
        self._unread_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > HEAD_BYTES:
            self._refuse(_LARGE)
        elif self._in_head and self._timer is None:
            self._start()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unread_bytes = 0
        self._stop()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._unread_bytes = 0
        super().on_message_complete()

    @property
    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._expire)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if self._answers:  # what has come is of the next request, which can wait
            self._start()
        else:
            self._refuse(_SLOW)

    def _refuse(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            if not self._answers:
                self.transport.write(answer)
            self.transport.close()
