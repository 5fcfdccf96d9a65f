"""A decoder as the service runs it: a thread that continues the texts of several requests at the same time."""

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator

from research.inference.continuations import Continuation
from research.inference.generate import Generator, Request
from research.inference.writing import Piece, Writing
from research.serve.errors import Kind, ServiceError
from research.serve.limits import Limits

log = logging.getLogger("research.serve")

# Called in the thread with each piece, and with an error instead if there are no more.
Deliver = Callable[[Piece | Exception], None]


@dataclasses.dataclass(eq=False)
class Ticket:
    """A text that was asked for. `cancelled`: set by any thread: nobody waits for more of it."""

    request: Request
    deliver: Deliver
    cancelled: bool = False


class Writer:
    """Writes texts, `limits.texts` at the same time; as many as `limits.queue_texts` wait.

    Attributes:
      name, version, generator: what requests call it, its checkpoint or weights, and the decoder.
    """

    def __init__(self, name: str, generator: Generator, limits: Limits):
        self.name = name
        self.version = generator.version
        self.generator = generator
        self._most = limits.texts + limits.queue_texts
        self._continuations = generator.continuations(rows=limits.texts, length=limits.text_tokens)
        self._changed = threading.Condition()
        self._new: collections.deque[Ticket] = collections.deque()
        self._texts: dict[Continuation, tuple[Ticket, Writing]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"writer-{name}", daemon=True)

    @property
    def length(self) -> int:
        """The tokens of the longest text with its prompt."""
        return self._continuations.length

    @property
    def waiting(self) -> int:
        """The texts that are being written, or wait for it."""
        return len(self._new) + len(self._texts)

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

    def ask(self, request: Request, deliver: Deliver) -> Ticket:
        """Asks for a text. Raises ServiceError if too many are waited for, UserError if it can't be written."""
        self.generator.check(request, self.length)
        ticket = Ticket(request, deliver)
        with self._changed:
            if self._closed:
                raise ServiceError(Kind.UNAVAILABLE, "the model is being replaced; ask again", retry_after=1.0)
            if self.waiting >= self._most:
                message = f"{self.waiting} texts are being written, or wait; try again later"
                raise ServiceError(Kind.OVERLOADED, message, retry_after=1.0)
            self._new.append(ticket)
            self._changed.notify()
        return ticket

    def _work(self) -> None:
        while self._admit():
            try:
                for continuation, token in self._continuations.step():
                    ticket, writing = self._texts[continuation]
                    piece = writing.add(token)
                    if piece.finish:
                        self._end(continuation)
                    ticket.deliver(piece)
            except Exception as error:  # whatever a model raises must not end the thread
                log.exception("model %s failed to continue texts", self.name)
                for continuation, (ticket, _) in list(self._texts.items()):
                    self._end(continuation)
                    ticket.deliver(error)

    def _admit(self) -> bool:
        """Takes the new texts and drops the cancelled ones; waits if there is none -> whether to go on."""
        with self._changed:
            while True:
                for continuation in [each for each, (ticket, _) in self._texts.items() if ticket.cancelled]:
                    self._end(continuation)
                while self._new:
                    ticket = self._new.popleft()
                    if not ticket.cancelled:
                        request = ticket.request
                        added = self._continuations.add(request.prompt, request.sampling, top=request.top)
                        self._texts[added] = ticket, self.generator.writing(request, self.length)
                if self._texts or self._closed:
                    return bool(self._texts)
                self._changed.wait()

    def _end(self, continuation: Continuation) -> None:
        self._continuations.remove(continuation)
        del self._texts[continuation]
