"""Which requests are refused as there are too many of them."""

import asyncio
import contextlib
from collections.abc import Iterator

from research.serve.errors import Kind, ServiceError
from research.serve.limits import Limits
from research.serve.queue import FairQueue

_TICK_SECONDS = 0.01
_LATE_SECONDS = 0.02  # of the event loop, from which requests may be refused unread
_LATE_SHARE = 4  # then fewer requests are enough to refuse others


class Admission:
    """Refuses requests by their number, and by what waits in the queue. For the thread of one event loop.

    Attributes:
      requests: those that are being answered.
    """

    def __init__(self, limits: Limits, queue: FairQueue):
        self.requests = 0
        self._most = limits.requests
        self._queue = queue
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to watch whether the event loop is late; call it in the loop."""
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self.start)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @contextlib.contextmanager
    def request(self, *, queues: bool = True) -> Iterator[None]:
        """Counts a request while it is answered. Raises ServiceError if it has no chance of an answer now.

        Args:
          queues: whether its inputs have to wait in the queue.
        """
        error = self._refusal(self._most, queues=queues)
        if error is not None:
            raise error
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def shed(self) -> ServiceError | None:
        """Why requests are refused before they are read: the event loop is late, and there is much to compute."""
        if self._timer is None or asyncio.get_running_loop().time() <= self._timer.when() + _LATE_SECONDS:
            return None
        return self._refusal(self._most // _LATE_SHARE)

    def _refusal(self, most: int, *, queues: bool = True) -> ServiceError | None:
        if self.requests >= most:
            message = f"{self.requests} requests are being answered; try again later"
            return ServiceError(Kind.OVERLOADED, message, retry_after=0.1)
        return self._queue.refusal(1) if queues else None
