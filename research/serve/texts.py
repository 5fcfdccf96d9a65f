"""The texts of a request, as they come: with a time limit, and dropped when nobody waits for them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from research.base.errors import UserError
from research.inference.generate import Request
from research.inference.writing import Piece
from research.serve.errors import Kind, ServiceError
from research.serve.http import Exchange
from research.serve.ticket import Ticket
from research.serve.writer import Writer

_MOST_UNREAD = 1024  # pieces of a request that wait for a client whose buffers are full


class Texts:
    """The texts of a request, in the thread of the event loop.

    Attributes:
      writer: what writes them; known when the first piece comes.
      prompt: the tokens before them, likewise.
      written: how many tokens they have together.
      is_blocked: set by whoever takes the pieces, while it can't as its client does not read.
    """

    writer: Writer

    def __init__(
        self,
        exchange: Exchange,
        model: str | None,
        encode: Callable[[Writer], Sequence[int]],
        requests: Callable[[Writer, Sequence[int]], Sequence[Request]],
    ):
        """
        Args:
          model: what to ask.
          encode: makes the tokens of the prompt, in another thread.
          requests: the texts to ask for.
        """
        self.prompt: Sequence[int] = ()
        self.written = 0
        self.is_blocked = False
        self._exchange = exchange
        self._model = model
        self._encode = encode
        self._requests = requests
        self._pieces: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._encoding = 0.0
        self._dropped = False

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """Asks for the texts -> the pieces of all of them as they come. What is not read to its end is cancelled.

        Raises ServiceError if they can't be written, or are too many, if the model fails, or if it takes too long.
        """
        loop, limits = asyncio.get_running_loop(), self._exchange.service.limits
        began = loop.time()
        until = began + limits.timeout_ms / 1000
        try:
            async with asyncio.timeout_at(until):
                await self._prepare()
            self._ask(loop)
            left = len(self._tickets)
            while left:
                async with asyncio.timeout_at(until):
                    index, piece = await self._pieces.get()
                if isinstance(piece, ServiceError):
                    raise piece
                if isinstance(piece, Exception):
                    raise ServiceError(Kind.FAILED, f"the model failed: {type(piece).__name__}")
                self.written += 1
                left -= bool(piece.finish)
                yield index, piece
                until = began + limits.text_ms / 1000
        except TimeoutError:
            limit = (limits.text_ms if self.written else limits.timeout_ms) / 1000
            what = "all tokens" if self.written else "the first token"
            message = f"{what} took longer than {limit:g} s"
            raise ServiceError(Kind.OVERLOADED, message, retry_after=limit) from None
        finally:
            self._cancel()
            if self._tickets:
                self.writer.observer.wrote(self.writer.name, self._tickets, self.written, self._encoding)

    async def _prepare(self) -> None:
        """Encodes the prompt; again, if the model is replaced meanwhile."""
        while True:
            self.writer = self._exchange.service.writer(self._model)
            began = time.perf_counter()
            try:
                self.prompt = await asyncio.to_thread(self._encode, self.writer)
            except UserError as error:
                raise ServiceError(Kind.INVALID, str(error)) from None
            self._encoding = time.perf_counter() - began
            if self._exchange.service.writers.get(self.writer.name) is self.writer:
                return

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        def deliver(index: int, piece: Piece | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._put, index, piece)

        try:
            requests = self._requests(self.writer, self.prompt)
            self._exchange.charge(len(requests) - 1)
            self._tickets = self.writer.ask(requests, deliver, client=self._exchange.client)
        except UserError as error:
            raise ServiceError(Kind.INVALID, str(error)) from None

    def _put(self, index: int, piece: Piece | Exception) -> None:
        """Keeps a piece, or drops the texts if there are too many that the client does not take."""
        if self._dropped:
            return
        if self.is_blocked and self._pieces.qsize() >= _MOST_UNREAD:
            self._dropped = True
            self._cancel()
            piece = ServiceError(Kind.SLOW, f"the text is dropped: {_MOST_UNREAD} tokens of it were not read")
        self._pieces.put_nowait((index, piece))

    def _cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancelled = True
