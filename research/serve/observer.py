"""What the service reports about its work, such as to metrics."""

import dataclasses
from collections.abc import Sequence

from research.data.parts import Part
from research.serve.queue import Job
from research.serve.shapes import Shape
from research.serve.ticket import Ticket

# Why a text ended, besides what `Piece.finish` says.
CANCELLED, FAILED = "cancelled", "failed"


@dataclasses.dataclass
class Step:
    """A step of a decoder, which added a token to several texts.

    Attributes:
      fill: the share of the rows of the batch that they are.
      first: of those that had none, the seconds since they were asked for.
      between: of the others, the seconds since their last token.
      prompt_tokens: of the first ones.
    """

    fill: float
    first: list[float] = dataclasses.field(default_factory=list)
    between: list[float] = dataclasses.field(default_factory=list)
    prompt_tokens: int = 0


class Observer:
    """Is told what the service does. This one ignores it."""

    def computed(self, jobs: Sequence[Job], shape: Shape) -> None:
        """A batch of this shape has the answers of these jobs. Called in a device's thread."""

    def routed(self, split: str, variant: str) -> None:
        """A request to a split goes to one of its models. Called in the event loop's thread."""

    def answered(self, model: str, parts: Sequence[Part], jobs: Sequence[Job], encoding: float) -> None:
        """A request has its answers. Called in the event loop's thread, in the context of the request.

        Args:
          parts: its inputs.
          jobs: those of its inputs whose answers were not cached.
          encoding: the seconds that encoding them took.
        """

    def stepped(self, model: str, step: Step) -> None:
        """A decoder made a step. Called in its writer's thread."""

    def ended(self, model: str, reason: str) -> None:
        """A text ended: why, as `Piece.finish` says, or CANCELLED or FAILED. Called in its writer's thread."""

    def refused(self, model: str, texts: int) -> None:
        """Texts were refused, as too many wait. Called in the event loop's thread."""

    def wrote(self, model: str, tickets: Sequence[Ticket], tokens: int, encoding: float) -> None:
        """A request has its texts, or they were cancelled. Called in the event loop's thread, in its context.

        Args:
          tickets: its texts.
          tokens: those that were added to all of them.
          encoding: the seconds that encoding the prompt took.
        """
