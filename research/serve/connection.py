"""A connection: uvicorn's, with limits that it lacks: on what comes before a request's body, and on slow readers."""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0  # from the first byte of a request to the end of its headers
UNUSED_SECONDS = 60.0  # from the opening of the connection to its first byte
HEAD_BYTES = 2**16  # of the request line and headers, of the trailers, or between two parts of a body
SMALL_BODY = 2**16  # bytes that are read whether they are wanted or not
UNTAKEN_SECONDS = 10.0  # in which a client whose answers fill the buffers has to take
TAKEN_BYTES = 2**15  # of them

_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connection(HttpToolsProtocol):
    """Closes if the head of a request is too slow or too large, or if answers are not taken.

    The guard limits the bodies of requests.

    Args:
      shed: what a POST request is answered with instead of being given to the application; None for the application.
    """

    def __init__(self, *arguments: Any, shed: Callable[[], bytes | None] = lambda: None, **options: Any):
        super().__init__(*arguments, **options)
        self._shed = shed
        self._shed_answer: bytes | None = None
        self._in_head = True
        self._unread_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unused: asyncio.TimerHandle | None = None
        self._untaken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._unused = self.loop.call_later(UNUSED_SECONDS, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_unused()
        self._stop()
        self._stop_untaken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The buffer of the answers is full."""
        super().pause_writing()
        self._watch_untaken()

    def resume_writing(self) -> None:
        """It is nearly empty."""
        self._stop_untaken()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._stop_unused()
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > HEAD_BYTES:
            self._refuse(_LARGE)
        elif self._in_head and self._unread_bytes and self._timer is None:
            self._start()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unread_bytes = 0
        self._stop()
        self._shed_answer = self._shed() if self._can_be_shed() else None
        if self._shed_answer is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        if self._shed_answer is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._unread_bytes = 0
        if self._shed_answer is None:
            super().on_message_complete()
            return
        self.transport.write(self._shed_answer)
        if self.parser.should_keep_alive():
            self.on_response_complete()
        else:
            self.transport.close()

    def _can_be_shed(self) -> bool:
        """Whether the request is one whose small body comes at once, and no earlier one waits for its answer."""
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        return (
            self.parser.get_method() == b"POST"
            and length.isdigit()
            and int(length) <= SMALL_BODY
            and not self.expect_100_continue
            and not self._answers
        )

    @property
    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _stop_unused(self) -> None:
        if self._unused is not None:
            self._unused.cancel()
            self._unused = None

    def _watch_untaken(self) -> None:
        size = self.transport.get_write_buffer_size()
        self._untaken = self.loop.call_later(UNTAKEN_SECONDS, self._check_untaken, size)

    def _check_untaken(self, before: int) -> None:
        if self.transport.get_write_buffer_size() > before - TAKEN_BYTES:
            self.transport.abort()  # to close it would wait for the client
        else:
            self._watch_untaken()

    def _stop_untaken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

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
