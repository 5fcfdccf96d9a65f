"""What the service reports about its work, such as to metrics."""

from collections.abc import Sequence

from research.data.parts import Part
from research.serve.queue import Job
from research.serve.shapes import Shape


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
