"""A decoder as the service runs it: a thread that continues the texts of several requests at the same time."""

import collections
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from research.inference.continuations import Continuation, Token
from research.inference.generate import Generator, Request
from research.inference.writing import Piece
from research.serve.errors import Kind, ServiceError
from research.serve.limits import Limits
from research.serve.logs import place
from research.serve.observer import CANCELLED, FAILED, Observer, Step
from research.serve.ticket import Ticket

log = logging.getLogger("research.serve")


class Writer:
    """Writes texts, `limits.texts` at the same time; as many as `limits.queue_texts` wait.

    A row that is free is for the client with the fewest texts being written; of several clients, and of the texts of
    one, the first come is the first served.

    Attributes:
      name, version, generator: what requests call it, its checkpoint or weights, and the decoder.
      observer: is told what it does; to be set before texts are asked for.
    """

    def __init__(self, name: str, generator: Generator, limits: Limits):
        self.name = name
        self.version = generator.version
        self.generator = generator
        self.observer = Observer()
        self._rows = limits.texts
        self._most = limits.texts + limits.queue_texts
        self._continuations = generator.continuations(rows=limits.texts, length=limits.text_tokens)
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._texts: dict[Continuation, Ticket] = {}  # those that are being written; only the thread changes it
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"writer-{name}", daemon=True)

    @property
    def length(self) -> int:
        """The tokens of the longest text with its prompt."""
        return self._continuations.length

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more texts."""
        return self._closed

    @property
    def waiting(self) -> int:
        """The texts that wait for a row."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """The texts that are being written."""
        return len(self._texts)

    def warm_up(self) -> Iterator[str]:
        """Compiles the programs of all sizes -> what was compiled, one by one."""
        yield from self._continuations.warm_up()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends when what was asked for is written."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the end after `close` -> whether it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def ask(
        self, requests: Sequence[Request], deliver: Callable[[int, Piece | Exception], None], *, client: str = ""
    ) -> list[Ticket]:
        """Asks for all texts or none. `deliver` is called in the thread, with the index of the request.

        Raises ServiceError if too many wait, UserError if one can't be written.
        """
        tickets = []
        for index, request in enumerate(requests):
            self.generator.check(request, self.length)
            writing = self.generator.writing(request, self.length)
            tickets.append(Ticket(request, writing, functools.partial(deliver, index), client))
        with self._changed:
            if self._closed:
                raise ServiceError(Kind.UNAVAILABLE, "the model is being replaced; ask again", retry_after=1.0)
            if self.active + self.waiting + len(tickets) > self._most:
                self.observer.refused(self.name, len(tickets))
                message = f"{self.active} texts are being written, and {self.waiting} wait; try again later"
                raise ServiceError(Kind.OVERLOADED, message, retry_after=1.0)
            self._waiting += tickets
            self._changed.notify()
        return tickets

    def _work(self) -> None:
        while True:
            try:
                if not self._admit():
                    return
                self._step()
            except Exception as error:  # whatever a model raises must not end the thread
                log.error("model %s failed to continue texts: %s", self.name, place(error))
                self._fail(error)

    def _admit(self) -> bool:
        """Drops the cancelled texts, and gives free rows to others; waits if there are none -> whether to go on."""
        with self._changed:
            while True:
                for continuation in [each for each, ticket in self._texts.items() if ticket.cancelled]:
                    self._end(continuation, CANCELLED)
                for ticket in [each for each in self._waiting if each.cancelled]:
                    self._waiting.remove(ticket)
                    self.observer.ended(self.name, CANCELLED)
                while self._waiting and len(self._texts) < self._rows:
                    self._begin(self._next())
                if self._texts or self._closed:
                    return bool(self._texts)
                self._changed.wait()

    def _next(self) -> Ticket:
        """Takes the text that a free row is for."""
        rows = collections.Counter(ticket.client for ticket in self._texts.values())
        ticket = min(self._waiting, key=lambda ticket: rows[ticket.client])  # of equal ones the first
        self._waiting.remove(ticket)
        return ticket

    def _begin(self, ticket: Ticket) -> None:
        request = ticket.request
        ticket.started = time.perf_counter()
        self._texts[self._continuations.add(request.prompt, request.sampling, top=request.top)] = ticket

    def _step(self) -> None:
        found = self._continuations.step()
        if not found:  # a part of a prompt was read
            return
        step = Step(self._continuations.fill)
        now = time.perf_counter()
        for continuation, token in found:
            ticket = self._texts[continuation]
            if ticket.last:
                step.between.append(now - ticket.last)
            else:
                step.first.append(now - ticket.asked)
                step.prompt_tokens += len(ticket.request.prompt)
            ticket.last = now
            self._add(continuation, ticket, token)
        self.observer.stepped(self.name, step)

    def _add(self, continuation: Continuation, ticket: Ticket, token: Token) -> None:
        try:
            piece: Piece | Exception = ticket.writing.add(token)
        except Exception as error:  # such as bytes that the tokenizer can't decode: the other texts go on
            log.error("model %s failed to continue a text: %s", self.name, place(error))
            piece = error
        reason = FAILED if isinstance(piece, Exception) else piece.finish
        if reason:
            self._end(continuation, reason)
        ticket.deliver(piece)

    def _end(self, continuation: Continuation, reason: str) -> None:
        ticket = self._texts.pop(continuation)
        ticket.ended = time.perf_counter()
        self.observer.ended(self.name, reason)
        self._continuations.remove(continuation)

    def _fail(self, error: Exception) -> None:
        """Ends all texts that are being written. Their arrays may be gone, as each step is given them to overwrite."""
        tickets = list(self._texts.values())
        self._texts.clear()
        self._continuations.clear()
        for ticket in tickets:
            ticket.ended = time.perf_counter()
            self.observer.ended(self.name, FAILED)
            ticket.deliver(error)
