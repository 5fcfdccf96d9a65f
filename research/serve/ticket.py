"""A text that a request asks for."""

import dataclasses
import time
from collections.abc import Callable

from research.inference.generate import Request
from research.inference.writing import Piece, Writing


@dataclasses.dataclass(eq=False)
class Ticket:
    """A text that was asked for.

    Attributes:
      writing: the text in the making.
      deliver: is called in the writer's thread with each piece, and with an error instead if there are no more.
      client: who asks; clients share the rows of a writer evenly.
      cancelled: set by any thread: nobody waits for more of it.
      asked, started, last, ended: when it was asked for, got a row, had its last token, and ended, by `perf_counter`;
        0 before.
    """

    request: Request
    writing: Writing
    deliver: Callable[[Piece | Exception], None]
    client: str = ""
    cancelled: bool = False
    asked: float = dataclasses.field(default_factory=time.perf_counter)
    started: float = 0.0
    last: float = 0.0
    ended: float = 0.0
